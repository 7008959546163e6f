//! How an attachment begins and ends: repeated, killed, late, without its namespace, across boots and wiped records.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_node;

use std::fs;
use std::time::Duration;

use common_node::{
    Case, addresses, addresses_of, assert_reaches, entries, gateways, host_end, link, links, list, taken,
    wipe, with, with_result,
};
use netns_tests::{Allow, Cni, Inside, Node, Outcome, Pod, Residue, lab, require, wait_until, weft_bin_dir};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

/// Makes what all pods of a network share, so that it is no residue of one of them.
fn warm_up(node: &Node, conf: &Value) {
    let pod = node.pod("warm-up");
    weft(node).add(&pod, conf).result();
    weft(node).del(&pod, conf).ok_empty();
}

/// Kernel and records are as in `before`; only the detached child that deletes the link may still be there.
#[track_caller]
fn assert_same(before: &Residue, node: &Node) {
    before.assert_same(&Residue::take(node), &Allow::nothing().processes());
}

/// The host ends on the node.
fn host_ends(node: &Node) -> Vec<String> {
    links(node).into_iter().filter(|name| name.starts_with("veth")).collect()
}

/// The interfaces with their MAC and index: an identity that survives nothing.
fn identity(pod: &Pod, name: &str) -> (Value, Value) {
    let found = link(pod, name).unwrap_or_else(|| panic!("{name} is gone"));
    (found["ifindex"].clone(), found["address"].clone())
}

/// A10: a second ADD of the same attachment is code 100; the first keeps link, address, record and connectivity.
#[test]
fn a_second_add_is_refused_and_the_first_attachment_keeps_working() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        let (first, other) = (node.pod("first"), node.pod("other"));
        let result = weft.add(&first, &conf).result();
        let others = addresses(&weft.add(&other, &conf).result());
        let eth0 = identity(&first, "eth0");
        let attached = Residue::take(&node);

        let error = weft.add(&first, &conf).error();
        assert_eq!(error.code, 100, "{case:?} {error:?}");
        assert!(
            error.msg.contains(first.container_id()) && error.msg.contains("attached already"),
            "{error:?}"
        );
        for ip in addresses(&result) {
            assert!(error.details.contains(&ip.to_string()), "{error:?} names no {ip}");
        }

        assert_same(&attached, &node);
        assert_eq!(identity(&first, "eth0"), eth0);
        assert_eq!(taken(&node).len(), 2 * case.families());
        assert_reaches(&first, &gateways(&result));
        assert_reaches(&first, &others);
        weft.check(&first, &with_result(&conf, &result)).ok_empty();
        weft.del(&first, &conf).ok_empty();
        weft.del(&other, &conf).ok_empty();
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A10: an interface that someone else put into the pod is code 101 and stays; nothing is made, and the following
/// DEL removes nothing of theirs.
#[test]
fn an_interface_of_someone_else_is_refused_and_left_alone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let pod = node.pod("taken");
        pod.run(["ip", "link", "add", "eth0", "type", "bridge"]);
        pod.run(["ip", "address", "add", "198.51.100.7/24", "dev", "eth0"]);
        let theirs = identity(&pod, "eth0");
        let before = Residue::take(&node);

        let error = weft.add(&pod, &conf).error();
        assert_eq!(error.code, 101, "{case:?} {error:?}");
        assert!(error.msg.contains("eth0") && error.details.contains("bridge"), "{error:?}");
        assert_same(&before, &node);
        weft.del(&pod, &conf).ok_empty();
        assert_eq!(identity(&pod, "eth0"), theirs);
        assert_eq!(addresses_of(&pod, "eth0"), ["198.51.100.7/24"]);
        assert_same(&before, &node);

        // The same in a namespace that another container attached: its interface is no less somebody else's.
        let holder = node.pod("holder");
        let result = weft.add(&holder, &conf).result();
        let held = Residue::take(&node);
        let guest = holder.with_container_id("guest");
        assert_eq!(weft.add(&guest, &conf).error().code, 101);
        weft.del(&guest, &conf).ok_empty();
        assert_same(&held, &node);
        assert_reaches(&holder, &gateways(&result));
    }
}

