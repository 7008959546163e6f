//! `weftd ipam show` on real nodes with real pods, and with records that somebody damaged.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use netns_tests::{Inside, Lab, Node, Pod, lab, require, wait_until, weft_bin_dir};
use serde_json::{Value, json};
use weft_ipam::clock::Deadline;
use weft_ipam::{HostKernel, State};

const FINE: i32 = 0;
const FOUND_SOMETHING: i32 = 1;
const COULD_NOT_TELL: i32 = 2;

/// A node with one pod, attached to `podnet`.
struct Attached {
    _lab: Lab,
    node: Node,
    pod: Pod,
}

impl Attached {
    fn new(lab: Lab) -> Self {
        let node = lab.node("n1");
        let pod = node.pod("a");
        node.cni(weft_bin_dir(), "weft").add(&pod, &conf()).result();
        Self { _lab: lab, node, pod }
    }

    /// The state folder, as this process sees it.
    fn state(&self) -> PathBuf {
        let root = self.node.path("/run/weft");
        fs::read_dir(root).unwrap().next().expect("a state folder").unwrap().path()
    }

    /// The only file in a folder of the state folder.
    fn only(&self, folder: &str) -> PathBuf {
        let mut files = fs::read_dir(self.state().join(folder)).unwrap();
        files.next().expect("one file").unwrap().path()
    }
}

fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "podnet", "type": "weft", "mode": "veth",
        "ipam": {"type": "weft-ipam", "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]}
    })
}

fn weftd(node: &Node, words: &[&str]) -> Output {
    node.try_run([env!("CARGO_BIN_EXE_weftd")].iter().chain(words))
}

/// Shows the node as JSON; asserts the exit code.
fn show(node: &Node, expected: i32) -> Value {
    let output = weftd(node, &["ipam", "show", "-o", "json"]);
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The only finding.
fn finding(shown: &Value) -> &str {
    let findings = shown["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings[0].as_str().unwrap()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut content: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut content);
    fs::write(path, content.to_string()).unwrap();
}

#[test]
fn a_node_that_never_had_a_pod_is_fine_and_stays_untouched() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let shown = show(&node, FINE);
    assert_eq!(shown["attachments"], json!([]));
    assert_eq!(shown["stateFolder"], Value::Null);
    assert_eq!(fs::read_dir(node.path("/run/weft")).unwrap().count(), 0);
}

#[test]
fn a_pod_is_shown_with_all_that_is_known_of_it() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    let shown = show(&at.node, FINE);
    let host_link = shown["attachments"][0]["hostLink"].as_str().unwrap();
    at.node.run(["ip", "link", "show", "dev", host_link]);
    assert_eq!(
        shown["attachments"],
        json!([{
            "network": "podnet", "containerID": at.pod.container_id(), "ifname": "eth0",
            "addresses": ["10.244.0.2/24", "fd00:244::2/64"], "hostLink": host_link, "state": "done", "alive": true
        }])
    );
    let ranges = shown["ranges"].as_array().unwrap();
    let used: Vec<_> = ranges.iter().map(|range| (&range["network"], &range["used"])).collect();
    assert_eq!(used, [(&json!("podnet"), &json!(1)), (&json!("podnet"), &json!(1))], "{ranges:?}");
    assert_eq!(ranges[0]["range"], "10.244.0.1-10.244.0.254");
    assert_eq!(ranges[0]["size"], 254);

    let table = weftd(&at.node, &["ipam", "show"]);
    let table = String::from_utf8(table.stdout).unwrap();
    let row = format!("podnet   {:.12}  eth0    10.244.0.2/24,fd00:244::2/64", at.pod.container_id());
    assert!(table.contains(&row), "{table}");
}

#[test]
fn after_del_the_range_is_shown_empty() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    at.node.cni(weft_bin_dir(), "weft").del(&at.pod, &conf()).ok_empty();
    let shown = show(&at.node, FINE);
    assert_eq!(shown["attachments"], json!([]));
    assert_eq!(shown["ranges"][0]["used"], 0);
}

#[test]
fn a_pod_whose_del_never_came_is_found_dead() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    at.pod.destroy_netns();
    let dead = || weftd(&at.node, &["ipam", "show"]).status.code() == Some(FOUND_SOMETHING);
    wait_until("its link gone", Duration::from_secs(10), dead);
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["alive"], false);
    assert!(finding(&shown).starts_with(&format!("container {} interface eth0", at.pod.container_id())));
}

