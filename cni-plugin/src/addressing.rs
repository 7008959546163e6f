//! What a pod gets: addresses, gateways, routes. Pure: from the IPAM's answer and the configuration to a plan.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_cni::dns::Dns;
use weft_cni::error::{Error, code};
use weft_cni::ip::{IfAddr, Subnet};
use weft_cni::result::IpConfig;
use weft_cni::route::Route;

use crate::conf::{Conf, Mode, same_family};

/// The gateway of pods whose addresses come from granted blocks: on every node, on every host end, the same.
pub const LINK_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 twin of [`LINK_GATEWAY_V4`].
pub const LINK_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `RT_SCOPE_LINK` (include/uapi/linux/rtnetlink.h).
const SCOPE_LINK: u32 = 253;

/// The IPAM's answer.
#[derive(Clone, Debug, Default)]
pub struct Granted {
    /// Addresses with their gateways.
    pub ips: Vec<IpConfig>,
    /// Routes that the IPAM asks for.
    pub routes: Vec<Route>,
    /// Its DNS settings.
    pub dns: Dns,
    /// They come from the cluster's blocks.
    pub cluster: bool,
    /// The node's own addresses on the pod network, at most one for each family.
    pub node_addresses: Vec<IpAddr>,
}

/// What will be set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Addresses of the pod end, with the prefix length it gets, and their gateways.
    pub addresses: Vec<PodAddress>,
    /// Routes in the pod.
    pub routes: Vec<PodRoute>,
    /// Addresses that our bridge, or in veth mode the host end, carries.
    pub gateways: Vec<IfAddr>,
    /// Same-node traffic is routed over the bridge: the node needs a route to each pod.
    pub routed: bool,
    /// What the node's own packets to the pod come from, if the node has these addresses.
    pub node_addresses: Vec<IpAddr>,
}

/// One address of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// As it is put on the pod end.
    pub address: IfAddr,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// The network that the address was given from.
    pub network: Subnet,
}

/// One route of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// As it is reported: what the IPAM or the configuration said.
    pub route: Route,
    /// The next hop; without one named, the address' gateway.
    pub via: Option<IpAddr>,
    /// The gateway is on the link though no address says so.
    pub onlink: bool,
    /// Added only if the pod has no default route of this family: its first network gives it.
    pub unless_default: bool,
}

impl Plan {
    /// Whether any address is of this family.
    pub fn has(&self, ipv4: bool) -> bool {
        self.addresses.iter().any(|pod| pod.address.addr().is_ipv4() == ipv4)
    }

    /// IPv6 gateways that pods reach without an address that says so, link-local ones aside.
    pub fn gateways_off_link(&self) -> impl Iterator<Item = IpAddr> {
        let needed = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if !v6.is_unicast_link_local());
        let routed = self.addresses.iter().filter(|pod| pod.address.prefix_len() == 128);
        let mut gateways: Vec<IpAddr> = routed.filter_map(|pod| pod.gateway).filter(needed).collect();
        gateways.dedup();
        gateways.into_iter()
    }

    /// The addresses alone.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|pod| pod.address.addr()).collect()
    }
}

/// Decides what a pod gets.
///
/// # Errors
/// Code 104 for a route whose gateway is of the other family.
pub fn plan(conf: &Conf, granted: &Granted) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    match &conf.mode {
        Mode::Bridge(_) if granted.cluster => routed_addresses(&mut plan, granted, true),
        Mode::Bridge(bridge) => bridged_addresses(&mut plan, granted, bridge.is_gateway),
        Mode::Veth => routed_addresses(&mut plan, granted, granted.cluster),
    }
    plan.node_addresses.clone_from(&granted.node_addresses);
    plan.routed = granted.cluster && matches!(conf.mode, Mode::Bridge(_));
    let onlink = plan.routed || matches!(conf.mode, Mode::Veth);
    for route in &granted.routes {
        if let Some(gw) = route.gw.filter(|gw| !same_family(*gw, route.dst.addr())) {
            let msg = format!("the IPAM plugin gave the route {} via {gw}: not of one family", route.dst);
            return Err(Error::new(code::IPAM, msg));
        }
        // What is on the link (or on this host) by its scope has no next hop.
        let on_link = route.scope.is_some_and(|scope| scope >= SCOPE_LINK);
        let via = route.gw.or_else(|| gateway_for(&plan, route.dst).filter(|_| !on_link));
        plan.routes.push(PodRoute { route: route.clone(), via, onlink, unless_default: false });
    }
    add_default_routes(&mut plan, conf, granted, onlink);
    Ok(plan)
}