/// A10: DEL takes our interface only; others in the pod stay.
#[test]
fn del_leaves_other_interfaces_of_the_pod_alone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let pod = node.pod("a");
        weft(&node).add(&pod, &case.conf()).result();
        pod.run(["ip", "link", "add", "eth9", "type", "bridge"]);
        weft(&node).del(&pod, &case.conf()).ok_empty();
        assert_eq!(links(&pod), ["lo", "eth9"]);
    }
}

/// A11: DEL of what never was is silent and makes nothing, not even a folder.
#[test]
fn del_before_any_add_makes_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let pod = node.pod("never");
        let before = Residue::take(&node);
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let conf = with(&case.conf(), &json!({"cniVersion": version}));
            weft(&node).del(&pod, &conf).ok_empty();
        }
        assert_same(&before, &node);
        assert_eq!(entries(&node.path("/run/weft")), Vec::<String>::new());
    }
}

/// A11: DEL three times in a row and eight times at once is silent, leaves nothing, and frees nobody else's address.
#[test]
fn del_again_and_again_and_eight_at_once_is_silent() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        let keeper = node.pod("keeper");
        let kept = weft.add(&keeper, &conf).result();
        warm_up(&node, &conf);
        let before = Residue::take(&node);

        let pod = node.pod("gone");
        weft.add(&pod, &conf).result();
        for _ in 0..3 {
            weft.del(&pod, &conf).ok_empty();
            assert_same(&before, &node);
        }
        weft.add(&pod, &conf).result();
        let at_once: Vec<_> = (0..8).map(|_| weft.call("DEL").pod(&pod).conf(&conf).spawn()).collect();
        at_once.into_iter().for_each(|running| running.wait().ok_empty());
        assert_same(&before, &node);
        assert_eq!(taken(&node).len(), case.families(), "{case:?}");
        assert_reaches(&keeper, &gateways(&kept));
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A11: DELs that meet the ADD of the same attachment leave either the whole attachment or nothing at all.
#[test]
fn del_beside_add_of_the_same_attachment_leaves_all_or_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        for _ in 0..5 {
            let pod = node.pod("raced");
            let add = weft.call("ADD").pod(&pod).conf(&conf).spawn();
            let dels: Vec<_> = (0..3).map(|_| weft.call("DEL").pod(&pod).conf(&conf).spawn()).collect();
            let added = add.wait();
            dels.into_iter().for_each(|del| del.wait().ok_empty());
            if link(&pod, "eth0").is_some() {
                let result = added.result();
                weft.check(&pod, &with_result(&conf, &result)).ok_empty();
            }
            weft.del(&pod, &conf).ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A12: DEL without a usable namespace (empty, unset, gone, a plain file on tmpfs, another pod's) takes away host
/// end, address, spoof guard and record; the pod that has the namespace now keeps its eth0. Host ports and traffic
/// control are those of chained plugins, not ours.
#[test]
fn del_without_its_namespace_leaves_nothing_and_touches_no_other_pod() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let weft = weft(&node);
        let guard = if case.veth { json!({}) } else { json!({"macspoofchk": true}) };
        let conf = with(&case.conf(), &guard);
        warm_up(&node, &conf);
        let other = node.pod("other");
        let others = weft.add(&other, &conf).result();
        let eth0 = identity(&other, "eth0");
        fs::write(node.path("/run/containerd/left-over"), "").unwrap();
        let before = Residue::take(&node);

        for how in ["empty", "unset", "gone", "gone with its links", "file", "reused"] {
            let pod = node.pod("a");
            weft.add(&pod, &conf).result();
            // Holds the namespace although its path goes.
            let holder = (how != "gone with its links").then(|| pod.listen(9));
            if how != "empty" && how != "unset" {
                pod.destroy_netns();
            }
            if holder.is_none() {
                wait_until("the kernel took the links", SOON, || host_ends(&node) == [host_end(&others)]);
            }
            let del = weft.call("DEL").pod(&pod).conf(&conf);
            let del = match how {
                "empty" => del.env("CNI_NETNS", ""),
                "unset" => del.without("CNI_NETNS"),
                "file" => del.env("CNI_NETNS", "/run/containerd/left-over"),
                "reused" => del.env("CNI_NETNS", other.netns_path()),
                _ => del,
            };
            del.run().ok_empty();
            let left = before.difference(&Residue::take(&node), &Allow::nothing().processes());
            assert!(left.is_empty(), "{case:?}, namespace {how}: {left:#?}");
        }
        assert_eq!(identity(&other, "eth0"), eth0);
        assert_reaches(&other, &gateways(&others));
        weft.check(&other, &with_result(&conf, &others)).ok_empty();
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A12: an address that a delegated IPAM plugin gave with its own host prefix has a masquerade element of its own;
/// it goes with the pod though the namespace is gone.
#[test]
fn del_without_namespace_removes_the_masquerade_of_a_delegated_address() {
    if !require() {
        return;
    }
    let Some(reference) = netns_tests::reference_bin_dir() else {
        assert!(std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"), "no reference plugins");
        return;
    };
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let weft = weft(&node).with_path([&reference]);
        let conf = |v4: &str, v6: &str| {
            let ipam = json!({"type": "static", "addresses": [{"address": v4}, {"address": v6}]});
            with(&case.conf(), &json!({"ipam": ipam, "isDefaultGateway": null, "cniVersion": "1.0.0"}))
        };
        let first = conf("198.51.100.1/32", "2001:db8:51::1/128");
        weft.add(&node.pod("stays"), &first).result();
        let before = Residue::take(&node);
        let second = conf("198.51.100.9/32", "2001:db8:51::9/128");
        let pod = node.pod("goes");
        weft.add(&pod, &second).result();
        let lines = Residue::take(&node).lines().join("\n");
        assert!(
            lines.contains(r#"masq4: "198.51.100.9""#) && lines.contains(r#"masq6: "2001:db8:51::9""#),
            "{lines}"
        );

        weft.call("DEL").pod(&pod).env("CNI_NETNS", "").conf(&second).run().ok_empty();
        assert_same(&before, &node);
    }
}

/// A13: DEL works from its own record: without prevResult, with a broken one, with another configuration.
#[test]
fn del_works_whatever_became_of_the_configuration() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        let other_mode = if case.veth { json!({"mode": "bridge"}) } else { json!({"mode": "veth"}) };
        let changes = [
            json!({}),
            json!({"prevResult": null}),
            json!({"prevResult": {}}),
            json!({"prevResult": {"cniVersion": "1.1.0", "interfaces": [], "ips": []}}),
            json!({"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "nonsense", "interface": 99}]}}),
            json!({"prevResult": {"cniVersion": "9.9.9", "interfaces": 17}}),
            json!({"ipMasq": false, "isDefaultGateway": false}),
            json!({"ipam": {"type": "weft-ipam", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}),
            json!({"ipam": {"type": "weft-ipam", "ranges": [[{"subnet": "10.99.0.7/33"}]]}}),
            json!({"ipam": {"type": "weft-ipam", "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.1.0.1"}]]}}),
            json!({"ipam": {"type": "weft-ipam"}}),
            json!({"ipam": null}),
            json!({"bridge": "cbr7", "mtu": 1280}),
            json!({"mtu": 1, "ipMasqBackend": "iptables", "logLevel": "chatty"}),
            json!({"cniVersion": "0.1.0"}),
            other_mode,
        ];
        for change in changes {
            let pod = node.pod("a");
            let result = weft.add(&pod, &conf).result();
            let mut changed = with(&with_result(&conf, &result), &change);
            if change.get("prevResult").is_some_and(Value::is_null) {
                changed.as_object_mut().unwrap().remove("prevResult");
            }
            let outcome = weft.del(&pod, &changed);
            assert!(outcome.status.success() && outcome.stdout.is_empty(), "{case:?}, {change}: {outcome}");
            assert_eq!(taken(&node), [] as [std::net::IpAddr; 0], "{case:?}, {change}");
            assert_eq!(host_ends(&node), Vec::<String>::new(), "{case:?}, {change}");
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A13: prevResult that is no object at all is no reason to leave the pod's things behind.
#[test]
fn del_ignores_a_prev_result_that_is_no_object() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        for junk in [json!("x"), json!(7), json!([1, 2]), json!({"ips": "x"})] {
            let pod = node.pod("a");
            weft.add(&pod, &conf).result();
            let outcome = weft.del(&pod, &with(&conf, &json!({"prevResult": junk})));
            assert!(outcome.status.success() && outcome.stdout.is_empty(), "{junk}: {outcome}");
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A15: ADD again after an ADD that was killed at some system call: the dead one's half is rolled back, the new one
/// has one address per family, and the pool has exactly one attachment more. Dual stack, both modes, one kill
/// every few system calls; every single one with DEL is A14.
#[test]
fn add_after_a_killed_add_of_the_same_attachment_starts_afresh() {
    const STRIDE: usize = 6;
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        let keeper = node.pod("keeper");
        let kept = weft.add(&keeper, &conf).result();
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        let pod = node.pod("killed");
        let (mut kills, mut with_half_made_link) = (0, 0);
        for (call, nth) in system_calls_of_add(&node, &weft, &pod, &conf).into_iter().step_by(STRIDE) {
            let dead = traced(&weft, &pod, &conf, &["-e", &format!("inject={call}:signal=KILL:when={nth}")]);
            if dead.status.success() {
                // ADD asks the kernel again until it is ready: fewer times in this run than in the first.
                weft.del(&pod, &conf).ok_empty();
                continue;
            }
            assert!(dead.status.code().is_none(), "{case:?}: not killed at {call} {nth}: {dead}");
            kills += 1;
            with_half_made_link += usize::from(link(&pod, "eth0").is_some());

            let result = weft.add(&pod, &conf).result();
            let mut expected = [addresses(&kept), addresses(&result)].concat();
            expected.sort();
            assert_eq!(taken(&node), expected, "{case:?}: killed at {call} {nth}");
            let given: Vec<String> = list(&result["ips"]).iter().map(|ip| plain(&ip["address"])).collect();
            assert_eq!(addresses_of(&pod, "eth0"), given, "{case:?}: killed at {call} {nth}");
            assert_eq!(host_ends(&node).len(), 2);
            weft.check(&pod, &with_result(&conf, &result)).ok_empty();
            weft.del(&pod, &conf).ok_empty();
        }
        assert!(
            kills >= 15 && with_half_made_link >= 5,
            "{case:?}: only {kills} kills, {with_half_made_link} late"
        );
        before.assert_settles(&node, &Allow::nothing());
        assert_reaches(&keeper, &gateways(&kept));
    }
}

/// Every system call of an ADD, as name and how many of that name there were: where `strace` can kill it.
fn system_calls_of_add(node: &Node, weft: &Cni, pod: &Pod, conf: &Value) -> Vec<(String, usize)> {
    let trace = node.path("/run/containerd/trace");
    traced(weft, pod, conf, &["-o", "/run/containerd/trace"]).result();
    weft.del(pod, conf).ok_empty();
    let mut seen = std::collections::BTreeMap::new();
    let text = fs::read_to_string(trace).unwrap();
    let names = text.lines().filter_map(|line| line.split_once('(').map(|(name, _)| name.to_owned()));
    let counted = names.map(|name| {
        let count = seen.entry(name.clone()).or_insert(0);
        *count += 1;
        (name, *count)
    });
    // The first is strace's own execve. The last rename writes "done": from there on the attachment is there, and
    // A10 is the rule.
    let mut calls: Vec<_> = counted.filter(|(name, _)| name != "execve").collect();
    let done = calls.iter().rposition(|(name, _)| name.starts_with("rename")).unwrap();
    calls.truncate(done + 1);
    calls
}

fn traced(weft: &Cni, pod: &Pod, conf: &Value, options: &[&str]) -> Outcome {
    let output: &[&str] = if options.contains(&"-o") { &[] } else { &["-o", "/dev/null"] };
    let strace = [&["strace"], output, options].concat();
    weft.call("ADD").pod(pod).conf(conf).wrap(strace).run()
}

fn plain(text: &Value) -> String {
    text.as_str().unwrap().to_owned()
}

/// A pool's worth of pods, all attached.
fn fill(node: &Node, case: Case, conf: &Value) -> Vec<Pod> {
    let pods: Vec<Pod> = (0..case.small_room()).map(|n| node.pod(&format!("p{n}"))).collect();
    for pod in &pods {
        weft(node).add(pod, conf).result();
    }
    let error = weft(node).add(&node.pod("one-too-many"), conf).error();
    assert_eq!(error.code, 11, "{case:?}: the pool is full: {error:?}");
    pods
}

/// A16: after a reboot (another boot id, all namespaces gone) the whole pool can be given, at once; what the boot
/// before left on disk is swept, what is not ours stays. By the stamp: another boot is another folder.
#[test]
fn after_a_reboot_the_whole_pool_is_free_and_the_old_folder_is_swept() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let conf = case.small_conf();
        node.set_boot_id("00000000-0000-4000-8000-000000000001");
        fs::create_dir_all(node.path("/run/weft/wg")).unwrap();
        fs::write(node.path("/run/weft/wg/weft-wg0.conf"), "").unwrap();
        let pods = fill(&node, case, &conf);
        pods.iter().for_each(Pod::destroy_netns);
        wait_until("the pods' links are gone", SOON, || host_ends(&node).is_empty());
        let old = stamps(&node);
        assert!(matches!(&old[..], [one] if one.starts_with("00000000000040008000000000000001-")), "{old:?}");

        node.set_boot_id("00000000-0000-4000-8000-000000000002");
        fill(&node, case, &conf);
        let new = stamps(&node);
        assert!(matches!(&new[..], [one] if one.starts_with("00000000000040008000000000000002-")), "{new:?}");
        assert_eq!(entries(&node.path("/var/lib/weft/attached")), new);
        assert!(node.path("/run/weft/wg/weft-wg0.conf").exists());
        assert_eq!(taken(&node).len(), case.small_room() * case.families());
    }
}

/// The folders of boots and nodes under /run/weft.
fn stamps(node: &Node) -> Vec<String> {
    let mut names = entries(&node.path("/run/weft"));
    names.retain(|name| name != "wg");
    names
}

/// A16: a pod that the kernel still has, though the records are of another boot (a node in a container that was
/// restored), keeps its address.
#[test]
fn an_address_alive_in_the_kernel_is_not_given_after_a_change_of_boot() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.small_conf());
        let survivor = node.pod("survivor");
        let result = weft.add(&survivor, &conf).result();
        node.set_boot_id("00000000-0000-4000-8000-000000000002");

        for n in 1..case.small_room() {
            let given = addresses(&weft.add(&node.pod(&format!("p{n}")), &conf).result());
            assert!(
                !given.iter().any(|ip| addresses(&result).contains(ip)),
                "{case:?}: {given:?} is the survivor's"
            );
        }
        assert_eq!(weft.add(&node.pod("one-too-many"), &conf).error().code, 11);
        assert_reaches(&survivor, &gateways(&result));
        weft.del(&survivor, &conf).ok_empty();
        weft.add(&node.pod("last"), &conf).result();
    }
}

