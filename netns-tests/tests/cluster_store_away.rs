//! Point 2: etcd away. Stopped, its leader killed, frozen, cut off, and restored from a backup that lacks what came
//! after: pods start and stop, traffic flows, no address is given twice, and every record agrees again.

#![expect(clippy::print_stderr, reason = "figures for the person who reads the log")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Layout, Network, PATIENCE, Prober, StopAtEnd, Watched, blocks_giving, long_or,
    require_cluster, status, timed, watch_grants,
};
use netns_tests::{wait_for, wait_until};
use weft_cni::ip::Subnet;

/// Records agree within ten seconds of the store's return; generous where other tests share the machine.
fn agreement() -> Duration {
    long_or(Duration::from_secs(10), PATIENCE)
}

/// Small blocks, so that a test can use them up.
fn small() -> Network {
    Network::default().with("block_size_v4 = 29").with("block_size_v6 = 125")
}

fn started(name: &str, members: usize, network: &Network) -> ClusterLab {
    let lab = ClusterLab::new(name, &Layout::default().members(members));
    lab.start_all(network);
    lab
}

/// Starts pods on a node until it holds more blocks than before: the store must answer for that.
fn use_up(lab: &ClusterLab, node: usize) -> Vec<ClusterPod> {
    let before = blocks_giving(&lab.nodes[node].node).len();
    let mut pods = Vec::new();
    while blocks_giving(&lab.nodes[node].node).len() <= before {
        assert!(pods.len() < 40, "no further block is ever claimed");
        pods.push(lab.pod(node, &format!("more{}", pods.len())));
        wait_until("a spare is on its way, or not needed", Duration::from_millis(200), || true);
    }
    pods
}

#[test]
fn pods_start_stop_and_talk_while_all_of_etcd_is_stopped() {
    if !require_cluster() {
        return;
    }
    let lab = started("etcdaway", 3, &Network::default());
    let pods = lab.pod_on_each("old");
    lab.assert_all_reach_all(&pods);
    let probers: Vec<_> = pods[2].ips.iter().map(|ip| Prober::start(&pods[0], *ip)).collect();
    lab.etcd.stop_all();
    lab.nodes[0].weftd().wait_finding("store-away", true);
    let until = Instant::now() + long_or(Duration::from_secs(180), Duration::from_secs(3));
    let mut rounds = 0;
    while rounds < 2 || Instant::now() < until {
        let mut young = lab.pod_on_each("young");
        young.extend(lab.pod_on_each("twin"));
        let all: Vec<&ClusterPod> = pods.iter().chain(&young).collect();
        netns_tests::cluster::assert_all_reach_all(&all);
        lab.assert_nothing_given_twice();
        for node in &lab.nodes {
            status(&node.node).unwrap_or_else(|error| panic!("STATUS of {}: {error}", node.name()));
        }
        young.iter().for_each(ClusterPod::stop);
        rounds += 1;
    }
    lab.etcd.start_all();
    for node in &lab.nodes {
        node.weftd().wait_finding("store-away", false);
    }
    lab.assert_records_agree(agreement());
    for report in Prober::finish_all(probers) {
        eprintln!("etcd away: {report:?}; {rounds} rounds of six pods");
        report.assert_nothing_lost("etcd stopped and started");
    }
    lab.assert_nothing_given_twice();
}

#[test]
fn the_death_of_the_leader_costs_nothing_but_a_moment() {
    if !require_cluster() {
        return;
    }
    let lab = started("leader", 3, &small());
    lab.etcd.kill(lab.etcd.leader());
    let pods = use_up(&lab, 0);
    assert!(!pods.is_empty());
    lab.assert_records_agree(agreement());
    lab.assert_nothing_given_twice();
}

/// C9: a member that holds its connections and says nothing. Whoever talked to it must go to another.
#[test]
fn a_frozen_member_is_left_for_another() {
    if !require_cluster() {
        return;
    }
    let lab = started("frozen", 3, &small());
    let talked_to = *lab.etcd.members_of(&lab.nodes[0]).first().expect("a connection");
    lab.etcd.freeze(talked_to, true);
    let pods = use_up(&lab, 0);
    assert!(!pods.is_empty());
    // What another node does is heard of, too: its new block is routed.
    let others = use_up(&lab, 1);
    let mut all: Vec<&ClusterPod> = pods.iter().take(1).collect();
    all.extend(others.last());
    netns_tests::cluster::assert_all_reach_all(&all);
    lab.etcd.freeze(talked_to, false);
    lab.assert_records_agree(agreement());
    lab.assert_nothing_given_twice();
}

/// C9: a member in the minority answers reads of what it knew and never hears of anything new.
#[test]
fn a_member_in_the_minority_is_left_for_another() {
    if !require_cluster() {
        return;
    }
    let lab = started("minority", 3, &small());
    let talked_to = *lab.etcd.members_of(&lab.nodes[0]).first().expect("a connection");
    lab.etcd.isolate(talked_to, true);
    let others = use_up(&lab, 1);
    let pods = use_up(&lab, 0);
    let mut all: Vec<&ClusterPod> = pods.iter().take(1).collect();
    all.extend(others.last());
    netns_tests::cluster::assert_all_reach_all(&all);
    lab.etcd.isolate(talked_to, false);
    lab.assert_records_agree(agreement());
    lab.assert_nothing_given_twice();
}

