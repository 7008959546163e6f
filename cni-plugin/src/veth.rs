//! The node's side of a pod, and the kernel as last witness: an address is claimed there exclusively, before
//! anybody can talk to it, and a live pod's traffic is never stolen.

use std::net::IpAddr;

use weft_cni::error::{Error, code};
use weft_ipam::alias::Alias;
use weft_ipam::refused;
use weft_netlink::link::{self, Link, Mac};
use weft_netlink::route::{self, Route};
use weft_netlink::{Request, Socket, neigh};

use crate::addressing::Plan;
use crate::bridge::{add_addresses, add_gateway};
use crate::sysctl;

/// The kernel already knows an address as somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub holder: String,
}

/// Either done, or the address is another attachment's.
pub type Outcome = Result<Result<(), Claimed>, Error>;

/// Bridge mode: the neighbour entries that claim the pod's addresses, to be sent ahead of the pair.
pub fn claims_on_bridge(bridge: u32, plan: &Plan, mac: Mac) -> Vec<Request> {
    plan.ips().into_iter().map(|ip| neigh::add(bridge, ip, mac)).collect()
}

/// Bridge mode, on a bridge that had no carrier before this pod: the claims are made now that it has one. Its last
/// port had gone, and the kernel forgets a bridge's neighbours up to a second after that.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn claim_on_bridge(socket: &mut Socket, bridge: u32, plan: &Plan, mac: Mac, own_alias: &str) -> Outcome {
    match socket.execute(&claims_on_bridge(bridge, plan, mac)) {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is(libc::EEXIST) => settle_on_bridge(socket, bridge, plan, mac, own_alias),
        Err(error) => Err(refused("claim the pod's address on the bridge", &error)),
    }
}

/// Bridge mode: an entry for one of the pod's addresses was there. One that the kernel learnt, or that a dead
/// pod left behind, is replaced; one of a live pod is respected.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn settle_on_bridge(socket: &mut Socket, bridge: u32, plan: &Plan, mac: Mac, own_alias: &str) -> Outcome {
    let failed = |error: weft_netlink::Error| refused("claim the pod's address on the bridge", &error);
    for ip in plan.ips() {
        let entry = neigh::get(socket, bridge, ip).map_err(failed)?;
        // The MAC says nothing: it follows from the address, so the holder's is the same.
        if entry.is_some_and(|entry| entry.seeded)
            && let Some(holder) = live_holder(socket, ip, own_alias)?
        {
            return Ok(Err(Claimed { address: ip, holder }));
        }
        socket.execute(&[neigh::replace(bridge, ip, mac)]).map_err(failed)?;
    }
    Ok(Ok(()))
}

/// The live link of another attachment whose alias names this address.
///
/// # Errors
/// Code 102 if the kernel refuses to list its links.
pub fn live_holder(socket: &mut Socket, ip: IpAddr, own_alias: &str) -> Result<Option<String>, Error> {
    let links = link::all(socket).map_err(|error| refused("list the interfaces", &error))?;
    let holds = |link: &&Link| {
        let text = link.alias.as_deref().filter(|text| *text != own_alias);
        text.and_then(Alias::parse).is_some_and(|alias| alias.addresses.contains(&ip))
    };
    Ok(links.iter().find(holds).map(|link| link.name.clone()))
}

/// Cluster pods on a bridge: a route to each. One that a dead pod left behind is replaced.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn route_over_bridge(socket: &mut Socket, bridge: u32, plan: &Plan, own_alias: &str) -> Outcome {
    let plan = &with_present_node_addresses(socket, plan)?;
    let requests: Vec<Request> =
        plan.ips().into_iter().map(|ip| route::add(&host_route(ip, bridge, plan))).collect();
    let Err(claimed) = add_host_routes(socket, &requests, plan)? else { return Ok(Ok(())) };
    let failed = |error: weft_netlink::Error| refused("add the node's route to the pod", &error);
    for ip in plan.ips() {
        let routes = route::all(socket, ip.is_ipv4()).map_err(failed)?;
        let ours = |route: &Route| route.link == bridge && route.protocol == route::PROTOCOL;
        let foreign = routes.iter().any(|route| route.destination == (ip, host_bits(ip)) && !ours(route));
        if foreign || live_holder(socket, ip, own_alias)?.is_some() {
            return Ok(Err(Claimed { address: ip, ..claimed }));
        }
        socket.execute(&[route::replace(&host_route(ip, bridge, plan))]).map_err(failed)?;
    }
    Ok(Ok(()))
}

/// Veth mode: the host end carries the gateways, knows the pod's MAC, and has the node's route to the pod.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn configure_host_end(socket: &mut Socket, host: &Link, plan: &Plan, pod_mac: Mac) -> Outcome {
    // A pod must not choose its node's routes. (Nothing to set where the link has no IPv6.)
    sysctl::write(&sysctl::device("ipv6", &host.name, "accept_ra"), "0")?;
    let gateways: Vec<Request> =
        plan.gateways.iter().map(|gateway| add_gateway(host.index, gateway)).collect();
    add_addresses(socket, &host.name, &gateways)?;
    let plan = &with_present_node_addresses(socket, plan)?;
    let routes: Vec<Request> =
        plan.ips().into_iter().map(|ip| route::add(&host_route(ip, host.index, plan))).collect();
    if let Err(claimed) = add_host_routes(socket, &routes, plan)? {
        return Ok(Err(claimed));
    }
    let neighbours: Vec<Request> =
        plan.ips().into_iter().map(|ip| neigh::replace(host.index, ip, pod_mac)).collect();
    socket.execute(&neighbours).map_err(|error| refused("seed the node's neighbour entries", &error))?;
    Ok(Ok(()))
}

/// The node's own packets to the pod come from the node address, else from the gateway, whatever other addresses
/// the node has.
fn host_route(ip: IpAddr, device: u32, plan: &Plan) -> Route {
    let node = plan.node_addresses.iter().copied().find(|node| node.is_ipv4() == ip.is_ipv4());
    let gateway = plan.addresses.iter().find(|pod| pod.address.addr() == ip).and_then(|pod| pod.gateway);
    let carried = gateway.filter(|gateway| plan.gateways.iter().any(|carried| carried.addr() == *gateway));
    Route { source: node.or(carried), ..Route::on_link(ip, host_bits(ip), device) }
}

/// A node address that no link has (its daemon has not come that far, or somebody took it off) can be no source,
/// and the kernel would refuse the route: then the gateway is.
fn with_present_node_addresses(socket: &mut Socket, plan: &Plan) -> Result<Plan, Error> {
    let mut present = Vec::new();
    for ip in &plan.node_addresses {
        let local = route::is_local(socket, *ip, 0)
            .map_err(|error| refused(format!("ask whether this node has {ip}"), &error))?;
        present.extend(local.then_some(*ip));
    }
    Ok(Plan { node_addresses: present, ..plan.clone() })
}

fn host_bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn add_host_routes(socket: &mut Socket, requests: &[Request], plan: &Plan) -> Outcome {
    match socket.execute(requests) {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is(libc::EEXIST) => match plan.ips().get(error.index) {
            Some(&address) => Ok(Err(Claimed { address, holder: "a route of the node".to_owned() })),
            None => Err(Error::new(code::INTERNAL, "a refusal of no request")),
        },
        Err(error) => Err(refused("add the node's route to the pod", &error)),
    }
}