#[test]
fn an_add_that_never_ended_is_found_and_one_that_runs_is_not() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    edit(&at.only("record"), |record| record["phase"] = json!("intent"));
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["state"], "intent");
    assert!(finding(&shown).starts_with("an ADD of container"), "{shown}");

    let running = File::open(at.only("owner")).unwrap();
    running.lock().unwrap();
    let shown = show(&at.node, FINE);
    assert_eq!(shown["attachments"][0]["state"], "busy");
    assert_eq!(shown["attachments"][0]["alive"], Value::Null);
}

#[test]
fn a_pod_without_a_record_is_found() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    fs::remove_file(at.only("record")).unwrap();
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["state"], "unreadable");
    assert!(finding(&shown).contains("no readable record"), "{shown}");
}

#[test]
fn a_pod_whose_address_is_not_kept_from_others_is_found() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    let pool = at.only("pool");
    fs::remove_file(pool.join("10.244.0.2")).unwrap();
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["alive"], true);
    assert!(finding(&shown).contains("uses 10.244.0.2, but"), "{shown}");
}

#[test]
fn an_address_that_nobody_holds_is_found() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    fs::write(at.only("pool").join("10.244.0.77"), "{}").unwrap();
    let shown = show(&at.node, FOUND_SOMETHING);
    assert!(finding(&shown).starts_with("10.244.0.77 is taken, but whoever took it is gone"), "{shown}");
}

#[test]
fn an_interface_without_a_record_is_found_and_its_way_out_works() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    for folder in ["record", "owner"] {
        fs::remove_file(at.only(folder)).unwrap();
    }
    for address in ["10.244.0.2", "fd00:244::2"] {
        fs::remove_file(at.only("pool").join(address)).unwrap();
    }
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["state"], "unrecorded");
    assert_eq!(shown["attachments"][0]["addresses"], json!(["10.244.0.2", "fd00:244::2"]));
    assert!(finding(&shown).contains("there is no record of it"), "{shown}");

    fs::remove_file(at.state().join("ready")).unwrap();
    let output = weftd(&at.node, &["ipam", "show", "-o", "json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["attachments"][0]["state"], "rebuilt", "{shown}");
    assert_eq!(shown["attachments"][0]["network"], "podnet");
    assert_eq!(shown["attachments"][0]["alive"], true);
}

#[test]
fn records_that_were_wiped_under_a_running_pod_are_missed() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    fs::remove_dir_all(at.state()).unwrap();
    let shown = show(&at.node, FOUND_SOMETHING);
    assert_eq!(shown["attachments"][0]["state"], "unrecorded");
    assert!(finding(&shown).starts_with("this node's records are gone, but 1 interface"), "{shown}");
}

#[test]
fn a_granted_block_is_shown() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    node.enter(|| {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(5));
        let state = State::open(&mut HostKernel::default(), deadline).unwrap();
        state.grant(&"10.1.2.64/26".parse().unwrap(), deadline).unwrap();
    });
    let shown = show(&node, FINE);
    assert_eq!(
        shown["ranges"],
        json!([{"network": "(cluster)", "range": "10.1.2.64/26", "used": 0, "size": 64}])
    );
}

#[test]
fn who_may_not_look_is_told_so_and_learns_nothing_wrong() {
    if !require() {
        return;
    }
    let at = Attached::new(lab!());
    // The built program may lie where only root can go.
    let program = at.node.path("/run/weft/weftd");
    fs::copy(env!("CARGO_BIN_EXE_weftd"), &program).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = at.node.try_run(nobody.iter().chain(&["/run/weft/weftd", "ipam", "show"]));
    assert_eq!(output.status.code(), Some(COULD_NOT_TELL), "{output:?}");
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("only root may look"));
}

#[test]
fn pods_that_come_and_go_meanwhile_are_never_odd() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let churn = |name: &str| {
        let weft = node.cni(weft_bin_dir(), "weft");
        let pod = node.pod(name);
        for _ in 0..50 {
            weft.add(&pod, &conf()).result();
            weft.del(&pod, &conf()).ok_empty();
        }
    };
    std::thread::scope(|scope| {
        let churns = ["a", "b", "c"].map(|name| scope.spawn(move || churn(name)));
        let mut looks = 0;
        while !churns.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            show(&node, FINE);
            looks += 1;
        }
        assert!(looks > 20, "only {looks} looks");
    });
}
