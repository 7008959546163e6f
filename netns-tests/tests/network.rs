//! What a pod's network is: the result and the kernel agree, neighbours learn of it, and each option does what it says.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_node;

use std::net::{IpAddr, UdpSocket};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common_node::packet::{Frame, Tap, mac_bytes};
use common_node::{
    Case, addresses, addresses_of, assert_reaches, bare, first_ping, gateways, has_flag, host_end, link,
    links, list, neighbour, taken, with, with_result,
};
use netns_tests::{
    Allow, Cni, Inside, Node, Pod, Residue, Server, lab, require, wait_for, wait_until, weft_bin_dir,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What a pod on an idle node must never need longer for; the machine of the tests is not idle.
const ADD_MEDIAN: Duration = Duration::from_millis(100);

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

fn add(node: &Node, name: &str, conf: &Value) -> (Pod, Value) {
    let pod = node.pod(name);
    let result = weft(node).add(&pod, conf).result();
    (pod, result)
}

/// A9: for each version, the result says what the kernel has: names, MACs, addresses, gateways, routes, from 1.1.0
/// on the MTU; and the pod reaches its gateway, another pod and a pod of another node. No address is tentative when
/// ADD returns, and half of the ADDs take less than 100 ms even here.
#[test]
fn the_result_of_add_is_what_the_kernel_has() {
    if !require() {
        return;
    }
    let lab = lab!();
    let mut times = Vec::new();
    for case in Case::all() {
        let plain = json!({"ipMasq": false});
        let (node, far) = (lab.node(&case.name()), lab.node(&format!("{}-far", case.name())));
        let ends = (["198.18.0.1/30", "fd00:18::1/64"], ["198.18.0.2/30", "fd00:18::2/64"]);
        lab.wire((&node, &ends.0), (&far, &ends.1));
        for (from, to) in [
            (&far, ["10.244.0.0/24", "198.18.0.1"]),
            (&far, ["fd00:244::/64", "fd00:18::1"]),
            (&node, ["10.245.0.0/24", "198.18.0.2"]),
            (&node, ["fd00:245::/64", "fd00:18::2"]),
        ] {
            from.run(["ip", "route", "add", to[0], "via", to[1]]);
        }
        let conf = with(&case.conf(), &plain);
        let (_neighbour, neighbours) = add(&node, "neighbour", &conf);
        let far_conf = with(&case.conf_of("10.245.0.0/24", "fd00:245::/64"), &plain);
        let (_far_pod, far_pods) = add(&far, "far", &far_conf);

        for version in VERSIONS {
            let conf = with(&conf, &json!({"cniVersion": version}));
            let pod = node.pod("a");
            let outcome = weft(&node).add(&pod, &conf);
            let show = pod.json(["ip", "-j", "address", "show", "dev", "eth0"]);
            let result = outcome.result();
            times.push(outcome.elapsed);
            // Not the link-local one, which the kernel makes in its own time.
            let global = |address: &&Value| address["scope"] == "global";
            let info = list(&show[0]["addr_info"]);
            for address in info.iter().filter(global) {
                assert!(
                    address["tentative"].is_null() && address["dadfailed"].is_null(),
                    "{case:?} {version}: {show}"
                );
            }

            assert_eq!(result["cniVersion"], version);
            if version < "0.3.0" {
                assert_old_result(case, &pod, &result);
            } else {
                assert_result(case, &node, &pod, &result);
            }
            let gateways = default_gateways(&pod);
            assert_eq!(gateways.len(), case.families(), "{case:?} {version}: {gateways:?}");
            assert_reaches(&pod, &gateways);
            assert_reaches(&pod, &addresses(&neighbours));
            assert_reaches(&pod, &addresses(&far_pods));
            weft(&node).del(&pod, &conf).ok_empty();
        }
    }
    times.sort();
    assert!(times[times.len() / 2] < ADD_MEDIAN, "{times:?}");
}

fn routes(place: &impl Inside) -> Vec<Value> {
    ["-4", "-6"].iter().flat_map(|family| list(&place.json(["ip", family, "-j", "route"]))).collect()
}

fn default_gateways(pod: &Pod) -> Vec<IpAddr> {
    let routes = routes(pod);
    let default = routes.iter().filter(|route| route["dst"] == "default");
    default.map(|route| route["gateway"].as_str().unwrap().parse().unwrap()).collect()
}

/// The prefix lengths that addresses get: the subnet's on a bridge, their own point to point.
fn prefix_len(case: Case, ip: IpAddr) -> u8 {
    match (case.veth, ip.is_ipv4()) {
        (false, true) => 24,
        (false, false) => 64,
        (true, true) => 32,
        (true, false) => 128,
    }
}

fn assert_result(case: Case, node: &Node, pod: &Pod, result: &Value) {
    let version = result["cniVersion"].as_str().unwrap();
    let interfaces = list(&result["interfaces"]);
    let expected = if case.veth { 2 } else { 3 };
    assert_eq!(interfaces.len(), expected, "{case:?} {version}: {result}");
    for (index, interface) in interfaces.iter().enumerate() {
        let name = interface["name"].as_str().unwrap();
        let in_pod = index == expected - 1;
        let sandbox = interface["sandbox"].as_str().unwrap_or_default();
        assert_eq!(sandbox, if in_pod { pod.netns_path().to_str().unwrap() } else { "" }, "{result}");
        let found = if in_pod { link(pod, name) } else { link(node, name) };
        let found = found.unwrap_or_else(|| panic!("{case:?} {version}: no {name}"));
        assert_eq!(interface["mac"], found["address"], "{case:?} {version}: {name}");
        let mtu = if version >= "1.1.0" { found["mtu"].clone() } else { Value::Null };
        assert_eq!(interface["mtu"], mtu, "{case:?} {version}: {name}");
        assert!(has_flag(&found, "UP") && has_flag(&found, "LOWER_UP"), "{case:?} {version}: {found}");
    }
    assert_eq!(interfaces[expected - 1]["name"], "eth0");
    let host = link(node, &host_end(result)).unwrap();
    let master = if case.veth { Value::Null } else { json!("cbr0") };
    assert_eq!(host["master"], master);
    assert_eq!(interfaces[0]["name"] == "cbr0", !case.veth);

    let ips = list(&result["ips"]);
    assert_eq!(ips.len(), case.families());
    for ip in &ips {
        let address = bare(&ip["address"]);
        assert_eq!(ip["interface"], json!(expected - 1));
        assert_eq!(ip["address"], format!("{address}/{}", prefix_len(case, address)));
        let family = if address.is_ipv4() { json!("4") } else { json!("6") };
        assert_eq!(ip["version"], if version < "1.0.0" { family } else { Value::Null }, "{result}");
        let gateway = if address.is_ipv4() { "10.244.0.1" } else { "fd00:244::1" };
        assert_eq!(ip["gateway"], gateway);
        let carrier = if case.veth { host_end(result) } else { "cbr0".to_owned() };
        let on_carrier = addresses_of(node, &carrier);
        assert!(on_carrier.iter().any(|text| text.starts_with(&format!("{gateway}/"))), "{on_carrier:?}");
    }
    let given: Vec<&str> = ips.iter().map(|ip| ip["address"].as_str().unwrap()).collect();
    assert_eq!(addresses_of(pod, "eth0"), given, "{case:?} {version}");

    let wanted = list(&result["routes"]);
    assert!(wanted.len() >= case.families(), "{result}");
    assert_routes(pod, &wanted);
    let dns = if version < "1.0.0" { json!({}) } else { Value::Null };
    assert_eq!(result["dns"], dns, "{version}: {result}");
}

/// All reported routes are there, and no static one is there that is not reported.
fn assert_routes(pod: &Pod, wanted: &[Value]) {
    let key = |dst: &str, gateway: &str| {
        let dst = match dst {
            "0.0.0.0/0" => "default".to_owned(),
            "::/0" => "default".to_owned(),
            other => other.to_owned(),
        };
        format!("{dst} via {gateway}")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut wanted: Vec<_> =
        wanted.iter().map(|route| key(&text(&route["dst"]), &text(&route["gw"]))).collect();
    let present = routes(pod);
    let ours = present.iter().filter(|route| route["protocol"] != "kernel" && route["gateway"].is_string());
    let mut present: Vec<_> = ours.map(|route| key(&text(&route["dst"]), &text(&route["gateway"]))).collect();
    wanted.sort();
    present.sort();
    assert_eq!(wanted, present);
}

fn assert_old_result(case: Case, pod: &Pod, result: &Value) {
    let mut given = Vec::new();
    for (has, key, gateway) in [(case.v4, "ip4", "10.244.0.1"), (case.v6, "ip6", "fd00:244::1")] {
        assert_eq!(result[key].is_object(), has, "{result}");
        if has {
            given.push(result[key]["ip"].as_str().unwrap().to_owned());
            assert_eq!(result[key]["gateway"], gateway);
            assert_routes_of_family(pod, &list(&result[key]["routes"]), key == "ip4");
        }
    }
    assert_eq!(addresses_of(pod, "eth0"), given);
    assert_eq!(result["dns"], json!({}));
    for newer in ["interfaces", "ips", "routes"] {
        assert_eq!(result[newer], Value::Null, "{result}");
    }
}

fn assert_routes_of_family(pod: &Pod, wanted: &[Value], v4: bool) {
    let default = if v4 { "0.0.0.0/0" } else { "::/0" };
    assert!(wanted.iter().any(|route| route["dst"] == default), "{wanted:?}");
    let family = if v4 { "-4" } else { "-6" };
    let present = list(&pod.json(["ip", family, "-j", "route"]));
    for route in wanted {
        let dst = if route["dst"] == default { json!("default") } else { route["dst"].clone() };
        assert!(
            present.iter().any(|found| found["dst"] == dst && found["gateway"] == route["gw"]),
            "{route}"
        );
    }
}

/// GARP and NA: a neighbour pod on the bridge sees an ARP announcement and an unsolicited neighbour advertisement of
/// the new pod's addresses, with its MAC. (In veth mode there is nobody on the link but the node, which is told.)
#[test]
fn neighbours_hear_of_a_new_pods_addresses() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        let (watcher, _) = add(&node, "watcher", &case.conf());
        let tap = Tap::open(&watcher, "eth0");
        let (pod, result) = add(&node, "a", &case.conf());
        let mac = link(&pod, "eth0").unwrap()["address"].as_str().unwrap().to_owned();
        let mut seen: Vec<Frame> = Vec::new();
        for ip in addresses(&result) {
            let announced = wait_for(&format!("{case:?}: word of {ip}"), SOON, || {
                seen.extend(tap.frames());
                seen.iter().find_map(|frame| match ip {
                    IpAddr::V4(v4) => frame.arp_announcement(v4),
                    IpAddr::V6(v6) => frame.neighbour_advertisement(v6),
                })
            });
            assert_eq!(announced, mac);
        }
    }
}

