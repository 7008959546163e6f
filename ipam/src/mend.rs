//! Putting back the node's routes to its pods, which somebody's `ip route flush` took: the records say which pods
//! there are, the kernel which of them live.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_cni::error::Error;
use weft_netlink::Socket;
use weft_netlink::route::{self, Route};

use crate::kernel::{HostKernel, refused};
use crate::record::{Phase, Record};
use crate::state::State;

/// Puts back what is missing, and returns to which addresses. An attachment that somebody works on is left alone.
///
/// # Errors
/// Code 5 on a disk fault, 102 if the kernel refuses.
pub fn mend_routes(state: &State, kernel: &mut HostKernel) -> Result<Vec<IpAddr>, Error> {
    let there = present(kernel.socket()?)?;
    let sources = local_sources(kernel.socket()?, state)?;
    let mut mended = Vec::new();
    for owner in state.owners()? {
        let Some(key) = owner.key() else { continue };
        // Cheap look first: most have their routes.
        if state.peek(&key)?.is_none_or(|record| missing(&record, &there).is_empty()) {
            continue;
        }
        let Some(attachment) = state.find_idle(&key)? else { continue };
        let Some(record) = attachment.record()? else { continue };
        let lives = match &record.host {
            Some(host) => kernel.host_end(host)?.is_some(),
            None => false,
        };
        let held = attachment.held(&record)?;
        let lost = missing(&record, &there).into_iter().filter(|(ip, _)| lives && held.contains(ip));
        for (ip, link) in lost {
            put_back(kernel.socket()?, ip, link, &sources)?;
            mended.push(ip);
        }
    }
    Ok(mended)
}

/// The addresses of a finished attachment that the node has no route to, and the link that it should lead over.
fn missing(record: &Record, there: &BTreeSet<(IpAddr, u32)>) -> Vec<(IpAddr, u32)> {
    let over = match (&record.bridge, &record.host) {
        (Some(bridge), _) if record.routed => bridge.index,
        // Point to point.
        (None, Some(host)) => host.index,
        _ => return Vec::new(),
    };
    let addresses = record.addresses.iter().map(|taken| (taken.address.addr(), over));
    addresses.filter(|wanted| record.phase == Phase::Done && !there.contains(wanted)).collect()
}

fn present(socket: &mut Socket) -> Result<BTreeSet<(IpAddr, u32)>, Error> {
    let mut there = BTreeSet::new();
    for ipv4 in [true, false] {
        let routes = route::own(socket, ipv4)
            .map_err(|error| refused("read the node's routes to its pods", &error))?;
        there.extend(routes.iter().map(|route| (route.destination.0, route.link)));
    }
    Ok(there)
}

/// The node addresses that some link has.
fn local_sources(socket: &mut Socket, state: &State) -> Result<Vec<IpAddr>, Error> {
    let mut local = Vec::new();
    for ip in state.node_addresses()? {
        let is_local = route::is_local(socket, ip, 0)
            .map_err(|error| refused(format!("ask whether this node has {ip}"), &error))?;
        local.extend(is_local.then_some(ip));
    }
    Ok(local)
}

fn put_back(socket: &mut Socket, ip: IpAddr, link: u32, sources: &[IpAddr]) -> Result<(), Error> {
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let source = sources.iter().copied().find(|source| source.is_ipv4() == ip.is_ipv4());
    let request = route::add(&Route { source, ..Route::on_link(ip, bits, link) });
    // Somebody was quicker, or the link went meanwhile.
    let fine = |_, errno| [libc::EEXIST, libc::ENODEV, libc::ENETDOWN].contains(&errno);
    socket
        .execute_tolerating(&[request], fine)
        .map_err(|error| refused(format!("put back the node's route to the pod {ip}"), &error))
}
