//! The rules of granted blocks: reserved addresses, both families or none, and asking the daemon for more.

use std::cell::Cell;
use std::fs;
use std::net::IpAddr;

use weft_cni::error::{Error, code};
use weft_cni::ip::Subnet;

use super::{begin, end, open, record, soon};
use crate::ask::{Family, NeedBlock, WithoutDaemon};
use crate::foreign::Foreign;
use crate::{
    Attachment, Blocks, NODE_ADDRESS, NoKernel, Pool, Record, Reservation, Source, State, Taking, collect,
    obtain, usage,
};

fn block(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Grants when it is asked, and counts how often it was.
struct Daemon<'s> {
    state: &'s State,
    blocks: &'s [&'s str],
    asked: Cell<usize>,
}

impl<'s> Daemon<'s> {
    fn new(state: &'s State, blocks: &'s [&'s str]) -> Self {
        Self { state, blocks, asked: Cell::new(0) }
    }
}

impl NeedBlock for Daemon<'_> {
    fn need_block(
        &self,
        network: &str,
        _families: &[Family],
        _until: crate::clock::Deadline,
    ) -> Result<(), Error> {
        assert_eq!(network, "net");
        let next = self.blocks.get(self.asked.get());
        self.asked.set(self.asked.get() + 1);
        let next = next.ok_or_else(|| Error::new(code::TRY_AGAIN, "the cluster has no free block"))?;
        self.state.grant(&block(next), soon())
    }
}

fn add(
    attachment: &Attachment<'_>,
    held: &mut Record,
    requested: &[&str],
    daemon: &dyn NeedBlock,
) -> Result<Vec<IpAddr>, Error> {
    let foreign = Foreign::default();
    let mut kernel = NoKernel;
    let mut taking =
        Taking { kernel: &mut kernel, foreign: &foreign, cooldown: 0, avoid: &[], deadline: soon() };
    let source = Blocks::new(requested.iter().map(|text| ip(text)).collect());
    obtain(attachment, held, &source, &mut taking, ("net", daemon), |_| Ok(()))?;
    Ok(held.addresses.iter().map(|taken| taken.address.addr()).collect())
}

/// The whole pool, as STATUS counts it.
fn pools(state: &State) -> Vec<Pool> {
    Blocks::new(Vec::new()).pools(state).unwrap()
}

#[test]
fn the_daemon_is_asked_only_when_nothing_is_free() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let daemon = Daemon::new(&state, &["10.9.0.0/31", "10.9.0.2/31"]);
    let mut given = Vec::new();
    let mut pods = Vec::new();
    for (pod, asked) in [(0, 1), (1, 1), (2, 2), (3, 2)] {
        let attachment = begin(&state, &format!("pod{pod}"));
        let mut held = record();
        given.extend(add(&attachment, &mut held, &[], &daemon).unwrap());
        assert_eq!(daemon.asked.get(), asked, "pod {pod}");
        pods.push(attachment);
    }
    given.sort();
    assert_eq!(given, ["10.9.0.0", "10.9.0.1", "10.9.0.2", "10.9.0.3"].map(ip));
    let last = begin(&state, "last");
    let error = add(&last, &mut record(), &[], &daemon).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(error.msg.contains("no IP addresses available"), "{error}");
    assert!(error.details.contains("the cluster has no free block"), "{error}");
}

#[test]
fn an_attachment_holds_no_address_while_it_waits_for_a_block() {
    struct Looks<'s>(&'s State);
    impl NeedBlock for Looks<'_> {
        fn need_block(&self, _: &str, families: &[Family], _: crate::clock::Deadline) -> Result<(), Error> {
            assert_eq!(families, [Family::V6]);
            let used: u128 =
                pools(self.0).iter().map(|pool| usage(self.0, pool, &Foreign::default()).unwrap().used).sum();
            assert_eq!(used, 1, "only the reservation");
            Err(Error::new(code::TRY_AGAIN, "no"))
        }
    }
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    state.grant(&block("10.9.0.0/31"), soon()).unwrap();
    let full = block("fd00::/128");
    state.grant_with(&full, &[Reservation::node_address(&full)], soon()).unwrap();
    let attachment = begin(&state, "pod");
    add(&attachment, &mut record(), &[], &Looks(&state)).unwrap_err();
}