/// A27: a neighbour that remembers another MAC for an address, in use a moment ago, has the new one when ADD has
/// returned, before anybody asks: the announcements did it.
#[test]
fn a_stale_entry_of_a_neighbour_is_corrected_by_the_announcement_alone() {
    if !require() {
        return;
    }
    const OLD: &str = "02:00:00:00:00:01";
    const NEW: &str = "02:00:00:00:00:02";
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        let (watcher, _) = add(&node, "watcher", &case.conf());
        let wanted: Vec<IpAddr> =
            case.pick("10.244.0.77", "fd00:244::77").iter().map(|ip| ip.parse().unwrap()).collect();
        for ip in &wanted {
            watcher.run([
                "ip",
                "neigh",
                "replace",
                &ip.to_string(),
                "lladdr",
                OLD,
                "dev",
                "eth0",
                "nud",
                "reachable",
            ]);
        }
        let conf = with(&case.conf(), &json!({"runtimeConfig": {"mac": NEW, "ips": wanted}}));
        let (pod, result) = add(&node, "a", &conf);
        assert_eq!(addresses(&result), wanted);
        assert_eq!(link(&pod, "eth0").unwrap()["address"], NEW);
        for ip in wanted {
            wait_until(&format!("{case:?}: the neighbour has the new MAC of {ip}"), SOON, || {
                neighbour(&watcher, ip, "eth0").is_some_and(|entry| entry["lladdr"] == NEW)
            });
        }
    }
}

