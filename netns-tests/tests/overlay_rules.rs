//! What is remembered of the packet rules is what the kernel has, whatever others do to them meanwhile.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::net::IpAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node, lab, require};
use weft_netlink::nft::{Batch, Element, Family, Table};
use weft_netlink::rules::{Interval, Overlay, OverlayState, ensure_overlay};
use weft_netlink::{Protocol, Socket};

const TABLE: Table = Table { family: Family::Inet, name: "weft" };
const VIA: &str = "cluster-via4";
const ROUNDS: u32 = 1_000;

fn hop(n: u32) -> IpAddr {
    IpAddr::from([10, 200, 0, u8::try_from(n % 256).unwrap()])
}

/// The `n`th /26 of 10.64.0.0/16: neighbours touch.
fn block(n: u32) -> Interval {
    let first = u32::from_be_bytes([10, 64, 0, 0]) + (n % 64) * 64;
    Interval::new(IpAddr::from(first.to_be_bytes()), IpAddr::from((first + 63).to_be_bytes())).unwrap()
}

/// Numbers that look like chance and are the same each time.
struct Dice(u32);

impl Dice {
    fn roll(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }
}

fn shake(wanted: &mut Overlay, dice: &mut Dice) {
    for _ in 0..=dice.roll() % 3 {
        let n = dice.roll();
        match dice.roll() % 4 {
            0 => drop(wanted.next_hops.insert(hop(n))),
            1 => drop(wanted.next_hops.remove(&hop(n))),
            2 => drop(wanted.unseen.insert(block(n))),
            _ => drop(wanted.unseen.remove(&block(n))),
        }
    }
    if dice.roll().is_multiple_of(8) {
        let name = format!("eth{}", dice.roll() % 3);
        if !wanted.outside.remove(&name) {
            wanted.outside.insert(name);
        }
    }
}

/// What somebody sees who remembers nothing: whether the kernel has exactly this.
fn has(socket: &mut Socket, wanted: &Overlay) -> bool {
    !ensure_overlay(socket, &mut OverlayState::default(), wanted, true).unwrap()
}

fn sockets(node: &Node) -> [Socket; 2] {
    node.enter(|| [(); 2].map(|()| Socket::open(Protocol::Netfilter).unwrap()))
}

#[test]
fn what_is_remembered_after_each_change_is_what_the_kernel_has() {
    if !require() {
        return;
    }
    let [mut own, mut other] = sockets(&lab!().node("a"));
    let (mut state, mut wanted, mut dice) = (OverlayState::default(), Overlay::default(), Dice(1));
    ensure_overlay(&mut own, &mut state, &wanted, true).unwrap();
    let mut read = own.received();
    for step in 0..300 {
        shake(&mut wanted, &mut dice);
        // Half of what goes stays for a while, as it does until the routes are gone.
        if step % 2 == 0 {
            ensure_overlay(&mut own, &mut state, &wanted, false).unwrap();
        }
        ensure_overlay(&mut own, &mut state, &wanted, true).unwrap();
        assert!(has(&mut other, &wanted), "step {step}");
        assert!(!ensure_overlay(&mut own, &mut state, &wanted, true).unwrap(), "step {step}");
        let answers = own.received() - read;
        assert!(answers < 1_000, "step {step}: {answers} bytes, the sets were read");
        read = own.received();
    }
}

/// Somebody takes elements away: the next look sees it.
#[test]
fn changes_of_others_are_seen_whenever_they_come() {
    if !require() {
        return;
    }
    let [mut own, mut other] = sockets(&lab!().node("a"));
    let (mut state, mut wanted) = (OverlayState::default(), Overlay::default());
    wanted.next_hops.extend((0..50).map(hop));
    ensure_overlay(&mut own, &mut state, &wanted, true).unwrap();
    // One after the other: each is healed by the next call.
    for n in 0..50 {
        change(&mut other, TABLE.remove_elements(VIA, &[Element::start(hop(n).into())]));
        assert!(ensure_overlay(&mut own, &mut state, &wanted, true).unwrap(), "{n}");
        assert!(has(&mut other, &wanted), "{n}");
    }
    // At any moment, also within a call: between look and commit, and between commit and the look after it.
    let meet = Barrier::new(2);
    let victim = AtomicU32::new(0);
    // Nothing may panic while the other waits.
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                meet.wait();
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(u64::from(round % 100)) {}
                let element = [Element::start(hop(victim.load(Ordering::Relaxed)).into())];
                change(&mut other, TABLE.remove_elements(VIA, &element));
                meet.wait();
            }
        });
        for round in 0..ROUNDS {
            // Odd ones come and go by our own hand, even ones go by the other's.
            wanted.next_hops.extend((0..50).map(hop));
            wanted.next_hops.remove(&hop(1 + round % 25 * 2));
            victim.store(round * 2 % 50, Ordering::Relaxed);
            meet.wait();
            let first = ensure_overlay(&mut own, &mut state, &wanted, true);
            meet.wait();
            // The event of the other's commit causes this one.
            let second = first.and_then(|_| ensure_overlay(&mut own, &mut state, &wanted, true));
            let found = ensure_overlay(&mut own, &mut OverlayState::default(), &wanted, true);
            if second.is_err() || !matches!(found, Ok(false)) {
                wrong.push((round, second, found));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Commits, or not, if there is nothing of that kind.
fn change(socket: &mut Socket, requests: impl IntoIterator<Item = weft_netlink::Request>) {
    let mut batch = Batch::new();
    batch.extend(requests);
    let _absent = batch.commit(socket, None);
}
