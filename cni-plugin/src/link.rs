//! The pod's link: names and MACs, the pair in one send, its deletion without waiting for the kernel's barrier.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use weft_cni::error::{Error, code};
use weft_ipam::clock::Deadline;
use weft_ipam::{AttachmentId, Hash, HostKernel, refused};
use weft_netlink::link::{self, Link, Mac, NewVeth, PortFlags};
use weft_netlink::{Deletion, Hearing, Request, Socket, Word};

use crate::child;

/// The longest wait for the kernel's word that the link is gone, before deleting it the slow way.
const GONE_LIMIT: Duration = Duration::from_secs(2);
/// After this long without a word it is asked: the link may have gone with its namespace just before.
const ASK_AFTER: Duration = Duration::from_millis(50);

/// A MAC made from a hash. The first byte says: locally administered, unicast.
pub fn mac_from(hash: &Hash, first: u8) -> Mac {
    let digits = hash.as_str();
    let octet =
        |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0);
    Mac([first, octet(0), octet(2), octet(4), octet(6), octet(8)])
}

/// The pod end's MAC follows from its first address: when an address is given again, what neighbours remember of
/// its former holder is right.
pub fn pod_mac(id: &AttachmentId, addresses: &[IpAddr]) -> Mac {
    let v4 = addresses.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(v4.octets()) } else { None });
    match (v4, addresses.first()) {
        (Some([a, b, c, d]), _) => Mac([0x0a, 0x58, a, b, c, d]),
        (None, Some(v6)) => mac_from(&Hash::of(&v6.to_string()), 0x0a),
        (None, None) => mac_from(&Hash::of(id.as_str()), 0x0a),
    }
}

/// The host end's MAC. High, so that a bridge that follows its lowest port never follows this one.
pub fn host_mac(id: &AttachmentId) -> Mac {
    mac_from(&Hash::of(id.as_str()), 0xfe)
}

/// A pair to make.
#[derive(Clone, Debug)]
pub struct Pair<'a> {
    /// The two ends.
    pub veth: NewVeth<'a>,
    /// Alias of the host end.
    pub alias: &'a str,
    /// Port flags, in bridge mode.
    pub port: Option<PortFlags>,
    /// The kernel has IPv6.
    pub ipv6: bool,
}

/// The requests that make the pair and bring the host end up; `before` goes ahead in the same send.
pub fn make(socket: &mut Socket, pair: &Pair<'_>, before: Vec<Request>) -> Result<(), Refusal> {
    let first = before.len();
    let mut requests = before;
    let name = pair.veth.host_name;
    requests.push(link::create_veth(&pair.veth));
    requests.push(link::configure_host_end(name, pair.alias, pair.port, pair.ipv6));
    requests.push(link::up_by_name(name));
    socket.execute(&requests).map_err(|error| match error.index.checked_sub(first) {
        None => Refusal::Before(error),
        Some(0) if error.is(libc::EEXIST) => Refusal::Exists(error),
        Some(_) if error.is(libc::EXFULL) => Refusal::BridgeFull,
        Some(_) => Refusal::Other(error),
    })
}

/// Why a pair could not be made.
#[derive(Debug)]
pub enum Refusal {
    /// One of the requests ahead of the pair was refused. The pair may have been made.
    Before(weft_netlink::Error),
    /// The name of one end is taken.
    Exists(weft_netlink::Error),
    /// A bridge has at most 1,023 ports.
    BridgeFull,
    /// Anything else.
    Other(weft_netlink::Error),
}

impl Refusal {
    /// As a CNI error.
    pub fn into_error(self, pair: &Pair<'_>) -> Error {
        let NewVeth { host_name, pod_name, .. } = pair.veth;
        match self {
            Self::Exists(error) => Error::new(
                code::INTERFACE_EXISTS,
                format!("make the pod's link {host_name} with {pod_name} in the pod: {error}"),
            )
            .with_details("a link of this name exists, on the node or in the pod's namespace"),
            Self::BridgeFull => crate::bridge::full(),
            Self::Before(error) | Self::Other(error) => {
                refused(format!("make the pod's link {host_name} with {pod_name} in the pod"), &error)
            }
        }
    }
}

/// Deletes a link and returns once nobody can see it: in some 1.5 ms instead of the 15–20 ms after which the
/// kernel lets the caller go. A detached child makes the request and bears that wait.
///
/// `neighbours` are removed in the same send, just before: after it, they would wait for the kernel to be through
/// with the link. Whether they went is not looked at.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn delete(
    kernel: &mut HostKernel,
    index: u32,
    neighbours: Vec<Request>,
    deadline: Deadline,
) -> Result<(), Error> {
    if let Ok(true) = delete_by_child(kernel, index, &neighbours, deadline) {
        return Ok(());
    }
    let mut requests = neighbours;
    requests.push(link::delete(index));
    let socket = kernel.socket()?;
    // No child could be made, or nothing was heard of it: wait ourselves.
    let last = requests.len() - 1;
    socket
        .execute_tolerating(&requests, |at, errno| at < last || errno == libc::ENODEV)
        .map_err(|error| refused(format!("delete the link with index {index}"), &error))
}

fn delete_by_child(
    kernel: &mut HostKernel,
    index: u32,
    neighbours: &[Request],
    deadline: Deadline,
) -> io::Result<bool> {
    let deletion = Deletion::prepare(index, neighbours, Hearing::of_this_kernel())?;
    let keep = kernel.rules_socket().map(AsFd::as_fd);
    let child = child::send_from_detached_child(deletion.sender(), keep, deletion.packet())?;
    let until = Instant::now() + deadline.remaining().min(GONE_LIMIT);
    while Instant::now() < until {
        let word = deletion.wait(ASK_AFTER)?;
        let socket = kernel.socket().map_err(io::Error::other)?;
        if word == Word::Gone || link::by_index(socket, index).map_err(io::Error::other)?.is_none() {
            return Ok(true);
        }
        if word != Word::Silence || child.has_ended() {
            // Refused, or the child was killed.
            break;
        }
    }
    Ok(false)
}

/// The host end of an attachment found by its name, if the kernel has it and it is a veth.
///
/// # Errors
/// Code 102 if the kernel refuses to tell.
pub fn host_end_by_name(socket: &mut Socket, id: &AttachmentId) -> Result<Option<Link>, Error> {
    let name = id.host_name();
    let found = link::by_name(socket, &name).map_err(|error| refused(format!("look up {name}"), &error))?;
    Ok(found.filter(|link| link.kind.as_deref() == Some("veth")))
}

/// A descriptor of a namespace, for a request.
pub fn fd_of(netns: &weft_netlink::netns::Netns) -> BorrowedFd<'_> {
    netns.as_fd()
}
