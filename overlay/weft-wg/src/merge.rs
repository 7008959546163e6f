//! Joining packets of one flow that came in a burst into one large packet, so that the kernel goes through its
//! stack once: the other way round of [`crate::split`], by the rules of its own generic receive offload
//! (net/ipv4/tcp_offload.c, `tcp_gro_receive`; net/ipv4/udp_offload.c, `udp_gro_receive`).
//!
//! Only what cutting would give back bit by bit is joined. One exception: the IDs of IPv4 packets that must not be
//! fragmented mean nothing (RFC 6864), so packets of equal ID are joined, too.

use crate::checksum::Sum;
use crate::headers::{
    ACK, DONT_FRAGMENT, Layout, PSH, TCP_FLAGS, TCP_SEQUENCE, Transport, half, put, seal_ip, word,
};
use crate::offload::Offload;

/// The largest IP packet.
const LARGEST: usize = 65_535;
/// As many pieces as one write takes at ease; the kernel would take 1,024.
const MOST_SEGMENTS: usize = 128;
/// Flows that are followed at once. With more, the oldest is closed.
const MOST_OPEN: usize = 32;
/// An IP and a TCP header at their longest, without IP options and extension headers.
const LONGEST_HEADERS: usize = 40 + 60;

/// Packets of one burst, grouped in the order of their arrival.
#[derive(Debug, Default)]
pub struct Merger {
    groups: Vec<Group>,
    /// For each packet the next one of its group.
    next: Vec<Option<usize>>,
    open: Vec<Open>,
}

/// Packets that are written as one.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The first packet, by its place in the burst.
    pub first: usize,
    last: usize,
    count: usize,
    length: usize,
    layout: Option<Layout>,
    size: usize,
    pushed: bool,
}

/// A group that may still grow.
#[derive(Debug)]
struct Open {
    group: usize,
    headers: Headers,
    sequence: u32,
    id: u16,
    /// What the ID grows by; known from the second packet on.
    step: Option<u16>,
}

/// Headers without what differs from segment to segment.
#[derive(Debug, PartialEq, Eq)]
struct Headers {
    bytes: [u8; LONGEST_HEADERS],
    layout: Layout,
}

impl Merger {
    /// Forgets the burst.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.next.clear();
        self.open.clear();
    }

    /// The groups, in the order in which they are to be written.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The packets of a group behind its first.
    pub fn rest(&self, group: &Group) -> impl Iterator<Item = usize> {
        std::iter::successors(self.next.get(group.first).copied().flatten(), |at| {
            self.next.get(*at).copied().flatten()
        })
    }

    /// Takes the next packet of the burst.
    pub fn push(&mut self, packet: &[u8]) {
        let at = self.next.len();
        self.next.push(None);
        let Some(layout) = candidate(packet) else {
            // It may belong to any flow: what is behind it must stay behind it.
            self.open.clear();
            self.begin(at, packet, None);
            return;
        };
        let same = self.open.iter().position(|open| open.headers.is_same_flow(packet, &layout));
        if let Some(which) = same {
            if self.append(which, at, packet, &layout) {
                return;
            }
            self.open.remove(which);
        }
        self.begin(at, packet, Some(layout));
        if !is_last(packet, &layout) {
            if self.open.len() == MOST_OPEN {
                self.open.remove(0);
            }
            self.open.push(Open {
                group: self.groups.len() - 1,
                headers: Headers::of(packet, layout),
                sequence: next_sequence(packet, &layout),
                id: half(packet, 4),
                step: None,
            });
        }
    }

    fn begin(&mut self, at: usize, packet: &[u8], layout: Option<Layout>) {
        let size = layout.map_or(0, |layout| packet.len() - layout.payload_at);
        let (first, last, length) = (at, at, packet.len());
        self.groups.push(Group { first, last, count: 1, length, layout, size, pushed: false });
    }

    fn append(&mut self, which: usize, at: usize, packet: &[u8], layout: &Layout) -> bool {
        let Some(open) = self.open.get_mut(which) else { return false };
        let Some(group) = self.groups.get_mut(open.group) else { return false };
        let payload = packet.len() - layout.payload_at;
        let fits = payload <= group.size
            && group.count < MOST_SEGMENTS
            && group.length + payload <= LARGEST
            && open.headers == Headers::of(packet, *layout)
            && (layout.transport == Transport::Udp
                || word(packet, layout.transport_at + TCP_SEQUENCE) == open.sequence)
            && (!layout.v4 || open.accepts_id(packet));
        if !fits {
            return false;
        }
        if let Some(next) = self.next.get_mut(group.last) {
            *next = Some(at);
        }
        group.last = at;
        group.count += 1;
        group.length += payload;
        open.sequence = next_sequence(packet, layout);
        open.id = half(packet, 4);
        group.pushed = is_last(packet, layout);
        if group.pushed || payload < group.size {
            self.open.remove(which);
        }
        true
    }
}

impl Group {
    /// How many packets it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where the payload of each of its packets begins; 0 for what cannot be joined.
    pub fn payload_at(&self) -> usize {
        self.layout.map_or(0, |layout| layout.payload_at)
    }

