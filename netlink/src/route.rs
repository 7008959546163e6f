//! Routes. Each function names the `ip route` command it equals.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, ParseableParametrized};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::{Error, Result};
use crate::socket::{Request, Socket};

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
        }
    }

    /// The same by way of `gateway`.
    pub fn via(self, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..self }
    }
}

/// `ip route add`; EEXIST if the table has one of the same prefix and metric.
pub fn add(route: &Route) -> Request {
    Request::route(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip route append`: a further next hop for the same prefix (ECMP).
pub fn append(route: &Route) -> Request {
    Request::route(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_APPEND)
}

/// `ip route replace`.
pub fn replace(route: &Route) -> Request {
    Request::route(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// `ip route del`; ESRCH if there is none.
pub fn delete(route: &Route) -> Request {
    Request::route(RouteNetlinkMessage::DelRoute(message(route)), 0)
}

/// `ip route show table all`, one family.
pub fn all(socket: &mut Socket, ipv4: bool) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv4);
    let request = Request::route(RouteNetlinkMessage::GetRoute(message), 0);
    socket.dump(&request, |(kind, body)| match RouteNetlinkMessage::parse_with_param(body, kind) {
        Ok(RouteNetlinkMessage::NewRoute(message)) => Ok(from_message(&message)),
        Ok(_) => Ok(None),
        Err(error) => Err(Error::malformed(&format!("route: {error}"))),
    })
}

/// Unicast routes through a device; others (local, multicast, multipath) are `None`.
#[expect(clippy::wildcard_enum_match_arm, reason = "the attributes that a pod's route can have")]
fn from_message(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let any = if header.address_family == AddressFamily::Inet {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let mut route = Route::on_link(any, header.destination_prefix_length, 0);
    route.table = header.table.into();
    route.protocol = header.protocol.into();
    route.scope = Some(header.scope.into());
    route.onlink = header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.0 = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Metrics(metrics) => metrics.iter().for_each(|metric| match metric {
                RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                RouteMetric::Advmss(mss) => route.advmss = Some(*mss),
                _ => {}
            }),
            _ => {}
        }
    }
    Some(route)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "MPLS labels are no addresses")]
fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
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
        kind: RouteType::Unicast,
        flags: if route.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if prefix_len > 0 {
        attributes.push(RouteAttribute::Destination(destination.into()));
    }
    attributes.push(RouteAttribute::Oif(route.link));
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
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

fn scope(route: &Route) -> RouteScope {
    match route.scope {
        Some(scope) => scope.into(),
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
