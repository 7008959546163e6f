//! What the node is like: no IPv6 in it, or nothing else; routes learnt from advertisements; a full bridge; other
//! people's devices; many pods.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_node;

use std::net::IpAddr;
use std::time::Duration;

use common_node::packet::{Tap, router_advertisement};
use common_node::{
    Case, addresses, addresses_of, assert_reaches, entries, gateways, has_flag, host_end, link, links, list,
    taken, with, with_result,
};
use netns_tests::{Allow, Cni, Inside, Node, Pod, Residue, Server, lab, require, wait_until, weft_bin_dir};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

fn add(node: &Node, name: &str, conf: &Value) -> (Pod, Value) {
    let pod = node.pod(name);
    let result = weft(node).add(&pod, conf).result();
    (pod, result)
}

fn cases_with_v6() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|case| case.v6)
}

/// A23: an IPv6 side that fails late, when the IPv4 side is set up already, leaves nothing of either.
#[test]
fn a_pod_gets_both_families_or_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let node = lab.node(&case.name());
        let (holder, of_holder) = add(&node, "holder", &case.conf());
        let before = Residue::take(&node);
        // The kernel refuses it after the IPv4 address and routes were set up.
        let mut multicast = case.conf();
        multicast["ipam"]["routes"] = json!([{"dst": "fd00:77::/64", "gw": "ff02::7"}]);
        let requested = addresses(&of_holder).into_iter().find(IpAddr::is_ipv6).unwrap();
        let asked = with(&case.conf(), &json!({"runtimeConfig": {"ips": ["10.244.0.99", requested]}}));
        for (conf, code) in [(multicast, 102), (asked, 104)] {
            let pod = node.pod("a");
            let error = weft(&node).add(&pod, &conf).error();
            assert_eq!(error.code, code, "{case:?}: {error:?}");
            before.assert_same(&Residue::take(&node), &Allow::nothing().processes());
            assert_eq!(links(&pod), ["lo"], "{case:?}: {error:?}");
            assert_eq!(taken(&node).len(), 2);
        }
        assert_reaches(&holder, &gateways(&of_holder));
    }
}

/// A23: on a kernel without IPv6 (`ipv6.disable=1`; here: without /proc/sys/net/ipv6) a v4 network works, and one with
/// IPv6 addresses is code 7 naming the parameter, before anything is made.
#[test]
fn a_kernel_without_ipv6_serves_ipv4_networks_and_refuses_others() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        node.mount_tmpfs("/proc/sys/net/ipv6");
        let pod = node.pod("a");
        let outcome = weft(&node).add(&pod, &case.conf());
        if !case.v6 {
            let result = outcome.result();
            assert_reaches(&pod, &gateways(&result));
            weft(&node).check(&pod, &with_result(&case.conf(), &result)).ok_empty();
            weft(&node).del(&pod, &case.conf()).ok_empty();
            assert_eq!(taken(&node), [] as [IpAddr; 0]);
            continue;
        }
        let error = outcome.error();
        assert_eq!(error.code, 7, "{case:?}: {error:?}");
        assert!(format!("{} {}", error.msg, error.details).contains("ipv6.disable"), "{error:?}");
        assert_eq!(links(&pod), ["lo"]);
        assert!(!links(&node).iter().any(|name| name.starts_with("veth")));
        assert_eq!(taken(&node), [] as [IpAddr; 0]);
    }
}

/// A23: a node and pods without any IPv4 work, and IPv4 forwarding is not touched.
#[test]
fn an_ipv6_only_network_needs_no_ipv4() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in cases_with_v6().filter(|case| !case.v4) {
        let node = lab.node(&case.name());
        let server = lab.outside(&node);
        node.run(["ip", "-4", "address", "flush", "dev", "uplink0"]);
        let (pod, result) = add(&node, "a", &case.conf());
        let (_b, others) = add(&node, "b", &case.conf());
        for place in [node.json(["ip", "-4", "-j", "address"]), pod.json(["ip", "-4", "-j", "address"])] {
            let with_v4 = list(&place)
                .into_iter()
                .filter(|link| link["ifname"] != "lo" && !link["addr_info"].is_null());
            assert_eq!(with_v4.count(), 0, "{case:?}: {place}");
        }
        assert_reaches(&pod, &gateways(&result));
        assert_reaches(&pod, &addresses(&others));
        assert_eq!(pod.seen_by(server.v6()).unwrap(), Server::NODE_V6);
        assert_eq!(node.sysctl("net.ipv4.ip_forward"), "0");
        weft(&node).check(&pod, &with_result(&case.conf(), &result)).ok_empty();
    }
}

