//! Telling neighbours about a pod's IPv6 address: an unsolicited neighbour advertisement (RFC 4861, 7.2.6). The
//! kernel sends none for addresses that skip duplicate address detection. A raw ICMPv6 socket, never AF_PACKET:
//! closing one of those waits 8–16 ms for the kernel.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, sendto, setsockopt, socket,
    sockopt,
};
use weft_netlink::link::Mac;

const ADVERTISEMENT: u8 = 136;
/// "Override an existing cache entry" (RFC 4861, 4.4).
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_ADDRESS: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Neighbour discovery ignores packets that could have crossed a router (RFC 4861, 7.1.2).
const HOP_LIMIT: i32 = 255;

/// Opens a raw ICMPv6 socket in the calling thread's namespace.
pub fn open() -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOP_LIMIT)?;
    Ok(fd)
}

/// Advertises that `address` on interface `index` is at `mac`.
pub fn advertise(fd: &OwnedFd, index: u32, address: Ipv6Addr, mac: Mac) -> io::Result<()> {
    // A source of its own, or the kernel would take the link-local address.
    bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, index)))?;
    let destination = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    sendto(fd.as_raw_fd(), &message(address, mac), &destination, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// The kernel fills in the checksum of an ICMPv6 socket.
fn message(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    bytes.extend_from_slice(&address.octets());
    bytes.extend_from_slice(&[TARGET_LINK_ADDRESS, 1]);
    bytes.extend_from_slice(&mac.0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advertisement_is_laid_out_as_the_rfc_says() {
        let bytes = message("fd00::5".parse().unwrap(), Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(bytes[8..24], "fd00::5".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(bytes[24..], [2, 1, 2, 0, 0, 0, 0, 1]);
    }
}
