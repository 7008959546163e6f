//! CHECK: compares what prevResult and the record say with the kernel, and names every difference at once. It
//! changes nothing, and tolerates what later plugins of the chain added or changed.

use std::net::IpAddr;

use weft_cni::delegate::Delegate;
use weft_cni::error::{Error, code};
use weft_cni::request::Command;
use weft_cni::result::AddResult;
use weft_cni::route::Route;
use weft_cni::run::Call;
use weft_ipam::alias::Alias;
use weft_ipam::clock::Deadline;
use weft_ipam::{HostKernel, Key, Record, State, refused};
use weft_netlink::link::{self, Link};
use weft_netlink::{Protocol, Socket, addr, route, rules};

use crate::addressing::{Granted, plan};
use crate::conf::{BridgeConf, Conf, Ipam, Mode};
use crate::pod::Pod;
use crate::{bridge, del, forward, masquerade};

/// Compares an attachment with the kernel.
///
/// # Errors
/// Code 103 whose details list every difference; 7 without prevResult; 8 if the namespace is gone.
pub fn check(call: &Call<'_>, conf: &Conf, deadline: Deadline) -> Result<(), Error> {
    let previous = call.conf.prev_result()?.ok_or_else(|| Error::config("Required prevResult missing"))?;
    let mut pod = Pod::open(call.attachment)?;
    let mut kernel = HostKernel::default();
    let mut findings = Vec::new();
    check_pod(&mut pod, call, conf, &previous, &mut findings)?;
    let record = check_record(call, conf, &previous, &mut kernel, deadline, &mut findings)?;
    check_host(call, conf, record.as_ref(), &previous, &mut kernel, &mut findings)?;
    check_rules(conf, record.as_ref(), &previous, &mut findings)?;
    let speaks = |ipv4| previous.ips.iter().any(|ip| ip.address.addr().is_ipv4() == ipv4);
    findings.extend(forward::check(conf, speaks)?);
    match delegate_check(call, deadline) {
        Err(error) if findings.is_empty() => return Err(error),
        Err(error) => findings.push(error.to_string()),
        Ok(()) => {}
    }
    if findings.is_empty() {
        return Ok(());
    }
    let count = findings.len();
    let msg = format!("the attachment differs from its result in {count} point(s): {}", findings.join("; "));
    Err(Error::new(code::CHECK_FAILED, msg).with_details("delete the pod and let it be made again"))
}

fn check_pod(
    pod: &mut Pod,
    call: &Call<'_>,
    conf: &Conf,
    previous: &AddResult,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let name = call.attachment.ifname.as_str();
    let failed = |error: weft_netlink::Error| refused("look into the pod", &error);
    let Some(found) = link::by_name(&mut pod.socket, name).map_err(failed)? else {
        findings.push(format!("the pod has no interface {name}"));
        return Ok(());
    };
    let sandbox =
        call.attachment.netns.as_deref().map_or_else(String::new, |path| path.display().to_string());
    let mine = previous
        .interfaces
        .iter()
        .position(|interface| interface.name == name && !interface.sandbox.is_empty());
    let Some(mine) = mine else {
        findings.push(format!("prevResult names no interface {name} in a sandbox: is it another pod's?"));
        return Ok(());
    };
    let reported = previous.interfaces.get(mine).cloned().unwrap_or_default();
    if reported.sandbox != sandbox {
        findings.push(format!("prevResult is of the sandbox {}, this is {sandbox}", reported.sandbox));
    }
    let mac = found.mac.map_or_else(String::new, |mac| mac.to_string());
    if !reported.mac.is_empty() && !reported.mac.eq_ignore_ascii_case(&mac) {
        findings.push(format!("{name} has MAC {mac}, the result says {}", reported.mac));
    }
    if found.kind.as_deref() != Some("veth") {
        findings.push(format!("{name} is a {}, not a veth", found.kind.as_deref().unwrap_or("device")));
    }
    if !found.up && !conf.disable_interface {
        findings.push(format!("{name} is down"));
    }
    let present = addr::of_link(&mut pod.socket, found.index).map_err(failed)?;
    // Addresses of other interfaces (their index says so) are not ours to check.
    for ip in previous.ips.iter().filter(|ip| ip.interface.is_none_or(|index| index == mine)) {
        let (wanted, length) = (ip.address.addr(), ip.address.prefix_len());
        if !present.iter().any(|address| address.addr == wanted && address.prefix_len == length) {
            findings.push(format!("{name} lacks the address {}", ip.address));
        }
    }
    check_routes(pod, found.index, previous, findings)
}

