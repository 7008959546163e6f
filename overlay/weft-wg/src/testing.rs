//! Packets for the tests.

use crate::checksum::Sum;
use crate::headers::{ACK, IPV4_LEN, IPV6_LEN, Layout, Transport, put, seal_ip};

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Build {
    pub v4: bool,
    pub transport: Transport,
    pub id: u16,
    pub dont_fragment: bool,
    pub ttl: u8,
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Build {
    pub fn tcp(payload: usize) -> Self {
        Self {
            v4: true,
            transport: Transport::Tcp,
            id: 100,
            dont_fragment: true,
            ttl: 64,
            ports: (4000, 80),
            sequence: 7,
            acknowledged: 9,
            flags: ACK,
            options: Vec::new(),
            payload: (0..payload).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect(),
        }
    }

    pub fn udp(payload: usize) -> Self {
        Self { transport: Transport::Udp, ..Self::tcp(payload) }
    }

    pub fn transport_at(&self) -> usize {
        if self.v4 { IPV4_LEN } else { IPV6_LEN }
    }

    fn layout(&self) -> Layout {
        let transport_at = self.transport_at();
        let header = if self.transport == Transport::Tcp { 20 + self.options.len() } else { 8 };
        Layout { v4: self.v4, transport: self.transport, transport_at, payload_at: transport_at + header }
    }

    /// With the sum of the pseudo header in the place of the checksum.
    pub fn for_offload(&self) -> Vec<u8> {
        let layout = self.layout();
        let at = layout.transport_at;
        let mut packet = vec![0; layout.payload_at];
        if self.v4 {
            put(&mut packet, 0, [0x45, 0x10]);
            put(&mut packet, 4, self.id.to_be_bytes());
            put(&mut packet, 6, [if self.dont_fragment { 0x40 } else { 0 }, 0]);
            put(&mut packet, 8, [self.ttl, self.transport.number()]);
            put(&mut packet, 12, [10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            put(&mut packet, 0, [0x61, 0, 0, 1]);
            put(&mut packet, 6, [self.transport.number(), self.ttl]);
            put(&mut packet, 8, [0xfd; 16]);
            put(&mut packet, 24, [0xfe; 16]);
        }
        put(&mut packet, at, self.ports.0.to_be_bytes());
        put(&mut packet, at + 2, self.ports.1.to_be_bytes());
        if self.transport == Transport::Tcp {
            put(&mut packet, at + 4, self.sequence.to_be_bytes());
            put(&mut packet, at + 8, self.acknowledged.to_be_bytes());
            let words = u8::try_from((20 + self.options.len()) / 4).unwrap();
            put(&mut packet, at + 12, [words << 4, self.flags, 1, 200]);
            packet[at + 20..].copy_from_slice(&self.options);
        }
        packet.extend(&self.payload);
        let length = packet.len() - at;
        if self.transport == Transport::Udp {
            put(&mut packet, at + 4, u16::try_from(length).unwrap().to_be_bytes());
        }
        let total = packet.len();
        seal_ip(&mut packet, self.v4, at, total);
        let sum = layout.pseudo_header(&packet, length).folded();
        put(&mut packet, at + self.transport.checksum_offset(), sum);
        packet
    }

    /// Ready to be sent.
    pub fn whole(&self) -> Vec<u8> {
        let mut packet = self.for_offload();
        let at = self.transport_at();
        let sum = Sum::default().with(&packet[at..]).checksum();
        let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
        put(&mut packet, at + self.transport.checksum_offset(), sum);
        packet
    }
}

/// Whether all lengths and checksums of a plain packet are right.
pub fn is_sound(packet: &[u8]) -> bool {
    let Some(layout) = Layout::of_plain(packet) else { return false };
    let transport = &packet[layout.transport_at..];
    let ip = !layout.v4 || Sum::default().with(&packet[..IPV4_LEN]).is_intact();
    ip && layout.pseudo_header(packet, transport.len()).with(transport).is_intact()
}
