//! The data path: one thread that takes a packet from one side to the other without handing it to anybody.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;

use crate::device::{Device, LEAST_ROOM, OVERHEAD, Received, Sent, Slot};
use crate::merge::Merger;
use crate::offload::{HEADER_LEN, Offload};
use crate::split::Segments;
use crate::tun::Tun;
use crate::udp::{Inbox, LARGEST, TRAINS, Udp};

/// Packets taken from the interface before the other side gets its turn.
const READS: usize = 16;
/// Receptions before the other side gets its turn.
const RECEPTIONS: usize = 4;
/// The most datagrams that the kernel cuts one send into (UDP_MAX_SEGMENTS before Linux 6.9).
const MOST_DATAGRAMS: usize = 64;
/// The largest UDP payload, over IPv4.
const LARGEST_TRAIN: usize = 65_507;
/// Packets are padded to multiples of this, so that their length says less (WireGuard, 5.4.6).
const PADDING: usize = 16;

/// Counts of what could not be passed on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Packets of the interface that nobody understands.
    pub malformed: u64,
    /// Datagrams that could not be sent.
    pub unsent: u64,
    /// Packets that the interface did not take.
    pub unwritten: u64,
}

/// The descriptors and buffers of the data path.
pub struct Lane {
    tun: Tun,
    /// Of the interface, as it was at the last tick: padding must not make a datagram larger than a full packet's.
    mtu: usize,
    v4: Option<Udp>,
    v6: Option<Udp>,
    from_tun: Vec<u8>,
    segment: Vec<u8>,
    train: Train,
    inbox: Inbox,
    plain: Vec<u8>,
    packets: Vec<Range<usize>>,
    merger: Merger,
    reply: Vec<u8>,
    /// See [`Lost`].
    pub lost: Lost,
}

/// Datagrams for one peer that are sent at once.
struct Train {
    bytes: Vec<u8>,
    length: usize,
    size: usize,
    count: usize,
    to: Option<(Slot, SocketAddr)>,
}

impl Lane {
    /// Of an interface; the sockets come later.
    pub fn new(tun: Tun) -> Self {
        let mtu = tun.mtu().unwrap_or(0);
        Self {
            tun,
            mtu,
            v4: None,
            v6: None,
            from_tun: vec![0; HEADER_LEN + LARGEST],
            segment: vec![0; LARGEST + PADDING],
            train: Train {
                bytes: vec![0; LARGEST_TRAIN + LARGEST + OVERHEAD + PADDING],
                length: 0,
                size: 0,
                count: 0,
                to: None,
            },
            inbox: Inbox::default(),
            plain: vec![0; TRAINS * LARGEST + LEAST_ROOM],
            packets: Vec::new(),
            merger: Merger::default(),
            reply: vec![0; LARGEST + OVERHEAD],
            lost: Lost::default(),
        }
    }

    /// The interface.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// Takes new sockets and closes those of before.
    pub fn set_sockets(&mut self, v4: Option<Udp>, v6: Option<Udp>) {
        (self.v4, self.v6) = (v4, v6);
    }

    /// IPv4 and IPv6, as far as there are any.
    pub fn sockets(&self) -> [Option<&Udp>; 2] {
        [self.v4.as_ref(), self.v6.as_ref()]
    }