/// A27: an address that is given again at once, to a pod with another MAC: the first echo request of a neighbour
/// pod and of the node is answered within 50 ms, and a late or repeated DEL of the former holder takes nothing.
#[test]
fn a_reused_address_answers_the_first_ping_and_survives_its_former_holders_del() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let _outside = lab.outside(&node);
        let (watcher, _) = add(&node, "watcher", &case.conf());
        let wanted = case.pick("10.244.0.77", "fd00:244::77");
        let conf = |mac: &str| with(&case.conf(), &json!({"runtimeConfig": {"mac": mac, "ips": wanted}}));
        let (former, result) = add(&node, "former", &conf("02:00:00:00:00:01"));
        let reused = addresses(&result);
        assert_reaches(&watcher, &reused);
        for ip in &reused {
            assert!(node.ping(*ip, 1));
        }
        weft(&node).del(&former, &conf("02:00:00:00:00:01")).ok_empty();

        let (heir, result) = add(&node, "heir", &conf("02:00:00:00:00:02"));
        assert_eq!(addresses(&result), reused);
        for ip in &reused {
            let from_neighbour =
                first_ping(&watcher, *ip).unwrap_or_else(|| panic!("{case:?}: {ip} is silent"));
            let from_node = first_ping(&node, *ip).unwrap_or_else(|| panic!("{case:?}: {ip} is silent"));
            assert!(
                from_neighbour < 50.0 && from_node < 50.0,
                "{case:?} {ip}: {from_neighbour} {from_node} ms"
            );
        }
        let before = Residue::take(&node);
        for _ in 0..2 {
            weft(&node).del(&former, &conf("02:00:00:00:00:01")).ok_empty();
        }
        before.assert_same(&Residue::take(&node), &Allow::nothing().processes());
        assert!(reused.iter().all(|ip| taken(&node).contains(ip)));
        weft(&node).check(&heir, &with_result(&conf("02:00:00:00:00:02"), &result)).ok_empty();
        assert_reaches(&heir, &gateways(&result));
    }
}