fn check_routes(
    pod: &mut Pod,
    index: u32,
    previous: &AddResult,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let failed = |error: weft_netlink::Error| refused("read the pod's routes", &error);
    let mut present = Vec::new();
    for v4 in [true, false] {
        if previous.routes.iter().any(|route| route.dst.is_ipv4() == v4) {
            present.extend(route::all(&mut pod.socket, v4).map_err(failed)?);
        }
    }
    for wanted in &previous.routes {
        if !present.iter().any(|found| is_route(found, wanted, index, previous)) {
            let via = wanted.gw.map_or_else(String::new, |gw| format!(" via {gw}"));
            findings.push(format!("the pod lacks the route {}{via}", wanted.dst));
        }
    }
    Ok(())
}

/// A later plugin (`sbr`) may have moved a route to another table or another device may carry it: destination
/// and gateway decide. A route reported without gateway may go by the address' gateway.
fn is_route(found: &route::Route, wanted: &Route, index: u32, previous: &AddResult) -> bool {
    let same_destination = found.destination == (wanted.dst.addr(), wanted.dst.prefix_len());
    let gateways = || previous.ips.iter().filter_map(|ip| ip.gateway);
    let same_gateway = match (found.gateway, wanted.gw) {
        (found, Some(wanted)) => found == Some(wanted),
        (None, None) => found.link == index,
        (Some(gateway), None) => gateways().any(|known| known == gateway),
    };
    same_destination && same_gateway
}

fn check_record(
    call: &Call<'_>,
    conf: &Conf,
    previous: &AddResult,
    kernel: &mut HostKernel,
    deadline: Deadline,
    findings: &mut Vec<String>,
) -> Result<Option<Record>, Error> {
    let key = key_of(call);
    let state = State::open_existing(kernel, deadline)?;
    // Held while looking, so that no DEL of this moment makes it look wrong.
    let attachment = match &state {
        Some(state) => state.find(&key, deadline)?,
        None => None,
    };
    let Some(attachment) = attachment else {
        findings.push("there is no record of this attachment".to_owned());
        return Ok(None);
    };
    let record = attachment.record()?;
    let Some(record) = record else {
        findings.push("the record of this attachment cannot be read".to_owned());
        return Ok(None);
    };
    if matches!(conf.ipam, Ipam::BuiltIn(_)) {
        for taken in &record.addresses {
            if !attachment.holds(&taken.file)? {
                findings.push(format!("the reservation of {} is lost", taken.address.addr()));
            }
        }
        let name = call.attachment.ifname.as_str();
        let mine = previous.interfaces.iter().position(|i| i.name == name && !i.sandbox.is_empty());
        for ip in previous.ips.iter().filter(|ip| ip.interface.is_some() && ip.interface == mine) {
            if !record.addresses.iter().any(|taken| taken.address.addr() == ip.address.addr()) {
                findings.push(format!("{} is not reserved for this attachment", ip.address.addr()));
            }
        }
    }
    Ok(Some(record))
}

fn check_host(
    call: &Call<'_>,
    conf: &Conf,
    record: Option<&Record>,
    previous: &AddResult,
    kernel: &mut HostKernel,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let key = key_of(call);
    let name = key.id().host_name();
    let failed = |error: weft_netlink::Error| refused("look up the host end", &error);
    let socket = kernel.socket()?;
    let Some(host) = link::by_name(socket, &name).map_err(failed)? else {
        findings.push(format!("the host end {name} is gone"));
        return Ok(());
    };
    if host.alias.as_deref().and_then(Alias::parse).is_none_or(|alias| alias.key != key) {
        findings.push(format!("{name} does not carry this attachment's alias"));
    }
    if !host.up {
        findings.push(format!("{name} is down"));
    }
    match &conf.mode {
        Mode::Bridge(bridge) => check_bridge(
            socket,
            bridge,
            &host,
            &gateways(call.attachment.ifname.as_str(), previous),
            findings,
        ),
        Mode::Veth => check_host_routes(socket, &host, record, findings),
    }
}

