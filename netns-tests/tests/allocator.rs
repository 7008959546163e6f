//! The allocator's own rules between real processes: wipe and rebuild, withdrawal against taking, release against a
//! successor, candidates that others took, and the kernel as last witness.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_kill/grant.rs"]
mod grant;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use grant::{as_daemon, grant};
use netns_tests::{
    Allow, Cni, Inside, Lab, Node, Outcome, Pod, Residue, Running, lab, require, wait_until, weft_bin_dir,
};
use serde_json::{Value, json};

/// "Try again later".
const TRY_AGAIN: u64 = 11;
/// The allocator's own: an address that was asked for by name is not free.
const IPAM: u64 = 104;
const KINDS: [&str; 3] = ["bridge", "veth", "cluster bridge"];

/// A network whose pools have `size` addresses from .8 and ::8 on; a power of two, as a cluster's are blocks.
fn network(node: &Node, kind: &str, size: u32) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": kind.rsplit(' ').next(),
        "isDefaultGateway": true, "ipam": {"type": "weft-ipam", "cooldown": 0}
    });
    if kind.starts_with("cluster") {
        let bits = size.trailing_zeros();
        assert!(size.is_power_of_two() && size <= 8);
        grant(node, &[&format!("10.78.0.8/{}", 32 - bits), &format!("fd00:78::8/{}", 128 - bits)]);
    } else {
        conf["ipMasq"] = json!(true);
        conf["ipam"]["ranges"] = json!([
            [{"subnet": "10.78.0.0/24", "rangeStart": "10.78.0.8", "rangeEnd": format!("10.78.0.{}", 7 + size)}],
            [{"subnet": "fd00:78::/64", "rangeStart": "fd00:78::8", "rangeEnd": format!("fd00:78::{:x}", 7 + size)}]
        ]);
    }
    conf
}

/// A node of a lab named after test and kind, on which everything shared is there already.
fn prepared(test: &str, kind: &str, size: u32) -> (Lab, Node, Cni, Value) {
    let lab = Lab::new(&format!("{test}_{}", kind.replace(' ', "_")));
    let node = lab.node("n1");
    let weft = node.cni(weft_bin_dir(), "weft");
    let conf = network(&node, kind, size);
    let warm_up = node.pod("warm-up");
    weft.add(&warm_up, &conf).result();
    weft.del(&warm_up, &conf).ok_empty();
    (lab, node, weft, conf)
}

fn pods(node: &Node, name: &str, count: usize) -> Vec<Pod> {
    (0..count).map(|index| node.pod(&format!("{name}{index}"))).collect()
}