/// A9: an IPv6 address works when ADD returns, on a busy node too: the kernel delivers to it. (It makes the local
/// route of an address by a worker of its own, some time after it has acknowledged the address.)
#[test]
fn ipv6_addresses_work_when_add_returns() {
    if !require() {
        return;
    }
    let lab = lab!();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..3 {
            // The worker waits for the lock that every change of a link anywhere holds.
            let busy = lab.node(&format!("busy{n}"));
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    busy.run(["ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1"]);
                    busy.run(["ip", "link", "delete", "x0"]);
                }
            });
        }
        let late = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for case in Case::all().into_iter().filter(|case| case.v6) {
                let node = lab.node(&case.name());
                for n in 0..10 {
                    let (pod, result) = add(&node, &format!("p{n}"), &case.conf());
                    for ip in addresses(&result).into_iter().filter(IpAddr::is_ipv6) {
                        pod.enter(|| hears_itself(ip))
                            .unwrap_or_else(|error| panic!("{case:?} {ip}: {error}"));
                    }
                    for ip in gateways(&result).into_iter().filter(IpAddr::is_ipv6) {
                        node.enter(|| hears_itself(ip))
                            .unwrap_or_else(|error| panic!("{case:?} {ip}: {error}"));
                    }
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        late.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A datagram from an address to itself arrives at once, or never.
fn hears_itself(ip: IpAddr) -> std::io::Result<usize> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send(b"x")?;
    socket.recv(&mut [0; 1])
}

/// Masquerade: with `ipMasq` the server sees the node, another pod sees the pod; without, everybody sees the pod.
#[test]
fn masquerade_hides_pods_from_the_outside_only() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for masquerade in [true, false] {
            let node = lab.node(&format!("{}-{masquerade}", case.name()));
            let server = lab.outside(&node);
            let conf = with(&case.conf(), &json!({"ipMasq": masquerade}));
            let (pod, result) = add(&node, "a", &conf);
            let (other, others) = add(&node, "b", &conf);
            let listener = other.listen(80);
            if !masquerade {
                server.add_return_route("10.244.0.0/24");
                server.add_return_route("fd00:244::/64");
            }
            for (own, others) in addresses(&result).into_iter().zip(addresses(&others)) {
                let (outside, nodes) = match own {
                    IpAddr::V4(_) => (server.v4(), Server::NODE_V4),
                    IpAddr::V6(_) => (server.v6(), Server::NODE_V6),
                };
                let label = format!("{case:?} masquerade {masquerade}");
                let seen = pod.seen_by(outside).unwrap_or_else(|error| panic!("{label}: {error}"));
                assert_eq!(seen, if masquerade { nodes } else { own }, "{label}");
                assert_eq!(pod.seen_by((others, listener.port()).into()).unwrap(), own, "{case:?}");
            }
            let rules = String::from_utf8(node.run(["nft", "list", "ruleset"]).stdout).unwrap();
            assert_eq!(rules.contains("masquerade"), masquerade, "{rules}");
            if masquerade {
                assert!(rules.contains("fully-random"), "{rules}");
                // One element for each range, none for each pod.
                assert!(!rules.contains("10.244.0.2,") && !rules.contains("fd00:244::2,"), "{rules}");
            }
        }
    }
}

