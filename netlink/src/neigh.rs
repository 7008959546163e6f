//! Neighbour entries (ARP and ND). Those of pods are seeded STALE and EXT_LEARNED: used at once, healed by the kernel
//! after a change of MAC, exempt from the table's size limit. Those of the overlay are permanent: nobody could answer.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::attributes::{address, find};
use crate::error::Result;
use crate::link::Mac;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg` (include/uapi/linux/neighbour.h).
const HEADER_LEN: usize = 12;
const NDA_DST: u16 = 1;
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

/// A permanent entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permanent {
    /// Interface index.
    pub link: u32,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// What an event says of an entry: it is permanent now, or it is not (gone, or left to ARP and ND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there.
    Permanent(Permanent),
    /// It is not, or not permanent any more: link and address.
    Gone(u32, IpAddr),
}

/// `ip neighbour replace IP lladdr MAC dev … nud permanent`.
pub fn replace_permanent(entry: &Permanent) -> Request {
    let mut message = message(entry.link, entry.ip);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    Request::new(RTM_NEWNEIGH, &message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// `ip neighbour show dev … nud permanent`, both families.
pub fn permanent_of_link(socket: &mut Socket, link: u32) -> Result<Vec<Permanent>> {
    let mut message = NeighbourMessage::default();
    message.attributes = vec![NeighbourAttribute::IfIndex(link)];
    let request = Request::new(RTM_GETNEIGH, &message, 0);
    let list = socket.dump(&request, |(kind, body)| Ok(parse_event(kind, body)))?;
    let permanent = |change: Change| match change {
        Change::Permanent(entry) if entry.link == link => Some(entry),
        Change::Permanent(_) | Change::Gone(..) => None,
    };
    Ok(list.into_iter().filter_map(permanent).collect())
}

/// What an event says; `None` for an event about anything else, also the forwarding table of a bridge or VXLAN.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<Change> {
    let attributes = body.get(HEADER_LEN..).filter(|_| matches!(kind, RTM_NEWNEIGH | RTM_DELNEIGH))?;
    if ![libc::AF_INET, libc::AF_INET6].contains(&i32::from(*body.first()?)) {
        return None;
    }
    let link = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let state = NeighbourState::from(u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?));
    let ip = address(attributes, NDA_DST)?;
    let mac = find(attributes, NDA_LLADDR).and_then(|bytes| bytes.try_into().ok()).map(Mac);
    match mac {
        Some(mac) if kind == RTM_NEWNEIGH && state == NeighbourState::Permanent => {
            Some(Change::Permanent(Permanent { link, ip, mac }))
        }
        _ => Some(Change::Gone(link, ip)),
    }
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
