//! One blocking netlink socket: batches in a single send, sequence numbers checked, the kernel's error sentence,
//! interrupted dumps repeated, and a limit on every wait.
//!
//! Model: netavark's `netlink.rs`, plus what it lacks (NLMSGERR_ATTR_MSG, NLM_F_DUMP_INTR, SO_RCVTIMEO).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::error::{Error, Result};
use crate::sys;

/// `struct nlmsghdr` (include/uapi/linux/netlink.h).
pub(crate) const HEADER_LEN: usize = 16;
pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 0x02;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The answer carries attributes behind the error number (NLM_F_ACK_TLVS).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The request itself is left out of the error answer (NLM_F_CAPPED).
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The longest wait for an answer. The kernel answers before `send` returns, so this only ends a wait for an
/// answer that the kernel dropped for want of memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Room for one object and its acknowledgement.
const BUFFER_LEN: usize = 8 * 1024;
/// The kernel fills at most this much of a dump at once (af_netlink.c, `netlink_recvmsg`).
const DUMP_BUFFER_LEN: usize = 32 * 1024;
/// How often a dump that changed under our eyes is repeated before giving up.
const DUMP_ATTEMPTS: usize = 20;

/// Which netlink family a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables and conntrack. Its `close` may wait for the kernel's clean-up, 8–24 ms.
    Netfilter,
}

/// One encoded request, without header.
#[derive(Clone, Debug)]
pub struct Request {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; REQUEST and ACK are added when it is sent.
    pub flags: u16,
    /// The message behind the header.
    pub payload: Vec<u8>,
}

impl Request {
    /// Encodes a message.
    pub fn new(kind: u16, message: &impl Emitable, flags: u16) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        Self { kind, flags, payload }
    }
}

/// An answer that is no acknowledgement: its type and the bytes behind the header.
type Answer<'a> = (u16, &'a [u8]);

