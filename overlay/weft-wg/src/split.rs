//! Cutting what the kernel hands over as one large packet into packets that fit the tunnel, as the kernel's own
//! segmentation would (net/ipv4/tcp_offload.c, `tcp_gso_segment`; net/ipv4/udp_offload.c, `__udp_gso_segment`).

use crate::checksum::Sum;
use crate::headers::{
    CWR, FIN, IPV4_LEN, IPV6_LEN, Layout, PSH, TCP_FLAGS, TCP_SEQUENCE, Transport, half, length_16,
    payload_at, put, seal_ip, word,
};
use crate::offload::{Malformed, Offload};

/// The segments of one packet, one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    work: Work,
    /// Payload bytes handed out so far.
    done: usize,
    count: u16,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Copy,
    Checksum { start: usize, offset: usize },
    Cut { layout: Layout, size: usize },
}

impl<'a> Segments<'a> {
    /// Of a packet with what is still to be done to it.
    ///
    /// # Errors
    /// When the one does not fit the other.
    pub fn of(packet: &'a [u8], offload: Offload) -> Result<Self, Malformed> {
        let work = match offload {
            Offload::Done => Work::Copy,
            Offload::Checksum { start, offset } => {
                if start + offset + 2 > packet.len() {
                    return Err(Malformed("a checksum behind the end of its packet"));
                }
                Work::Checksum { start, offset }
            }
            Offload::Segments { transport, start, size } => {
                Work::Cut { layout: layout(packet, transport, start)?, size: size.into() }
            }
        };
        Ok(Self { packet, work, done: 0, count: 0, ended: false })
    }

    /// Writes the next segment to the start of `out` and returns its length; `None` after the last, and when `out` is
    /// too small for it.
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.ended {
            return None;
        }
        match self.work {
            Work::Copy => {
                self.ended = true;
                copy(self.packet, out)
            }
            Work::Checksum { start, offset } => {
                self.ended = true;
                let length = copy(self.packet, out)?;
                complete(out.get_mut(start..length)?, offset);
                Some(length)
            }
            Work::Cut { layout, size } => self.cut(layout, size, out),
        }
    }

    fn cut(&mut self, layout: Layout, size: usize, out: &mut [u8]) -> Option<usize> {
        let payload = self.packet.get(layout.payload_at..)?;
        let part = payload.get(self.done..)?;
        let part = part.get(..size).unwrap_or(part);
        let length = layout.payload_at + part.len();
        let segment = out.get_mut(..length)?;
        let (head, body) = segment.split_at_mut(layout.payload_at);
        head.copy_from_slice(self.packet.get(..layout.payload_at)?);
        body.copy_from_slice(part);
        let last = self.done + part.len() == payload.len();
        self.head(layout, segment, last);
        self.done += part.len();
        self.count = self.count.wrapping_add(1);
        self.ended = last;
        Some(length)
    }

    fn head(&self, layout: Layout, segment: &mut [u8], last: bool) {
        let at = layout.transport_at;
        if layout.v4 {
            put(segment, 4, half(segment, 4).wrapping_add(self.count).to_be_bytes());
        }
        let total = segment.len();
        seal_ip(segment, layout.v4, at, total);
        let length = segment.len() - at;
        match layout.transport {
            Transport::Tcp => {
                #[expect(clippy::cast_possible_truncation, reason = "sequence numbers go round")]
                let sequence = word(segment, at + TCP_SEQUENCE).wrapping_add(self.done as u32);
                put(segment, at + TCP_SEQUENCE, sequence.to_be_bytes());
                if let Some(flags) = segment.get_mut(at + TCP_FLAGS) {
                    let first = self.count == 0;
                    *flags &= !(if last { 0 } else { FIN | PSH } | if first { 0 } else { CWR });
                }
            }
            Transport::Udp => put(segment, at + 4, length_16(length).to_be_bytes()),
        }
        let offset = layout.transport.checksum_offset();
        put(segment, at + offset, layout.pseudo_header(segment, length).folded());
        if let Some(from_transport) = segment.get_mut(at..) {
            complete(from_transport, offset);
        }
    }
}

