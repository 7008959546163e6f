//! Point 6: acceptance scenarios A22, A33 and A34 with the design's meaning of STATUS, and a burst of pods onto one
//! block and its spare with a slow store, while blocks are being returned and claimed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Layout, Network, PATIENCE, SlowLink, blocks_giving, long_or, require_cluster,
    status,
};
use netns_tests::{Inside, wait_until};

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

/// 200 pods at once onto one block and its spare, the store 50 ms away. All start; none has an address from outside
/// the node's blocks; none has another's.
#[test]
fn a_burst_of_pods_gets_blocks_from_a_slow_store() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("burst", &Layout::default().nodes(2));
    let slow = SlowLink::start(&lab, Duration::from_millis(50));
    for node in 0..2 {
        let mut conf = lab.conf(node, &small().mode("veth"));
        conf.endpoints = vec![slow.endpoint.clone()];
        lab.start_with(node, conf, node == 0);
    }
    lab.wait_ready();
    let count = long_or(200, 60);
    for round in 0..long_or(3, 1) {
        let started = Instant::now();
        let pods: Vec<ClusterPod> = std::thread::scope(|scope| {
            let lab = &lab;
            let adds: Vec<_> =
                (0..count).map(|n| scope.spawn(move || lab.pod(n % 2, &format!("r{round}n{n}")))).collect();
            adds.into_iter().map(|add| add.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        let took = started.elapsed();
        eprintln!("{count} pods in {took:?}");
        assert!(took < long_or(Duration::from_secs(10), Duration::from_secs(25)), "{took:?}");
        let given: BTreeSet<_> = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
        assert_eq!(given.len(), 2 * count, "an address was given twice");
        for pod in &pods {
            let blocks: Vec<weft_cni::ip::Subnet> =
                blocks_giving(&pod.node).iter().filter_map(|block| block.parse().ok()).collect();
            for ip in &pod.ips {
                assert!(
                    blocks.iter().any(|block| block.contains(*ip)),
                    "{ip} is of no block of {}",
                    pod.node.name()
                );
            }
        }
        lab.assert_nothing_given_twice();
        lab.assert_records_agree(PATIENCE);
        pods.iter().for_each(ClusterPod::stop);
    }
}