/// The asker holds its own lock while it waits: a grant that waited for that lock would never come.
#[test]
fn a_grant_does_not_wait_for_those_who_wait_for_it() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let attachment = begin(&state, "pod");
    attachment.write(&record()).unwrap();
    let started = std::time::Instant::now();
    let got = add(&attachment, &mut record(), &[], &Daemon::new(&state, &["10.9.0.0/30"])).unwrap();
    assert_eq!(got.len(), 1);
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn both_families_or_none() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    state.expect_families(&[Family::V4, Family::V6]).unwrap();
    state.grant(&block("10.9.0.0/30"), soon()).unwrap();
    let attachment = begin(&state, "pod");
    let half = add(&attachment, &mut record(), &[], &WithoutDaemon).unwrap_err();
    assert_eq!(half.code, code::TRY_AGAIN);
    assert!(half.msg.contains("no IPv6 block"), "{half}");
    let both = add(&attachment, &mut record(), &[], &Daemon::new(&state, &["fd00::/126"])).unwrap();
    assert_eq!(both.len(), 2);
}

#[test]
fn a_static_address_of_another_nodes_block_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    state.grant(&block("10.9.0.0/26"), soon()).unwrap();
    let attachment = begin(&state, "pod");
    let daemon = Daemon::new(&state, &[]);
    let error = add(&attachment, &mut record(), &["10.9.0.77"], &daemon).unwrap_err();
    assert_eq!(error.code, code::INVALID_CONFIG);
    assert!(error.msg.contains("10.9.0.77") && error.details.contains("10.9.0.0/26"), "{error}");
    assert_eq!(daemon.asked.get(), 0, "another block would not have it either");
    let got = add(&attachment, &mut record(), &["10.9.0.7"], &daemon).unwrap();
    assert_eq!(got, [ip("10.9.0.7")]);
}

#[test]
fn a_reserved_address_is_never_a_pods_and_its_block_never_empty() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let first = block("10.9.0.0/30");
    state.grant_with(&first, &[Reservation::node_address(&first)], soon()).unwrap();
    assert_eq!(
        state.reserved().unwrap(),
        [Reservation { address: ip("10.9.0.0"), why: NODE_ADDRESS.into() }]
    );
    assert_eq!(state.node_addresses().unwrap(), [ip("10.9.0.0")]);
    assert!(!state.withdraw(&first).unwrap());
    let pods: Vec<_> = (0..3).map(|pod| begin(&state, &format!("pod{pod}"))).collect();
    for attachment in &pods {
        assert_ne!(add(attachment, &mut record(), &[], &WithoutDaemon).unwrap(), [ip("10.9.0.0")]);
    }
    let last = begin(&state, "last");
    assert_eq!(add(&last, &mut record(), &[], &WithoutDaemon).unwrap_err().code, code::TRY_AGAIN);
    let asked_for = add(&last, &mut record(), &["10.9.0.0"], &WithoutDaemon).unwrap_err();
    assert!(asked_for.details.contains("keeps it for itself"), "{asked_for}");
    drop(last);
    pods.into_iter().for_each(end);
    collect(&state, &mut NoKernel, None, usize::MAX).unwrap();
    assert_eq!(state.reserved().unwrap().len(), 1);
    state.unreserve(ip("10.9.0.0")).unwrap();
    assert!(state.withdraw(&first).unwrap());
}

#[test]
fn reserving_is_repeatable_and_takes_nothing_from_a_pod() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let first = block("10.9.0.0/30");
    let reservation = Reservation::node_address(&first);
    assert!(!state.reserve(&reservation).unwrap(), "its block is not granted");
    state.grant(&first, soon()).unwrap();
    let pod = begin(&state, "pod");
    assert_eq!(add(&pod, &mut record(), &["10.9.0.0"], &WithoutDaemon).unwrap(), [ip("10.9.0.0")]);
    assert!(!state.reserve(&reservation).unwrap(), "a pod has it");
    state.unreserve(ip("10.9.0.0")).unwrap();
    assert!(pod.holds("block/10.9.0.0-30/10.9.0.0").unwrap(), "a pod's address is no reservation");
    end_of(pod);
    assert!(state.reserve(&reservation).unwrap() && state.reserve(&reservation).unwrap());
}

