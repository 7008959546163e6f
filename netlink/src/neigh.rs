//! Neighbour entries (ARP and ND), always seeded STALE and EXT_LEARNED: used at once, healed by the kernel after
//! a change of MAC, exempt from the table's size limit.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, ParseableParametrized};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::{Error, Result};
use crate::link::Mac;
use crate::socket::{Request, Socket};

/// An entry as the kernel holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address, once known.
    pub mac: Option<Mac>,
    /// Seeded by a control plane, not learnt by ARP or ND.
    pub seeded: bool,
}

/// `ip neighbour add IP lladdr MAC dev … nud stale extern_learn`; EEXIST if there is any entry for the address.
pub fn add(link: u32, ip: IpAddr, mac: Mac) -> Request {
    Request::route(RouteNetlinkMessage::NewNeighbour(seeded(link, ip, mac)), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip neighbour replace IP lladdr MAC dev … nud stale extern_learn`.
pub fn replace(link: u32, ip: IpAddr, mac: Mac) -> Request {
    Request::route(RouteNetlinkMessage::NewNeighbour(seeded(link, ip, mac)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// `ip neighbour del IP dev …`; ENOENT if there is none.
pub fn delete(link: u32, ip: IpAddr) -> Request {
    Request::route(RouteNetlinkMessage::DelNeighbour(message(link, ip)), 0)
}

/// `ip neighbour get IP dev …`; `None` if there is none.
pub fn get(socket: &mut Socket, link: u32, ip: IpAddr) -> Result<Option<Neighbour>> {
    let request = Request::route(RouteNetlinkMessage::GetNeighbour(message(link, ip)), 0);
    let found =
        socket.get(&request, &[libc::ENOENT], |(kind, body)| match RouteNetlinkMessage::parse_with_param(
            body, kind,
        ) {
            Ok(RouteNetlinkMessage::NewNeighbour(message)) => Ok(Some(from_message(&message))),
            Ok(_) => Ok(None),
            Err(error) => Err(Error::malformed(&format!("neighbour: {error}"))),
        })?;
    Ok(found.flatten())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "only the hardware address matters here")]
fn from_message(message: &NeighbourMessage) -> Neighbour {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.clone().try_into().ok().map(Mac),
        _ => None,
    });
    Neighbour { mac, seeded: message.header.flags.contains(NeighbourFlags::ExtLearned) }
}

fn seeded(link: u32, ip: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = message(link, ip);
    message.header.state = NeighbourState::Stale;
    message.header.flags = NeighbourFlags::ExtLearned;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn message(link: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = link;
    let destination = match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![NeighbourAttribute::Destination(destination)];
    message
}
