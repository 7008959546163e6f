//! Point 6: acceptance scenarios A22, A33 and A34 with the design's meaning of STATUS, and a burst of pods onto one
//! block and its spare with a slow store, while blocks are being returned and claimed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Layout, Network, PATIENCE, SlowLink, StopAtEnd, addresses_given, blocks_giving,
    chain, long_or, require_cluster, status, watch_grants,
};
use netns_tests::{Inside, Pod, wait_until};
use weft_ipam::ask::{NeedBlock, Weftd};
use weft_ipam::clock::Deadline;

fn small() -> Network {
    Network::default().with("block_size_v4 = 28").with("block_size_v6 = 124")
}

/// A22: with a free granted address ADD works whatever is away; without one it is code 11 within its own deadline;
/// DEL always succeeds; STATUS says 0 or 50 by that alone; afterwards the store says what the node says.
#[test]
fn a22_with_everything_away_only_an_exhausted_block_refuses() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("a22", &Layout::default().nodes(1));
    lab.start_all(&small());
    let mut pods = vec![lab.pod(0, "first")];
    lab.etcd.stop_all();
    lab.nodes[0].weftd().wait_finding("store-away", true);
    let (mut refusal, mut slowest) = (None, Duration::ZERO);
    for n in 0..64 {
        status(&lab.nodes[0].node).unwrap_or_else(|error| panic!("pod {n}: {error}"));
        let started = Instant::now();
        match lab.try_pod(0, &format!("p{n}")) {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                refusal = Some((error, started.elapsed()));
                break;
            }
        }
        slowest = slowest.max(started.elapsed());
        if status(&lab.nodes[0].node).is_err() {
            let started = Instant::now();
            let error = lab.try_pod(0, "late").expect_err("STATUS is right: none is free");
            refusal = Some((error, started.elapsed()));
            break;
        }
    }
    let (error, took) = refusal.expect("the blocks have an end");
    assert!(error.contains("\"code\":11") && error.contains("store"), "{error}");
    assert!(took < Duration::from_secs(25), "{took:?}");
    let unavailable = status(&lab.nodes[0].node).expect_err("none is free");
    assert!(unavailable.contains("\"code\":50"), "{unavailable}");
    // A frozen daemon costs two seconds, not more.
    lab.nodes[0].weftd().freeze(true);
    let started = Instant::now();
    let error = lab.try_pod(0, "frozen").expect_err("none is free");
    assert!(error.contains("\"code\":11"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let freed = pods.pop().expect("a pod");
    freed.stop();
    status(&lab.nodes[0].node).unwrap_or_else(|error| panic!("one is free again: {error}"));
    pods.push(lab.pod(0, "again"));
    lab.nodes[0].weftd().freeze(false);
    lab.etcd.start_all();
    lab.nodes[0].weftd().wait_finding("store-away", false);
    pods.push(lab.pod(0, "with-store"));
    lab.assert_records_agree(PATIENCE);
    pods.iter().for_each(ClusterPod::stop);
}

/// A33 is in `cluster_heal`; here its STATUS: while the overlay is damaged a pod can start, so it stays 0.
#[test]
fn a33_status_stays_0_while_the_overlay_is_being_healed() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("a33", &Layout::default().nodes(2));
    lab.start_all(&Network::default());
    let node = &lab.nodes[0];
    for _ in 0..3 {
        node.run(["ip", "link", "delete", "weft-vx"]);
        node.run(["nft", "flush", "ruleset"]);
        status(&node.node).unwrap_or_else(|error| panic!("{error}"));
        wait_until("weft-vx is back", PATIENCE, || {
            node.try_run(["ip", "link", "show", "weft-vx"]).status.success()
        });
    }
}

/// A34: the plugin is installed again and again while pods come and go: never half a program, never a moment without
/// a network, and it appears only when pods can start.
#[test]
fn a34_installing_under_pod_churn_never_shows_half_of_anything() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("a34", &Layout::default().nodes(1));
    let network = Network::default().mode("veth");
    lab.start(0, &network);
    let node = &lab.nodes[0];
    wait_until("the conflist appears", PATIENCE, || {
        let there = node.weftd().conflist().is_some();
        if there {
            status(&node.node).unwrap_or_else(|error| panic!("it appeared before pods can start: {error}"));
        }
        there
    });
    node.weftd().wait_ready();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let mut pods = 0;
            while !stop.load(Ordering::Relaxed) {
                let pod = node.node.pod("churn");
                let chain = netns_tests::cluster::chain_from(&node.node, "/opt/cni/bin")
                    .expect("the conflist is whole");
                chain.add(&pod).unwrap_or_else(|failure| panic!("pod {pods}: {failure}"));
                chain.del(&pod).unwrap_or_else(|failure| panic!("pod {pods}: {failure}"));
                pod.destroy_netns();
                pods += 1;
            }
            pods
        });
        for _ in 0..long_or(1000, 40) {
            node.weftd().command_ok(&["install"]);
            assert!(node.weftd().conflist().is_some(), "a runtime would find no network");
        }
        stop.store(true, Ordering::Relaxed);
        let pods = churn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(pods > 3, "only {pods} pods");
    });
}

/// Blocks of 32.
fn medium() -> Network {
    Network::default().with("block_size_v4 = 27").with("block_size_v6 = 123").mode("veth")
}

/// How many pods start at once, and on which node.
const BURST: usize = 200;
const NODE: usize = 0;
/// As many pods as have room in a node's first block, beside the node's own address.
const FULL: usize = 31;
/// Longer than an empty block has to rest before it goes back.
const RESTED: u64 = 130;

