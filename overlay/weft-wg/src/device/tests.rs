//! Two devices that talk to each other without descriptors.

use proptest::prelude::*;

use super::*;
use crate::allowed::Prefix;
use crate::testing::Build;
use crate::uapi::PeerChange;

const A_KEY: Key = [0x11; 32];
const B_KEY: Key = [0x22; 32];

fn public(secret: Key) -> Key {
    PublicKey::from(&StaticSecret::from(secret)).to_bytes()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn peer(key: Key, endpoint: Option<&str>, allowed: &[&str]) -> Change {
    Change::Peer(PeerChange {
        public_key: public(key),
        endpoint: endpoint.map(at),
        allowed: allowed.iter().map(|text| (prefix(text), true)).collect(),
        ..PeerChange::default()
    })
}

fn device(own: Key, changes: &[Change]) -> Device {
    let mut device = Device::default();
    device.change(&Change::PrivateKey(Some(own)));
    changes.iter().for_each(|change| device.change(change));
    device
}

/// A has 10.0.0.1, B has 10.0.0.2; only A knows where the other is.
fn pair() -> (Device, Device) {
    (
        device(A_KEY, &[peer(B_KEY, Some("192.0.2.2:2"), &["10.0.0.2/32"])]),
        device(B_KEY, &[peer(A_KEY, None, &["10.0.0.1/32"])]),
    )
}

/// From 10.0.0.1 to 10.0.0.2.
fn packet() -> Vec<u8> {
    Build::udp(40).whole()
}

fn send(device: &mut Device, packet: &[u8]) -> (Sent, Vec<u8>) {
    let mut out = vec![0; 2000];
    let (slot, _) = device.route(packet).unwrap();
    let sent = device.send(slot, packet, &mut out);
    let length = match sent {
        Sent::Data(length) | Sent::Handshake(length) => length,
        Sent::Waits => 0,
    };
    (sent, out[..length].to_vec())
}

fn receive(device: &mut Device, from: &str, datagram: &[u8]) -> (Received, Vec<u8>) {
    let mut out = vec![0; 2000];
    let received = device.receive(at(from), datagram, &mut out);
    let length = match received {
        Received::Packet(length) | Received::Reply(length, _) => length,
        Received::Nothing => 0,
    };
    (received, out[..length].to_vec())
}

/// After a handshake that A began by sending a packet; that packet as a datagram.
fn connected() -> (Device, Device, Vec<u8>) {
    let (mut a, mut b) = pair();
    let (sent, initiation) = send(&mut a, &packet());
    assert!(matches!(sent, Sent::Handshake(_)));
    let (received, response) = receive(&mut b, "192.0.2.1:1", &initiation);
    assert!(matches!(received, Received::Reply(_, Some(0))), "{received:?}");
    let (received, confirmation) = receive(&mut a, "192.0.2.2:2", &response);
    assert!(matches!(received, Received::Reply(_, Some(0))), "{received:?}");
    assert_eq!(receive(&mut b, "192.0.2.1:1", &confirmation).0, Received::Nothing);
    let mut out = vec![0; 2000];
    let length = a.waiting(0, &mut out).unwrap();
    assert_eq!(a.waiting(0, &mut vec![0; 2000]), None);
    (a, b, out[..length].to_vec())
}

#[test]
fn the_packet_that_began_the_handshake_arrives_behind_it() {
    let (_, mut b, datagram) = connected();
    let (received, arrived) = receive(&mut b, "192.0.2.1:1", &datagram);
    assert!(matches!(received, Received::Packet(_)));
    assert_eq!(arrived, packet());
    assert_eq!(b.endpoint(0), Some(at("192.0.2.1:1")));
}

#[test]
fn a_datagram_counts_once() {
    let (_, mut b, datagram) = connected();
    assert!(matches!(receive(&mut b, "192.0.2.1:1", &datagram).0, Received::Packet(_)));
    assert_eq!(receive(&mut b, "192.0.2.9:9", &datagram).0, Received::Nothing);
    assert_eq!(b.endpoint(0), Some(at("192.0.2.1:1")), "a replay moves nobody");
    assert_eq!(b.refused.invalid, 1);
}

#[test]
fn a_peer_that_moves_is_followed_by_what_only_it_can_have_sent() {
    let (mut a, mut b, datagram) = connected();
    receive(&mut b, "192.0.2.1:1", &datagram);
    let (_, mut datagram) = send(&mut a, &packet());
    datagram[20] ^= 1;
    assert_eq!(receive(&mut b, "192.0.2.7:7", &datagram).0, Received::Nothing);
    assert_eq!(b.endpoint(0), Some(at("192.0.2.1:1")));
    let (_, datagram) = send(&mut a, &packet());
    assert!(matches!(receive(&mut b, "[fd00::7]:7", &datagram).0, Received::Packet(_)));
    assert_eq!(b.endpoint(0), Some(at("[fd00::7]:7")));
}

#[test]
fn a_packet_from_another_peers_address_is_refused() {
    let (mut a, mut b, _) = connected();
    // Longer than A's own prefix, and another peer's.
    b.change(&peer([0x33; 32], None, &["10.0.0.0/24"]));
    b.change(&Change::Peer(PeerChange {
        public_key: public(A_KEY),
        replace_allowed: true,
        allowed: vec![(prefix("10.0.0.0/16"), true)],
        ..PeerChange::default()
    }));
    let (_, datagram) = send(&mut a, &packet());
    assert_eq!(receive(&mut b, "192.0.2.1:1", &datagram).0, Received::Nothing);
    assert_eq!(b.refused.foreign_source, 1);
}

#[test]
fn what_nobody_is_to_have_is_counted() {
    let mut device = device(A_KEY, &[peer(B_KEY, None, &["10.0.0.2/32"])]);
    assert_eq!(device.route(&packet()), None);
    device.change(&peer(B_KEY, Some("192.0.2.2:2"), &[]));
    assert!(device.route(&packet()).is_some());
    device.change(&Change::PrivateKey(None));
    assert_eq!(device.route(&packet()), None, "without a key nothing is sent");
    device.change(&Change::ReplacePeers);
    assert_eq!(device.route(&packet()), None);
    assert_eq!((device.refused.no_endpoint, device.refused.no_peer), (2, 1));
}

#[test]
fn another_preshared_key_ends_what_there_was() {
    let (mut a, mut b, _) = connected();
    let preshared = |key: Key| {
        Change::Peer(PeerChange {
            public_key: public(key),
            preshared_key: Some([7; 32]),
            ..PeerChange::default()
        })
    };
    a.change(&preshared(B_KEY));
    let (sent, initiation) = send(&mut a, &packet());
    assert!(matches!(sent, Sent::Handshake(_)));
    let (_, response) = receive(&mut b, "192.0.2.1:1", &initiation);
    assert_eq!(receive(&mut a, "192.0.2.2:2", &response).0, Received::Nothing, "B has no such key");
    b.change(&preshared(A_KEY));
    assert_eq!(b.state().peers[0].preshared_key, [7; 32]);
}

#[test]
fn peers_come_change_and_go_as_told() {
    let mut device = device(A_KEY, &[peer(B_KEY, None, &["10.0.0.2/32"])]);
    device.change(&Change::Peer(PeerChange {
        public_key: [9; 32],
        update_only: true,
        ..PeerChange::default()
    }));
    // A device is no peer of itself.
    device.change(&peer(A_KEY, None, &["10.0.0.0/8"]));
    assert_eq!(device.state().peers.len(), 1);
    let change = PeerChange { public_key: public(B_KEY), keepalive: Some(25), ..PeerChange::default() };
    device.change(&Change::Peer(change.clone()));
    assert_eq!(device.state().peers[0].keepalive, 25);
    assert_eq!(device.state().peers[0].allowed, [prefix("10.0.0.2/32")]);
    device.change(&Change::Peer(PeerChange { remove: true, ..change }));
    assert!(!device.has_peers());
    assert_eq!(device.state().private_key, Some(A_KEY));
}

#[test]
fn a_device_under_load_asks_for_proof_of_the_address_first() {
    let (mut a, mut b) = pair();
    let (_, initiation) = send(&mut a, &packet());
    let mut asked = 0;
    for _ in 0..2 * HANDSHAKES {
        // The same message is refused as a replay, but only after the load was counted.
        if let (Received::Reply(64, None), _) = receive(&mut b, "192.0.2.1:1", &initiation) {
            asked += 1;
        }
    }
    assert!(asked > 0, "nobody was asked for a cookie");
    b.tick(Instant::now(), &mut vec![0; 2000], |_, _| {});
}

proptest! {
    #[test]
    fn nothing_that_comes_is_a_panic(
        kind in 0u8..6, index in any::<u32>(), bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0usize..200,
    ) {
        let (mut a, _, datagram) = connected();
        let mut forged = vec![kind, 0, 0, 0];
        forged.extend(index.to_le_bytes());
        forged.extend(&bytes);
        receive(&mut a, "192.0.2.2:2", &forged);
        receive(&mut a, "192.0.2.2:2", &bytes);
        receive(&mut a, "192.0.2.2:2", &datagram[..length.min(datagram.len())]);
        a.route(&bytes);
    }
}
