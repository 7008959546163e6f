//! Waiting for one kernel event.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::link::{RTM_DELLINK, RTNLGRP_LINK};
use crate::{socket as netlink, sys};

/// A socket that hears of one thing only.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
}

impl Events {
    /// Hears when the link with this index is gone: unlisted, its routes and addresses with it.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub fn link_gone(index: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // Filtered before it subscribes: a busy node's other events never fill it.
        sys::only_link_events(fd.as_fd(), RTM_DELLINK, index)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)?;
        Ok(Self { fd })
    }

    /// Waits for the event; `false` when `limit` passed first.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        netlink::set_receive_limit(&self.fd, limit.max(Duration::from_millis(1)))?;
        let mut event = [0; 64];
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut event, MsgFlags::empty()) {
                Ok(_) => return Ok(true),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