fn at_once(weft: &Cni, verb: &str, pods: &[Pod], conf: &Value) -> Vec<Outcome> {
    let running: Vec<_> = pods.iter().map(|pod| weft.call(verb).pod(pod).conf(conf).spawn()).collect();
    running.into_iter().map(Running::wait).collect()
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

fn distinct(outcomes: &[Outcome]) -> BTreeSet<String> {
    let all: Vec<String> = outcomes.iter().flat_map(|outcome| addresses(&outcome.result())).collect();
    let distinct: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(distinct.len(), all.len(), "an address was given twice: {all:?}");
    distinct
}

fn wipe(node: &Node) {
    for entry in fs::read_dir(node.path("/run/weft")).unwrap().flatten() {
        fs::remove_dir_all(entry.path()).unwrap();
    }
}

/// Point 7: a candidate that another attachment took first is nobody's to clean up after: not its neighbour entry, not
/// its route, not its file.
#[test]
fn an_add_that_loses_an_address_to_another_pod_leaves_all_of_that_pods() {
    if !require() {
        return;
    }
    for kind in KINDS {
        let (_lab, node, weft, conf) = prepared("loses_address", kind, 4);
        let (holder, late) = (node.pod("holder"), node.pod("late"));
        let result = weft.add(&holder, &conf).result();
        let before = Residue::take(&node);
        let mut wanting = conf.clone();
        wanting["runtimeConfig"] = json!({"ips": addresses(&result)});
        for _ in 0..2 {
            let error = weft.add(&late, &wanting).error();
            assert_eq!(error.code, IPAM, "{kind}: {error:?}");
            assert!(error.msg.contains(&addresses(&result)[0]), "{kind}: {error:?}");
            before.assert_settles(&node, &Allow::nothing());
            weft.del(&late, &wanting).ok_empty();
            before.assert_settles(&node, &Allow::nothing());
        }
    }
}

/// Point 7, A11, A27: a DEL that comes late, or eight times, frees nothing of the pod that has the address by now.
#[test]
fn a_late_del_frees_nothing_of_its_successor() {
    if !require() {
        return;
    }
    for kind in KINDS {
        let (_lab, node, weft, conf) = prepared("late_del", kind, 1);
        let (mut former, mut successor) = (node.pod("former"), node.pod("successor"));
        for round in 0..8 {
            weft.add(&former, &conf).result();
            let late: Vec<Running> =
                (0..8).map(|_| weft.call("DEL").pod(&former).conf(&conf).spawn()).collect();
            let mut answer = Value::Null;
            wait_until("the address is free", Duration::from_secs(10), || {
                let outcome = weft.add(&successor, &conf);
                if outcome.status.success() {
                    answer = outcome.result();
                } else {
                    assert_eq!(outcome.error().code, TRY_AGAIN, "{kind}, round {round}: {outcome}");
                }
                outcome.status.success()
            });
            late.into_iter().for_each(|late| late.wait().ok_empty());
            let held = Residue::take(&node);
            weft.del(&former, &conf).ok_empty();
            held.assert_settles(&node, &Allow::nothing());
            let words = if kind == "veth" { ["route", "route"] } else { ["neigh", "route"] };
            let shown: String = [
                ["ip", "-4", words[0]],
                ["ip", "-6", words[0]],
                ["ip", "-4", words[1]],
                ["ip", "-6", words[1]],
            ]
            .map(|words| String::from_utf8(node.run(words).stdout).unwrap())
            .concat();
            for address in addresses(&answer) {
                let there = shown.lines().any(|line| line.split(' ').next() == Some(&address));
                assert!(there, "{kind}, round {round}: nothing is left of {address} in the kernel:\n{shown}");
            }
            weft.del(&successor, &conf).ok_empty();
            std::mem::swap(&mut former, &mut successor);
        }
    }
}

/// Point 7, A17: the folder is wiped under live pods, then 16 ADDs rebuild it at once.
#[test]
fn sixteen_adds_rebuild_a_wiped_folder_and_take_no_live_pods_address() {
    if !require() {
        return;
    }
    for kind in ["bridge", "veth"] {
        let (_lab, node, weft, conf) = prepared("rebuild", kind, 20);
        let before = Residue::take(&node);
        let (old, new) = (pods(&node, "old", 4), pods(&node, "new", 16));
        for round in 0..4 {
            let mut all = at_once(&weft, "ADD", &old, &conf);
            wipe(&node);
            all.extend(at_once(&weft, "ADD", &new, &conf));
            assert_eq!(distinct(&all).len(), 40, "{kind}, round {round}");
            // Exactly full now: the rebuilt ones count.
            let error = weft.add(&node.pod("one-more"), &conf).error();
            assert!(error.code == TRY_AGAIN && error.details.contains("20 of 20"), "{kind}: {error:?}");
            wipe(&node);
            at_once(&weft, "DEL", &old, &conf).iter().for_each(Outcome::ok_empty);
            at_once(&weft, "DEL", &new, &conf).iter().for_each(Outcome::ok_empty);
            before.assert_settles(&node, &Allow::nothing());
        }
    }
}

/// Point 7, A17, cluster: after a wipe nothing is given until the block is granted again, and then no live pod's address.
#[test]
fn a_block_granted_again_after_a_wipe_still_holds_the_live_pods_addresses() {
    if !require() {
        return;
    }
    let (_lab, node, weft, conf) = prepared("granted_again", "cluster bridge", 8);
    let before = Residue::take(&node);
    let (old, new) = (pods(&node, "old", 3), pods(&node, "new", 5));
    let mut all = at_once(&weft, "ADD", &old, &conf);
    wipe(&node);
    let error = weft.add(&new[0], &conf).error();
    assert!(error.code == TRY_AGAIN && error.msg.contains("no block"), "{error:?}");
    network(&node, "cluster bridge", 8);
    all.extend(at_once(&weft, "ADD", &new, &conf));
    assert_eq!(distinct(&all).len(), 16);
    assert_eq!(weft.add(&node.pod("one-more"), &conf).error().code, TRY_AGAIN);
    let withdrawn = || as_daemon(&node, |state, _| state.withdraw(&"10.78.0.8/29".parse().unwrap()).unwrap());
    at_once(&weft, "DEL", &new, &conf).iter().for_each(Outcome::ok_empty);
    assert!(!withdrawn(), "withdrawn under the pods that were there before the wipe");
    at_once(&weft, "DEL", &old, &conf).iter().for_each(Outcome::ok_empty);
    before.assert_settles(&node, &Allow::nothing());
    assert!(withdrawn());
}

/// Point 7: after a withdrawal has succeeded nobody gets an address of the block, and nobody had one when it did.
#[test]
fn no_address_of_a_withdrawn_block_is_ever_given() {
    if !require() {
        return;
    }
    let (_lab, node, weft, mut conf) = prepared("withdrawn", "cluster bridge", 8);
    conf["mode"] = json!("veth");
    grant(&node, &["10.79.0.0/28", "fd00:79::/124"]);
    let pods = pods(&node, "p", 8);
    let block = "10.78.0.8/29";
    let (mut won, mut lost) = (0, 0);
    for round in 0..16 {
        grant(&node, &[block]);
        let withdrawn = AtomicBool::new(false);
        let over = AtomicBool::new(false);
        let outcomes = std::thread::scope(|scope| {
            scope.spawn(|| {
                as_daemon(&node, |state, _| {
                    // Earlier in some rounds, later in others.
                    for _ in 0..round * 4 {
                        state.granted().unwrap();
                    }
                    while !over.load(Ordering::Relaxed) && !withdrawn.load(Ordering::Relaxed) {
                        withdrawn.store(state.withdraw(&block.parse().unwrap()).unwrap(), Ordering::Relaxed);
                    }
                });
            });
            let outcomes = at_once(&weft, "ADD", &pods, &conf);
            over.store(true, Ordering::Relaxed);
            outcomes
        });
        let given = distinct(&outcomes);
        let of_the_block = given.iter().filter(|address| address.starts_with("10.78.")).count();
        if withdrawn.into_inner() {
            won += 1;
            assert_eq!(of_the_block, 0, "round {round}: withdrawn, and yet given: {given:?}");
        } else {
            lost += 1;
            assert!(of_the_block > 0, "round {round}: not withdrawn, though nobody has an address of it");
        }
        at_once(&weft, "DEL", &pods, &conf).iter().for_each(Outcome::ok_empty);
    }
    println!("withdrawal against taking: {won} times the block went first, {lost} times an address");
}

/// Point 7, A11: pods whose namespaces vanished without DEL are collected with all that they had in the kernel.
#[test]
fn the_collector_takes_routes_and_neighbour_entries_of_vanished_pods_with_it() {
    if !require() {
        return;
    }
    for kind in KINDS {
        let (_lab, node, weft, conf) = prepared("collector", kind, 2);
        let before = Residue::take(&node);
        for _ in 0..3 {
            let vanishing = pods(&node, "vanishing", 2);
            distinct(&at_once(&weft, "ADD", &vanishing, &conf));
            vanishing.iter().for_each(Pod::destroy_netns);
            let hosts = || node.run(["ip", "-o", "link", "show", "type", "veth"]).stdout.len();
            wait_until("their links are gone", Duration::from_secs(10), || hosts() == 0);
            let next = pods(&node, "next", 2);
            distinct(&at_once(&weft, "ADD", &next, &conf));
            at_once(&weft, "DEL", &next, &conf).iter().for_each(Outcome::ok_empty);
            before.assert_settles(&node, &Allow::nothing());
            at_once(&weft, "DEL", &vanishing, &conf).iter().for_each(Outcome::ok_empty);
        }
    }
}

/// Design §3, the kernel as last witness: the kernel flushes the neighbour entries of a bridge without carrier up to a second after
/// the last pod has gone, which may be in the middle of the next ADD.
#[test]
fn the_first_pod_on_an_idle_bridge_keeps_its_neighbour_entries() {
    if !require() {
        return;
    }
    let (_lab, node, weft, conf) = prepared("idle_bridge", "bridge", 4);
    let (last, first) = (node.pod("last"), node.pod("first"));
    weft.add(&last, &conf).result();
    weft.del(&last, &conf).ok_empty();
    // The third setns is the one that sets up the pod's end: the pair is there, and has no carrier yet.
    let inject = "inject=setns:delay_enter=1500000:when=3";
    let result = weft
        .call("ADD")
        .pod(&first)
        .conf(&conf)
        .wrap(["strace", "-f", "-o", "/dev/null", "-e", inject])
        .run()
        .result();
    let shown = node.json(["ip", "-j", "neigh", "show", "dev", "cbr0"]);
    for address in addresses(&result) {
        let there = shown
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["dst"] == address.as_str() && entry.get("extern_learn").is_some());
        assert!(there, "{address} has lost its entry: {shown}");
    }
}