/// A16: two nodes that share /run/weft (other namespaces, same kernel) have a folder each: neither sees, sweeps nor
/// frees what the other has.
#[test]
fn another_node_namespace_is_another_folder() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let (node, twin) = (lab.node(&case.name()), lab.node(&format!("{}-twin", case.name())));
        let (weft, conf) = (weft(&node), case.conf());
        let inside_twin = format!("--net={}", twin.netns_path().display());
        let at_twin = |verb: &str, pod: &Pod| {
            weft.call(verb).pod(pod).conf(&conf).wrap(["nsenter", &inside_twin]).run()
        };
        let (a, b) = (node.pod("a"), node.pod("b"));
        let ours = weft.add(&a, &conf).result();
        let theirs = at_twin("ADD", &b).result();

        assert_eq!(addresses(&ours), addresses(&theirs), "each has a pool of its own");
        assert_eq!(stamps(&node).len(), 2);
        at_twin("DEL", &a).ok_empty();
        assert_reaches(&a, &gateways(&ours));
        weft.del(&a, &conf).ok_empty();
        assert_reaches(&b, &gateways(&theirs));
        assert_eq!(taken(&node), addresses(&theirs));
        at_twin("DEL", &b).ok_empty();
        assert_eq!(taken(&node), [] as [std::net::IpAddr; 0]);
    }
}