/// C1: the store forgets at least one block of each node, and its revision is lower than before.
#[test]
fn a_restored_store_gives_no_address_twice() {
    restored("restore", false);
}

/// C1: the same with the revision driven past the old one before anybody reconnects: only the content tells.
#[test]
fn a_restored_store_whose_revision_was_driven_past_gives_no_address_twice() {
    restored("restorepast", true);
}

fn restored(name: &str, past: bool) {
    if !require_cluster() {
        return;
    }
    let lab = started(name, 1, &small());
    let pods = lab.pod_on_each("old");
    let snapshot = lab.etcd.snapshot("early");
    lab.nodes.iter().for_each(|node| drop(node.weftd().wait_finding("store-away", false)));
    let mut later: Vec<ClusterPod> = (0..3).flat_map(|node| use_up(&lab, node)).collect();
    lab.assert_records_agree(agreement());
    let revision = lab.etcd.revision();
    lab.etcd.restore_hidden(&lab.wire, &snapshot, |etcd| {
        assert!(etcd.revision() < revision, "the store went back");
        for node in &lab.nodes {
            let record = etcd.get(&format!("/weft/v1/n/{}", node.name())).expect("an old record").value;
            let giving = blocks_giving(&node.node);
            assert!(giving.iter().any(|block| !record.contains(block)), "{} lost no claim", node.name());
        }
        if past {
            etcd.drive_past(revision + 50);
        }
    });
    let (_, took) = timed(|| lab.assert_records_agree(agreement()));
    let stop = AtomicBool::new(false);
    let watched = std::thread::scope(|scope| {
        let _stops = StopAtEnd(&stop);
        let watching = scope.spawn(|| watch_grants(&lab, &stop));
        start_and_stop(&lab, &mut later);
        stop.store(true, Ordering::Release);
        watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let Watched { looks, addresses, outside, twice, .. } = watched;
    eprintln!("{name}: records agreed after {took:?}; {} addresses in {looks} looks", addresses.len());
    assert!(outside.is_empty() && twice.is_empty(), "{outside:#?} {twice:#?}");
    let all: Vec<&ClusterPod> = pods.iter().chain(later.iter().rev().take(4)).collect();
    netns_tests::cluster::assert_all_reach_all(&all);
    lab.assert_nothing_given_twice();
}

/// Pods start and stop on every node, for five minutes in the long form.
fn start_and_stop(lab: &ClusterLab, pods: &mut Vec<ClusterPod>) {
    let until = Instant::now() + long_or(Duration::from_secs(300), Duration::from_secs(5));
    let (mut round, mut refused) = (0, 0);
    while Instant::now() < until || round < 3 {
        for node in 0..3 {
            match lab.try_pod(node, &format!("new{round}")) {
                Ok(pod) => pods.push(pod),
                // A pause in which nobody claims is what keeps it safe; what must not happen is a duplicate.
                Err(refusal) => {
                    assert!(refusal.contains("\"code\":11"), "{refusal}");
                    refused += 1;
                }
            }
        }
        lab.assert_nothing_given_twice();
        if pods.len() > 60 {
            pods.drain(..20).for_each(|pod| pod.stop());
        }
        round += 1;
    }
    eprintln!("{round} rounds of three pods, {refused} refused for the pause after a restore");
}

/// C2: a node is removed while it cannot hear of it, and boots without the store: what it then gives, nobody else
/// may give; and when it hears, it stops giving.
#[test]
fn a_removed_node_that_boots_without_the_store_gives_nothing_that_others_give() {
    if !require_cluster() {
        return;
    }
    let lab = started("rmboot", 1, &small());
    let mut before = lab.pod_on_each("old");
    let lost = &lab.nodes[2];
    let own = blocks_giving(&lost.node);
    lab.wire.set_plugged(lost, false);
    lost.weftd().wait_finding("store-away", true);
    lost.weftd().kill();
    let removed = lab.nodes[0].weftd().command(&["node", "rm", "c", "--force"]);
    assert!(removed.status.success(), "{removed:?}");
    lost.reboot(&[before.pop().expect("a pod")]);
    lost.weftd().start(&[]);
    // What it remembers is younger than the time after which its blocks are given to others.
    let offline = wait_for("it gives addresses from memory", PATIENCE, || lab.try_pod(2, "offline").ok());
    let remembered: Vec<Subnet> = own.iter().filter_map(|block| block.parse().ok()).collect();
    let all_remembered = offline.ips.iter().all(|ip| remembered.iter().any(|block| block.contains(*ip)));
    assert!(all_remembered, "{:?} are not of {own:?}", offline.ips);
    let mut others: Vec<ClusterPod> = (0..2).flat_map(|node| use_up(&lab, node)).collect();
    others.extend(use_up(&lab, 0));
    lab.assert_nothing_given_twice();
    assert!((0..2).all(|node| blocks_giving(&lab.nodes[node].node).is_disjoint(&own)), "{own:?} are retired");
    lab.wire.set_plugged(lost, true);
    lost.weftd().wait_finding("removed", true);
    wait_until("it gives no more", PATIENCE, || blocks_giving(&lost.node).is_empty());
    lab.assert_nothing_given_twice();
    offline.stop();
}