/// Design §3: an address that a live link has in the kernel is put aside, whatever the records say. Here they say
/// "free": the owner's files are taken away one by one while its link lives.
#[test]
fn an_address_whose_record_was_lost_is_put_aside_while_its_link_lives() {
    if !require() {
        return;
    }
    let lab = lab!();
    for kind in ["bridge", "veth"] {
        let node = lab.node(kind);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = network(&node, kind, 3);
        let (robbed, late) = (node.pod("robbed"), pods(&node, "late", 3));
        let result = weft.add(&robbed, &conf).result();
        let held = addresses(&result);
        for folder in fs::read_dir(node.path("/run/weft")).unwrap().flatten() {
            for part in ["owner", "record", "slot"] {
                for file in fs::read_dir(folder.path().join(part)).unwrap().flatten() {
                    fs::remove_file(file.path()).unwrap();
                }
            }
            for pool in fs::read_dir(folder.path().join("pool")).unwrap().flatten() {
                for file in fs::read_dir(pool.path()).unwrap().flatten() {
                    fs::remove_file(file.path()).unwrap();
                }
            }
        }
        let outcomes: Vec<Outcome> = late.iter().map(|pod| weft.add(pod, &conf)).collect();
        let (given, refused) = outcomes.split_at(2);
        assert!(distinct(given).is_disjoint(&held.iter().cloned().collect()), "{kind}: {held:?} given again");
        assert_eq!(refused[0].error().code, TRY_AGAIN, "{kind}");
        let log = fs::read_to_string(node.path("/var/log/weft/weft.log")).unwrap();
        assert!(log.contains("aside"), "{kind}: {log}");
        robbed.run(["ip", "-4", "address", "show", "eth0"]);
        let mut check = conf.clone();
        check["prevResult"] = result;
        weft.check(&robbed, &check).ok_empty();
    }
}