fn check_bridge(
    socket: &mut Socket,
    conf: &BridgeConf,
    host: &Link,
    gateways: &[IpAddr],
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let failed = |error: weft_netlink::Error| refused(format!("look up bridge {}", conf.name), &error);
    let Some(bridge) = bridge::find(socket, conf)? else {
        findings.push(format!("bridge {} is gone", conf.name));
        return Ok(());
    };
    if host.master != Some(bridge.index) {
        findings.push(format!("{} is no port of {}", host.name, conf.name));
    }
    if !bridge.up {
        findings.push(format!("bridge {} is down", conf.name));
    }
    if (host.hairpin, host.isolated) != (conf.hairpin, conf.isolated) {
        findings.push(format!("{} has hairpin {} and isolated {}", host.name, host.hairpin, host.isolated));
    }
    if conf.is_gateway && conf.vlan.access.is_none() {
        let present = addr::of_link(socket, bridge.index).map_err(failed)?;
        let lost = |gateway: &&IpAddr| !present.iter().any(|address| address.addr == **gateway);
        let lost = gateways.iter().filter(lost);
        findings.extend(lost.map(|ip| format!("bridge {} lacks the gateway {ip}", conf.name)));
    }
    Ok(())
}

/// Gateways of the addresses on our interface; other interfaces in prevResult are not ours to check.
fn gateways(ifname: &str, previous: &AddResult) -> Vec<IpAddr> {
    let mine = previous.interfaces.iter().position(|i| i.name == ifname && !i.sandbox.is_empty());
    let ours = previous.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == mine);
    ours.filter_map(|ip| ip.gateway).collect()
}

fn check_host_routes(
    socket: &mut Socket,
    host: &Link,
    record: Option<&Record>,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let Some(record) = record else { return Ok(()) };
    for v4 in [true, false] {
        let wanted: Vec<IpAddr> = record
            .addresses
            .iter()
            .map(|taken| taken.address.addr())
            .filter(|ip| ip.is_ipv4() == v4)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let routes = route::all(socket, v4).map_err(|error| refused("read the node's routes", &error))?;
        let bits = if v4 { 32 } else { 128 };
        let lost = |ip: &IpAddr| {
            !routes.iter().any(|route| route.link == host.index && route.destination == (*ip, bits))
        };
        findings.extend(wanted.into_iter().filter(lost).map(|ip| format!("the node has no route to {ip}")));
    }
    Ok(())
}

fn check_rules(
    conf: &Conf,
    record: Option<&Record>,
    previous: &AddResult,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let Some(record) = record else { return Ok(()) };
    if conf.ip_masq {
        let ours = |ip: &&weft_cni::result::IpConfig| {
            record.addresses.iter().any(|taken| taken.address.addr() == ip.address.addr())
        };
        let granted =
            Granted { ips: previous.ips.iter().filter(ours).cloned().collect(), ..Granted::default() };
        // Without the pools the whole subnet is asked for; a range inside it is enough for this pod's address.
        let wanted = masquerade::wanted_single(&plan(conf, &granted)?);
        let missing = masquerade::missing(&wanted)?;
        findings.extend(missing.into_iter().map(|what| format!("the rule {what} is missing")));
    }
    if let (true, Some(host), Ok(mac)) = (record.guarded, &record.host, record.pod_mac.parse::<link::Mac>()) {
        let failed = |error: weft_netlink::Error| refused("read the spoof guard (nf_tables)", &error);
        let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
        if !rules::port_is_guarded(&mut socket, host.index, mac.0).map_err(failed)? {
            findings.push(format!("the spoof guard of {} is missing", host.name));
        }
    }
    Ok(())
}

fn delegate_check(call: &Call<'_>, deadline: Deadline) -> Result<(), Error> {
    let Some(kind) = del::delegated(call.conf) else { return Ok(()) };
    let delegate = Delegate::find(&kind, &call.env.path)?;
    delegate.run(Command::Check, call.env, &call.conf.raw, deadline.instant()).map(drop)
}

fn key_of(call: &Call<'_>) -> Key {
    Key::of(call.conf.name.as_str(), call.attachment.container_id.as_str(), call.attachment.ifname.as_str())
}
