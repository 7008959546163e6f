//! The fields of IP, TCP and UDP headers that cutting and joining packets need, at their offsets (RFC 791, 8200,
//! 9293, 768).

use crate::checksum::Sum;

/// Of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Of an IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Of a UDP header.
pub const UDP_LEN: usize = 8;
/// Of a TCP header without options.
pub const TCP_LEN: usize = 20;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// TCP flags, at [`TCP_FLAGS`].
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;
/// See [`FIN`].
pub const CWR: u8 = 0x80;
/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// Offset of the sequence number in a TCP header.
pub const TCP_SEQUENCE: usize = 4;

/// What is on top of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
        }
    }

    /// Where the checksum is in its header.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    fn of(number: u8) -> Option<Self> {
        match number {
            PROTOCOL_TCP => Some(Self::Tcp),
            PROTOCOL_UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Where the parts of a packet begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// IPv4, else IPv6.
    pub v4: bool,
    /// What is on top.
    pub transport: Transport,
    /// Where its header begins.
    pub transport_at: usize,
    /// Where the payload begins.
    pub payload_at: usize,
}

impl Layout {
    /// Of a plain packet: no IP options, no extension headers, no fragment, all lengths as they should be.
    pub fn of_plain(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let (v4, transport, transport_at) = if first == 0x45 {
            let fragment = half(packet, 6) & !DONT_FRAGMENT;
            let whole = usize::from(half(packet, 2)) == packet.len() && fragment == 0;
            (true, Transport::of(*packet.get(9)?).filter(|_| whole)?, IPV4_LEN)
        } else if first >> 4 == 6 {
            let whole = usize::from(half(packet, 4)) + IPV6_LEN == packet.len();
            (false, Transport::of(*packet.get(6)?).filter(|_| whole)?, IPV6_LEN)
        } else {
            return None;
        };
        let payload_at = payload_at(packet, transport, transport_at)?;
        let whole = transport == Transport::Tcp
            || usize::from(half(packet, transport_at + 4)) == packet.len() - transport_at;
        whole.then_some(Self { v4, transport, transport_at, payload_at })
    }

    /// The sum of the pseudo header for `length` bytes from the transport header on.
    pub fn pseudo_header(&self, packet: &[u8], length: usize) -> Sum {
        let addresses = if self.v4 { 12..20 } else { 8..40 };
        let sum = Sum::default().with(packet.get(addresses).unwrap_or_default());
        sum.with_word(u16::from(self.transport.number())).with_word(length_16(length))
    }
}

/// "Don't fragment", in the word at offset 6 of an IPv4 header.
pub const DONT_FRAGMENT: u16 = 0x4000;

/// Where the payload begins behind a transport header; `None` if the header does not fit or says nonsense.
pub fn payload_at(packet: &[u8], transport: Transport, transport_at: usize) -> Option<usize> {
    let length = match transport {
        Transport::Tcp => usize::from(packet.get(transport_at + 12)? >> 4) * 4,
        Transport::Udp => UDP_LEN,
    };
    let least = if transport == Transport::Tcp { TCP_LEN } else { UDP_LEN };
    let at = transport_at + length;
    (length >= least && at <= packet.len()).then_some(at)
}

/// Writes the length and, for IPv4, the header's checksum, of a packet that is `total` bytes long, of which `packet` is
/// the beginning.
pub fn seal_ip(packet: &mut [u8], v4: bool, header_len: usize, total: usize) {
    if v4 {
        put(packet, 2, length_16(total).to_be_bytes());
        put(packet, 10, [0; 2]);
        let sum = Sum::default().with(packet.get(..header_len).unwrap_or_default());
        put(packet, 10, sum.checksum());
    } else {
        put(packet, 4, length_16(total.saturating_sub(IPV6_LEN)).to_be_bytes());
    }
}

/// The 16 bits in network order at `at`; 0 behind the end.
pub fn half(packet: &[u8], at: usize) -> u16 {
    packet.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// The 32 bits in network order at `at`; 0 behind the end.
pub fn word(packet: &[u8], at: usize) -> u32 {
    packet.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Writes bytes at `at`, if they fit.
pub fn put<const N: usize>(packet: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = packet.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

/// A length that a packet can have; more than that has been refused before.
pub fn length_16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
