//! Which address a pod gets: exhaustion, rotation and cool-down, granted blocks, what host-local still holds.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_node;

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common_node::{
    Case, addresses, addresses_of, assert_reaches, entries, gateways, host_end, link, links, list, taken,
    with, with_result,
};
use netns_tests::{
    Allow, Cni, Inside, Node, Pod, Residue, lab, reference_bin_dir, require, wait_until, weft_bin_dir,
};
use serde_json::{Value, json};
use weft_ipam::clock::{Deadline, boot_seconds};
use weft_ipam::{HostKernel, State};

const SOON: Duration = Duration::from_secs(5);

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

fn add(node: &Node, name: &str, conf: &Value) -> (Pod, Value) {
    let pod = node.pod(name);
    let result = weft(node).add(&pod, conf).result();
    (pod, result)
}

/// ADD and DEL: the addresses that a pod would have had.
fn passing(node: &Node, conf: &Value) -> Vec<IpAddr> {
    let (pod, result) = add(node, "passing", conf);
    weft(node).del(&pod, conf).ok_empty();
    addresses(&result)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A19: a pool that is used up gives code 11 naming range and use, STATUS 50; one DEL makes both well again, and
/// the next ADD has the freed address. Nothing of a refused pod stays.
#[test]
fn an_exhausted_pool_refuses_and_recovers_with_the_freed_address() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.small_conf());
        weft.status(&conf).ok_empty();
        let pods: Vec<_> = (0..case.small_room()).map(|n| add(&node, &format!("p{n}"), &conf)).collect();
        let full = Residue::take(&node);
        let (range, used) = match case.v4 {
            true => ("10.244.0.1-10.244.0.6", "5 of 5"),
            false => ("fd00:244::1-fd00:244::7", "6 of 6"),
        };

        let late = node.pod("late");
        let refusal = weft.add(&late, &conf).error();
        assert_eq!(refusal.code, 11, "{case:?}: {refusal:?}");
        assert!(refusal.msg.contains(range) && refusal.details.contains(used), "{case:?}: {refusal:?}");
        full.assert_same(&Residue::take(&node), &Allow::nothing().processes());
        assert_eq!(links(&late), ["lo"]);
        let status = weft.status(&conf).error();
        assert_eq!(status.code, 50, "{case:?}: {status:?}");
        assert!(status.msg.contains(range) && status.details.contains(used), "{case:?}: {status:?}");
        weft.status(&with(&conf, &json!({"statusOnExhausted": "ok"}))).ok_empty();

        let (leaver, freed) = &pods[2];
        weft.del(leaver, &conf).ok_empty();
        weft.status(&conf).ok_empty();
        let result = weft.add(&late, &conf).result();
        assert_eq!(addresses(&result)[0], addresses(freed)[0], "{case:?}");
        assert_reaches(&late, &gateways(&result));
    }
}

/// A19: a dual-stack pod gets both addresses or none, whichever family is used up.
#[test]
fn an_exhausted_family_leaves_no_reservation_in_the_other() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        for (v4, v6, room) in [("10.244.0.0/29", "fd00:244::/64", 5), ("10.244.0.0/24", "fd00:244::/125", 6)]
        {
            let node = lab.node(&format!("{}-{room}", case.name()));
            let conf = case.conf_of(v4, v6);
            for n in 0..room {
                add(&node, &format!("p{n}"), &conf);
            }
            let full = Residue::take(&node);
            assert_eq!(weft(&node).add(&node.pod("late"), &conf).error().code, 11);
            full.assert_same(&Residue::take(&node), &Allow::nothing().processes());
            assert_eq!(taken(&node).len(), 2 * room);
            assert_eq!(weft(&node).status(&conf).error().code, 50);
        }
    }
}

/// Addresses are given in turn: a freed one is not the next to be given, even with no cool-down.
#[test]
fn addresses_rotate_through_the_whole_range() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for cooldown in [0, 120] {
            let node = lab.node(&format!("{}-{cooldown}", case.name()));
            let mut conf = case.small_conf();
            conf["ipam"]["cooldown"] = json!(cooldown);
            let (first, last) = if case.v4 { ("10.244.0", 6) } else { ("fd00:244:", 7) };
            let text = |n: u8| format!("{first}{}{n}", if case.v4 { "." } else { ":" });
            let turn: Vec<IpAddr> = (2..=last).map(|n| text(n).parse().unwrap()).collect();
            let given: Vec<IpAddr> = (2..=last).map(|_| passing(&node, &conf)[0]).collect();
            assert_eq!(given, turn, "{case:?}, cooldown {cooldown}");
            // All are cooling down by now: still one of them is given, rather than none.
            assert!(turn.contains(&passing(&node, &conf)[0]));
        }
    }
}

