//! What no table of the kernel tells, tried out: whether checksums inside VXLAN survive this machine's network card, and
//! whether packets as large as the pods' MTU assumes get through to other nodes.
//!
//! No peer helps knowingly: a datagram to a port where nobody listens is answered by the other kernel with "port unreachable",
//! if it arrives whole. Silence alone proves nothing (a firewall may drop it): each verdict needs a like datagram that was
//! answered.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use weft_netlink::sys;
use weft_overlay::objects::Device;

/// Where traceroute looks; nobody listens there.
const PORT: u16 = 33434;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Kernels answer six datagrams at once, then one a second (icmp_ratelimit).
const ATTEMPTS: usize = 3;
/// A small datagram.
const SMALL: usize = 32;

/// Another node, by the addresses to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// The node addresses of both, this one's first, if packets between them take VXLAN.
    pub inner: Option<(IpAddr, IpAddr)>,
    /// Its address on the underlay, and the MTU of the link to it.
    pub outer: Option<(IpAddr, u32)>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether checksums inside VXLAN are spoiled; `None`: it could not be told.
    pub spoiled: Option<bool>,
    /// For each target that answers at all, whether packets of this size do not get through.
    pub small_path: Vec<(String, Option<u32>)>,
}

/// Tries it out; takes seconds where nobody answers. `known` is that checksums are spoiled: then their offload stays off, also on
/// a device that was made anew.
///
/// # Errors
/// When the offload cannot be switched.
pub fn run(targets: &[Target], known: bool) -> Result<Found, String> {
    let mut found = Found { spoiled: known.then_some(true), ..Found::default() };
    if known {
        offload(false)?;
    }
    for target in targets {
        if let (None, Some((from, to))) = (found.spoiled, target.inner) {
            found.spoiled = spoiled(from, to)?;
        }
        if let Some((to, mtu)) = target.outer
            && let Some(small) = is_small(to, mtu)
        {
            found.small_path.push((target.name.clone(), small.then_some(mtu)));
        }
    }
    Ok(found)
}

/// A datagram whose checksum the card should finish is lost, one without a checksum arrives, and so does the former once the
/// checksum is made in software: nothing else explains that.
fn spoiled(from: IpAddr, to: IpAddr) -> Result<Option<bool>, String> {
    if !from.is_ipv4() {
        // IPv6 has no datagrams without checksum that everybody takes.
        return Ok(None);
    }
    let heard = |checksum| ask(Some(from), to, SMALL, checksum) == Answer::Heard;
    if heard(true) {
        return Ok(Some(false));
    }
    if !heard(false) {
        return Ok(None);
    }
    if !offload(false)? {
        return Ok(None);
    }
    if heard(true) {
        return Ok(Some(true));
    }
    offload(true)?;
    Ok(None)
}

/// Lets the card finish the checksums of what goes through VXLAN, or not; says whether that is new.
fn offload(on: bool) -> Result<bool, String> {
    let name = Device::Vxlan.name();
    let failed = |error: io::Error| format!("switch the checksum offload of {name}: {error}");
    let socket = UdpSocket::bind(("127.0.0.1", 0)).map_err(failed)?;
    if sys::tx_checksum(socket.as_fd(), name, None).map_err(failed)? == on {
        return Ok(false);
    }
    sys::tx_checksum(socket.as_fd(), name, Some(on)).map_err(failed)?;
    Ok(true)
}

/// Whether packets as large as the link's MTU do not reach `to`, though small ones do; `None`: it does not answer.
fn is_small(to: IpAddr, mtu: u32) -> Option<bool> {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let length = (mtu as usize).checked_sub(headers)?;
    match ask(None, to, length, true) {
        Answer::Heard => Some(false),
        Answer::TooBig => Some(true),
        Answer::Silent => (ask(None, to, SMALL, true) == Answer::Heard).then_some(true),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Heard,
    /// A router says that it is larger than the next link.
    TooBig,
    Silent,
}

fn ask(from: Option<IpAddr>, to: IpAddr, length: usize, checksum: bool) -> Answer {
    let mut answer = Answer::Silent;
    for _ in 0..ATTEMPTS {
        // A fault of this side, such as an address that is not there yet, is as good as silence.
        answer = ask_once(from, to, length, checksum).unwrap_or(Answer::Silent);
        if answer != Answer::Silent {
            break;
        }
    }
    answer
}

fn ask_once(from: Option<IpAddr>, to: IpAddr, length: usize, checksum: bool) -> io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    // Never in fragments, whatever was learnt of the path before.
    match to.is_ipv4() {
        true => {
            sys::set_option(socket.as_fd(), libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?
        }
        false => {
            let probe = libc::IPV6_PMTUDISC_PROBE;
            sys::set_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
        }
    }
    if !checksum {
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    }
    socket.connect((to, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let sent = socket.send(&vec![b'w'; length]);
    match sent.and_then(|_| socket.recv(&mut [0; 1])).map_err(|error| error.raw_os_error()) {
        // Somebody listens after all: it arrived.
        Ok(_) | Err(Some(libc::ECONNREFUSED)) => Ok(Answer::Heard),
        Err(Some(libc::EMSGSIZE)) => Ok(Answer::TooBig),
        Err(_) => Ok(Answer::Silent),
    }
}