    /// Turns the first packet's headers into those of the whole group, and returns the header to write in front.
    pub fn seal(&self, first: &mut [u8]) -> [u8; crate::offload::HEADER_LEN] {
        let Some(layout) = self.layout else { return Offload::Done.to_bytes(true, 0) };
        if self.count == 1 {
            return Offload::valid_header();
        }
        let at = layout.transport_at;
        seal_ip(first, layout.v4, at, self.length);
        if let (Transport::Tcp, true, Some(flags)) =
            (layout.transport, self.pushed, first.get_mut(at + TCP_FLAGS))
        {
            *flags |= PSH;
        }
        let length = self.length - at;
        if layout.transport == Transport::Udp {
            put(first, at + 4, crate::headers::length_16(length).to_be_bytes());
        }
        let sum = layout.pseudo_header(first, length).folded();
        put(first, at + layout.transport.checksum_offset(), sum);
        let size = crate::headers::length_16(self.size);
        Offload::Segments { transport: layout.transport, start: at, size }
            .to_bytes(layout.v4, layout.payload_at)
    }
}

impl Open {
    /// Whether the ID of an IPv4 packet goes on as it would if the group were cut.
    fn accepts_id(&mut self, packet: &[u8]) -> bool {
        let step = half(packet, 4).wrapping_sub(self.id);
        let possible = step == 1 || (step == 0 && half(packet, 6) == DONT_FRAGMENT);
        let accepted = possible && self.step.is_none_or(|known| known == step);
        if accepted {
            self.step = Some(step);
        }
        accepted
    }
}

impl Headers {
    fn of(packet: &[u8], layout: Layout) -> Self {
        let mut bytes = [0; LONGEST_HEADERS];
        for (to, from) in bytes.iter_mut().zip(packet.get(..layout.payload_at).unwrap_or_default()) {
            *to = *from;
        }
        let at = layout.transport_at;
        if layout.v4 {
            put(&mut bytes, 2, [0; 4]); // length and ID
            put(&mut bytes, 10, [0; 2]);
        } else {
            put(&mut bytes, 4, [0; 2]);
        }
        put(&mut bytes, at + layout.transport.checksum_offset(), [0; 2]);
        match layout.transport {
            Transport::Udp => put(&mut bytes, at + 4, [0; 2]),
            Transport::Tcp => {
                put(&mut bytes, at + TCP_SEQUENCE, [0; 4]);
                if let Some(flags) = bytes.get_mut(at + TCP_FLAGS) {
                    *flags &= !PSH;
                }
            }
        }
        Self { bytes, layout }
    }

    fn is_same_flow(&self, packet: &[u8], layout: &Layout) -> bool {
        let own = &self.layout;
        let addresses = if own.v4 { 12..20 } else { 8..40 };
        let ports = own.transport_at..own.transport_at + 4;
        (own.v4, own.transport) == (layout.v4, layout.transport)
            && self.bytes.get(ports.clone()) == packet.get(ports)
            && self.bytes.get(addresses.clone()) == packet.get(addresses)
    }
}

/// A packet that can be a part of a larger one: data, nothing but data, and intact.
fn candidate(packet: &[u8]) -> Option<Layout> {
    let layout = Layout::of_plain(packet)?;
    let at = layout.transport_at;
    let fit = packet.len() > layout.payload_at
        && match layout.transport {
            Transport::Tcp => packet.get(at + TCP_FLAGS).is_some_and(|flags| flags & !PSH == ACK),
            // Zero means "none", and only a sum tells that joining it again is right.
            Transport::Udp => half(packet, at + 6) != 0,
        };
    let header_intact =
        |packet: &[u8]| !layout.v4 || Sum::default().with(packet.get(..at).unwrap_or_default()).is_intact();
    let transport = packet.get(at..)?;
    let intact = || layout.pseudo_header(packet, transport.len()).with(transport).is_intact();
    (fit && header_intact(packet) && intact()).then_some(layout)
}

/// Whether a packet asks to be delivered at once: nothing may be joined behind it.
fn is_last(packet: &[u8], layout: &Layout) -> bool {
    layout.transport == Transport::Tcp
        && packet.get(layout.transport_at + TCP_FLAGS).is_some_and(|flags| flags & PSH != 0)
}