/// `ipam.cooldown`: an address given back a moment ago waits as long as a never used one is free; with 0 it is the
/// first again.
#[test]
fn a_freed_address_cools_down_while_others_are_free() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for (cooldown, expected) in [
            (json!(null), ["10.244.0.3", "fd00:244::3"]),
            (json!(120), ["10.244.0.3", "fd00:244::3"]),
            (json!(0), ["10.244.0.2", "fd00:244::2"]),
        ] {
            let node = lab.node(&format!("{}-{cooldown}", case.name()));
            let mut conf = case.small_conf();
            conf["ipam"]["cooldown"] = cooldown;
            let of_case = |[v4, v6]: [&str; 2]| ips(&case.pick(v4, v6));
            // By name, so that the turn still begins at the first address.
            let wanted = of_case(["10.244.0.2", "fd00:244::2"]);
            let requested = with(&conf, &json!({"runtimeConfig": {"ips": wanted}}));
            assert_eq!(passing(&node, &requested), wanted);
            assert_eq!(passing(&node, &conf), of_case(expected), "{case:?}");
        }
    }
}

/// When all free addresses are cooling down, the one given back longest ago is next; without cool-down simply the
/// next in turn.
#[test]
fn of_cooling_addresses_the_oldest_is_next() {
    if !require() {
        return;
    }
    let lab = lab!();
    let case = Case { veth: false, v4: true, v6: false };
    for veth in [false, true] {
        for (cooldown, expected) in [(60, "10.244.0.5"), (0, "10.244.0.3")] {
            let case = Case { veth, ..case };
            let node = lab.node(&format!("{}-{cooldown}", case.name()));
            let mut conf = case.small_conf();
            conf["ipam"]["cooldown"] = json!(cooldown);
            let pods: Vec<_> = (0..5).map(|n| add(&node, &format!("p{n}"), &conf)).collect();
            let free = |ip: &str| {
                let (pod, _) = pods.iter().find(|(_, result)| addresses(result) == ips(&[ip])).unwrap();
                weft(&node).del(pod, &conf).ok_empty();
            };
            free("10.244.0.5");
            // Times of release are in whole seconds.
            let released = boot_seconds();
            wait_until("the next second", SOON, || boot_seconds() > released);
            free("10.244.0.3");
            assert_eq!(passing(&node, &conf), ips(&[expected]), "{case:?}, cooldown {cooldown}");
        }
    }
}

/// `ipam.cooldown` is a number of seconds; anything else is refused by its name.
#[test]
fn a_cooldown_that_is_no_number_is_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    for (value, code) in [(json!("soon"), 6), (json!(-1), 6), (json!([]), 6)] {
        let mut conf = Case::dual()[0].conf();
        conf["ipam"]["cooldown"] = value;
        let error = weft(&node).add(&pod, &conf).error();
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.msg.contains("cooldown"), "{error:?}");
    }
    assert_eq!(links(&node), ["lo"]);
}

fn soon() -> Deadline {
    Deadline::after(Instant::now(), SOON)
}

/// What weftd will do: grants a block to the node.
fn grant(node: &Node, block: &str) {
    node.enter(|| {
        let state = State::open(&mut HostKernel::default(), soon()).unwrap();
        state.grant(&block.parse().unwrap(), soon()).unwrap();
    });
}

/// What weftd will do: takes a block back; `false` while an address of it is in use.
fn withdraw(node: &Node, block: &str) -> bool {
    node.enter(|| {
        let state = State::open(&mut HostKernel::default(), soon()).unwrap();
        state.withdraw(&block.parse().unwrap()).unwrap()
    })
}

