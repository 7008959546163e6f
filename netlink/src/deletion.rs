//! The end of a link, in two roles: whoever sends the request is held for some 15 ms, until the kernel's barrier has
//! passed; whoever hears that the link is gone need not wait for that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ECHO, NLM_F_REQUEST};
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::link::{self, RTM_DELLINK, RTNLGRP_LINK};
use crate::socket::{Header, NLMSG_ERROR, append_message, set_receive_limit, word};
use crate::{Request, sys};

/// How it is heard that the link is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// The kernel echoes the event to the socket that asked for the deletion (Linux 6.2, rtnetlink.c,
    /// `rtnl_delete_link`): one socket, and no filter to be compiled.
    Echo,
    /// By the events that all can hear, on a second socket.
    Event,
}

impl Hearing {
    /// The cheaper one that this kernel offers.
    pub fn of_this_kernel() -> Self {
        let release = nix::sys::utsname::uname().map(|uname| uname.release().to_owned());
        let release = release.unwrap_or_default();
        if echoes(&release.to_string_lossy()) { Self::Echo } else { Self::Event }
    }
}

fn echoes(release: &str) -> bool {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The link is gone: unlisted, its routes and addresses with it.
    Gone,
    /// The kernel refused, with this errno.
    Refused(i32),
    /// Nothing within the limit.
    Silence,
}

/// A deletion that somebody else sends and whose end is heard here.
#[derive(Debug)]
pub struct Deletion {
    index: u32,
    packet: Vec<u8>,
    last: u32,
    sender: OwnedFd,
    events: Option<OwnedFd>,
}

impl Deletion {
    /// Prepares the deletion of the link with this index; `before` goes ahead in the same send, and whether that was
    /// done is not heard. All that there is to hear is heard from here on.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn prepare(index: u32, before: &[Request], hearing: Hearing) -> io::Result<Self> {
        let events = match hearing {
            Hearing::Echo => None,
            Hearing::Event => Some(subscribe(index)?),
        };
        let mut packet = Vec::with_capacity(256);
        let mut last = 0;
        for request in before {
            last += 1;
            append_message(&mut packet, request, NLM_F_REQUEST, last);
        }
        last += 1;
        append_message(&mut packet, &link::delete(index), NLM_F_REQUEST | NLM_F_ECHO, last);
        Ok(Self { index, packet, last, sender: open()?, events })
    }

    /// The socket to send [`Deletion::packet`] on. The send lasts until the kernel's barrier has passed.
    pub fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// What to send, once.
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// Waits for the word.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&self, limit: Duration) -> io::Result<Word> {
        let fd = self.events.as_ref().unwrap_or(&self.sender);
        set_receive_limit(fd, limit.max(Duration::from_millis(1)))?;
        // The first bytes of a message say it all.
        let mut message = [0; 64];
        loop {
            match socket::recv(fd.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(word) = message.get(..length).and_then(|message| self.understand(message)) {
                        return Ok(word);
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(Word::Silence),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn understand(&self, message: &[u8]) -> Option<Word> {
        let header = Header::parse(message).ok()?;
        let body = message.get(crate::socket::HEADER_LEN..)?;
        match header.message_type {
            // `ifi_index`
            RTM_DELLINK if word(body, 4) == self.index => Some(Word::Gone),
            NLMSG_ERROR if header.sequence_number == self.last => {
                Some(Word::Refused(word(body, 0).cast_signed().saturating_neg()))
            }
            _ => None,
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?)
}

fn subscribe(index: u32) -> io::Result<OwnedFd> {
    let fd = open()?;
    // Filtered before it subscribes: a busy node's other events never fill it.
    sys::only_link_events(fd.as_fd(), RTM_DELLINK, index)?;
    socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_echo_came_with_linux_6_2() {
        for (release, expected) in [
            ("6.2.0", true),
            ("6.18.44-fc-v857", true),
            ("10.0", true),
            ("6.1.0-25-amd64", false),
            ("5.15.0-generic", false),
            ("", false),
        ] {
            assert_eq!(echoes(release), expected, "{release}");
        }
    }

    #[test]
    fn only_the_word_on_this_link_counts() {
        let deletion = Deletion::prepare(7, &[], Hearing::Echo).unwrap();
        let message = |kind: u16, sequence: u32, body: [u32; 2]| {
            let mut bytes = 24u32.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&0u16.to_ne_bytes());
            bytes.extend([sequence, 0, body[0], body[1]].iter().flat_map(|word| word.to_ne_bytes()));
            deletion.understand(&bytes)
        };
        assert_eq!(message(RTM_DELLINK, 1, [0, 7]), Some(Word::Gone));
        assert_eq!(message(RTM_DELLINK, 1, [0, 8]), None);
        assert_eq!(message(NLMSG_ERROR, 0, [(-2i32).cast_unsigned(), 0]), None);
        assert_eq!(message(NLMSG_ERROR, 1, [(-1i32).cast_unsigned(), 0]), Some(Word::Refused(1)));
        assert_eq!(deletion.understand(&[1, 2, 3]), None);
    }
}
