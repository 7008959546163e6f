//! What an operator does to a running cluster, or forgets: passwords that are changed, variables that are mistyped,
//! nodes that are removed or taken down, and `/run/weft` that vanishes under the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;

use netns_tests::cluster::{ClusterLab, Layout, Network, PATIENCE, Prober, WeftdConf, require_cluster};
use netns_tests::{Inside, wait_until};
use serde_json::{Value, json};

const METRICS: &str = "127.0.0.1:9469";

fn with_password(lab: &ClusterLab, node: usize, password: &str) -> WeftdConf {
    let mut conf = lab.conf(node, &Network::default());
    conf.login = Some(("weft".to_owned(), password.to_owned()));
    conf.end.push(format!("[metrics]\nlisten = \"{METRICS}\""));
    conf
}

fn metrics(node: &impl Inside) -> String {
    node.enter(|| {
        let mut stream = TcpStream::connect(METRICS).expect("somebody serves metrics");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    })
}

#[track_caller]
fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "no {line}:\n{text}");
    }
}

/// The password is changed in etcd, later in the file. In between the store refuses the node, which is no outage.
#[test]
fn a_changed_password_is_a_refusal_until_the_file_has_it_too() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("rotate", &Layout::default().nodes(1));
    lab.etcd.require_login("weft", "first", "/weft/v1/");
    let weftd = lab.start_with(0, with_password(&lab, 0, "first"), true);
    weftd.wait_ready();
    lab.etcd.change_password("weft", "second");
    // Else nothing would be asked of etcd for minutes that needs a login.
    lab.etcd.kill(0);
    lab.etcd.start_all();
    let finding = weftd.wait_finding("store-refuses", true);
    let sentence = finding["sentence"].as_str().unwrap_or_default();
    assert!(sentence.contains("user weft or the password is wrong"), "{finding}");
    let status = weftd.status();
    assert!(status["store"]["away"].is_null() && status["store"]["refuses"].is_string(), "{status:#}");
    assert_has(&metrics(&lab.nodes[0]), &["weft_store_reachable 0", "weft_store_refuses 1"]);
    let table = weftd.command(&["status"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("refuses this node"), "{table:?}");
    lab.pod(0, "meanwhile").stop();

    // One that starts now is refused from the beginning, and goes on as without a store.
    weftd.kill();
    weftd.start(&[]);
    weftd.wait_finding("store-refuses", true);
    weftd.wait_finding("store-away", false);
    lab.pod(0, "still").stop();

    weftd.configure(&with_password(&lab, 0, "second"));
    weftd.wait_finding("store-refuses", false);
    wait_until("it has its session again", PATIENCE, || !lab.etcd.list("/weft/v1/alive/").is_empty());
    assert_has(&metrics(&lab.nodes[0]), &["weft_store_reachable 1", "weft_store_refuses 0"]);
    assert!(!weftd.log().contains("second"), "the password is in the log");
}

#[test]
fn a_mistyped_variable_is_refused_by_its_name() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("variable", &Layout::default().nodes(1));
    let weftd = lab.start(0, &Network::default());
    weftd.wait_ready();
    weftd.kill();
    weftd.start_under(&["env", "WEFT_NETWORK_MUT=1400"], &[]);
    assert_eq!(weftd.wait_end().code(), Some(1));
    let expected = "WEFT_NETWORK_MUT: there is no such variable; is WEFT_NETWORK_MTU meant?";
    assert!(weftd.log_of_this_run().contains(expected), "{}", weftd.log_of_this_run());
}

fn record(lab: &ClusterLab, name: &str) -> Value {
    lab.etcd.get(&format!("/weft/v1/n/{name}")).map(|item| item.json()).unwrap_or_default()
}

fn blocks_of(lab: &ClusterLab, name: &str) -> usize {
    lab.etcd.list("/weft/v1/b/").iter().filter(|item| item.json()["owner"] == name).count()
}