/// Cluster: without a grant ADD is code 11 with the way out and leaves nothing, STATUS is 50; with one both are well;
/// after the withdrawal they are as before.
#[test]
fn without_a_granted_block_nothing_is_given() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.cluster_conf());
        let blocks = case.pick("10.9.0.0/26", "fd00:9::/122");
        let assert_nothing = |when: &str| {
            let pod = node.pod("a");
            let before = Residue::take(&node);
            let error = weft.add(&pod, &conf).error();
            assert_eq!(error.code, 11, "{case:?} {when}: {error:?}");
            assert!(error.msg.contains("no block") && error.details.contains("weftd"), "{when}: {error:?}");
            let status = weft.status(&conf).error();
            assert_eq!(status.code, 50, "{case:?} {when}: {status:?}");
            assert_eq!(links(&pod), ["lo"]);
            let bridge = Allow::nothing().processes().link("cbr0").path("/var/lib/weft/");
            before.assert_same(&Residue::take(&node), &bridge);
        };
        assert_nothing("before");
        blocks.iter().for_each(|block| grant(&node, block));
        weft.status(&conf).ok_empty();
        let (pod, result) = add(&node, "b", &conf);
        assert!(blocks.iter().all(|block| !withdraw(&node, block)), "an address is in use");
        weft.check(&pod, &with_result(&conf, &result)).ok_empty();
        weft.del(&pod, &conf).ok_empty();
        assert!(blocks.iter().all(|block| withdraw(&node, block)));
        assert_nothing("after");
    }
}

/// Cluster: pods of two blocks have /32 and /128 addresses, the fixed link-local gateway, and reach each other, the
/// gateway, the node and the outside; no address of a block is on the node, and no redirect lets them past it.
#[test]
fn pods_of_two_blocks_reach_each_other_by_the_link_local_gateway() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let server = lab.outside(&node);
        let (weft, mut conf) = (weft(&node), case.cluster_conf());
        // Or the address of the warm-up below would rest.
        conf["ipam"]["cooldown"] = json!(0);
        for block in case.pick(["10.9.0.0/30", "10.9.7.0/30"], ["fd00:9::/126", "fd00:9:7::/126"]).concat() {
            grant(&node, block);
        }
        server.add_return_route("10.9.0.0/16");
        server.add_return_route("fd00:9::/32");
        let (warm_up, _) = add(&node, "warm-up", &conf);
        weft.del(&warm_up, &conf).ok_empty();
        let before = Residue::take(&node);

        let pods: Vec<_> = (0..5).map(|n| add(&node, &format!("p{n}"), &conf)).collect();
        let mut expected = Vec::new();
        if case.v4 {
            expected.extend(["10.9.0.0/32", "10.9.0.1/32", "10.9.0.2/32", "10.9.0.3/32", "10.9.7.0/32"]);
        }
        if case.v6 {
            expected.extend([
                "fd00:9::/128",
                "fd00:9::1/128",
                "fd00:9::2/128",
                "fd00:9::3/128",
                "fd00:9:7::/128",
            ]);
        }
        let mut given: Vec<String> = pods.iter().flat_map(|(pod, _)| addresses_of(pod, "eth0")).collect();
        given.sort();
        expected.sort();
        assert_eq!(given, expected, "{case:?}: every address of the first block, then the next block");

        for (pod, result) in &pods {
            for ip in list(&result["ips"]) {
                let v4 = ip["address"].as_str().unwrap().contains('.');
                assert_eq!(ip["gateway"], if v4 { "169.254.1.1" } else { "fe80::1" }, "{result}");
            }
            for gateway in [("169.254.1.1", case.v4), ("fe80::1%eth0", case.v6)] {
                if gateway.1 {
                    pod.run(["ping", "-n", "-c", "1", "-W", "2", gateway.0]);
                }
            }
            weft.check(pod, &with_result(&conf, result)).ok_empty();
        }
        let (first, _) = &pods[0];
        for (pod, result) in &pods[1..] {
            assert_reaches(first, &addresses(result));
            assert_reaches(pod, &addresses(&pods[0].1));
            assert!(
                addresses(result).iter().all(|ip| node.ping(*ip, 2)),
                "{case:?}: the node reaches its pods"
            );
        }
        let (outer, own) = if case.v4 { (server.v4(), 0) } else { (server.v6(), 0) };
        assert_eq!(
            first.seen_by(outer).unwrap(),
            addresses(&pods[0].1)[own],
            "{case:?}: not masqueraded by weft"
        );

        if !case.veth {
            let on_bridge = addresses_of(&node, "cbr0");
            assert!(on_bridge.iter().all(|ip| ip == "169.254.1.1/32" || ip == "fe80::1/64"), "{on_bridge:?}");
            if case.v4 {
                assert_eq!(node.sysctl("net.ipv4.conf.all.send_redirects"), "0");
                assert_eq!(node.sysctl("net.ipv4.conf.cbr0.send_redirects"), "0");
            }
            if case.v6 {
                assert_eq!(first.sysctl("net.ipv6.conf.eth0.accept_redirects"), "0");
            }
            for family in ["-4", "-6"] {
                let routes = first.json(["ip", family, "-j", "route", "show", "cache"]);
                let redirected =
                    list(&routes).iter().filter(|route| route.to_string().contains("redirect")).count();
                assert_eq!(redirected, 0, "somebody told the pod of another way: {routes}");
            }
        }
        for (pod, _) in &pods {
            weft.call("DEL").pod(pod).env("CNI_NETNS", "").conf(&conf).run().ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// Cluster: two pods in the same block on a bridge are not on one link: what they send each other passes the node.
#[test]
fn same_node_traffic_of_cluster_pods_is_routed() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let conf = case.cluster_conf();
        case.pick("10.9.0.0/26", "fd00:9::/122").iter().for_each(|block| grant(&node, block));
        let (a, _) = add(&node, "a", &conf);
        let (_b, others) = add(&node, "b", &conf);
        for ip in addresses(&others) {
            let output = a.try_run(["ping", "-n", "-c", "1", "-W", "2", &ip.to_string()]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("ttl=63"), "{case:?}: one hop between: {text}");
        }
    }
}

