//! The device without its descriptors: keys, peers, and what becomes of a packet or datagram. `boringtun::noise::Tunn`
//! does the protocol of one peer; what it leaves to its caller, or does wrong (deps.md, 3.2), is done here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::allowed::Allowed;
use crate::keepalive::{Due, Keepalive};
use crate::uapi::{Change, DeviceState, Key, PeerChange, PeerState};

/// What a datagram is longer than its packet: header and tag.
pub const OVERHEAD: usize = 32;
/// The least room for an answer: a handshake's first message.
pub const LEAST_ROOM: usize = 148;
/// Handshake messages a second, before senders must prove their address. Each is counted twice on its way.
const HANDSHAKES: u64 = 200;
/// The first four bytes of a datagram.
const TYPE_COOKIE: u32 = 3;
/// See [`TYPE_COOKIE`].
const TYPE_DATA: u32 = 4;

/// A peer by its place in the device.
pub type Slot = usize;

/// Keys, peers and sessions.
#[derive(Default)]
pub struct Device {
    identity: Option<Identity>,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<Key, Slot>,
    allowed: Allowed<Slot>,
    /// Packets that nobody was to have.
    pub refused: Refused,
}

struct Identity {
    secret: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
}

struct Peer {
    key: Key,
    preshared: Key,
    tunn: Tunn,
    endpoint: Option<SocketAddr>,
    keepalive: Keepalive,
    received: u64,
    sent: u64,
}

/// Counts of what was dropped, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Packets to an address that no peer has.
    pub no_peer: u64,
    /// Packets to a peer of which nobody knows where it is.
    pub no_endpoint: u64,
    /// Packets from a peer with an address that is not its own.
    pub foreign_source: u64,
    /// Datagrams that no peer of ours can have sent.
    pub invalid: u64,
}

/// What came of a packet that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A datagram of this length, for the peer.
    Data(usize),
    /// No session yet: the packet waits, this handshake message of this length is for the peer.
    Handshake(usize),
    /// The packet waits.
    Waits,
}

/// What came of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of this length.
    Packet(usize),
    /// An answer of this length, to where the datagram came from. A peer that is named may have more to say.
    Reply(usize, Option<Slot>),
    /// Nothing that anybody need do anything about.
    Nothing,
}

impl Device {
    /// Changes what a request asks for.
    pub fn change(&mut self, change: &Change) {
        match change {
            Change::PrivateKey(key) => self.set_key(*key),
            Change::ReplacePeers => {
                self.peers.clear();
                self.by_key.clear();
                self.allowed = Allowed::default();
            }
            Change::Peer(peer) => self.change_peer(peer),
            // The sockets' part.
            Change::ListenPort(_) | Change::Fwmark(_) => {}
        }
    }