/// Masquerade: when somebody flushes the ruleset, the first ADD after 5 s repairs it, for pods of before too.
#[test]
fn a_flushed_ruleset_is_repaired_by_an_add_after_five_seconds() {
    if !require() {
        return;
    }
    let lab = lab!();
    let nodes: Vec<_> = Case::all()
        .into_iter()
        .map(|case| {
            let node = lab.node(&case.name());
            let server = lab.outside(&node);
            let pod = node.pod("a");
            (case, node, server, pod)
        })
        .collect();
    for (case, node, _, pod) in &nodes {
        weft(node).add(pod, &case.conf()).result();
        node.run(["nft", "flush", "ruleset"]);
    }
    let flushed = Instant::now();
    wait_until("more than five seconds have passed", Duration::from_secs(10), || {
        flushed.elapsed() > Duration::from_secs(6)
    });
    for (case, node, server, pod) in &nodes {
        add(node, "b", &case.conf());
        if case.v4 {
            assert_eq!(pod.seen_by(server.v4()).unwrap(), Server::NODE_V4, "{case:?}");
        }
        if case.v6 {
            assert_eq!(pod.seen_by(server.v6()).unwrap(), Server::NODE_V6, "{case:?}");
        }
    }
}

/// MTU: given, both ends and a bridge that is made have it, the result says so and larger packets do not pass; not
/// given, the kernel's 1500 stay. A bridge that was there keeps its own.
#[test]
fn the_mtu_is_that_of_both_ends_and_of_a_bridge_that_is_made() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        for mtu in [None, Some(1400_u32)] {
            let node = lab.node(&format!("{}-{}", case.name(), mtu.unwrap_or(0)));
            let conf = mtu.map_or(case.conf(), |mtu| with(&case.conf(), &json!({"mtu": mtu})));
            let (pod, result) = add(&node, "a", &conf);
            let expected = json!(mtu.unwrap_or(1500));
            for interface in list(&result["interfaces"]) {
                assert_eq!(interface["mtu"], expected, "{case:?}: {interface}");
            }
            assert_eq!(link(&pod, "eth0").unwrap()["mtu"], expected);
            assert_eq!(link(&node, &host_end(&result)).unwrap()["mtu"], expected);
            for gateway in gateways(&result) {
                let headers = if gateway.is_ipv4() { 28 } else { 48 };
                let largest = mtu.unwrap_or(1500) - headers;
                assert!(fits(&pod, gateway, largest, "1"), "{case:?} {gateway} {largest}");
                assert!(!fits(&pod, gateway, largest + 1, "0.2"), "{case:?} {gateway} {largest} + 1");
            }
        }
    }
}

fn fits(pod: &Pod, ip: IpAddr, size: u32, patience: &str) -> bool {
    let (size, ip) = (size.to_string(), ip.to_string());
    pod.try_run(["ping", "-n", "-c", "1", "-W", patience, "-M", "do", "-s", &size, &ip]).status.success()
}

/// A bridge that somebody made is adopted as it is: same index, same MTU; only what is missing is added.
#[test]
fn a_bridge_that_is_there_is_adopted() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        node.run(["ip", "link", "add", "cbr0", "mtu", "1450", "type", "bridge", "ageing_time", "12000"]);
        let index = link(&node, "cbr0").unwrap()["ifindex"].clone();
        let (pod, result) = add(&node, "a", &with(&case.conf(), &json!({"mtu": 1400})));
        let bridge = link(&node, "cbr0").unwrap();
        assert_eq!(bridge["ifindex"], index);
        assert_eq!(bridge["linkinfo"]["info_data"]["ageing_time"], 12000);
        assert!(has_flag(&bridge, "UP"));
        assert_eq!(link(&pod, "eth0").unwrap()["mtu"], 1400);
        assert_reaches(&pod, &gateways(&result));
    }
}

/// The bridge's MAC neither changes when ports come and go nor is that of a port: pods need not learn it again.
#[test]
fn the_bridge_keeps_its_mac_while_ports_come_and_go() {
    if !require() {
        return;
    }
    let lab = lab!();
    for premade in [false, true] {
        let node = lab.node(if premade { "premade" } else { "ours" });
        let conf = Case::dual()[0].conf();
        if premade {
            node.run(["ip", "link", "add", "cbr0", "type", "bridge"]);
        }
        let mac = || link(&node, "cbr0").unwrap()["address"].clone();
        let (first, result) = add(&node, "a", &conf);
        let before = mac();
        assert_ne!(before, link(&node, &host_end(&result)).unwrap()["address"]);
        for n in 0..4 {
            let (pod, _) = add(&node, &format!("p{n}"), &conf);
            assert_eq!(mac(), before);
            weft(&node).del(if n == 0 { &first } else { &pod }, &conf).ok_empty();
            assert_eq!(mac(), before);
        }
    }
}