/// Cluster: the fullest block gives first, so that the others empty and can be returned.
#[test]
fn the_fullest_block_gives_first() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let conf = case.cluster_conf();
        let blocks = match case.v4 {
            true => ["10.9.0.0/28", "10.9.1.0/28", "10.9.2.0/28"],
            false => ["fd00:9::/124", "fd00:9:1::/124", "fd00:9:2::/124"],
        };
        blocks.iter().for_each(|block| grant(&node, block));
        if case.v4 && case.v6 {
            grant(&node, "fd00:9::/122");
        }
        let inside = |block: usize, ip: IpAddr| {
            let prefix = blocks[block].rsplit_once(['.', ':']).unwrap().0;
            ip.to_string().starts_with(prefix)
        };
        let ask = |ip: &str| with(&conf, &json!({"runtimeConfig": {"ips": [ip]}}));
        let in_middle = if case.v4 { ["10.9.1.5", "10.9.1.6"] } else { ["fd00:9:1::5", "fd00:9:1::6"] };
        let in_last = if case.v4 { "10.9.2.5" } else { "fd00:9:2::5" };
        add(&node, "m1", &ask(in_middle[0]));
        add(&node, "m2", &ask(in_middle[1]));
        let (alone, result) = add(&node, "l", &ask(in_last));
        assert_eq!(addresses(&result)[0], in_last.parse::<IpAddr>().unwrap());
        for n in 0..3 {
            let (_, result) = add(&node, &format!("p{n}"), &conf);
            assert!(inside(1, addresses(&result)[0]), "{case:?}: {result}");
        }
        weft(&node).del(&alone, &conf).ok_empty();
        assert!(withdraw(&node, blocks[0]) && withdraw(&node, blocks[2]) && !withdraw(&node, blocks[1]));
    }
}