/// A17: records wiped under running pods are rebuilt from the kernel before the next ADD: no address is given
/// twice, the pods pass CHECK again, and their DEL frees what they have.
#[test]
fn wiped_records_are_rebuilt_before_an_address_is_given() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.small_conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        let pods = [node.pod("a"), node.pod("b")];
        let results = pods.each_ref().map(|pod| weft.add(pod, &conf).result());
        let live: Vec<_> = results.iter().flat_map(addresses).collect();
        wipe(&node);

        let mut newer = Vec::new();
        for n in 2..case.small_room() {
            let pod = node.pod(&format!("p{n}"));
            let given = addresses(&weft.add(&pod, &conf).result());
            assert!(
                !given.iter().any(|ip| live.contains(ip)),
                "{case:?}: {given:?} are a live pod's ({live:?})"
            );
            newer.push(pod);
        }
        assert_eq!(weft.add(&node.pod("one-too-many"), &conf).error().code, 11);
        for (pod, result) in pods.iter().zip(&results) {
            weft.check(pod, &with_result(&conf, result)).ok_empty();
            assert_reaches(pod, &gateways(result));
        }
        for pod in pods.iter().chain(&newer) {
            weft.del(pod, &conf).ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A17: a DEL that comes right after the records were wiped finds link and neighbour entries by the alias.
#[test]
fn del_right_after_a_wipe_leaves_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let before = Residue::take(&node);
        let (goes, stays) = (node.pod("goes"), node.pod("stays"));
        let result = weft.add(&goes, &conf).result();
        let kept = weft.add(&stays, &conf).result();
        wipe(&node);

        let del = weft.call("DEL").pod(&goes).env("CNI_NETNS", "").conf(&conf).run();
        del.ok_empty();
        assert_eq!(host_ends(&node), [host_end(&kept)], "{case:?}");
        assert_eq!(link(&goes, "eth0"), None);
        let again = with(&conf, &json!({"runtimeConfig": {"ips": texts(&result)}}));
        weft.add(&goes, &again).result();
        weft.del(&goes, &conf).ok_empty();
        weft.del(&stays, &conf).ok_empty();
        before.assert_settles(&node, &Allow::nothing());
    }
}