fn next_sequence(packet: &[u8], layout: &Layout) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers go round")]
    let payload = (packet.len() - layout.payload_at) as u32;
    word(packet, layout.transport_at + TCP_SEQUENCE).wrapping_add(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::headers::FIN;
    use crate::split::Segments;
    use crate::testing::{Build, is_sound};

    /// What the kernel would be given: each group as one packet, with its header.
    fn merged(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
        let mut merger = Merger::default();
        packets.iter().for_each(|packet| merger.push(packet));
        let whole = |group: &Group| {
            let mut bytes = packets[group.first].clone();
            let header = group.seal(&mut bytes);
            merger.rest(group).for_each(|at| bytes.extend(&packets[at][group.payload_at()..]));
            (bytes, Offload::parse(header).unwrap())
        };
        merger.groups().iter().map(whole).collect()
    }

    fn cut(packet: &[u8], offload: Offload) -> Vec<Vec<u8>> {
        let mut segments = Segments::of(packet, offload).unwrap();
        let mut out = vec![0; 65_536];
        std::iter::from_fn(|| segments.next_into(&mut out).map(|length| out[..length].to_vec())).collect()
    }

    fn builds() -> impl Strategy<Value = Build> {
        let flags = prop_oneof![4 => Just(ACK), 1 => Just(ACK | PSH), 1 => Just(ACK | FIN)];
        let size = prop_oneof![3 => Just(100usize), 1 => 0usize..120];
        (
            any::<bool>(),
            any::<bool>(),
            0u16..2,
            0u16..3,
            0u32..3,
            flags,
            size,
            0u8..2,
            prop::bool::weighted(0.9),
        )
            .prop_map(|(v4, tcp, port, id, sequence, flags, size, options, df)| {
                let base = if tcp { Build::tcp(size) } else { Build::udp(size) };
                Build {
                    v4,
                    ports: (4000 + port, 80),
                    id: 100 + id,
                    sequence: 7 + 100 * sequence,
                    flags,
                    options: vec![1; 12 * usize::from(options)],
                    dont_fragment: df,
                    ..base
                }
            })
    }

    /// Addresses and ports, as far as a packet has them.
    fn flow(packet: &[u8]) -> Vec<u8> {
        match packet[0] >> 4 {
            4 => [&packet[9..10], &packet[12..24]].concat(),
            _ => [&packet[6..7], &packet[8..44]].concat(),
        }
    }

    /// The ID of a packet that must not be fragmented means nothing, and neither do checksums over it.
    fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
        if packet[0] == 0x45 && half(&packet, 6) == DONT_FRAGMENT {
            put(&mut packet, 4, [0; 2]);
            put(&mut packet, 10, [0; 2]);
        }
        packet
    }

    #[test]
    fn what_is_no_data_stands_by_itself_and_nothing_overtakes_it() {
        let data = |sequence| Build {
            sequence,
            id: 100 + u16::try_from(sequence).unwrap() / 100,
            ..Build::tcp(100)
        };
        let packets =
            [data(0), Build { flags: ACK | FIN, ..data(100) }, data(100)].map(|build| build.whole());
        let merged = merged(&packets);
        assert_eq!(merged.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), packets);
    }

    #[test]
    fn a_damaged_packet_is_not_joined() {
        let first = Build::tcp(100).whole();
        let mut second = Build { sequence: 107, id: 101, ..Build::tcp(100) }.whole();
        assert_eq!(merged(&[first.clone(), second.clone()]).len(), 1);
        second[60] ^= 1;
        assert_eq!(merged(&[first, second]).len(), 2);
    }

    #[test]
    fn a_burst_is_at_most_a_packet_of_64_kilobytes() {
        let build = |at: u16| Build { sequence: 7 + 1400 * u32::from(at), id: 100 + at, ..Build::tcp(1400) };
        let packets: Vec<Vec<u8>> = (0..100).map(|at| build(at).whole()).collect();
        let merged = merged(&packets);
        assert_eq!(
            merged.iter().map(|(bytes, _)| bytes.len()).collect::<Vec<_>>(),
            [40 + 46 * 1400, 40 + 46 * 1400, 40 + 8 * 1400]
        );
    }

    proptest! {
        #[test]
        fn joining_what_was_cut_gives_the_packet_back(
            build in builds(), payload in 0usize..9000, size in 1u16..1500,
        ) {
            let flags = build.flags & !FIN;
            let payload = (0..payload.min(usize::from(size) * 127)).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
            let build = Build { flags, payload, ..build };
            let offload = Offload::Segments { transport: build.transport, start: build.transport_at(), size };
            let segments = cut(&build.for_offload(), offload);
            prop_assert!(segments.iter().all(|segment| is_sound(segment)));
            let merged = merged(&segments);
            prop_assert_eq!(merged.len(), 1);
            if segments.len() == 1 {
                prop_assert_eq!(&merged[0].0, &build.whole());
            } else {
                prop_assert_eq!(&merged[0].0, &build.for_offload());
                prop_assert_eq!(merged[0].1, offload);
            }
        }

        #[test]
        fn cutting_what_was_joined_gives_each_flow_back(builds in prop::collection::vec(builds(), 0..24)) {
            let packets: Vec<Vec<u8>> = builds.iter().map(Build::whole).collect();
            let given: Vec<Vec<u8>> = merged(&packets).iter().flat_map(|(bytes, offload)| cut(bytes, *offload)).collect();
            prop_assert_eq!(given.len(), packets.len());
            for packet in &packets {
                let of = |list: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    list.iter().filter(|other| flow(other) == flow(packet)).cloned().map(without_id).collect()
                };
                prop_assert_eq!(of(&given), of(&packets));
            }
        }
    }
}
