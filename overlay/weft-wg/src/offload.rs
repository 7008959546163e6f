//! The header in front of each packet on a TUN with offload: `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h,
//! VIRTIO 1.2, section 5.1.6).

use std::fmt;

use crate::headers::Transport;

/// Bytes of the header without the merged buffers' count, in the processor's byte order.
pub const HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The packet has the ECN bit CWR set, which belongs to its first segment only.
const GSO_ECN: u8 = 0x80;

/// What is still to be done to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    Done,
    /// Its checksum is to be completed: from `start` on, into the field at `start + offset`.
    Checksum {
        /// Where the transport header begins.
        start: usize,
        /// Where the checksum is in it.
        offset: usize,
    },
    /// It is to be cut into packets with at most `size` bytes of payload each.
    Segments {
        /// The kind.
        transport: Transport,
        /// Where the transport header begins.
        start: usize,
        /// Payload of each but the last.
        size: u16,
    },
}

/// A header that no kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Offload {
    /// Reads the header. Its `hdr_len` is not believed: for a forwarded packet it is whatever was linear.
    pub fn parse(header: [u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [flags, kind, _, _, s0, s1, c0, c1, o0, o1] = header;
        let half = |a, b| usize::from(u16::from_ne_bytes([a, b]));
        let (start, offset) = (half(c0, c1), half(o0, o1));
        let transport = match kind & !GSO_ECN {
            GSO_NONE if flags & NEEDS_CHECKSUM == 0 => return Ok(Self::Done),
            GSO_NONE => return Ok(Self::Checksum { start, offset }),
            GSO_TCPV4 | GSO_TCPV6 => Transport::Tcp,
            GSO_UDP_L4 => Transport::Udp,
            _ => return Err(Malformed("a kind of segmentation that was not asked for")),
        };
        let size = u16::from_ne_bytes([s0, s1]);
        if flags & NEEDS_CHECKSUM == 0 || size == 0 || offset != transport.checksum_offset() {
            return Err(Malformed("segmentation without checksum, size or place"));
        }
        Ok(Self::Segments { transport, start, size })
    }

    /// Writes the header. `v4`: of an IPv4 packet; `payload_at`: where its payload begins.
    pub fn to_bytes(self, v4: bool, payload_at: usize) -> [u8; HEADER_LEN] {
        let half = |value: usize| crate::headers::length_16(value).to_ne_bytes();
        let (flags, kind, size, start, offset) = match self {
            // Only whole packets whose peer and lane have vouched for come here; the kernel still looks at transports.
            Self::Done => (0, GSO_NONE, 0, 0, 0),
            Self::Checksum { start, offset } => (NEEDS_CHECKSUM, GSO_NONE, 0, start, offset),
            Self::Segments { transport, start, size } => {
                let kind = match (transport, v4) {
                    (Transport::Tcp, true) => GSO_TCPV4,
                    (Transport::Tcp, false) => GSO_TCPV6,
                    (Transport::Udp, _) => GSO_UDP_L4,
                };
                (NEEDS_CHECKSUM, kind, usize::from(size), start, transport.checksum_offset())
            }
        };
        let ([h0, h1], [s0, s1]) = (half(payload_at), half(size));
        let ([c0, c1], [o0, o1]) = (half(start), half(offset));
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }

    /// For a packet whose checksums were found right.
    pub fn valid_header() -> [u8; HEADER_LEN] {
        [DATA_VALID, GSO_NONE, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let all = [
            Offload::Done,
            Offload::Checksum { start: 20, offset: 16 },
            Offload::Segments { transport: Transport::Tcp, start: 40, size: 1348 },
            Offload::Segments { transport: Transport::Udp, start: 20, size: 1200 },
        ];
        for offload in all {
            assert_eq!(Offload::parse(offload.to_bytes(true, 52)), Ok(offload));
            assert_eq!(Offload::parse(offload.to_bytes(false, 52)), Ok(offload));
        }
        assert_eq!(Offload::parse(Offload::valid_header()), Ok(Offload::Done));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Offload::parse([1, 3, 0, 0, 100, 5, 20, 0, 16, 0]).is_err());
        assert!(Offload::parse([0, GSO_TCPV4, 0, 0, 100, 5, 20, 0, 16, 0]).is_err());
        assert!(Offload::parse([1, GSO_TCPV4, 0, 0, 0, 0, 20, 0, 16, 0]).is_err());
        assert!(Offload::parse([1, GSO_UDP_L4, 0, 0, 100, 5, 20, 0, 16, 0]).is_err());
    }
}