/// Point 7: an ADD whose folder was wiped and rebuilt under it notices, however many addresses it could still try.
#[test]
fn an_add_whose_folder_was_wiped_under_it_gives_up_at_once_and_leaves_nothing() {
    if !require() {
        return;
    }
    for mode in ["bridge", "veth"] {
        let (_lab, node, weft, mut conf) = prepared("wiped_under", mode, 4);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.80.0.0/16"}], [{"subnet": "fd00:80::/64"}]]);
        conf["ipMasq"] = json!(false);
        // Another subnet would not be suffered on the bridge that is there.
        conf["bridge"] = if mode == "bridge" { json!("br80") } else { Value::Null };
        let (slow, quick) = (node.pod("slow"), node.pod("quick"));
        weft.add(&quick, &conf).result();
        weft.del(&quick, &conf).ok_empty();
        let before = Residue::take(&node);
        // The first linkat names its owner file, the second takes an address.
        let inject = "inject=linkat:delay_enter=1000000:when=2";
        let stopped = weft
            .call("ADD")
            .pod(&slow)
            .conf(&conf)
            .wrap(["strace", "-f", "-o", "/dev/null", "-e", inject])
            .spawn();
        wait_until("the slow ADD has written its intent", Duration::from_secs(10), || records(&node) == 1);
        wipe(&node);
        let result = weft.add(&quick, &conf).result();
        let outcome = stopped.wait();
        assert!(outcome.elapsed < Duration::from_secs(3), "{mode}: it took {:?} to notice", outcome.elapsed);
        assert_eq!(outcome.error().code, TRY_AGAIN, "{mode}: {outcome}");
        let mut check = conf.clone();
        check["prevResult"] = result;
        weft.check(&quick, &check).ok_empty();
        weft.del(&quick, &conf).ok_empty();
        // Without a DEL of the slow one: a failed ADD leaves nothing.
        before.assert_settles(&node, &Allow::nothing());
    }
}

fn records(node: &Node) -> usize {
    let folders = fs::read_dir(node.path("/run/weft")).unwrap().flatten();
    folders.map(|folder| fs::read_dir(folder.path().join("record")).map_or(0, Iterator::count)).sum()
}