fn texts(result: &Value) -> Vec<String> {
    addresses(result).iter().map(ToString::to_string).collect()
}

/// A17: the kernel is the last witness. With a live pod's address file lost, its address is tried, found to be the
/// pod's, put aside and reported; the pod's traffic is never taken.
#[test]
fn an_address_whose_record_is_lost_is_put_aside_when_the_kernel_knows_its_pod() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.small_conf());
        let victim = node.pod("victim");
        let result = weft.add(&victim, &conf).result();
        for ip in addresses(&result) {
            fs::remove_file(pool_file(&node, &ip.to_string())).unwrap();
        }

        for n in 1..case.small_room() {
            let pod = node.pod(&format!("p{n}"));
            let given = addresses(&weft.add(&pod, &conf).result());
            assert!(!given.iter().any(|ip| addresses(&result).contains(ip)), "{case:?}: {given:?}");
            assert_reaches(&pod, &addresses(&result));
        }
        let error = weft.add(&node.pod("one-too-many"), &conf).error();
        assert_eq!(error.code, 11, "{case:?}: {error:?}");
        assert_reaches(&victim, &gateways(&result));
        weft.check(&victim, &with_result(&conf, &result)).ok_empty();
        let log = fs::read_to_string(node.path("/var/log/weft/weft.log")).unwrap();
        let first = addresses(&result)[0];
        assert!(log.contains(&format!("put {first} aside")), "{case:?}: the log does not tell:\n{log}");
        assert_eq!(taken(&node).len(), case.small_room() * case.families());
    }
}