    /// Takes packets from the interface and sends them, until there is none or others have their turn.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn send_burst(&mut self, device: &mut Device) -> io::Result<()> {
        for _ in 0..READS {
            let Some(length) = self.tun.read(&mut self.from_tun)? else { break };
            self.send_packet(device, length);
        }
        self.flush();
        Ok(())
    }

    fn send_packet(&mut self, device: &mut Device, length: usize) {
        let whole = self.from_tun.get(..length).unwrap_or_default();
        let Some((header, packet)) = whole.split_first_chunk::<HEADER_LEN>() else { return };
        let parsed = Offload::parse(*header).and_then(|offload| Segments::of(packet, offload));
        let Ok(mut segments) = parsed else {
            self.lost.malformed += 1;
            return;
        };
        let Some(to) = device.route(packet) else { return };
        if self.train.to != Some(to) {
            let (socket, lost) = (of_family(&self.v4, &self.v6, self.train.to), &mut self.lost);
            self.train.depart(socket, lost);
            self.train.to = Some(to);
        }
        while let Some(length) = segments.next_into(&mut self.segment) {
            let padded = padded(length, self.mtu);
            if let Some(padding) = self.segment.get_mut(length..padded) {
                padding.fill(0);
            }
            let socket = of_family(&self.v4, &self.v6, Some(to));
            let packet = self.segment.get(..padded).unwrap_or_default();
            self.train.board(device, packet, socket, &mut self.lost);
        }
    }

    fn flush(&mut self) {
        let socket = of_family(&self.v4, &self.v6, self.train.to);
        self.train.depart(socket, &mut self.lost);
    }

    /// Receives what has come on the socket of a family and writes it to the interface, until there is nothing or
    /// others have their turn.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive_burst(&mut self, device: &mut Device, v4: bool) -> io::Result<()> {
        for _ in 0..RECEPTIONS {
            let socket = if v4 { &self.v4 } else { &self.v6 };
            let Some(socket) = socket else { break };
            if !self.inbox.fill(socket)? {
                break;
            }
            self.packets.clear();
            self.merger.clear();
            let mut at = 0;
            for (from, datagram) in self.inbox.datagrams() {
                let Some(room) =
                    self.plain.get_mut(at..).filter(|room| room.len() >= datagram.len().max(LEAST_ROOM))
                else {
                    break;
                };
                match device.receive(from, datagram, room) {
                    Received::Packet(length) => {
                        self.merger.push(room.get(..length).unwrap_or_default());
                        self.packets.push(at..at + length);
                        at += length;
                    }
                    Received::Reply(length, slot) => {
                        answer(socket, from, room.get(..length).unwrap_or_default(), &mut self.lost);
                        while let Some(length) = slot.and_then(|slot| device.waiting(slot, &mut self.reply)) {
                            answer(
                                socket,
                                from,
                                self.reply.get(..length).unwrap_or_default(),
                                &mut self.lost,
                            );
                        }
                    }
                    Received::Nothing => {}
                }
            }
            self.deliver();
        }
        Ok(())
    }

    fn deliver(&mut self) {
        for group in self.merger.groups() {
            let Some(first) = self.packets.get(group.first).cloned() else { continue };
            let header = self.plain.get_mut(first.clone()).map(|first| group.seal(first)).unwrap_or_default();
            let mut pieces = Vec::with_capacity(group.count() + 1);
            pieces.push(IoSlice::new(&header));
            pieces.push(IoSlice::new(self.plain.get(first).unwrap_or_default()));
            for at in self.merger.rest(group) {
                let packet = self.packets.get(at).cloned().and_then(|range| self.plain.get(range));
                pieces.push(IoSlice::new(
                    packet.and_then(|packet| packet.get(group.payload_at()..)).unwrap_or_default(),
                ));
            }
            if self.tun.write(&pieces).is_err() {
                self.lost.unwritten += group.count() as u64;
            }
        }
    }

    /// What is due by time.
    pub fn tick(&mut self, device: &mut Device, now: std::time::Instant) {
        // It is asked for, as nothing tells of its changes here; the interface may just be going.
        self.mtu = self.tun.mtu().unwrap_or(self.mtu);
        let (v4, v6, lost) = (&self.v4, &self.v6, &mut self.lost);
        device.tick(now, &mut self.reply, |to, datagram| {
            if let Some(socket) = if to.is_ipv4() { v4 } else { v6 } {
                answer(socket, to, datagram, lost);
            }
        });
    }
}

impl Train {
    /// Encrypts a packet into the train; one that is full, or that the packet does not fit to, departs first.
    fn board(&mut self, device: &mut Device, packet: &[u8], socket: Option<&Udp>, lost: &mut Lost) {
        let Some((slot, to)) = self.to else { return };
        let datagram = packet.len() + OVERHEAD;
        if self.length + datagram > LARGEST_TRAIN || (self.count > 0 && datagram > self.size) {
            self.depart(socket, lost);
        }
        let Some(room) = self.bytes.get_mut(self.length..) else { return };
        match device.send(slot, packet, room) {
            Sent::Data(length) => {
                if self.count == 0 {
                    self.size = length;
                }
                self.length += length;
                self.count += 1;
                if length < self.size || self.count == MOST_DATAGRAMS {
                    self.depart(socket, lost);
                }
            }
            Sent::Handshake(length) => {
                if let Some(socket) = socket {
                    answer(socket, to, room.get(..length).unwrap_or_default(), lost);
                }
            }
            Sent::Waits => {}
        }
    }

    fn depart(&mut self, socket: Option<&Udp>, lost: &mut Lost) {
        if let (Some((_, to)), true) = (self.to, self.count > 0) {
            let datagrams = self.bytes.get(..self.length).unwrap_or_default();
            if socket.is_none_or(|socket| socket.send(to, datagrams, self.size).is_err()) {
                lost.unsent += self.count as u64;
            }
        }
        (self.length, self.count) = (0, 0);
    }
}

/// What a packet's length is made, so that it says less (WireGuard, 5.4.6), without passing the MTU.
fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}

fn of_family<'a>(
    v4: &'a Option<Udp>,
    v6: &'a Option<Udp>,
    to: Option<(Slot, SocketAddr)>,
) -> Option<&'a Udp> {
    if to?.1.is_ipv4() { v4.as_ref() } else { v6.as_ref() }
}

fn answer(socket: &Udp, to: SocketAddr, datagram: &[u8], lost: &mut Lost) {
    if socket.send(to, datagram, datagram.len()).is_err() {
        lost.unsent += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!([1, 16, 1400, 1420, 1421].map(|length| padded(length, 1420)), [16, 16, 1408, 1420, 1421]);
    }
}
