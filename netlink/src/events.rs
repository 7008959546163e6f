//! Following the kernel's events that concern the overlay.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::link::RTNLGRP_LINK;
use crate::nft::NEW_GENERATION;
use crate::route::PROTOCOL;
use crate::socket::{HEADER_LEN, Header, Protocol};
use crate::sys;

/// `RTNLGRP_…` (include/uapi/linux/rtnetlink.h): links, neighbours, addresses and routes of both families.
const ROUTE_GROUPS: [i32; 6] = [RTNLGRP_LINK, 3, 5, 7, 9, 11];
/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: i32 = 7;
/// A datagram of events is as large as the kernel's allocation for it, at most.
const EVENT_BUFFER_LEN: usize = 32 * 1024;
/// What may wait to be read, as the kernel counts: a burst of some thousand events.
const RECEIVE_ROOM: i32 = 16 * 1024 * 1024;

/// One event: a message that some process's request, or the kernel by itself, has caused.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// The port of the socket that caused it: the process's id if it is its first. 0 if the kernel does not tell.
    pub port_id: u32,
    /// The message behind the header.
    pub body: &'a [u8],
}

/// What came of reading a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Each event was seen.
    Complete,
    /// The kernel had no room for some (ENOBUFS): what is known by events must be read anew.
    Lost,
    /// Each event so far was seen, and more may wait.
    More,
}

/// A stream of multicast events. It never blocks: poll its descriptor.
#[derive(Debug)]
pub struct EventStream {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl EventStream {
    /// Links, addresses, Weft's own and all default routes, and the neighbours and forwarding entries of the links
    /// that [`EventStream::follow_neighbours`] names.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub fn route() -> io::Result<Self> {
        let stream = Self::open(Protocol::Route)?;
        // Filtered before it subscribes: a busy node's other events never fill it.
        stream.follow_neighbours([0; 2])?;
        stream.join(&ROUTE_GROUPS)?;
        Ok(stream)
    }

    /// One event for each transaction of nf_tables, whoever commits it.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub fn nftables() -> io::Result<Self> {
        let stream = Self::open(Protocol::Netfilter)?;
        sys::only_messages(stream.fd.as_fd(), NEW_GENERATION)?;
        stream.join(&[NFTABLES_GROUP])?;
        Ok(stream)
    }

    /// From now on hears of the neighbours and forwarding entries of these links, by index, and of no others.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn follow_neighbours(&self, links: [u32; 2]) -> io::Result<()> {
        sys::overlay_events(self.fd.as_fd(), PROTOCOL, links)
    }

    fn open(protocol: Protocol) -> io::Result<Self> {
        let family = match protocol {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, family)?;
        sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_ROOM)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, buffer: vec![0; EVENT_BUFFER_LEN] })
    }

    fn join(&self, groups: &[i32]) -> io::Result<()> {
        let join = |group: &i32| {
            sys::set_option(self.fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, *group)
        };
        groups.iter().try_for_each(join)
    }

    /// Reads all that waits and gives each event to `each`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&mut self, each: impl FnMut(Event<'_>)) -> io::Result<Drained> {
        self.drain_some(usize::MAX, each)
    }

    /// The same, but not more than so many datagrams: while many pods start, reading never catches up with the kernel.
    ///
    /// # Errors
    /// As [`EventStream::drain`].
    pub fn drain_some(&mut self, datagrams: usize, mut each: impl FnMut(Event<'_>)) -> io::Result<Drained> {
        let mut drained = Drained::Complete;
        for _ in 0..datagrams {
            match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => read_events(self.buffer.get(..length).unwrap_or_default(), &mut each),
                Err(nix::errno::Errno::EAGAIN) => return Ok(drained),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::ENOBUFS) => drained = Drained::Lost,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(if drained == Drained::Lost { drained } else { Drained::More })
    }
}

impl AsFd for EventStream {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For whoever polls by number, as tokio does.
impl AsRawFd for EventStream {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

fn read_events(mut datagram: &[u8], each: &mut impl FnMut(Event<'_>)) {
    while datagram.len() >= HEADER_LEN {
        let Ok(header) = Header::parse(datagram) else { return };
        let Some(body) = datagram.get(HEADER_LEN..header.length) else { return };
        each(Event { kind: header.message_type, port_id: header.port_id, body });
        datagram = datagram.get(header.length.next_multiple_of(4)..).unwrap_or_default();
    }
}