/// A23: `disable_ipv6=1` in the pod's namespace is lifted for our interface only; on the node likewise for the device
/// that carries the gateway only.
#[test]
fn ipv6_is_switched_on_where_it_is_needed_and_nowhere_else() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in cases_with_v6() {
        let node = lab.node(&case.name());
        let pod = node.pod("a");
        for scope in ["all", "default"] {
            pod.set_sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1");
            node.set_sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1");
        }
        let result = weft(&node).add(&pod, &case.conf()).result();
        let off =
            |place: &dyn Fn(&str) -> String, name: &str| place(&format!("net/ipv6/conf/{name}/disable_ipv6"));
        let in_pod = |path: &str| pod.sysctl(path);
        let on_node = |path: &str| node.sysctl(path);
        for scope in ["all", "default", "lo"] {
            assert_eq!(off(&in_pod, scope), "1", "{case:?}: {scope} in the pod");
            assert_eq!(off(&on_node, scope), "1", "{case:?}: {scope} on the node");
        }
        assert_eq!(off(&in_pod, "eth0"), "0");
        let carrier = if case.veth { host_end(&result) } else { "cbr0".to_owned() };
        assert_eq!(off(&on_node, &carrier), "0");
        assert_reaches(&pod, &gateways(&result));
        let eth0 = addresses_of(&pod, "eth0");
        assert_eq!(eth0.iter().filter(|ip| ip.contains(':')).count(), 1, "{eth0:?}");
    }
}

/// A23: a pod without IPv6 addresses gets no IPv6 link-local one either: each is flooded to all ports of a bridge.
#[test]
fn an_ipv4_pod_has_no_ipv6_address_at_all() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.v6) {
        let node = lab.node(&case.name());
        let (pod, result) = add(&node, "a", &case.conf());
        assert_reaches(&pod, &gateways(&result));
        let shown = pod.json(["ip", "-6", "-j", "address", "show", "dev", "eth0"]);
        assert_eq!(list(&shown[0]["addr_info"]).len(), 0, "{case:?}: {shown}");
        let host = node.json(["ip", "-6", "-j", "address", "show", "dev", &host_end(&result)]);
        assert_eq!(list(&host[0]["addr_info"]).len(), 0, "{case:?}: {host}");
    }
}

/// A23: with `enabledad` ADD returns when duplicate address detection has ended, and an address that somebody on
/// the link has is refused with everything undone.
#[test]
fn enabled_duplicate_address_detection_is_waited_for() {
    if !require() {
        return;
    }
    let lab = lab!();
    let case = Case { veth: false, v4: false, v6: true };
    let node = lab.node("n1");
    let conf = with(&case.conf(), &json!({"enabledad": true}));
    let (pod, result) = add(&node, "a", &conf);
    let shown = pod.json(["ip", "-6", "-j", "address", "show", "dev", "eth0"]).to_string();
    assert!(!shown.contains("tentative") && !shown.contains("nodad"), "{shown}");
    assert_eq!(pod.sysctl("net.ipv6.conf.eth0.accept_dad"), "1");
    assert_reaches(&pod, &gateways(&result));

    pod.run(["ip", "address", "add", "fd00:244::99/64", "dev", "eth0", "nodad"]);
    let late = node.pod("late");
    let asked = with(&conf, &json!({"runtimeConfig": {"ips": ["fd00:244::99"]}}));
    let error = weft(&node).add(&late, &asked).error();
    assert_eq!(error.code, 102, "{error:?}");
    assert!(error.msg.contains("duplicate") && error.msg.contains("fd00:244::99"), "{error:?}");
    assert_eq!(links(&late), ["lo"]);
    assert_eq!(taken(&node), addresses(&result));
}

/// The node's IPv6 default routes that a router advertised: their devices.
fn advertised(node: &Node) -> Vec<String> {
    let routes = list(&node.json(["ip", "-6", "-j", "route", "show", "default"]));
    let learnt = routes.iter().filter(|route| route["protocol"] == "ra");
    learnt.map(|route| route["dev"].as_str().unwrap().to_owned()).collect()
}

