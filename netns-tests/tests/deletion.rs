//! Hearing of a link's end while somebody else waits for the kernel's barrier, in both ways that kernels offer.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node, lab, require};
use nix::sys::socket::{MsgFlags, send};
use weft_netlink::{Deletion, Hearing, Socket, Word, link, neigh};

const LIMIT: Duration = Duration::from_secs(5);

/// The link `name`, made for this, with a neighbour behind it.
fn make(node: &Node, name: &str) -> u32 {
    node.run(["ip", "link", "add", name, "type", "veth", "peer", "name", &format!("{name}-peer")]);
    node.enter(|| link::by_name(&mut Socket::route().unwrap(), name).unwrap().unwrap().index)
}

/// Sends the request from another thread, and says after how long the word came and when that thread was through.
fn delete(node: &Node, deletion: &Deletion) -> (Word, Duration, Duration) {
    node.enter(|| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                send(deletion.sender().as_raw_fd(), deletion.packet(), MsgFlags::empty()).unwrap();
                start.elapsed()
            });
            let word = deletion.wait(LIMIT).unwrap();
            let heard = start.elapsed();
            (word, heard, sender.join().unwrap())
        })
    })
}

#[test]
fn the_end_is_heard_by_echo_and_by_event_once_nobody_can_see_the_link() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("a");
    let mut ways = vec![Hearing::Event];
    if Hearing::of_this_kernel() == Hearing::Echo {
        ways.push(Hearing::Echo);
    } else {
        eprintln!("NOT RUN: this kernel echoes no deletion (it came with Linux 6.2)");
    }
    for hearing in ways {
        let index = make(&node, "gone0");
        // One request ahead that is refused: it must not be taken for the word on the link.
        let before = [neigh::delete(index, "192.0.2.9".parse().unwrap())];
        let deletion = node.enter(|| Deletion::prepare(index, &before, hearing).unwrap());
        let (word, heard, through) = delete(&node, &deletion);
        assert_eq!(word, Word::Gone, "{hearing:?}");
        assert!(node.enter(|| link::by_index(&mut Socket::route().unwrap(), index).unwrap().is_none()));
        eprintln!("{hearing:?}: heard after {heard:?}, the sender was through after {through:?}");
    }
}

#[test]
fn a_refusal_is_heard_by_echo() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("a");
    let deletion = node.enter(|| Deletion::prepare(4711, &[], Hearing::Echo).unwrap());
    assert_eq!(delete(&node, &deletion).0, Word::Refused(libc::ENODEV));
}

#[test]
fn what_was_not_sent_is_not_heard() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("a");
    let index = make(&node, "stays0");
    for hearing in [Hearing::Event, Hearing::Echo] {
        let deletion = node.enter(|| Deletion::prepare(index, &[], hearing).unwrap());
        make(&node, "other0");
        node.run(["ip", "link", "del", "other0"]);
        assert_eq!(deletion.wait(Duration::from_millis(50)).unwrap(), Word::Silence, "{hearing:?}");
    }
}
