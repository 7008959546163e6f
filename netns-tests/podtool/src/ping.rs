//! Echo requests over ICMP and ICMPv6, by a datagram socket where the kernel allows one.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const LIMIT: Duration = Duration::from_secs(1);
const HEADER: usize = 8;

/// Sends `count` echo requests, prints each round trip, and fails unless every one was answered.
pub fn ping(target: SocketAddr, count: u16) -> io::Result<()> {
    let ip = target.ip();
    // Only send() and recv() are used on it, which do not care that it is no UDP socket.
    let socket = UdpSocket::from(open(ip)?);
    socket.connect(target)?;
    for sequence in 1..=count {
        let sent = Instant::now();
        socket.send(&request(ip, sequence))?;
        await_reply(&socket, ip, sequence, sent)?;
        let micros = sent.elapsed().as_micros();
        println!("{ip} seq={sequence} time={}.{:03} ms", micros / 1000, micros % 1000);
    }
    Ok(())
}

fn open(ip: IpAddr) -> nix::Result<std::os::fd::OwnedFd> {
    let (family, protocol) = match ip {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let open = |kind| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol);
    open(SockType::Datagram).or_else(|_| open(SockType::Raw))
}

fn request(ip: IpAddr, sequence: u16) -> Vec<u8> {
    let kind = if ip.is_ipv4() { 8 } else { 128 };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(std::process::id().to_be_bytes().iter().skip(2));
    packet.extend(sequence.to_be_bytes());
    packet.extend(cookie());
    // The kernel fills in the one of ICMPv6 itself.
    let sum = checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// Tells our replies from other processes' on a raw socket; a datagram socket changes the id.
fn cookie() -> [u8; 12] {
    let mut cookie = *b"podtool_\0\0\0\0";
    cookie[8..].copy_from_slice(&std::process::id().to_be_bytes());
    cookie
}

fn await_reply(socket: &UdpSocket, ip: IpAddr, sequence: u16, sent: Instant) -> io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        let left = LIMIT.checked_sub(sent.elapsed()).filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        let length = socket.recv(&mut buffer).map_err(no_answer)?;
        if is_reply(&buffer[..length], ip, sequence) {
            return Ok(());
        }
    }
}

fn no_answer(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::Error::other("no answer") } else { error }
}

fn is_reply(packet: &[u8], ip: IpAddr, sequence: u16) -> bool {
    let kind = if ip.is_ipv4() { 0 } else { 129 };
    // A raw IPv4 socket delivers the IP header, too: 0x4 and its length in words.
    let header = match packet.first() {
        Some(first) if ip.is_ipv4() && first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let echo = packet.get(header..).unwrap_or_default();
    echo.len() >= HEADER
        && echo[0] == kind
        && echo[6..HEADER] == sequence.to_be_bytes()
        && echo[HEADER..] == cookie()
}

fn checksum(packet: &[u8]) -> u16 {
    let words =
        packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}