/// A blocking netlink socket. It stays in the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    received: u64,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Self> {
        Ok(Self { fd: open_fd(protocol)?, sequence: 0, received: 0, buffer: Vec::new() })
    }

    /// Opens a route socket in the calling thread's network namespace.
    pub fn route() -> Result<Self> {
        Self::open(Protocol::Route)
    }

    /// The index of an interface that exists in this socket's namespace.
    pub fn index_of(&self, name: &str) -> io::Result<u32> {
        sys::interface_index(self.fd.as_fd(), name).map(i32::cast_unsigned)
    }

    /// Sends all `requests` in one `send` and waits until the kernel has dealt with each.
    ///
    /// The kernel goes on after a refused message; the first refusal is returned, with its index. `tolerate`
    /// says which refusals are no failure.
    pub fn execute_tolerating(
        &mut self,
        requests: &[Request],
        tolerate: impl Fn(usize, i32) -> bool,
    ) -> Result<()> {
        self.exchange(requests, requests.len(), tolerate, |_| false)
    }

    /// Sends all `requests` in one `send`; any refusal is an error.
    pub fn execute(&mut self, requests: &[Request]) -> Result<()> {
        self.execute_tolerating(requests, |_, _| false)
    }

    /// Sends an nfnetlink batch, whose first and last request are its begin and end. All of it happens or nothing.
    ///
    /// Before Linux 6.10 the end is never acknowledged, so the message before it is; a batch refused as a whole
    /// (EPERM, stale generation, failed commit) is answered once, in the name of its begin.
    pub fn execute_batch(&mut self, requests: &[Request]) -> Result<()> {
        self.exchange(requests, requests.len().saturating_sub(1), |_, _| false, |refused| refused == 0)
    }

    /// Sends all `requests` and waits for the acknowledgement of the last of the first `awaited`, or for a
    /// refusal that `ends` says is the last answer.
    fn exchange(
        &mut self,
        requests: &[Request],
        awaited: usize,
        tolerate: impl Fn(usize, i32) -> bool,
        ends: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let Some(last) = awaited.checked_sub(1) else { return Ok(()) };
        let first_sequence = self.sequence.wrapping_add(1);
        let mut packet = Vec::with_capacity(1024);
        for (index, request) in requests.iter().enumerate() {
            let ack = if index == last { NLM_F_ACK } else { 0 };
            self.append(&mut packet, request, NLM_F_REQUEST | ack);
        }
        self.send(&packet)?;
        let mut refused = None;
        loop {
            let done = self.receive(|header, body| {
                let index = header.sequence_number.wrapping_sub(first_sequence) as usize;
                if index > last || header.message_type != NLMSG_ERROR {
                    return Ok(false);
                }
                let Err(error) = acknowledge(header.flags, body, index) else { return Ok(index == last) };
                if !tolerate(index, error.errno) && refused.is_none() {
                    refused = Some(error);
                }
                Ok(index == last || ends(index))
            })?;
            if done {
                return refused.map_or(Ok(()), Err);
            }
        }
    }

    /// Sends all `requests` in one `send` and returns what the kernel said to each, in their order.
    ///
    /// # Errors
    /// When the socket fails: then it is unknown which of them took effect.
    pub fn execute_each(&mut self, requests: &[Request]) -> Result<Vec<Result<()>>> {
        let mut outcomes: Vec<Result<()>> = requests.iter().map(|_| Ok(())).collect();
        let Some(last) = requests.len().checked_sub(1) else { return Ok(outcomes) };
        let first_sequence = self.sequence.wrapping_add(1);
        let mut packet = Vec::with_capacity(128 * requests.len());
        for (index, request) in requests.iter().enumerate() {
            let ack = if index == last { NLM_F_ACK } else { 0 };
            self.append(&mut packet, request, NLM_F_REQUEST | ack);
        }
        self.send(&packet)?;
        while !self.receive(|header, body| {
            let index = header.sequence_number.wrapping_sub(first_sequence) as usize;
            if header.message_type == NLMSG_ERROR
                && let Some(outcome) = outcomes.get_mut(index)
            {
                *outcome = acknowledge(header.flags, body, index);
                return Ok(index == last);
            }
            Ok(false)
        })? {}
        Ok(outcomes)
    }

    /// Makes room for batches of up to this many bytes in one `send` (needs CAP_NET_ADMIN).
    pub fn set_send_room(&self, bytes: i32) -> Result<()> {
        Ok(sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)?)
    }

    /// Makes room for this many bytes of answers that wait to be read (needs CAP_NET_ADMIN).
    pub fn set_receive_room(&self, bytes: i32) -> Result<()> {
        Ok(sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?)
    }

    /// How many requests were sent so far, those for lists included.
    pub fn requests(&self) -> u32 {
        self.sequence
    }

    /// How many bytes of answers came so far: a list is one request, however long it is.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The number by which the kernel names this socket in the events that its requests cause.
    pub fn port_id(&self) -> Result<u32> {
        let address: NetlinkAddr =
            socket::getsockname(self.fd.as_raw_fd()).map_err(|errno| Error::socket(errno.into()))?;
        Ok(address.pid())
    }

    /// Asks for one object. `None` when the kernel says there is none (`missing` errnos).
    pub fn get<T>(
        &mut self,
        request: &Request,
        missing: &[i32],
        mut parse: impl FnMut(Answer<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut packet = Vec::with_capacity(256);
        self.append(&mut packet, request, NLM_F_REQUEST | NLM_F_ACK);
        let sequence = self.sequence;
        self.send(&packet)?;
        let mut found = None;
        let mut refusal = None;
        while !self.receive(|header, body| {
            if header.sequence_number != sequence {
                return Ok(false);
            }
            if header.message_type != NLMSG_ERROR {
                found = Some(parse((header.message_type, body))?);
                return Ok(false);
            }
            refusal = acknowledge(header.flags, body, 0).err();
            Ok(true)
        })? {}
        match refusal {
            Some(error) if missing.contains(&error.errno) => Ok(None),
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// Asks for a list and collects what `parse` makes of each element. Repeats a dump that the kernel marked as
    /// interrupted by a change (NLM_F_DUMP_INTR), so the list is never a mixture of two states.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Answer<'_>) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.dump_once(request, &mut parse)? {
                return Ok(list);
            }
        }
        Err(Error::refused(libc::EINTR, 0, Some("the list kept changing while it was read".to_owned())))
    }

    fn dump_once<T>(
        &mut self,
        request: &Request,
        parse: &mut impl FnMut(Answer<'_>) -> Result<Option<T>>,
    ) -> Result<Option<Vec<T>>> {
        let mut packet = Vec::with_capacity(256);
        self.append(&mut packet, request, NLM_F_REQUEST | NLM_F_DUMP);
        let sequence = self.sequence;
        self.send(&packet)?;
        if self.buffer.len() < DUMP_BUFFER_LEN {
            // Made anew, not grown: fresh zeroes need not be touched.
            self.buffer = vec![0; DUMP_BUFFER_LEN];
        }
        let mut list = Vec::new();
        let mut interrupted = false;
        while !self.receive(|header, body| {
            if header.sequence_number != sequence {
                return Ok(false);
            }
            interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match header.message_type {
                NLMSG_DONE => finish_dump(header.flags, body).map(|()| true),
                NLMSG_ERROR => acknowledge(header.flags, body, 0).map(|()| true),
                kind => {
                    list.extend(parse((kind, body))?);
                    Ok(header.flags & NLM_F_MULTI == 0)
                }
            }
        })? {}
        Ok((!interrupted).then_some(list))
    }

    fn append(&mut self, packet: &mut Vec<u8>, request: &Request, extra_flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        append_message(packet, request, extra_flags, self.sequence);
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        loop {
            match socket::send(self.fd.as_raw_fd(), packet, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::socket(errno.into())),
            }
        }
    }

    /// Receives one datagram and gives each message in it to `each`, until that says it has the last one.
    fn receive(&mut self, mut each: impl FnMut(Header, &[u8]) -> Result<bool>) -> Result<bool> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_LEN];
        }
        let length = receive_datagram(&self.fd, &mut self.buffer)?;
        self.received += length as u64;
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let mut done = false;
        while rest.len() >= HEADER_LEN {
            let header = Header::parse(rest)?;
            let body =
                rest.get(HEADER_LEN..header.length).ok_or_else(|| Error::malformed("short message"))?;
            done |= each(header, body)?;
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(done)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The parts of `struct nlmsghdr` that a reader needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub length: usize,
    pub message_type: u16,
    pub flags: u16,
    pub sequence_number: u32,
    pub port_id: u32,
}