/// Cluster: a wiped folder under running pods; nothing is given before the grant is back, and then no live address.
#[test]
fn granted_addresses_of_live_pods_survive_a_wipe_and_a_new_grant() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let (weft, conf) = (weft(&node), case.cluster_conf());
        let blocks = case.pick("10.9.0.0/30", "fd00:9::/126");
        let grant_all = || blocks.iter().for_each(|block| grant(&node, block));
        grant_all();
        let (warm_up, _) = add(&node, "warm-up", &conf);
        weft.del(&warm_up, &conf).ok_empty();
        let before = Residue::take(&node);
        let (live, result) = add(&node, "live", &conf);
        common_node::wipe(&node);
        assert_eq!(weft.add(&node.pod("early"), &conf).error().code, 11);
        grant_all();
        let others: Vec<_> = (0..3).map(|n| add(&node, &format!("p{n}"), &conf)).collect();
        for (_, other) in &others {
            assert!(!addresses(other).iter().any(|ip| addresses(&result).contains(ip)), "{case:?}: {other}");
        }
        assert_eq!(weft.add(&node.pod("late"), &conf).error().code, 11);
        weft.check(&live, &with_result(&conf, &result)).ok_empty();
        weft.del(&live, &conf).ok_empty();
        for (pod, _) in &others {
            weft.del(pod, &conf).ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A11, collector: a pod that vanished without DEL is ended when its address is needed, with all it had in kernel and
/// records, and the address is as good as new; standalone and cluster.
#[test]
fn an_attachment_whose_pod_vanished_is_collected_with_all_it_had() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for cluster in [false, true] {
            let node = lab.node(&format!("{}-{cluster}", case.name()));
            let (conf, room) =
                if cluster { (case.cluster_conf(), 4) } else { (case.small_conf(), case.small_room()) };
            if cluster {
                case.pick("10.9.0.0/30", "fd00:9::/126").iter().for_each(|block| grant(&node, block));
            }
            passing(&node, &conf);
            let before = Residue::take(&node);
            let pods: Vec<_> = (0..room).map(|n| add(&node, &format!("p{n}"), &conf)).collect();
            let (gone, had) = &pods[1];
            gone.destroy_netns();
            wait_until("its links are gone", SOON, || link(&node, &host_end(had)).is_none());

            weft(&node).status(&conf).ok_empty();
            let (heir, result) = add(&node, "heir", &conf);
            if case.families() == 1 {
                assert_eq!(addresses(&result), addresses(had), "{case:?}, cluster {cluster}");
            }
            assert_reaches(&pods[0].0, &addresses(&result));
            weft(&node).check(&heir, &with_result(&conf, &result)).ok_empty();
            assert_eq!(weft(&node).add(&node.pod("late"), &conf).error().code, 11);
            weft(&node).del(gone, &conf).ok_empty();
            weft(&node).check(&heir, &with_result(&conf, &result)).ok_empty();
            weft(&node).del(&heir, &conf).ok_empty();
            for (pod, _) in &pods {
                weft(&node).del(pod, &conf).ok_empty();
            }
            before.assert_settles(&node, &Allow::nothing());
        }
    }
}

/// Cluster: masquerade is weftd's matter; asked of the plugin it is refused by name, and nothing is made.
#[test]
fn masquerade_of_cluster_addresses_is_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        grant(&node, "10.9.0.0/26");
        let pod = node.pod("a");
        let error = weft(&node).add(&pod, &with(&case.cluster_conf(), &json!({"ipMasq": true}))).error();
        assert_eq!(error.code, 2);
        assert!(error.msg.contains("ipMasq") && error.details.contains("weftd"), "{error:?}");
        assert_eq!((links(&pod), taken(&node)), (vec!["lo".to_owned()], vec![]));
    }
}

/// host-local: what its files say is taken is not given, counts as used, and is given after the DEL of its
/// container; files of nobody known stay.
#[test]
fn reservations_of_host_local_are_respected_until_their_container_goes() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for dir in ["/var/lib/cni/networks", "/var/lib/cni/elsewhere"] {
            let node = lab.node(&format!("{}-{}", case.name(), dir.ends_with("elsewhere")));
            let mut conf = case.small_conf();
            if dir.ends_with("elsewhere") {
                conf["ipam"]["dataDir"] = json!(dir);
            }
            let folder = node.path(&format!("{dir}/net"));
            fs::create_dir_all(&folder).unwrap();
            let old = node.pod("old");
            let held = if case.v4 { ["10.244.0.2", "10.244.0.4"] } else { ["fd00:244::2", "fd00:244::4"] };
            fs::write(folder.join(held[0]), format!("{}\r\neth0", old.container_id())).unwrap();
            fs::write(folder.join(held[1]), "somebody-else\r\neth0").unwrap();
            fs::write(folder.join("last_reserved_ip.0"), held[1]).unwrap();
            fs::write(folder.join("lock"), "").unwrap();

            let room = case.small_room() - 2;
            for n in 0..room {
                let (_, result) = add(&node, &format!("p{n}"), &conf);
                assert!(!addresses(&result).iter().any(|ip| ips(&held).contains(ip)), "{case:?}: {result}");
            }
            let error = weft(&node).add(&node.pod("late"), &conf).error();
            assert_eq!(error.code, 11, "{error:?}");
            let total = case.small_room();
            assert!(error.details.contains(&format!("{total} of {total}")), "{case:?}: {error:?}");
            let asked = with(&conf, &json!({"runtimeConfig": {"ips": [held[0]]}}));
            let error = weft(&node).add(&node.pod("asks"), &asked).error();
            assert_eq!(error.code, 104, "{error:?}");
            assert!(error.msg.contains(held[0]), "{error:?}");

            weft(&node).del(&old.with_ifname("eth9"), &conf).ok_empty();
            assert!(folder.join(held[0]).exists(), "another interface of the container");
            weft(&node).call("DEL").pod(&old).env("CNI_NETNS", "").conf(&conf).run().ok_empty();
            assert_eq!(entries(&folder), [held[1], "last_reserved_ip.0", "lock"]);
            let (_, result) = add(&node, "new", &conf);
            assert_eq!(addresses(&result)[0], held[0].parse::<IpAddr>().unwrap());
        }
    }
}

