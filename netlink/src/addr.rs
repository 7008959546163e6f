//! Interface addresses. Each function names the `ip address` command it equals.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::attributes::{address, native};
use crate::error::Result;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `struct ifaddrmsg` (include/uapi/linux/if_addr.h).
const HEADER_LEN: usize = 8;
/// Attributes of addresses.
mod ifa {
    pub const ADDRESS: u16 = 1;
    pub const LOCAL: u16 = 2;
    pub const FLAGS: u16 = 8;
}

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// IPv6: duplicate address detection has not ended.
    pub tentative: bool,
    /// IPv6: duplicate address detection found the address in use.
    pub duplicate: bool,
    /// IPv4: a further address of a subnet. IPv6: a privacy address, which changes from day to day.
    pub secondary: bool,
    /// Its preferred lifetime is over.
    pub deprecated: bool,
}

/// How to add an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewAddress {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// IPv6: `nodad`, usable at once.
    pub skip_dad: bool,
    /// `noprefixroute`: no route to its subnet comes with it.
    pub no_prefix_route: bool,
}

/// `ip address add ADDR/LEN dev … [nodad] [noprefixroute]`; EEXIST if the link has it.
pub fn add(new: &NewAddress) -> Request {
    let mut message = message(new.link, new.addr, new.prefix_len);
    let mut flags = AddressFlags::empty();
    if new.skip_dad && new.addr.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
        flags |= AddressFlags::Nodad;
    }
    if new.no_prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    if let IpAddr::V4(v4) = new.addr
        && new.prefix_len < 31
    {
        let host_bits = u32::MAX >> new.prefix_len;
        message.attributes.push(AddressAttribute::Broadcast((u32::from(v4) | host_bits).into()));
    }
    Request::new(RTM_NEWADDR, &message, NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip address del ADDR/LEN dev …`; EADDRNOTAVAIL if it is not there.
pub fn delete(link: u32, addr: IpAddr, prefix_len: u8) -> Request {
    Request::new(RTM_DELADDR, &message(link, addr, prefix_len), 0)
}

/// `ip address show`.
pub fn all(socket: &mut Socket) -> Result<Vec<Address>> {
    let request = Request::new(RTM_GETADDR, &AddressMessage::default(), 0);
    socket.dump(&request, |(kind, body)| Ok(parse(kind, body)))
}

/// `ip address show dev …`.
pub fn of_link(socket: &mut Socket, link: u32) -> Result<Vec<Address>> {
    let mut message = AddressMessage::default();
    message.header.index = link;
    let request = Request::new(RTM_GETADDR, &message, 0);
    let list = socket.dump(&request, |(kind, body)| Ok(parse(kind, body)))?;
    // Kernels without strict checking ignore the filter.
    Ok(list.into_iter().filter(|address| address.link == link).collect())
}

fn parse(kind: u16, body: &[u8]) -> Option<Address> {
    (kind == RTM_NEWADDR).then(|| parse_body(body)).flatten()
}

/// What an event says: the address, and whether it is there now. `None` for an event about anything else.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<(Address, bool)> {
    matches!(kind, RTM_NEWADDR | RTM_DELADDR)
        .then(|| parse_body(body))
        .flatten()
        .map(|found| (found, kind == RTM_NEWADDR))
}

fn parse_body(body: &[u8]) -> Option<Address> {
    let attributes = body.get(HEADER_LEN..)?;
    let flags = AddressFlags::from_bits_retain(native(attributes, ifa::FLAGS).unwrap_or(0));
    Some(Address {
        link: u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?),
        addr: address(attributes, ifa::LOCAL).or_else(|| address(attributes, ifa::ADDRESS))?,
        prefix_len: *body.get(1)?,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

fn message(link: u32, addr: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = prefix_len;
    message.header.index = link;
    message.header.scope = match addr {
        IpAddr::V4(v4) if v4.is_link_local() => AddressScope::Link,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        IpAddr::V4(_) | IpAddr::V6(_) => AddressScope::Universe,
    };
    message.attributes = vec![AddressAttribute::Local(addr), AddressAttribute::Address(addr)];
    message
}