/// 200 pods at once on one node that has a block and its spare, together with room for 63; each request to the store
/// takes 50 ms. Meanwhile the other nodes claim blocks and give them back, and before the second burst so does this
/// one. All pods start, and whatever is given comes from a block that is the node's own at that moment.
#[test]
fn a_burst_of_200_pods_on_one_node_gets_blocks_from_a_slow_store_while_others_claim_and_return() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("burst", &Layout::default());
    let slow = SlowLink::start(&lab, Duration::from_millis(50));
    for node in 0..lab.nodes.len() {
        let mut conf = lab.conf(node, &medium());
        conf.endpoints = vec![slow.endpoint.clone()];
        lab.start_ahead(node, conf, RESTED, node == NODE);
    }
    lab.wait_ready();
    let stop = AtomicBool::new(false);
    let (bursts, watched) = std::thread::scope(|scope| {
        let _stops = StopAtEnd(&stop);
        let watching = scope.spawn(|| watch_grants(&lab, &stop));
        for node in (0..lab.nodes.len()).filter(|node| *node != NODE) {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || come_and_go(lab, node, stop));
        }
        let bursts = [burst(&lab, "first"), burst(&lab, "second")];
        stop.store(true, Ordering::Release);
        (bursts, watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    for (from, to) in bursts {
        let (claimed, returned) = watched.moves(from, to);
        eprintln!("{BURST} pods in {:?}; {claimed} blocks claimed, {returned} returned", to - from);
        assert!(returned > 0 && claimed + returned >= moves_of(to - from), "the other nodes stood still");
    }
    eprintln!("{} addresses in {} looks", watched.addresses.len(), watched.looks);
    assert!(
        watched.outside.is_empty() && watched.twice.is_empty(),
        "{:#?}",
        (watched.outside, watched.twice)
    );
    assert!(watched.addresses.len() > 2 * BURST, "it saw only {} addresses", watched.addresses.len());
    lab.assert_nothing_given_twice();
    lab.assert_records_agree(PATIENCE);
}

/// How often a block moves in this time if one does each 100 ms; where other tests share the machine, half of that.
fn moves_of(time: Duration) -> usize {
    usize::try_from(time.as_millis() / long_or(100, 200)).unwrap_or(usize::MAX)
}

/// All pods at once, and all away again; returns when the first ADD began and the last one ended. Ends when the node
/// has begun to give its blocks back.
fn burst(lab: &ClusterLab, name: &str) -> (Instant, Instant) {
    let node = &lab.nodes[NODE].node;
    let chain = chain(node).unwrap_or_else(|error| panic!("{error}"));
    let pods: Vec<Pod> = (0..BURST).map(|n| node.pod(&format!("{name}{n}"))).collect();
    let others = || -> usize {
        let others = lab.nodes.iter().enumerate().filter(|(other, _)| *other != NODE);
        others.map(|(_, other)| blocks_giving(&other.node).len()).sum()
    };
    let mut most = others();
    wait_until("another node gives blocks back", PATIENCE, || {
        most = most.max(others());
        others() < most
    });
    let from = Instant::now();
    let given: Vec<IpAddr> = all_at_once(&pods, |pod| {
        let result = chain.add(pod).unwrap_or_else(|failure| panic!("{name} burst: {failure}"));
        let ips = result["ips"].as_array().into_iter().flatten();
        ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect::<Vec<_>>()
    })
    .concat();
    let to = Instant::now();
    assert!(to - from < long_or(Duration::from_secs(10), Duration::from_secs(25)), "{:?}", to - from);
    let held = addresses_given(node);
    assert_eq!(given.iter().filter(|ip| held.contains(*ip)).count(), 2 * BURST, "of {given:?}");
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 2 * BURST, "an address was given twice");
    let blocks = blocks_giving(node).len();
    all_at_once(&pods, |pod| chain.del(pod).unwrap_or_else(|failure| panic!("{name} burst: {failure}")));
    wait_until("blocks go back", PATIENCE, || blocks_giving(node).len() < blocks);
    (from, to)
}

/// A full block, and a pod that comes and goes beside it: with it there the node claims another spare, without it one
/// goes back. Asking the daemon makes it count at once what is in use, which it else does each three seconds.
fn come_and_go(lab: &ClusterLab, node: usize, stop: &AtomicBool) {
    let node = &lab.nodes[node].node;
    let chain = chain(node).unwrap_or_else(|error| panic!("{error}"));
    let pods: Vec<Pod> = (0..FULL).map(|n| node.pod(&format!("full{n}"))).collect();
    let fail = |failure| panic!("{}: {failure}", node.name());
    all_at_once(&pods, |pod| chain.add(pod).unwrap_or_else(fail));
    let pod = node.pod("guest");
    let weftd = Weftd::at(&node.path(weft_ipam::ask::SOCKET));
    let count = || {
        let deadline = Deadline::after(Instant::now(), PATIENCE);
        weftd.need_block("weft", &[], deadline).unwrap_or_else(|error| panic!("{error:?}"));
    };
    while !stop.load(Ordering::Acquire) {
        for guest in [true, false] {
            let blocks = blocks_giving(node).len();
            if guest {
                chain.add(&pod).unwrap_or_else(fail);
            } else {
                chain.del(&pod).unwrap_or_else(|failure| panic!("{}: {failure}", node.name()));
            }
            count();
            wait_until("a block comes or goes", PATIENCE, || {
                blocks_giving(node).len() != blocks || stop.load(Ordering::Acquire)
            });
        }
    }
}

fn all_at_once<T: Send>(pods: &[Pod], work: impl Fn(&Pod) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let started: Vec<_> = pods.iter().map(|pod| scope.spawn(|| work(pod))).collect();
        started
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