/// host-local: a working node of bridge + host-local switched to weft under running pods: old and new pods reach each
/// other, no address is given twice, and the old pods' DEL frees what they had.
#[test]
fn a_node_is_switched_from_bridge_and_host_local_under_running_pods() {
    if !require() {
        return;
    }
    let Some(reference) = reference_bin_dir() else {
        assert!(std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"), "no reference plugins");
        return;
    };
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        let mut conf = case.small_conf();
        conf["cniVersion"] = json!("1.0.0");
        conf["bridge"] = json!("cni0");
        conf["ipam"]["type"] = json!("host-local");
        conf["ipMasq"] = json!(false);
        let before = with(&conf, &json!({"type": "bridge", "mode": null}));
        let mut after = conf.clone();
        after["ipam"].as_object_mut().unwrap().remove("type");
        let bridge = node.cni(&reference, "bridge");
        let old: Vec<_> = ["old1", "old2"]
            .into_iter()
            .map(|name| {
                let pod = node.pod(name);
                let result = bridge.add(&pod, &before).result();
                (pod, result)
            })
            .collect();

        for gateway in gateways(&old[0].1) {
            // The reference plugin leaves it in duplicate address detection.
            wait_until("the reference bridge's gateway answers", SOON, || old[0].0.ping(gateway, 1));
        }
        let room = case.small_room() - 2;
        let new: Vec<_> = (0..room).map(|n| add(&node, &format!("p{n}"), &after)).collect();
        for (pod, result) in &new {
            assert_reaches(pod, &gateways(result));
            for (_, old) in &old {
                assert!(!addresses(old).iter().any(|ip| addresses(result).contains(ip)));
                assert_reaches(pod, &addresses(old));
            }
        }
        assert_eq!(weft(&node).add(&node.pod("late"), &after).error().code, 11);
        for (pod, _) in &old {
            weft(&node).del(pod, &after).ok_empty();
            pod.destroy_netns();
        }
        for (name, (_, had)) in ["new1", "new2"].into_iter().zip(&old) {
            let (_, result) = add(&node, name, &after);
            assert!(old.iter().any(|(_, had)| addresses(had)[0] == addresses(&result)[0]), "{result} {had}");
        }
    }
}

/// A changed range (a new podCIDR) in veth mode: new pods get addresses of the new range, pods of before keep theirs,
/// their connectivity and their DEL.
#[test]
fn a_changed_range_does_not_cut_pods_of_before() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| case.veth) {
        let node = lab.node(&case.name());
        let server = lab.outside(&node);
        let (conf, changed) = (case.conf(), case.conf_of("10.77.0.0/24", "fd00:77::/64"));
        let (old, of_old) = add(&node, "old", &conf);
        let (new, of_new) = add(&node, "new", &changed);
        assert!(addresses(&of_new)[0].to_string().contains("77"));
        assert_reaches(&old, &gateways(&of_old));
        assert_reaches(&old, &addresses(&of_new));
        assert_reaches(&new, &addresses(&of_old));
        let outer = if case.v4 { server.v4() } else { server.v6() };
        assert!(old.seen_by(outer).is_ok() && new.seen_by(outer).is_ok());
        weft(&node).del(&old, &changed).ok_empty();
        assert_eq!(link(&node, &host_end(&of_old)), None);
        let mut left = addresses(&of_new);
        left.sort();
        assert_eq!(taken(&node), left);
    }
}