/// The pod's subnet is on the link; its gateway, if we are it, is an address of the bridge.
fn bridged_addresses(plan: &mut Plan, granted: &Granted, is_gateway: bool) {
    for ip in &granted.ips {
        let network = ip.address.subnet();
        let gateway = ip.gateway.or_else(|| is_gateway.then(|| first_host(&network)));
        plan.addresses.push(PodAddress { address: ip.address, gateway, network });
        if let Some(gateway) = gateway.filter(|_| is_gateway) {
            let carried = cidr(gateway, ip.address.prefix_len());
            if !plan.gateways.contains(&carried) {
                plan.gateways.push(carried);
            }
        }
    }
}

/// The pod has its address alone on the link; everything goes by the gateway that our end carries.
fn routed_addresses(plan: &mut Plan, granted: &Granted, link_gateway: bool) {
    for ip in &granted.ips {
        let own = |v4: bool| if v4 { LINK_GATEWAY_V4.into() } else { LINK_GATEWAY_V6.into() };
        let v4 = ip.address.addr().is_ipv4();
        let gateway = if link_gateway { own(v4) } else { ip.gateway.unwrap_or_else(|| own(v4)) };
        let network = ip.address.subnet();
        plan.addresses.push(PodAddress {
            address: ip.address.with_host_prefix(),
            gateway: Some(gateway),
            network,
        });
        let carried = [Some(IfAddr::host(gateway)), (!v4).then(|| cidr(LINK_GATEWAY_V6.into(), 64))];
        for address in carried.into_iter().flatten() {
            if !plan.gateways.iter().any(|known| known.addr() == address.addr()) {
                plan.gateways.push(address_of_link(address));
            }
        }
        if network.prefix_len() < address_bits(v4) {
            let route = Route { dst: network, gw: Some(gateway), ..Route::new(network) };
            plan.routes.push(PodRoute { route, via: Some(gateway), onlink: true, unless_default: false });
        }
    }
}

/// fe80::1 is a /64, so that the pod's own link-local address is on its link.
fn address_of_link(address: IfAddr) -> IfAddr {
    if address.addr() == LINK_GATEWAY_V6 { cidr(address.addr(), 64) } else { address }
}

fn add_default_routes(plan: &mut Plan, conf: &Conf, granted: &Granted, onlink: bool) {
    let wanted = if granted.cluster { conf.default_gateway } else { conf.wants_default_route() };
    if wanted == Some(false) {
        return;
    }
    for v4 in [true, false] {
        let named = |route: &&PodRoute| is_default(&route.route) && route.route.dst.is_ipv4() == v4;
        let has_one = plan.routes.iter().find(named).is_some_and(|route| route.route.gw.is_some());
        let gateway = plan.addresses.iter().filter_map(|pod| pod.gateway).find(|gw| gw.is_ipv4() == v4);
        if let (false, Some(gateway)) = (has_one, gateway) {
            let route = Route { gw: Some(gateway), ..Route::new(any(v4)) };
            // The IPAM may have asked for the very same without naming the gateway.
            if !plan.routes.iter().any(|other| is_same(other, &route)) {
                let unless_default = wanted.is_none();
                plan.routes.push(PodRoute { route, via: Some(gateway), onlink, unless_default });
            }
        }
    }
}

fn gateway_for(plan: &Plan, destination: Subnet) -> Option<IpAddr> {
    let gateways = plan.addresses.iter().filter_map(|pod| pod.gateway);
    gateways.into_iter().find(|gateway| same_family(*gateway, destination.addr()))
}

/// Whether the kernel would find `route` to be there with `other`.
fn is_same(other: &PodRoute, route: &Route) -> bool {
    other.route.dst == route.dst && other.via == route.gw
}

/// Whether this is a default route.
pub fn is_default(route: &Route) -> bool {
    route.dst.prefix_len() == 0
}

fn any(v4: bool) -> Subnet {
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    cidr(any, 0).subnet()
}

/// An address with a prefix length that is known to fit its family.
pub fn cidr(ip: IpAddr, prefix_len: u8) -> IfAddr {
    IfAddr::new(ip, prefix_len).unwrap_or_else(|_| IfAddr::host(ip))
}

fn address_bits(v4: bool) -> u8 {
    if v4 { 32 } else { 128 }
}

/// The address behind the subnet's own: what the reference plugin takes as gateway when none is named.
fn first_host(network: &Subnet) -> IpAddr {
    match network.first() {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_add(1).into()),
    }
}

#[cfg(test)]
mod tests;
