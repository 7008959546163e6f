//! `use/<name>`: what people can read in the store about a node's addresses, and how seldom it is written.

use std::time::{Duration, Instant};

use netns_tests::cluster::{ClusterLab, ClusterPod, Layout, Network, PATIENCE, require_cluster};
use netns_tests::{wait_for, wait_until};
use serde_json::Value;

const KEY: &str = "/weft/v1/use/a";

/// The pods' addresses that `weftd ipam show --cluster` tells of node a.
fn told(lab: &ClusterLab) -> Vec<String> {
    // This command takes no configuration by itself.
    let shown = lab.nodes[0].weftd().command_ok(&[
        "ipam",
        "show",
        "--cluster",
        "-o",
        "json",
        "--config",
        "/etc/weft/weftd.toml",
    ]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let blocks = shown["blocks"].as_array().into_iter().flatten().filter(|block| block["node"] == "a");
    let ranges = blocks.flat_map(|block| block["addresses"].as_array().cloned().unwrap_or_default());
    ranges.filter_map(|range| range.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_burst_of_pods_is_one_write_and_removal_takes_the_key_away() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("use", &Layout::default().nodes(1));
    lab.start_all(&Network::default().v4());
    let _first = lab.pod(0, "first");
    // A node tells after its start: from here on a minute must pass.
    let before = wait_for("the first word", PATIENCE, || lab.etcd.get(KEY));
    let (early, started) = (told(&lab), Instant::now());
    let pods: Vec<ClusterPod> = (0..8).map(|n| lab.pod(0, &format!("burst{n}"))).collect();
    pods.iter().take(4).for_each(ClusterPod::stop);
    // Long enough for several looks; the long form waits for the write itself.
    std::thread::sleep(Duration::from_secs(12));
    let meanwhile = lab.etcd.get(KEY).expect("the key");
    assert!(started.elapsed() < Duration::from_secs(50), "too slow a machine to tell");
    assert_eq!(meanwhile.mod_revision, before.mod_revision, "written again within a minute");
    assert_eq!(told(&lab), early, "{}", before.value);
    if netns_tests::cluster::long() {
        let after = wait_for("the second word", Duration::from_secs(80), || {
            lab.etcd.get(KEY).filter(|now| now.mod_revision != before.mod_revision)
        });
        assert!(started.elapsed() > Duration::from_secs(40), "a minute after the first");
        let (last, said) = (pods[7].ip().to_string(), told(&lab));
        assert!(said.iter().any(|range| range.ends_with(&last)), "{last}: {said:?}");
        std::thread::sleep(Duration::from_secs(70));
        let quiet = lab.etcd.get(KEY).expect("the key");
        assert_eq!(quiet.mod_revision, after.mod_revision, "nothing changed, nothing is written");
    }

    // A restart finds what it would say already said, or waits out the minute.
    lab.nodes[0].weftd().stop();
    lab.nodes[0].weftd().start(&[]);
    lab.nodes[0].weftd().wait_ready();
    lab.nodes[0].weftd().stop();
    lab.nodes[0].weftd().command_ok(&["uninstall", "--pods"]);
    wait_until("the key to be gone", PATIENCE, || lab.etcd.get(KEY).is_none());
}

/// Nothing hangs on it: a burst that is all over before the store is told is told as it ended.
#[test]
fn a_burst_after_the_start_is_in_the_one_write() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("useburst", &Layout::default().nodes(1));
    lab.start_all(&Network::default().v4());
    let pods: Vec<ClusterPod> = (0..6).map(|n| lab.pod(0, &format!("p{n}"))).collect();
    wait_for("the first word", PATIENCE, || lab.etcd.get(KEY));
    let ranges = told(&lab);
    let [range] = ranges.as_slice() else { panic!("one range: {ranges:?}") };
    let (first, last) = range.split_once('-').expect("a range");
    assert_eq!((first, last), (pods[0].ip().to_string().as_str(), pods[5].ip().to_string().as_str()));
}