/// The flags of a bridge port, as `bridge` shows them.
fn port(node: &Node, name: &str) -> Value {
    let links = node.json(["bridge", "-d", "-j", "link", "show", "dev", name]);
    list(&links).into_iter().find(|link| link["ifname"] == name).unwrap()
}

/// hairpinMode: the flag is on the port, and a frame that the bridge does not know comes back to the pod that sent
/// it; without, it does not.
#[test]
fn hairpin_mode_sends_frames_back_to_their_own_port() {
    if !require() {
        return;
    }
    let lab = lab!();
    for hairpin in [true, false] {
        let node = lab.node(if hairpin { "hairpin" } else { "plain" });
        let conf = with(&Case::dual()[0].conf(), &json!({"hairpinMode": hairpin}));
        let (pod, result) = add(&node, "a", &conf);
        let (other, _) = add(&node, "b", &conf);
        assert_eq!(port(&node, &host_end(&result))["hairpin"], hairpin);

        let mac = link(&pod, "eth0").unwrap()["address"].as_str().unwrap().to_owned();
        let (own, others) = (Tap::open(&pod, "eth0"), Tap::open(&other, "eth0"));
        // An unknown unicast address is flooded; 0x88b5 is an experimental protocol.
        let frame = [&[0x02, 0, 0, 0, 0, 0x99][..], &mac_bytes(&mac), &[0x88, 0xb5], &[7; 46]].concat();
        own.send(&frame);
        let is_it = |seen: &Frame| seen.bytes == frame && !seen.outgoing;
        wait_until("the neighbour sees the flooded frame", SOON, || others.frames().iter().any(is_it));
        // Hairpinning happens in the same flooding, and this round trip comes after it.
        assert_reaches(&pod, &gateways(&result));
        assert_eq!(own.frames().iter().any(is_it), hairpin);
        weft(&node).check(&pod, &with_result(&conf, &result)).ok_empty();
    }
}

/// hairpin in earnest: a pod reaches itself by a Service address that the node translates to it, in both modes.
#[test]
fn a_pod_reaches_itself_by_a_service_address() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let conf = if case.veth { case.conf() } else { with(&case.conf(), &json!({"hairpinMode": true})) };
        let (pod, result) = add(&node, "a", &conf);
        let listener = pod.listen(80);
        node.run(["nft", "add", "table", "inet", "svc"]);
        for chain in [
            "prerouting { type nat hook prerouting priority dstnat; }",
            "postrouting { type nat hook postrouting priority srcnat; }",
        ] {
            node.run(["nft", &format!("add chain inet svc {chain}")]);
        }
        for ip in addresses(&result) {
            let (family, service) = if ip.is_ipv4() { ("ip", "10.96.0.10") } else { ("ip6", "fd00:96::10") };
            let port = listener.port();
            node.run([
                "nft",
                &format!("add rule inet svc prerouting {family} daddr {service} dnat {family} to {ip}"),
            ]);
            let rule = format!("{family} saddr {ip} {family} daddr {ip} masquerade");
            node.run(["nft", &format!("add rule inet svc postrouting {rule}")]);
            let service: IpAddr = service.parse().unwrap();
            assert!(pod.seen_by((service, port).into()).is_ok(), "{case:?}: {service}");
        }
    }
}

/// portIsolation: isolated pods do not reach each other, but the gateway, the outside and pods that are not isolated.
#[test]
fn isolated_ports_reach_everything_but_each_other() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        let server = lab.outside(&node);
        let conf = with(&case.conf(), &json!({"portIsolation": true}));
        let (a, of_a) = add(&node, "a", &conf);
        let (_b, of_b) = add(&node, "b", &conf);
        let (_open, of_open) = add(&node, "open", &case.conf());
        assert_eq!(port(&node, &host_end(&of_a))["isolated"], true);
        assert_eq!(port(&node, &host_end(&of_open))["isolated"], false);

        assert_reaches(&a, &gateways(&of_a));
        assert_reaches(&a, &addresses(&of_open));
        for ip in addresses(&of_b) {
            assert!(!a.ping(ip, 1), "{case:?}: reaches {ip}");
        }
        let outside = if case.v4 { server.v4() } else { server.v6() };
        assert!(a.seen_by(outside).is_ok());
        weft(&node).check(&a, &with_result(&conf, &of_a)).ok_empty();
    }
}

