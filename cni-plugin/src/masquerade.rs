//! Masquerading: one interval for each range, written when the range first appears. Nothing per pod, so the usual
//! ADD opens no netfilter socket, whose close would wait for the kernel's clean-up.

use std::net::IpAddr;

use weft_cni::error::Error;
use weft_ipam::clock::boot_seconds;
use weft_ipam::{Pool, State, refused};
use weft_netlink::rules::{self, Interval, Masquerade};
use weft_netlink::{Protocol, Socket};

use crate::addressing::{Plan, PodAddress};
use crate::forward;

/// What has to be masqueraded for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Source ranges, each with the destinations that are spared.
    pub rules: Vec<Masquerade>,
    /// Sources that are single addresses: they go with their pod.
    pub single: Vec<IpAddr>,
}

/// What a pod's addresses need: their ranges if we know them, else their subnets.
pub fn wanted(plan: &Plan, pools: &[Pool]) -> Wanted {
    let mut wanted = Wanted::default();
    for pod in &plan.addresses {
        let ip = pod.address.addr();
        let mut segments = pools.iter().flat_map(|pool| &pool.segments);
        let range = segments.find(|segment| segment.index_of(ip).is_some());
        let (first, last) = match range {
            Some(segment) => (segment.first, segment.last),
            None => (pod.network.first(), pod.network.last()),
        };
        let Some(sources) = Interval::new(first, last) else { continue };
        let plain = plain(pod);
        if first == last && range.is_none() {
            wanted.single.push(ip);
        }
        wanted.rules.push(Masquerade { sources, plain });
    }
    wanted
}

/// Sees to it that all that is wanted is in the kernel. Returns what the log should warn of.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn ensure(state: &State, wanted: &Wanted) -> Result<Vec<String>, Error> {
    let names: Vec<String> = wanted.rules.iter().map(name).collect();
    // Somebody may flush the ruleset: the next ADD repairs it, but does not look each time.
    if names.iter().all(|name| state.was_verified_lately(name)) {
        return Ok(Vec::new());
    }
    // One looks; those who come meanwhile need not, unless the range was never written.
    let now = boot_seconds();
    for name in names.iter().filter(|name| state.verified_at(name).is_some()) {
        state.note_verified(name, now)?;
    }
    let failed = |error: weft_netlink::Error| refused("write the masquerade rules (nf_tables)", &error);
    let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
    rules::ensure_masquerade(&mut socket, &wanted.rules).map_err(failed)?;
    for name in &names {
        state.note_verified(name, now)?;
    }
    // As the socket is open.
    let closed = forward::closed(&mut socket).map_err(failed)?;
    Ok(closed.iter().map(|sentence| format!("warning: {sentence}")).collect())
}

/// What is wanted and not in the kernel, for CHECK.
///
/// # Errors
/// Code 102 if the kernel refuses to tell.
pub fn missing(wanted: &Wanted) -> Result<Vec<String>, Error> {
    let failed = |error: weft_netlink::Error| refused("read the masquerade rules (nf_tables)", &error);
    let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
    let missing = rules::missing_masquerade(&mut socket, &wanted.rules).map_err(failed)?;
    Ok(missing.iter().map(name).collect())
}

fn name(rule: &Masquerade) -> String {
    let plain =
        rule.plain.map_or_else(String::new, |plain| format!("-not-to-{}-{}", plain.first(), plain.last()));
    format!("masquerade-{}-{}{plain}", rule.sources.first(), rule.sources.last())
}

/// The pod's own network, unless the pod is all of it: nothing leaves for itself.
fn plain(pod: &PodAddress) -> Option<Interval> {
    let (first, last) = (pod.network.first(), pod.network.last());
    Interval::new(first, last).filter(|_| first != last)
}

/// What CHECK asks for: the pod's own addresses, whichever interval covers them.
pub fn wanted_single(plan: &Plan) -> Wanted {
    let rule = |pod: &PodAddress| {
        let ip = pod.address.addr();
        Some(Masquerade { sources: Interval::new(ip, ip)?, plain: plain(pod) })
    };
    Wanted { rules: plan.addresses.iter().filter_map(rule).collect(), single: Vec::new() }
}
