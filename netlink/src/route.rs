//! Routes. Each function names the `ip route` command it equals.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};

use crate::attributes::{address, find, native};
use crate::error::Result;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// `struct rtmsg`, and where its `rtm_type` is.
const HEADER_LEN: usize = 12;
const ROUTE_TYPE: usize = 7;
const RTN_LOCAL: u8 = 2;
/// Attributes and metrics of routes.
mod rta {
    pub const DST: u16 = 1;
    pub const OIF: u16 = 4;
    pub const GATEWAY: u16 = 5;
    pub const PRIORITY: u16 = 6;
    pub const PREFSRC: u16 = 7;
    pub const METRICS: u16 = 8;
    pub const MULTIPATH: u16 = 9;
    pub const TABLE: u16 = 15;
    pub const VIA: u16 = 18;
    pub const METRIC_MTU: u16 = 2;
    pub const METRIC_ADVMSS: u16 = 8;
}
/// The route protocol number of everything Weft installs in a node (`ip route … proto 87`).
pub const PROTOCOL: u8 = 87;
/// The main table.
pub const MAIN: u32 = 254;

/// A route through one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination and prefix length.
    pub destination: (IpAddr, u8),
    /// Next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub link: u32,
    /// The source address that the node's own packets take.
    pub source: Option<IpAddr>,
    /// The next hop is on the link even if no address says so.
    pub onlink: bool,
    /// `RT_SCOPE_*`; `None`: link for a route without next hop, else universe.
    pub scope: Option<u8>,
    /// Routing table; [`MAIN`] by default.
    pub table: u32,
    /// Metric: the lower wins.
    pub priority: Option<u32>,
    /// MTU in bytes along this route.
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, in bytes.
    pub advmss: Option<u32>,
    /// Who installed it (`RTPROT_*`).
    pub protocol: u8,
    /// Packets are refused, and their sender is told: no device, no next hop.
    pub unreachable: bool,
}

impl Route {
    /// A route on the link, in the main table.
    pub fn on_link(destination: IpAddr, prefix_len: u8, link: u32) -> Self {
        Self {
            destination: (destination, prefix_len),
            gateway: None,
            link,
            source: None,
            onlink: false,
            scope: None,
            table: MAIN,
            priority: None,
            mtu: None,
            advmss: None,
            protocol: PROTOCOL,
            unreachable: false,
        }
    }

    /// Refuses packets to the destination, in the main table.
    pub fn unreachable(destination: IpAddr, prefix_len: u8, priority: u32) -> Self {
        let priority = Some(priority);
        Self { priority, unreachable: true, ..Self::on_link(destination, prefix_len, 0) }
    }

    /// Whether it is the default route of its family.
    pub fn is_default(&self) -> bool {
        self.destination.1 == 0
    }

    /// The same by way of `gateway`.
    pub fn via(self, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..self }
    }
}