/// `uninstall` is the node's own word that no pod of it lives. Those who are gone are no other nodes any more.
#[test]
fn a_node_that_is_taken_down_acknowledges_and_is_counted_no_more() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("takedown", &Layout::default().nodes(2));
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    let (stays, goes) = (lab.nodes[0].weftd(), lab.nodes[1].weftd());
    assert_eq!(stays.status()["peers"], 1);
    assert!(blocks_of(&lab, "b") > 0);
    goes.stop();
    goes.command_ok(&["uninstall", "--pods"]);
    // Once more, by a machine that no longer knows who it was: nothing is left to tell, and no records were made anew.
    let again = goes.command_ok(&["uninstall"]);
    assert!(!again.contains("records") && !again.contains("cluster"), "{again}");
    let tombstone = record(&lab, "b");
    assert_eq!(tombstone["state"], "removed", "{tombstone}");
    assert_eq!(tombstone["removed"]["acknowledged"], true, "{tombstone}");
    assert_eq!(blocks_of(&lab, "b"), 0, "its blocks are free");
    assert!(stays.command_ok(&["node", "ls"]).contains("removed, acknowledged"));
    wait_until("the other one counts it no more", PATIENCE, || {
        let status = stays.status();
        status["peers"] == 0 && status["tombstones"] == 1
    });
    let table = stays.command_ok(&["status"]);
    assert!(table.contains("0 (1 more were removed)"), "{table}");
    // The disk knows it as well, without the daemon.
    stays.stop();
    let status = stays.status();
    assert_eq!((&status["daemon"], &status["peers"]), (&json!("away"), &json!(0)), "{status:#}");
    drop(pods);
}

/// Another machine has taken the name over: its record and blocks are not this one's to give away.
#[test]
fn a_machine_that_lost_its_name_gives_nothing_of_its_successor_away() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("successor", &Layout::default().nodes(2));
    lab.start_all(&Network::default());
    let weftd = lab.nodes[1].weftd();
    weftd.stop();
    let mut other = record(&lab, "b");
    other["instance"] = json!("another");
    other["addresses"] = json!(["192.168.1.99/24"]);
    lab.etcd.put("/weft/v1/n/b", &other.to_string());
    let said = weftd.command_ok(&["uninstall"]);
    assert!(said.contains("the record of b is another machine's (at 192.168.1.99), and stays"), "{said}");
    assert_eq!(record(&lab, "b"), other);
    assert!(blocks_of(&lab, "b") > 0);
}

/// A daemon without any proof of who it was gives nothing away either.
#[test]
fn a_machine_that_forgot_who_it_is_leaves_its_record_to_a_person() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("forgot", &Layout::default().nodes(1));
    lab.start_all(&Network::default());
    let weftd = lab.nodes[0].weftd();
    weftd.stop();
    lab.nodes[0].run(["sh", "-c", "rm -rf /var/lib/weft/* /run/weft/*"]);
    let output = weftd.command(&["uninstall"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("weftd node rm a --destroyed"), "{said}");
    assert_eq!(record(&lab, "a")["state"], "active");
}

/// `how` takes `/run/weft` away from the daemon. It ends, says why, harms no traffic, and finds everything again.
fn vanishes(name: &str, prepare: &str, how: &str, undo: &str) {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new(name, &Layout::default().nodes(2));
    let node = &lab.nodes[1];
    node.run(["sh", "-c", prepare]);
    lab.start_all(&Network::default());
    let mut pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let probe = Prober::start(&pods[0], pods[1].ips[0]);
    node.run(["sh", "-c", how]);
    let status = node.weftd().wait_end();
    let log = node.weftd().log_of_this_run();
    // Not 1, which a service manager takes for a configuration that does not get better.
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("/run/weft was removed, or is not the host's any more"), "{log}");
    node.run(["sh", "-c", undo]);
    node.weftd().start(&[]);
    lab.wait_ready();
    probe.finish().assert_nothing_lost("/run/weft vanished and weftd came back");
    pods.extend((0..3).map(|number| lab.pod(1, &format!("young{number}"))));
    lab.assert_all_reach_all(&pods);
    lab.assert_nothing_given_twice();
}

/// What a container sees when the folder that it has mounted is removed on the host.
#[test]
fn the_daemon_ends_when_its_run_folder_is_removed() {
    vanishes(
        "runremoved",
        "mkdir /run/containerd/w && mount --bind /run/containerd/w /run/weft",
        "rm -rf /run/containerd/w",
        "umount /run/weft",
    );
}

/// The plugins look into another folder than the daemon.
#[test]
fn the_daemon_ends_when_another_folder_takes_the_place_of_its_run_folder() {
    vanishes("runhidden", "true", "mount -t tmpfs tmpfs /run/weft", "true");
}
