//! Interface addresses. Each function names the `ip address` command it equals.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, ParseableParametrized};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::{Error, Result};
use crate::socket::{Request, Socket};

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
    Request::route(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// `ip address del ADDR/LEN dev …`; EADDRNOTAVAIL if it is not there.
pub fn delete(link: u32, addr: IpAddr, prefix_len: u8) -> Request {
    Request::route(RouteNetlinkMessage::DelAddress(message(link, addr, prefix_len)), 0)
}

/// `ip address show dev …`.
pub fn of_link(socket: &mut Socket, link: u32) -> Result<Vec<Address>> {
    let mut message = AddressMessage::default();
    message.header.index = link;
    let request = Request::route(RouteNetlinkMessage::GetAddress(message), 0);
    let list = socket.dump(&request, |(kind, body)| parse(kind, body))?;
    // Kernels without strict checking ignore the filter.
    Ok(list.into_iter().filter(|address| address.link == link).collect())
}

fn parse(kind: u16, body: &[u8]) -> Result<Option<Address>> {
    let message = match RouteNetlinkMessage::parse_with_param(body, kind) {
        Ok(RouteNetlinkMessage::NewAddress(message)) => message,
        Ok(_) => return Ok(None),
        Err(error) => return Err(Error::malformed(&format!("address: {error}"))),
    };
    Ok(from_message(&message))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "only the address itself and its flags matter here")]
fn from_message(message: &AddressMessage) -> Option<Address> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        addr: local.or(address)?,
        prefix_len: message.header.prefix_len,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
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