    fn set_key(&mut self, key: Option<Key>) {
        self.identity = key.map(|key| {
            let secret = StaticSecret::from(key);
            let public = PublicKey::from(&secret);
            let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES));
            Identity { secret, public, limiter }
        });
        // No device talks to itself.
        if let Some(own) = self.identity.as_ref().map(|identity| identity.public.to_bytes()) {
            self.remove(&own);
        }
        let identity = self.identity.as_ref();
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            if let Some(peer) = peer {
                peer.tunn = tunnel(identity, &peer.key, &peer.preshared, slot);
            }
        }
    }

    fn change_peer(&mut self, change: &PeerChange) {
        let known = self.by_key.get(&change.public_key).copied();
        if change.remove {
            self.remove(&change.public_key);
            return;
        }
        let own = self.identity.as_ref().is_some_and(|own| own.public.to_bytes() == change.public_key);
        let slot = match known {
            Some(slot) => slot,
            None if change.update_only || own => return,
            None => self.insert(change.public_key),
        };
        let identity = self.identity.as_ref();
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        if let Some(preshared) = change.preshared_key.filter(|key| *key != peer.preshared) {
            peer.preshared = preshared;
            peer.tunn = tunnel(identity, &peer.key, &preshared, slot);
        }
        if change.endpoint.is_some() {
            peer.endpoint = change.endpoint;
        }
        if let Some(seconds) = change.keepalive {
            peer.keepalive.set(seconds);
        }
        if change.replace_allowed {
            self.allowed.take_all(slot);
        }
        for (prefix, give) in &change.allowed {
            if *give { self.allowed.give(*prefix, slot) } else { self.allowed.take(*prefix, slot) }
        }
    }

    fn insert(&mut self, key: Key) -> Slot {
        let slot = self.peers.iter().position(Option::is_none).unwrap_or(self.peers.len());
        let peer = Peer {
            key,
            preshared: Key::default(),
            tunn: tunnel(self.identity.as_ref(), &key, &Key::default(), slot),
            endpoint: None,
            keepalive: Keepalive::default(),
            received: 0,
            sent: 0,
        };
        match self.peers.get_mut(slot) {
            Some(free) => *free = Some(peer),
            None => self.peers.push(Some(peer)),
        }
        self.by_key.insert(key, slot);
        slot
    }

    fn remove(&mut self, key: &Key) {
        if let Some(slot) = self.by_key.remove(key) {
            self.allowed.take_all(slot);
            if let Some(place) = self.peers.get_mut(slot) {
                *place = None;
            }
        }
    }

    /// The peer that a packet goes to, by its destination, and where it is.
    pub fn route(&mut self, packet: &[u8]) -> Option<(Slot, SocketAddr)> {
        let Some(slot) = addresses(packet).and_then(|(_, to)| self.allowed.peer_of(to)) else {
            self.refused.no_peer += 1;
            return None;
        };
        let endpoint = self.endpoint(slot);
        if endpoint.is_none() || self.identity.is_none() {
            self.refused.no_endpoint += 1;
            return None;
        }
        endpoint.map(|endpoint| (slot, endpoint))
    }

    /// Where a peer is, as far as known.
    pub fn endpoint(&self, slot: Slot) -> Option<SocketAddr> {
        self.peers.get(slot)?.as_ref()?.endpoint
    }

    /// Encrypts a packet for a peer into `out`, which has room for it and [`OVERHEAD`], at least [`LEAST_ROOM`].
    pub fn send(&mut self, slot: Slot, packet: &[u8], out: &mut [u8]) -> Sent {
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return Sent::Waits };
        match peer.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => {
                let length = datagram.len();
                peer.sent += length as u64;
                if message_type(datagram) == TYPE_DATA { Sent::Data(length) } else { Sent::Handshake(length) }
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Sent::Waits,
        }
    }

    /// Decrypts a datagram into `out`, which is as long as it at least, and [`LEAST_ROOM`].
    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Received {
        let Some(slot) = self.sender_of(from, datagram, out) else {
            self.refused.invalid += 1;
            return Received::Nothing;
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(cookie) => return Received::Reply(cookie, None),
        };
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else {
            self.refused.invalid += 1;
            return Received::Nothing;
        };
        let is_cookie = message_type(datagram) == TYPE_COOKIE;
        let (received, source) = match peer.tunn.decapsulate(Some(from.ip()), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, source) => {
                (Received::Packet(packet.len()), Some(IpAddr::V4(source)))
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                (Received::Packet(packet.len()), Some(IpAddr::V6(source)))
            }
            TunnResult::WriteToNetwork(reply) => {
                let length = reply.len();
                peer.sent += length as u64;
                // A cookie is no proof that the other side is who it says.
                if message_type(reply) == TYPE_COOKIE {
                    return Received::Reply(length, None);
                }
                (Received::Reply(length, Some(slot)), None)
            }
            TunnResult::Done => (Received::Nothing, None),
            TunnResult::Err(_) => {
                self.refused.invalid += 1;
                return Received::Nothing;
            }
        };
        // From here on it is proved to be the peer's.
        peer.received += datagram.len() as u64;
        if !is_cookie {
            peer.endpoint = Some(from);
        }
        if source.is_some_and(|source| self.allowed.peer_of(source) != Some(slot)) {
            self.refused.foreign_source += 1;
            return Received::Nothing;
        }
        received
    }

    /// Who a datagram says it is from. `Err`: it must first prove its address, by the cookie of this length.
    fn sender_of(&self, from: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Option<Result<Slot, usize>> {
        let slot = |index: u32| Some(Ok((index >> 8) as Slot));
        match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::PacketData(data) => slot(data.receiver_idx),
            Packet::HandshakeResponse(response) => slot(response.receiver_idx),
            Packet::PacketCookieReply(reply) => slot(reply.receiver_idx),
            Packet::HandshakeInit(init) => {
                let identity = self.identity.as_ref()?;
                match identity.limiter.verify_packet(Some(from.ip()), datagram, out) {
                    Ok(_) => {}
                    Err(TunnResult::WriteToNetwork(cookie)) => return Some(Err(cookie.len())),
                    Err(_) => return None,
                }
                let half = parse_handshake_anon(&identity.secret, &identity.public, &init).ok()?;
                self.by_key.get(&half.peer_static_public).map(|slot| Ok(*slot))
            }
        }
    }

    /// The next packet that waited for a session, as a datagram in `out`.
    pub fn waiting(&mut self, slot: Slot, out: &mut [u8]) -> Option<usize> {
        let peer = self.peers.get_mut(slot)?.as_mut()?;
        match peer.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(datagram) => {
                peer.sent += datagram.len() as u64;
                Some(datagram.len())
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// To be called every 250 ms: what each peer has to send by now, given to `send` with where it is.
    pub fn tick(&mut self, now: Instant, out: &mut [u8], mut send: impl FnMut(SocketAddr, &[u8])) {
        let Some(identity) = &self.identity else { return };
        identity.limiter.reset_count();
        for peer in self.peers.iter_mut().flatten() {
            let Some(endpoint) = peer.endpoint else { continue };
            if let TunnResult::WriteToNetwork(datagram) = peer.tunn.update_timers(out) {
                peer.sent += datagram.len() as u64;
                send(endpoint, datagram);
            }
            let session = peer.tunn.time_since_last_handshake().is_some();
            let due = peer.keepalive.due(now, session, peer.sent);
            let outcome = match due {
                Due::Nothing => continue,
                Due::Keepalive => peer.tunn.encapsulate(&[], out),
                Due::Handshake => peer.tunn.format_handshake_initiation(out, false),
            };
            if let TunnResult::WriteToNetwork(datagram) = outcome {
                peer.sent += datagram.len() as u64;
                send(endpoint, datagram);
            }
        }
    }

    /// Whether there is a peer at all.
    pub fn has_peers(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// For an answer to `get`; port and mark are the sockets'.
    pub fn state(&self) -> DeviceState {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let peers = self.peers.iter().enumerate().filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)));
        let state = |(slot, peer): (Slot, &Peer)| PeerState {
            public_key: peer.key,
            preshared_key: peer.preshared,
            endpoint: peer.endpoint,
            last_handshake: peer.tunn.stats().0.map_or(Duration::ZERO, |ago| now.saturating_sub(ago)),
            received: peer.received,
            sent: peer.sent,
            keepalive: peer.keepalive.seconds(),
            allowed: self.allowed.of_peer(slot),
        };
        DeviceState {
            private_key: self.identity.as_ref().map(|identity| identity.secret.to_bytes()),
            peers: peers.map(state).collect(),
            ..DeviceState::default()
        }
    }
}

/// Without a key of ours there is no session; one of zeroes stands in until it comes, and [`Device::route`] and
/// [`Device::tick`] see to it that nothing is sent with it.
fn tunnel(identity: Option<&Identity>, key: &Key, preshared: &Key, slot: Slot) -> Tunn {
    let secret = identity.map_or_else(|| StaticSecret::from(Key::default()), |own| own.secret.clone());
    let preshared = (*preshared != Key::default()).then_some(*preshared);
    let limiter = identity.map(|own| Arc::clone(&own.limiter));
    let index = u32::try_from(slot).unwrap_or(u32::MAX);
    Tunn::new(secret, PublicKey::from(*key), preshared, None, index, limiter)
}

fn message_type(datagram: &[u8]) -> u32 {
    datagram.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| packet.get(at..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    let v6 = |at: usize| packet.get(at..)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