/// A35: a node that learnt its default route from router advertisements keeps it when the first IPv6 ADD turns it
/// into a router, and goes on listening to the router; links that learnt nothing are left alone.
#[test]
fn the_advertised_default_route_survives_the_first_add() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let (node, router) = (lab.node(&case.name()), lab.node(&format!("{}-router", case.name())));
        let uplink = lab.wire((&node, &[]), (&router, &[])).link;
        let only = std::slice::from_ref(&uplink);
        let other = lab.wire((&node, &[]), (&router, &[])).link;
        let mac = link(&router, &uplink).unwrap()["address"].as_str().unwrap().to_owned();
        let tap = Tap::open(&router, &uplink);
        let advertise = |lifetime: u16| tap.send(&router_advertisement(&mac, lifetime));
        wait_until("the node learns a default route", SOON, || {
            advertise(1800);
            advertised(&node) == only
        });
        let accept_ra = |link: &str| node.sysctl(&format!("net/ipv6/conf/{link}/accept_ra"));
        assert_eq!((accept_ra(&uplink), accept_ra(&other)), ("1".to_owned(), "1".to_owned()));

        let (pod, result) = add(&node, "a", &case.conf());
        assert_reaches(&pod, &gateways(&result));
        assert_eq!(advertised(&node), only, "{case:?}: the default route is gone");
        assert_eq!(node.sysctl("net.ipv6.conf.all.forwarding"), if case.v6 { "1" } else { "0" });
        assert_eq!(accept_ra(&uplink), if case.v6 { "2" } else { "1" });
        assert_eq!((accept_ra(&other), accept_ra("all")), ("1".to_owned(), "1".to_owned()));
        assert_eq!(pod.sysctl("net.ipv6.conf.eth0.accept_ra"), "0");
        if case.veth {
            let host = host_end(&result);
            assert_eq!(accept_ra(&host), "0", "{case:?}: a pod must not choose its node's routes");
        }

        // The router says goodbye and comes back: a node that no longer listened would know neither.
        wait_until("the route goes with its router", SOON, || {
            advertise(0);
            advertised(&node).is_empty()
        });
        wait_until("the route comes back", SOON, || {
            advertise(1800);
            advertised(&node) == only
        });
    }
}

/// A35: with several routers on several links each link goes on listening.
#[test]
fn every_link_with_an_advertised_route_goes_on_listening() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::dual() {
        let (node, router) = (lab.node(&case.name()), lab.node(&format!("{}-router", case.name())));
        let wires = [0, 1].map(|_| lab.wire((&node, &[]), (&router, &[])).link);
        for wire in &wires {
            let mac = link(&router, wire).unwrap()["address"].as_str().unwrap().to_owned();
            let tap = Tap::open(&router, wire);
            wait_until("a route over the link", SOON, || {
                tap.send(&router_advertisement(&mac, 1800));
                node.json(["ip", "-6", "-j", "route", "show", "default"])
                    .to_string()
                    .contains(&format!("\"{wire}\""))
            });
        }
        add(&node, "a", &case.conf());
        for wire in &wires {
            assert_eq!(node.sysctl(&format!("net/ipv6/conf/{wire}/accept_ra")), "2", "{case:?}: {wire}");
        }
        let routes = node.json(["ip", "-6", "-j", "route", "show", "default"]).to_string();
        assert!(wires.iter().all(|wire| routes.contains(&format!("\"{wire}\""))), "{routes}");
    }
}

/// A35: an ADD changes only the sysctls it needs: forwarding of its families, nothing on other links.
#[test]
fn only_the_needed_sysctls_change() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let other = lab.node(&format!("{}-other", case.name()));
        let wire = lab.wire((&node, &["198.18.0.1/30", "fd00:18::1/64"]), (&other, &[])).link;
        let before = Residue::take(&node);
        let (_pod, result) = add(&node, "a", &case.conf());
        let ours = Allow::nothing().link("cbr0").link(&host_end(&result));
        let changed: Vec<String> = before
            .difference(&Residue::take(&node), &ours)
            .into_iter()
            .filter(|line| line.starts_with("+ Sysctl"))
            .collect();
        for line in &changed {
            // Switching forwarding on switches these on every link: the kernel's doing.
            let forwarding = line.contains("/forwarding = 1");
            let follows = line.contains("ipv4/") && line.contains("/accept_redirects = ") && case.v4;
            let of_family = line.contains("ipv4/") && case.v4 || line.contains("ipv6/") && case.v6;
            assert!(forwarding && of_family || follows, "{case:?}: {line} (link {wire})");
        }
        assert_eq!(node.sysctl("net.ipv4.ip_forward"), if case.v4 { "1" } else { "0" });
        assert_eq!(node.sysctl("net.ipv6.conf.all.forwarding"), if case.v6 { "1" } else { "0" });
    }
}