/// promiscMode: the bridge is promiscuous, also one that was there; hairpin and promisc together are refused.
#[test]
fn promisc_mode_makes_the_bridge_promiscuous() {
    if !require() {
        return;
    }
    let lab = lab!();
    let conf = Case::dual()[0].conf();
    for premade in [false, true] {
        let node = lab.node(if premade { "premade" } else { "ours" });
        if premade {
            add(&node, "before", &conf);
            assert!(!has_flag(&link(&node, "cbr0").unwrap(), "PROMISC"));
        }
        let (pod, result) = add(&node, "a", &with(&conf, &json!({"promiscMode": true})));
        assert!(has_flag(&link(&node, "cbr0").unwrap(), "PROMISC"));
        assert_reaches(&pod, &gateways(&result));
    }
    let node = lab.node("both");
    let both = with(&conf, &json!({"promiscMode": true, "hairpinMode": true}));
    let error = weft(&node).add(&node.pod("a"), &both).error();
    assert_eq!(error.code, 7);
    assert_eq!(error.msg, "cannot set hairpin mode and promiscuous mode at the same time");
    assert_eq!(links(&node), ["lo"]);
}

/// Options of a bridge have no meaning in veth mode: each is refused by name and value, nothing is made.
#[test]
fn bridge_options_are_refused_in_veth_mode() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    for (key, value) in [
        ("hairpinMode", json!(true)),
        ("promiscMode", json!(true)),
        ("portIsolation", json!(true)),
        ("macspoofchk", json!(true)),
        ("forceAddress", json!(true)),
        ("preserveDefaultVlan", json!(true)),
        ("bridge", json!("br7")),
        ("vlan", json!(7)),
        ("vlanTrunk", json!([{"id": 9}])),
    ] {
        let conf = with(&Case::dual()[1].conf(), &json!({key: value}));
        let error = weft(&node).add(&pod, &conf).error();
        assert_eq!(error.code, 2, "{key}: {error:?}");
        assert!(error.msg.contains(key), "{error:?}");
        assert!(error.msg.contains(value.as_str().unwrap_or(&value.to_string())), "{error:?}");
    }
    assert_eq!((links(&node), links(&pod)), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
}

/// forceAddress, all combinations (the reference's ensureAddr): another IPv4 address on the bridge is refused, or
/// with force replaced; an overlapping IPv6 subnet likewise; one that does not overlap may stay in any case.
#[test]
fn another_address_on_the_bridge_is_refused_or_replaced_by_force() {
    if !require() {
        return;
    }
    struct Row {
        v4: bool,
        present: &'static str,
        conflict: bool,
    }
    let rows = [
        Row { v4: true, present: "10.244.0.1/24", conflict: false },
        Row { v4: true, present: "10.244.0.9/24", conflict: true },
        Row { v4: true, present: "10.244.0.1/16", conflict: true },
        Row { v4: true, present: "192.168.7.1/24", conflict: true },
        Row { v4: true, present: "fd00:7::1/64", conflict: false },
        Row { v4: false, present: "fd00:244::1/64", conflict: false },
        Row { v4: false, present: "fd00:244::9/64", conflict: true },
        Row { v4: false, present: "fd00:244::1/48", conflict: true },
        Row { v4: false, present: "fd00:7::1/64", conflict: false },
        Row { v4: false, present: "192.168.7.1/24", conflict: false },
    ];
    let lab = lab!();
    for (number, row) in rows.iter().enumerate() {
        for force in [false, true] {
            let case = Case { veth: false, v4: row.v4, v6: !row.v4 };
            let node = lab.node(&format!("row{number}-{force}"));
            node.run(["ip", "link", "add", "cbr0", "type", "bridge"]);
            node.run(["ip", "link", "set", "cbr0", "up"]);
            let nodad: &[&str] = if row.present.contains(':') { &["nodad"] } else { &[] };
            node.run([&["ip", "address", "add", row.present, "dev", "cbr0"], nodad].concat());
            let conf = with(&case.conf(), &json!({"forceAddress": force}));
            let wanted = if row.v4 { "10.244.0.1/24" } else { "fd00:244::1/64" };
            let pod = node.pod("a");
            let before = Residue::take(&node);
            let outcome = weft(&node).add(&pod, &conf);

            let label = format!("{} beside {wanted}, force {force}", row.present);
            if row.conflict && !force {
                let error = outcome.error();
                assert_eq!(error.code, 7, "{label}: {error:?}");
                assert_eq!(error.msg, format!("\"cbr0\" already has an IP address different from {wanted}"));
                assert!(
                    error.details.contains(row.present) && error.details.contains("forceAddress"),
                    "{error:?}"
                );
                let marker = Allow::nothing().processes().path("/var/lib/weft/");
                before.assert_same(&Residue::take(&node), &marker);
                assert_eq!(links(&pod), ["lo"]);
                continue;
            }
            let result = outcome.result();
            assert_reaches(&pod, &gateways(&result));
            let mut expected = vec![wanted.to_owned()];
            if !row.conflict && row.present != wanted {
                expected.push(row.present.to_owned());
            }
            expected.sort();
            assert_eq!(addresses_of(&node, "cbr0"), expected, "{label}");
        }
    }
}

