//! Point 4: a node comes back. Rebooted, with another address, with its memory wiped, as a clone of another; and two
//! nodes that want the last block. What each case means for identity, blocks and pods is in the README's table.

use std::collections::BTreeSet;
use std::time::Duration;

use netns_tests::cluster::{
    ClusterLab, Layout, Network, PATIENCE, assert_all_reach_all, blocks_giving, require_cluster,
};
use netns_tests::{Inside, wait_until};
use serde_json::Value;

fn started(name: &str, network: &Network) -> ClusterLab {
    let lab = ClusterLab::new(name, &Layout::default());
    lab.start_all(network);
    lab
}

fn record(lab: &ClusterLab, node: usize) -> Value {
    let key = format!("/weft/v1/n/{}", lab.nodes[node].name());
    lab.etcd.get(&key).map(|item| item.json()).unwrap_or_default()
}

fn blocks(lab: &ClusterLab, node: usize) -> BTreeSet<String> {
    let record = record(lab, node);
    let blocks = record["blocks"].as_array().into_iter().flatten();
    blocks.filter_map(|block| block["cidr"].as_str().map(str::to_owned)).collect()
}

#[test]
fn after_a_reboot_a_node_has_its_identity_and_its_blocks() {
    if !require_cluster() {
        return;
    }
    let lab = started("reboot", &Network::default());
    let mut pods = lab.pod_on_each("p");
    let before = (record(&lab, 2)["instance"].clone(), blocks(&lab, 2));
    assert!(!before.1.is_empty());
    lab.nodes[2].reboot(&[pods.pop().expect("a pod")]);
    lab.nodes[2].weftd().start(&[]);
    lab.wait_ready();
    assert_eq!((record(&lab, 2)["instance"].clone(), blocks(&lab, 2)), before);
    pods.push(lab.pod(2, "after"));
    lab.assert_all_reach_all(&pods);
    lab.assert_nothing_given_twice();
}

#[test]
fn with_another_address_a_node_keeps_everything_and_the_others_follow() {
    if !require_cluster() {
        return;
    }
    let lab = started("newip", &Network::default());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let before = (record(&lab, 1)["instance"].clone(), blocks(&lab, 1));
    let node = &lab.nodes[1];
    // The new one is there before the old one goes, as with DHCP; the default route goes with the old one's subnet.
    node.run(["ip", "address", "add", "192.168.1.77/24", "dev", "eth0"]);
    node.run(["ip", "address", "delete", "192.168.1.2/24", "dev", "eth0"]);
    node.run(["ip", "address", "replace", "192.168.1.77/24", "dev", "eth0"]);
    node.run(["ip", "route", "replace", "default", "via", "192.168.1.254", "dev", "eth0"]);
    wait_until("it is published", PATIENCE, || {
        record(&lab, 1)["addresses"].to_string().contains("192.168.1.77")
    });
    lab.assert_all_reach_all(&pods);
    assert_eq!((record(&lab, 1)["instance"].clone(), blocks(&lab, 1)), before);
    lab.assert_nothing_given_twice();
}

#[test]
fn with_a_wiped_memory_and_no_pods_a_node_is_a_new_one_and_takes_nothing_over() {
    if !require_cluster() {
        return;
    }
    let lab = started("wiped", &Network::default());
    let mut pods = lab.pod_on_each("p");
    let (instance, old) = (record(&lab, 2)["instance"].clone(), blocks(&lab, 2));
    lab.nodes[2].reboot(&[pods.pop().expect("a pod")]);
    let node = &lab.nodes[2];
    node.run(["sh", "-c", "rm -rf /var/lib/weft/*"]);
    node.weftd().start(&[]);
    // The former life's session may still be alive for a moment.
    wait_until("it has become a member under a new id", Duration::from_secs(90), || {
        if !node.weftd().is_running() {
            node.weftd().kill();
            node.weftd().start(&[]);
        }
        record(&lab, 2)["instance"] != instance
            && node.weftd().try_status().is_some_and(|s| s["ready"] == true)
    });
    assert!(blocks(&lab, 2).is_disjoint(&old), "a new instance inherits nothing");
    pods.push(lab.pod(2, "after"));
    lab.assert_all_reach_all(&pods);
    lab.assert_nothing_given_twice();
}

/// C8: a machine started from a copy of another's disk.
#[test]
fn a_clone_is_refused_and_told_where_the_other_is() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("clone", &Layout::default());
    let network = Network::default();
    lab.start(0, &network);
    lab.start(1, &network);
    (0..2).for_each(|node| lab.nodes[node].weftd().wait_ready());
    let (original, clone) = (&lab.nodes[1], &lab.nodes[2]);
    let before = (record(&lab, 1)["instance"].clone(), blocks(&lab, 1));
    let disk = original.node.path("/var/lib/weft");
    for file in std::fs::read_dir(&disk).expect("its data folder").flatten().filter(|f| f.path().is_file()) {
        let to = clone.node.path("/var/lib/weft").join(file.file_name());
        std::fs::copy(file.path(), to).expect("copy the disk");
    }
    clone.node.set_machine_id(
        &std::fs::read_to_string(original.node.path("/etc/machine-id")).expect("an id").trim().to_owned(),
    );
    let mut conf = lab.conf(2, &network);
    conf.node = original.name().to_owned();
    let weftd = lab.start_with(2, conf, false);
    let status = weftd.wait_end();
    let log = weftd.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("192.168.1.2"), "the refusal names where the other one is:\n{log}");
    assert_eq!((record(&lab, 1)["instance"].clone(), blocks(&lab, 1)), before);
    assert!(original.weftd().is_running());
    assert!(blocks_giving(&clone.node).is_empty());
    let pods = [lab.pod(0, "x"), lab.pod(1, "y")];
    assert_all_reach_all(&[&pods[0], &pods[1]]);
}

/// Three nodes and room for two: the third says what to do, on its socket and in ADD.
#[test]
fn of_those_who_want_the_last_block_one_gets_it_and_the_other_says_what_to_do() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("lastblock", &Layout::default());
    // Two blocks of eight addresses.
    let network = Network::default().cidrs(&["10.244.0.0/28"]).with("block_size_v4 = 29");
    for node in 0..3 {
        lab.start(node, &network);
    }
    let holders = || (0..3).filter(|node| !blocks_giving(&lab.nodes[*node].node).is_empty()).count();
    wait_until("two have a block", PATIENCE, || holders() == 2);
    let without = (0..3).find(|node| blocks_giving(&lab.nodes[*node].node).is_empty()).expect("one without");
    let finding = lab.nodes[without].weftd().wait_finding("cluster-full", true);
    let way_out = finding["way_out"].as_str().unwrap_or_default();
    assert!(way_out.contains("cidrs"), "{finding}");
    assert_eq!(holders(), 2);
    lab.assert_nothing_given_twice();
    // The way out works.
    lab.nodes[0].weftd().command_ok(&["config", "set", "cidrs=10.244.0.0/28,10.245.0.0/16"]);
    wait_until("the third has one, too", PATIENCE, || holders() == 3);
    lab.assert_nothing_given_twice();
}