fn pool_file(node: &Node, ip: &str) -> std::path::PathBuf {
    let stamp = &stamps(node)[0];
    let pool = format!("/run/weft/{stamp}/pool");
    let network = &entries(&node.path(&pool))[0];
    node.path(&format!("{pool}/{network}/{ip}"))
}

/// A17: in veth mode a route that somebody else has to an address of the range is never replaced: the address is
/// put aside. (On a bridge nobody else can have such a route: the subnet is the bridge's.)
#[test]
fn a_foreign_route_to_an_address_is_respected() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| case.veth) {
        let node = lab.node(&case.name());
        let _outside = lab.outside(&node);
        let (weft, conf) = (weft(&node), case.small_conf());
        for route in case.pick("10.244.0.2/32", "fd00:244::2/128") {
            node.run(["ip", "route", "add", route, "dev", "uplink0", "proto", "static"]);
        }
        let foreign = |node: &Node| {
            let routes = [["-4"], ["-6"]].map(|family| list(&node.json(["ip", family[0], "-j", "route"])));
            routes.concat().into_iter().filter(|route| route["protocol"] == "static").collect::<Vec<_>>()
        };
        let before = foreign(&node);
        assert_eq!(before.len(), case.families());

        let pod = node.pod("a");
        let result = weft.add(&pod, &conf).result();
        let taken_by_others = ["10.244.0.2".parse().unwrap(), "fd00:244::2".parse().unwrap()];
        assert!(!addresses(&result).iter().any(|ip| taken_by_others.contains(ip)), "{result}");
        assert_reaches(&pod, &gateways(&result));
        assert_eq!(foreign(&node), before);
        weft.del(&pod, &conf).ok_empty();
        assert_eq!(foreign(&node), before);
    }
}