impl Header {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let header = Self {
            length: word(bytes, 0) as usize,
            message_type: half(bytes, 4),
            flags: half(bytes, 6),
            sequence_number: word(bytes, 8),
            port_id: word(bytes, 12),
        };
        if header.length < HEADER_LEN { Err(Error::malformed("message length")) } else { Ok(header) }
    }
}

pub(crate) fn append_message(packet: &mut Vec<u8>, request: &Request, extra_flags: u16, sequence: u32) {
    let length = HEADER_LEN + request.payload.len();
    packet.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    packet.extend_from_slice(&request.kind.to_ne_bytes());
    packet.extend_from_slice(&(request.flags | extra_flags).to_ne_bytes());
    packet.extend_from_slice(&sequence.to_ne_bytes());
    packet.extend_from_slice(&0u32.to_ne_bytes());
    packet.extend_from_slice(&request.payload);
    packet.resize(packet.len().next_multiple_of(4), 0);
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn open_fd(protocol: Protocol) -> io::Result<OwnedFd> {
    let family = match protocol {
        Protocol::Route => SockProtocol::NetlinkRoute,
        Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
    };
    let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
    socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
    sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
    if protocol == Protocol::Route {
        // Without it the kernel ignores the filters of a dump request.
        sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)?;
    }
    set_receive_limit(&fd, ANSWER_LIMIT)?;
    Ok(fd)
}

pub(crate) fn set_receive_limit(fd: &OwnedFd, limit: Duration) -> io::Result<()> {
    let limit = nix::sys::time::TimeVal::new(limit.as_secs().cast_signed(), limit.subsec_micros().into());
    socket::setsockopt(fd, socket::sockopt::ReceiveTimeout, &limit)?;
    Ok(())
}

fn receive_datagram(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // MSG_TRUNC: the real length, so that a cut answer is seen.
        match socket::recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => {
                return Err(Error::malformed("answer larger than its buffer"));
            }
            Ok(length) => return Ok(length),
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => {
                return Err(Error::refused(libc::ETIMEDOUT, 0, Some("the kernel did not answer".to_owned())));
            }
            Err(errno) => return Err(Error::socket(errno.into())),
        }
    }
}

/// Reads an NLMSG_ERROR body: errno 0 is an acknowledgement.
fn acknowledge(flags: u16, body: &[u8], index: usize) -> Result<()> {
    let code = word(body, 0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    let request_len = if flags & NLM_F_CAPPED != 0 { HEADER_LEN } else { word(body, 4) as usize };
    let reason = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| body.get((4 + request_len).next_multiple_of(4)..))
        .flatten()
        .and_then(error_sentence);
    Err(Error::refused(code.saturating_neg(), index, reason))
}

/// An error inside a dump comes in the body of NLMSG_DONE, where it is easily missed.
fn finish_dump(flags: u16, body: &[u8]) -> Result<()> {
    let code = word(body, 0).cast_signed();
    if code >= 0 {
        return Ok(());
    }
    let reason = (flags & NLM_F_ACK_TLVS != 0).then(|| body.get(4..)).flatten().and_then(error_sentence);
    Err(Error::refused(code.saturating_neg(), 0, reason))
}

fn error_sentence(mut attributes: &[u8]) -> Option<String> {
    while attributes.len() >= 4 {
        let length = usize::from(half(attributes, 0));
        let value = attributes.get(4..length)?;
        if half(attributes, 2) == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sentence_is_part_of_the_error() {
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER_LEN]);
        body.extend_from_slice(&8u16.to_ne_bytes());
        body.extend_from_slice(&NLMSGERR_ATTR_MSG.to_ne_bytes());
        body.extend_from_slice(b"bad\0");
        let error = acknowledge(NLM_F_CAPPED | NLM_F_ACK_TLVS, &body, 3).unwrap_err();
        assert_eq!((error.errno, error.index, error.reason.as_deref()), (22, 3, Some("bad")));
    }

    #[test]
    fn an_error_at_the_end_of_a_dump_is_seen() {
        assert!(finish_dump(0, &(-16i32).to_ne_bytes()).is_err_and(|error| error.is(16)));
        assert!(finish_dump(0, &0i32.to_ne_bytes()).is_ok());
    }

    #[test]
    fn attributes_cut_short_are_no_panic() {
        assert_eq!(error_sentence(&[200, 0, 1, 0, 1]), None);
    }
}