/// A29: a device of the bridge's name that is no bridge: code 7 naming it and its kind, and it is not touched.
#[test]
fn a_device_that_is_no_bridge_is_refused_and_left_alone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        for kind in ["veth", "vxlan"] {
            let node = lab.node(&format!("{}-{kind}", case.name()));
            let mut words = vec!["ip", "link", "add", "cbr0", "type", kind];
            words.extend(if kind == "vxlan" {
                ["id", "7", "dstport", "4789"]
            } else {
                ["peer", "name", "p", "mtu"]
            });
            words.extend((kind == "veth").then_some("1500"));
            node.run(words);
            let before = Residue::take(&node);
            let pod = node.pod("a");
            let error = weft(&node).add(&pod, &case.conf()).error();
            assert_eq!(error.code, 7, "{error:?}");
            assert!(error.msg.contains("cbr0") && error.msg.contains("not a bridge"), "{error:?}");
            assert!(error.details.contains(kind), "{error:?}");
            before.assert_same(&Residue::take(&node), &Allow::nothing().processes().path("/var/lib/weft/"));
            assert!(!has_flag(&link(&node, "cbr0").unwrap(), "UP"));
            assert_eq!(links(&pod), ["lo"]);
            weft(&node).del(&pod, &case.conf()).ok_empty();
        }
    }
}

/// A29: a changed podCIDR on a standalone bridge is refused with the other address named, and pods of before go on
/// working; the others of A29's convergence are in `addresses` (granted blocks, veth mode).
#[test]
fn a_changed_range_on_a_bridge_is_refused_and_cuts_nobody() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        let (old, of_old) = add(&node, "old", &case.conf());
        let (_b, of_b) = add(&node, "b", &case.conf());
        // Overlapping, or IPv6 subnets may stand side by side.
        let changed = case.conf_of("10.77.0.0/24", "fd00:244::/48");
        let before = Residue::take(&node);
        let error = weft(&node).add(&node.pod("new"), &changed).error();
        assert_eq!(error.code, 7, "{error:?}");
        assert!(error.msg.contains("already has an IP address different from"), "{error:?}");
        assert!(error.details.contains("forceAddress"), "{error:?}");
        before.assert_same(&Residue::take(&node), &Allow::nothing().processes());
        assert_reaches(&old, &gateways(&of_old));
        assert_reaches(&old, &addresses(&of_b));
        weft(&node).del(&old, &changed).ok_empty();
        assert_eq!(link(&node, &host_end(&of_old)), None);
    }
}

/// A29: IPv6 subnets that do not overlap stand beside each other on the bridge: old and new pods work.
#[test]
fn another_ipv6_range_joins_the_bridge() {
    if !require() {
        return;
    }
    let lab = lab!();
    let case = Case { veth: false, v4: false, v6: true };
    let node = lab.node("n1");
    let (old, of_old) = add(&node, "old", &case.conf());
    let (new, of_new) = add(&node, "new", &case.conf_of("10.77.0.0/24", "fd00:77::/64"));
    assert_eq!(addresses_of(&node, "cbr0"), ["fd00:244::1/64", "fd00:77::1/64"]);
    assert_reaches(&old, &gateways(&of_old));
    assert_reaches(&new, &gateways(&of_new));
    assert_reaches(&old, &addresses(&of_new));
}