/// A30: two interfaces of one container on one network are two attachments: each has its own address and link, and
/// either may go first while the other goes on working. Ports and bandwidth belong to chained plugins.
#[test]
fn two_interfaces_of_one_pod_live_and_die_independently() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let server = lab.outside(&node);
        let (weft, conf) = (weft(&node), case.conf());
        warm_up(&node, &conf);
        let peer = node.pod("peer");
        let peers = addresses(&weft.add(&peer, &conf).result());
        let before = Residue::take(&node);
        for first_to_go in [0, 1] {
            let eth0 = node.pod("two");
            // Linux answers ARP for any of its addresses on any interface, and the peer would remember eth0's MAC
            // for net1's address: a matter of two interfaces in one subnet, whoever made them.
            eth0.set_sysctl("net.ipv4.conf.all.arp_ignore", "1");
            let pods = [eth0.clone(), eth0.with_ifname("net1")];
            let results = pods.each_ref().map(|pod| weft.add(pod, &conf).result());
            let [a, b] = results.each_ref().map(addresses);
            assert!(!a.iter().any(|ip| b.contains(ip)), "{a:?} {b:?}");
            assert_eq!(taken(&node).len(), 3 * case.families());
            for (pod, result) in pods.iter().zip(&results) {
                weft.check(pod, &with_result(&conf, result)).ok_empty();
                assert_reaches(&peer, &addresses(result));
            }

            let (goes, stays) = (&pods[first_to_go], &pods[1 - first_to_go]);
            let kept = &results[1 - first_to_go];
            weft.del(goes, &conf).ok_empty();
            assert_eq!(links(&eth0), ["lo", stays.ifname()]);
            weft.check(stays, &with_result(&conf, kept)).ok_empty();
            assert_reaches(stays, &gateways(kept));
            assert_reaches(stays, &peers);
            assert_reaches(&peer, &addresses(kept));
            if case.v4 {
                assert_eq!(stays.seen_by(server.v4()).unwrap(), netns_tests::Server::NODE_V4, "{case:?}");
            }
            if case.v6 {
                assert_eq!(stays.seen_by(server.v6()).unwrap(), netns_tests::Server::NODE_V6, "{case:?}");
            }
            weft.del(stays, &conf).ok_empty();
            assert_same(&before, &node);
        }
    }
}