/// `ip route add`; EEXIST if the table has one of the same prefix and metric.
pub fn add(route: &Route) -> Request {
    Request::new(RTM_NEWROUTE, &message(route), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip route append`: a further next hop for the same prefix (ECMP).
pub fn append(route: &Route) -> Request {
    Request::new(RTM_NEWROUTE, &message(route), NLM_F_CREATE | NLM_F_APPEND)
}

/// `ip route replace`.
pub fn replace(route: &Route) -> Request {
    Request::new(RTM_NEWROUTE, &message(route), NLM_F_CREATE | NLM_F_REPLACE)
}

/// `ip route del`; ESRCH if there is none.
pub fn delete(route: &Route) -> Request {
    Request::new(RTM_DELROUTE, &message(route), 0)
}

/// `ip route del PREFIX metric N proto N`, whatever its next hop is; ESRCH if there is none.
pub fn delete_by_prefix(route: &Route) -> Request {
    let mut message = message(route);
    message.header.scope = RouteScope::NoWhere;
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Oif(_)));
    Request::new(RTM_DELROUTE, &message, 0)
}

/// `ip route show table all`, one family.
pub fn all(socket: &mut Socket, ipv4: bool) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv4);
    let request = Request::new(RTM_GETROUTE, &message, 0);
    let lists = socket.dump(&request, |(kind, body)| Ok(parse(kind, body)))?;
    Ok(lists.into_iter().flatten().filter(|route| !route.unreachable).collect())
}

/// `ip route show table main proto 87`, one family, unreachable ones too. The kernel filters: other routing daemons
/// may have a million routes.
pub fn own(socket: &mut Socket, ipv4: bool) -> Result<Vec<Route>> {
    let filter = |header: &mut RouteHeader| header.protocol = PROTOCOL.into();
    let mut found = dump_main(socket, ipv4, filter)?;
    found.retain(|route| route.protocol == PROTOCOL && route.table == MAIN);
    Ok(found)
}

/// `ip route show table main default`, one family.
pub fn defaults(socket: &mut Socket, ipv4: bool) -> Result<Vec<Route>> {
    // There is no filter by prefix; unicast routes by their protocols would miss the unknown ones.
    let mut found = dump_main(socket, ipv4, |_| ())?;
    found.retain(|route| route.is_default() && route.table == MAIN);
    Ok(found)
}

fn dump_main(socket: &mut Socket, ipv4: bool, filter: impl Fn(&mut RouteHeader)) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv4);
    message.header.table = u8::try_from(MAIN).unwrap_or(0);
    filter(&mut message.header);
    let request = Request::new(RTM_GETROUTE, &message, 0);
    let lists = socket.dump(&request, |(kind, body)| Ok(parse(kind, body)))?;
    Ok(lists.into_iter().flatten().collect())
}

/// What an event says: the routes, one for each next hop, and whether they are there now. `None` for an event about
/// anything else.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<(Vec<Route>, bool)> {
    matches!(kind, RTM_NEWROUTE | RTM_DELROUTE)
        .then(|| parse(RTM_NEWROUTE, body))
        .flatten()
        .map(|routes| (routes, kind == RTM_NEWROUTE))
}

/// `ip route get IP`: whether the node takes packets to this address of `link` for itself. IPv6 addresses get the
/// route for that from a work queue, some time after the kernel has acknowledged them, NODAD or not.
pub fn is_local(socket: &mut Socket, ip: IpAddr, link: u32) -> Result<bool> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip.is_ipv4());
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(ip.into())];
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    let request = Request::new(RTM_GETROUTE, &message, 0);
    let none = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ESRCH];
    let found = socket.get(&request, &none, |(_, body)| Ok(body.get(ROUTE_TYPE) == Some(&RTN_LOCAL)))?;
    Ok(found.unwrap_or(false))
}

/// Unicast routes, one for each next hop, and unreachable ones; others (local, multicast) are `None`.
fn parse(kind: u16, body: &[u8]) -> Option<Vec<Route>> {
    let attributes = body.get(HEADER_LEN..).filter(|_| kind == RTM_NEWROUTE)?;
    let &[family, prefix_len, _, _, table, protocol, scope, route_type] = body.first_chunk()?;
    let route_type = RouteType::from(route_type);
    if route_type != RouteType::Unicast && route_type != RouteType::Unreachable {
        return None;
    }
    let any = if i32::from(family) == libc::AF_INET { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let flags = RouteFlags::from_bits_retain(u32::from_ne_bytes(body.get(8..HEADER_LEN)?.try_into().ok()?));
    let metrics = find(attributes, rta::METRICS).unwrap_or_default();
    let route = Route {
        destination: (address(attributes, rta::DST).unwrap_or(any), prefix_len),
        gateway: gateway(attributes),
        link: native(attributes, rta::OIF).unwrap_or(0),
        source: address(attributes, rta::PREFSRC),
        onlink: flags.contains(RouteFlags::Onlink),
        scope: Some(scope),
        table: native(attributes, rta::TABLE).unwrap_or(table.into()),
        priority: native(attributes, rta::PRIORITY),
        mtu: native(metrics, rta::METRIC_MTU),
        advmss: native(metrics, rta::METRIC_ADVMSS),
        protocol,
        unreachable: route_type == RouteType::Unreachable,
    };
    match find(attributes, rta::MULTIPATH) {
        Some(hops) => Some(next_hops(hops).map(|hop| hop.apply(&route)).collect()),
        None => Some(vec![route]),
    }
}

/// The next hop, which may be of the other family (`struct rtvia`).
fn gateway(attributes: &[u8]) -> Option<IpAddr> {
    let via = || match find(attributes, rta::VIA)?.get(2..)? {
        v4 if v4.len() == 4 => <[u8; 4]>::try_from(v4).ok().map(IpAddr::from),
        v6 => <[u8; 16]>::try_from(v6).ok().map(IpAddr::from),
    };
    address(attributes, rta::GATEWAY).or_else(via)
}

/// One next hop of a multipath route.
struct NextHop<'a> {
    flags: u8,
    link: u32,
    attributes: &'a [u8],
}

impl NextHop<'_> {
    fn apply(&self, route: &Route) -> Route {
        let onlink = RouteFlags::from_bits_retain(self.flags.into()).contains(RouteFlags::Onlink);
        Route { link: self.link, gateway: gateway(self.attributes), onlink, ..route.clone() }
    }
}

/// `struct rtnexthop` with its attributes, again and again. Ends at the first that is cut short.
fn next_hops(mut list: &[u8]) -> impl Iterator<Item = NextHop<'_>> {
    std::iter::from_fn(move || {
        let &[low, high, flags, _, a, b, c, d] = list.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let attributes = list.get(8..length)?;
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NextHop { flags, link: u32::from_ne_bytes([a, b, c, d]), attributes })
    })
}

fn message(route: &Route) -> RouteMessage {
    let (destination, prefix_len) = route.destination;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination.is_ipv4()),
        destination_prefix_length: prefix_len,
        table: u8::try_from(route.table).unwrap_or(0),
        protocol: route.protocol.into(),
        scope: scope(route),
        kind: if route.unreachable { RouteType::Unreachable } else { RouteType::Unicast },
        flags: if route.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if prefix_len > 0 {
        attributes.push(RouteAttribute::Destination(destination.into()));
    }
    if !route.unreachable {
        attributes.push(RouteAttribute::Oif(route.link));
    }
    attributes.extend(route.gateway.map(|gateway| next_hop(gateway, destination.is_ipv4())));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    if route.table > 255 {
        attributes.push(RouteAttribute::Table(route.table));
    }
    let metrics: Vec<_> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// `via IP`, or `via inet6 IP` for an IPv4 route (Linux 5.2).
fn next_hop(gateway: IpAddr, ipv4: bool) -> RouteAttribute {
    match gateway {
        IpAddr::V6(v6) if ipv4 => RouteAttribute::Via(RouteVia::Inet6(v6)),
        IpAddr::V4(_) | IpAddr::V6(_) => RouteAttribute::Gateway(gateway.into()),
    }
}

fn scope(route: &Route) -> RouteScope {
    match route.scope {
        Some(scope) => scope.into(),
        None if route.unreachable => RouteScope::Universe,
        None if route.gateway.is_none() && route.destination.0.is_ipv4() => RouteScope::Link,
        None => RouteScope::Universe,
    }
}

fn family(ipv4: bool) -> AddressFamily {
    if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The protocol number of routes learnt from router advertisements (`RTPROT_RA`).
pub fn from_router_advertisement(route: &Route) -> bool {
    RouteProtocol::from(route.protocol) == RouteProtocol::Ra
}