/// A29: a bridge has at most 1,023 ports. The next pod is code 11 with the way out, and leaves nothing; when a port
/// is free again, it is made.
#[test]
fn the_1024th_port_of_a_bridge_is_refused_with_a_hint() {
    const PORTS: usize = 1023;
    if !require() {
        return;
    }
    let lab = lab!();
    let case = Case { veth: false, v4: true, v6: true };
    let node = lab.node("n1");
    let conf = case.conf();
    add(&node, "first", &conf);
    // Pairs with both ends in the bridge, down so that nothing circles. One veth to spare for the odd number.
    let ports = || list(&node.json(["ip", "-j", "link", "show", "master", "cbr0"])).len();
    let missing = PORTS - ports();
    let pairs = (0..missing.div_ceil(2)).map(|n| format!("link add a{n} type veth peer name b{n}\n"));
    let ends = (0..missing)
        .map(|n| format!("link set {}{} master cbr0\n", if n % 2 == 0 { "a" } else { "b" }, n / 2));
    std::fs::write(node.path("/run/containerd/batch"), pairs.chain(ends).collect::<String>()).unwrap();
    node.run(["ip", "-batch", "/run/containerd/batch"]);
    assert_eq!(ports(), PORTS);

    // A whole `Residue` of a thousand links would take minutes.
    let look = || (links(&node), taken(&node), records(&node), node.json(["ip", "-j", "neigh"]).to_string());
    let before = look();
    let late = node.pod("late");
    let error = weft(&node).add(&late, &conf).error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.msg.contains("1,023 ports"), "{error:?}");
    assert!(error.details.contains("\"mode\": \"veth\""), "the way out: {error:?}");
    assert_eq!(look(), before);
    assert_eq!(links(&late), ["lo"]);
    let status = weft(&node).status(&conf).error();
    assert_eq!(status.code, 50, "{status:?}");
    assert!(format!("{} {}", status.msg, status.details).contains("1,023 ports"), "{status:?}");

    node.run(["ip", "link", "delete", "a0"]);
    weft(&node).status(&conf).ok_empty();
    let result = weft(&node).add(&late, &conf).result();
    assert_reaches(&late, &gateways(&result));
}

/// The files of attachments.
fn records(node: &Node) -> Vec<String> {
    let stamps = entries(&node.path("/run/weft"));
    let folders =
        stamps.iter().flat_map(|stamp| ["owner", "record"].map(|kind| format!("/run/weft/{stamp}/{kind}")));
    folders.flat_map(|folder| entries(&node.path(&folder))).collect()
}

/// A29: veth mode has no limit of ports: 1,100 attachments (100 interfaces in each of 11 namespaces) on one node, the
/// first and the last of which work; and DEL of some of them takes exactly those.
#[test]
fn veth_mode_has_room_for_more_pods_than_a_bridge() {
    const NAMESPACES: usize = 11;
    const EACH: usize = 100;
    if !require() {
        return;
    }
    let lab = lab!();
    let case = Case { veth: true, v4: true, v6: true };
    let node = lab.node("n1");
    // No default route for each of a hundred interfaces of a pod, nor a log of it.
    let conf = with(
        &case.conf_of("10.244.0.0/20", "fd00:244::/64"),
        &json!({"isDefaultGateway": null, "logLevel": "off"}),
    );
    let pods: Vec<Pod> = (0..NAMESPACES).map(|n| node.pod(&format!("p{n}"))).collect();
    let attach = |pod: &Pod| -> Vec<Value> {
        let names = (0..EACH).map(|n| pod.with_ifname(&format!("net{n}")));
        names.map(|attachment| weft(&node).add(&attachment, &conf).result()).collect()
    };
    let results: Vec<Value> = std::thread::scope(|scope| {
        let (left, right) = pods.split_at(NAMESPACES / 2);
        let other = scope.spawn(|| left.iter().flat_map(attach).collect::<Vec<_>>());
        let mut results: Vec<_> = right.iter().flat_map(attach).collect();
        results.extend(other.join().unwrap());
        results
    });
    let mut given: Vec<IpAddr> = results.iter().flat_map(addresses).collect();
    given.sort();
    assert_eq!(taken(&node), given);
    given.dedup();
    assert_eq!(given.len(), 2 * NAMESPACES * EACH, "no address twice");

    let (first, of_first) = add(&node, "one-more", &conf);
    assert_reaches(&first, &gateways(&of_first));
    assert_reaches(&first, &addresses(&results[0]));
    assert_reaches(&first, &addresses(results.last().unwrap()));
    for n in 0..EACH {
        weft(&node).del(&pods[3].with_ifname(&format!("net{n}")), &conf).ok_empty();
    }
    assert_eq!(links(&pods[3]), ["lo"]);
    assert_eq!(taken(&node).len(), 2 * ((NAMESPACES - 1) * EACH + 1));
    weft(&node).status(&conf).ok_empty();
}