/// The kernel says where the transport header is. There may be extension headers in front of it, options too.
fn layout(packet: &[u8], transport: Transport, start: usize) -> Result<Layout, Malformed> {
    let version = packet.first().map(|byte| byte >> 4);
    let least = match version {
        Some(4) => IPV4_LEN,
        Some(6) => IPV6_LEN,
        _ => return Err(Malformed("neither IPv4 nor IPv6")),
    };
    let v4 = version == Some(4);
    let header = if v4 { usize::from(packet.first().map_or(0, |byte| byte & 0xf)) * 4 } else { start };
    if start < least || start != header {
        return Err(Malformed("a transport header inside the IP header"));
    }
    let payload_at =
        payload_at(packet, transport, start).ok_or(Malformed("a transport header behind the end"))?;
    Ok(Layout { v4, transport, transport_at: start, payload_at })
}

fn copy(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    out.get_mut(..packet.len())?.copy_from_slice(packet);
    Some(packet.len())
}

/// Completes the checksum at `offset` of what begins with the transport header. The field holds the sum of the pseudo
/// header. A checksum of zero is written as its other form, which UDP demands and TCP permits (RFC 768).
fn complete(from_transport: &mut [u8], offset: usize) {
    let checksum = match Sum::default().with(from_transport).checksum() {
        [0, 0] => [0xff, 0xff],
        other => other,
    };
    put(from_transport, offset, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Build, is_sound};

    fn all(packet: &[u8], offload: Offload) -> Vec<Vec<u8>> {
        let mut segments = Segments::of(packet, offload).unwrap();
        let mut out = vec![0; 65_536];
        std::iter::from_fn(|| segments.next_into(&mut out).map(|length| out[..length].to_vec())).collect()
    }

    #[test]
    fn a_tcp_packet_is_cut_and_flags_stay_where_they_belong() {
        for v4 in [true, false] {
            let build = Build { v4, flags: crate::headers::ACK | PSH | FIN | CWR, ..Build::tcp(3000) };
            let start = build.transport_at();
            let cut =
                all(&build.for_offload(), Offload::Segments { transport: Transport::Tcp, start, size: 1400 });
            assert_eq!(
                cut.iter().map(Vec::len).collect::<Vec<_>>(),
                [1400, 1400, 200].map(|n| n + start + 20)
            );
            for (at, segment) in cut.iter().enumerate() {
                assert!(is_sound(segment), "{at} {v4}");
                assert_eq!(word(segment, start + 4), build.sequence + 1400 * u32::try_from(at).unwrap());
                let expected =
                    crate::headers::ACK | if at == 2 { PSH | FIN } else { 0 } | if at == 0 { CWR } else { 0 };
                assert_eq!(segment[start + TCP_FLAGS], expected);
                if v4 {
                    assert_eq!(half(segment, 4), build.id + u16::try_from(at).unwrap());
                }
            }
            let payload: Vec<u8> = cut.iter().flat_map(|s| s[start + 20..].to_vec()).collect();
            assert_eq!(payload, build.payload);
        }
    }

    #[test]
    fn a_udp_packet_is_cut_into_datagrams() {
        for v4 in [true, false] {
            let build = Build { v4, ..Build::udp(2500) };
            let start = build.transport_at();
            let offload = Offload::Segments { transport: Transport::Udp, start, size: 1200 };
            let cut = all(&build.for_offload(), offload);
            assert_eq!(cut.len(), 3);
            assert!(cut.iter().all(|segment| is_sound(segment)));
            assert_eq!(half(&cut[2], start + 4), 8 + 100);
        }
    }

    #[test]
    fn a_checksum_is_completed_and_nothing_else_touched() {
        let build = Build::udp(77);
        let start = build.transport_at();
        let packet = build.for_offload();
        let done = all(&packet, Offload::Checksum { start, offset: 6 });
        assert_eq!(done, [build.whole()]);
        assert_eq!(all(&build.whole(), Offload::Done), [build.whole()]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let packet = Build::tcp(100).for_offload();
        for start in [0, 10, 24, 119, 120, 4000] {
            let offload = Offload::Segments { transport: Transport::Tcp, start, size: 10 };
            assert!(Segments::of(&packet, offload).is_err(), "{start}");
        }
        assert!(Segments::of(&packet, Offload::Checksum { start: 139, offset: 6 }).is_err());
        assert!(
            Segments::of(&[], Offload::Segments { transport: Transport::Udp, start: 20, size: 1 }).is_err()
        );
    }
}