/// Without isGateway the bridge's addresses are nobody's business of ours: none is added, none is in the way.
#[test]
fn a_bridge_that_is_no_gateway_keeps_its_addresses() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| !case.veth) {
        let node = lab.node(&case.name());
        node.run(["ip", "link", "add", "cbr0", "type", "bridge"]);
        node.run(["ip", "address", "add", "192.168.7.1/24", "dev", "cbr0"]);
        let conf = with(&case.conf(), &json!({"isDefaultGateway": false, "ipMasq": false}));
        let (pod, _) = add(&node, "a", &conf);
        let (_b, others) = add(&node, "b", &conf);
        assert_eq!(addresses_of(&node, "cbr0"), ["192.168.7.1/24"]);
        assert_eq!(default_gateways(&pod), [] as [IpAddr; 0]);
        assert_reaches(&pod, &addresses(&others));
        assert_eq!(node.sysctl("net.ipv4.ip_forward"), "0");
    }
}

/// Routes of ipam.routes are really installed, with mtu, advmss, priority, table and scope.
#[test]
fn routes_have_the_attributes_that_were_asked_for() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all() {
        let node = lab.node(&case.name());
        let mut routes = Vec::new();
        if case.v4 {
            routes.extend([
                json!({"dst": "198.51.100.0/24", "mtu": 1300, "advmss": 1200, "priority": 77}),
                json!({"dst": "203.0.113.0/24", "gw": "10.244.0.1", "table": 1234}),
            ]);
        }
        if case.v6 {
            routes.extend([
                json!({"dst": "2001:db8:51::/48", "mtu": 1300, "advmss": 1200, "priority": 77}),
                json!({"dst": "2001:db8:52::/48", "gw": "fd00:244::1", "table": 1234}),
            ]);
        }
        let mut conf = case.conf();
        conf["ipam"]["routes"] = json!(routes);
        let (pod, result) = add(&node, "a", &conf);
        for wanted in &routes {
            let dst = wanted["dst"].as_str().unwrap();
            let family = if dst.contains(':') { "-6" } else { "-4" };
            let table = wanted["table"].as_u64().unwrap_or(254).to_string();
            let found = pod.json(["ip", family, "-j", "-d", "route", "show", dst, "table", &table]);
            let found = &found[0];
            let gateway = if family == "-4" { "10.244.0.1" } else { "fd00:244::1" };
            assert_eq!(found["gateway"], gateway, "{case:?}: {dst} {found}");
            if wanted["mtu"].is_number() {
                assert_eq!(found["metric"], 77, "{found}");
                assert_eq!(found["metrics"][0]["mtu"], 1300, "{found}");
                assert_eq!(found["metrics"][0]["advmss"], 1200, "{found}");
            }
            assert!(list(&result["routes"]).iter().any(|route| route["dst"] == dst), "{result}");
        }
        weft(&node).check(&pod, &with_result(&conf, &result)).ok_empty();
    }
}

/// Veth mode: a pod's further network adds routes to itself, and no second default route unless it is asked for.
#[test]
fn a_further_network_of_a_pod_brings_no_second_default_route() {
    if !require() {
        return;
    }
    let lab = lab!();
    for case in Case::all().into_iter().filter(|case| case.veth) {
        let node = lab.node(&case.name());
        let first = with(&case.conf(), &json!({"isDefaultGateway": null}));
        let further = case.conf_of("10.245.0.0/24", "fd00:245::/64");
        let further = with(&further, &json!({"name": "further", "isDefaultGateway": null}));
        let (pod, result) = add(&node, "a", &first);
        let second = pod.with_ifname("net1");
        let results = weft(&node).add(&second, &further).result();
        assert_eq!(default_gateways(&pod), gateways(&result));
        assert!(!results["routes"].to_string().contains("/0\""), "{results}");
        assert_reaches(&pod, &gateways(&result));
        assert_reaches(&pod, &gateways(&results));
        weft(&node).check(&second, &with_result(&further, &results)).ok_empty();
    }
}
