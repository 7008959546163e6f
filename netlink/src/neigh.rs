//! Neighbour entries (ARP and ND), always seeded STALE and EXT_LEARNED: used at once, healed by the kernel after
//! a change of MAC, exempt from the table's size limit.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::attributes::find;
use crate::error::Result;
use crate::link::Mac;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg` (include/uapi/linux/neighbour.h).
const HEADER_LEN: usize = 12;
const NDA_LLADDR: u16 = 2;

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
    Request::new(RTM_NEWNEIGH, &seeded(link, ip, mac), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip neighbour replace IP lladdr MAC dev … nud stale extern_learn`.
pub fn replace(link: u32, ip: IpAddr, mac: Mac) -> Request {
    Request::new(RTM_NEWNEIGH, &seeded(link, ip, mac), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Makes the kernel ask for `ip` at once (NTF_USE). For an own address that is a gratuitous ARP request; delete the
/// entry right after, so that it does not ask again.
pub fn solicit(link: u32, ip: IpAddr) -> Request {
    let mut message = message(link, ip);
    message.header.flags = NeighbourFlags::Use;
    Request::new(RTM_NEWNEIGH, &message, NLM_F_CREATE)
}

/// `ip neighbour del IP dev …`; ENOENT if there is none.
pub fn delete(link: u32, ip: IpAddr) -> Request {
    Request::new(RTM_DELNEIGH, &message(link, ip), 0)
}

/// `ip neighbour get IP dev …`; `None` if there is none.
pub fn get(socket: &mut Socket, link: u32, ip: IpAddr) -> Result<Option<Neighbour>> {
    let request = Request::new(RTM_GETNEIGH, &message(link, ip), 0);
    let found = socket.get(&request, &[libc::ENOENT], |(kind, body)| Ok(parse(kind, body)))?;
    Ok(found.flatten())
}

fn parse(kind: u16, body: &[u8]) -> Option<Neighbour> {
    let attributes = body.get(HEADER_LEN..).filter(|_| kind == RTM_NEWNEIGH)?;
    let flags = NeighbourFlags::from_bits_retain(*body.get(10)?);
    let mac = find(attributes, NDA_LLADDR).and_then(|bytes| bytes.try_into().ok()).map(Mac);
    Some(Neighbour { mac, seeded: flags.contains(NeighbourFlags::ExtLearned) })
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