fn end_of(attachment: Attachment<'_>) {
    attachment.release_all(None).unwrap();
    attachment.end().unwrap();
}

#[test]
fn a_partial_wipe_leaves_reservations_and_a_whole_one_takes_them_with_the_grant() {
    let root = tempfile::tempdir().unwrap();
    let first = block("10.9.0.0/30");
    let state = open(root.path(), &mut NoKernel);
    state.grant_with(&first, &[Reservation::node_address(&first)], soon()).unwrap();
    let pod = begin(&state, "pod");
    add(&pod, &mut record(), &[], &WithoutDaemon).unwrap();
    drop(pod);
    fs::remove_dir_all(state.path().join("owner")).unwrap();
    let folder = state.path().to_owned();
    drop(state);
    let state = open(root.path(), &mut NoKernel);
    assert_eq!(state.reserved().unwrap().len(), 1);
    let block_folder = folder.join("block/10.9.0.0-30");
    assert_eq!(fs::read_dir(block_folder).unwrap().count(), 1, "the pod's address is free");
    drop(state);
    fs::remove_dir_all(&folder).unwrap();
    let state = open(root.path(), &mut NoKernel);
    assert!(state.granted().unwrap().is_empty() && state.reserved().unwrap().is_empty());
}

/// What is counted of the only block: pods, free, resting.
fn counted(state: &State, cooldown: u64) -> (u64, u64, u64) {
    let usage = state.block_usage(cooldown).unwrap();
    assert_eq!(usage.len(), 1, "{usage:?}");
    (usage[0].used, usage[0].free, usage[0].resting)
}

#[test]
fn a_block_is_counted_without_the_nodes_own_address_and_with_what_rests() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let eight = block("10.9.0.0/29");
    state.grant_with(&eight, &[Reservation::node_address(&eight)], soon()).unwrap();
    assert_eq!(counted(&state, 120), (0, 7, 0));
    assert_eq!(state.block_usage(120).unwrap()[0].last_release, None);
    let attachment = begin(&state, "pod");
    let mut held = record();
    add(&attachment, &mut held, &[], &WithoutDaemon).unwrap();
    assert_eq!(counted(&state, 120), (1, 6, 0));
    attachment.release_all(Some(&held)).unwrap();
    assert_eq!(counted(&state, 120), (0, 6, 1));
    assert_eq!(counted(&state, 0), (0, 7, 0), "without a cool-down nothing rests");
    assert!(state.block_usage(120).unwrap()[0].last_release.is_some());
    attachment.end().unwrap();
}

#[test]
fn a_block_that_is_set_aside_keeps_its_pods_gives_no_more_and_can_be_given_again_or_withdrawn() {
    let root = tempfile::tempdir().unwrap();
    let state = open(root.path(), &mut NoKernel);
    let (four, name) = (block("10.9.0.0/30"), "10.9.0.0-30");
    state.grant(&four, soon()).unwrap();
    let (first, mut held) = (begin(&state, "first"), record());
    let given = add(&first, &mut held, &[], &WithoutDaemon).unwrap();
    state.quarantine(&four).unwrap();
    state.quarantine(&four).unwrap();
    assert!(!state.block_usage(0).unwrap()[0].giving);
    assert_eq!(state.granted().unwrap(), [four], "its folder is there: pods have addresses of it");
    let (second, mut none) = (begin(&state, "second"), record());
    let refused = add(&second, &mut none, &[], &WithoutDaemon).unwrap_err();
    assert_eq!(refused.code, code::TRY_AGAIN);
    assert!(!state.withdraw(&four).unwrap(), "an address of it is in use");

    state.grant(&four, soon()).unwrap();
    assert!(state.block_usage(0).unwrap()[0].giving);
    let again = add(&second, &mut none, &[], &WithoutDaemon).unwrap();
    assert_ne!(again, given);
    for (attachment, held) in [(first, held), (second, none)] {
        attachment.release_all(Some(&held)).unwrap();
        attachment.end().unwrap();
    }
    state.quarantine(&four).unwrap();
    assert!(state.withdraw(&four).unwrap());
    assert!(!state.at("block").join(format!(".quarantine-{name}")).exists(), "nothing of it stays");
    assert_eq!(state.block_usage(0).unwrap(), []);
}
