//! Weft in a chain (A26): behind other plugins, and before the reference plugins that people chain.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::{Allow, Inside, Pod, Residue, lab, reference_bin_dir, require, weft_bin_dir};
use serde_json::{Value, json};

const MODES: [&str; 2] = ["bridge", "veth"];

/// The reference plugins' folder, or a loud skip.
fn reference() -> Option<PathBuf> {
    if !require() {
        return None;
    }
    let dir = reference_bin_dir();
    assert!(
        dir.is_some() || std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"),
        "NETNS_TESTS=require, but the reference plugins are not installed"
    );
    dir
}

fn weft_conf(mode: &str) -> Value {
    json!({
        "type": "weft", "mode": mode, "isDefaultGateway": true, "ipMasq": true,
        "capabilities": {"ips": true, "mac": true, "dns": true},
        "ipam": {"ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]}
    })
}

/// A whole configuration for one call.
fn alone(mode: &str, version: &str) -> Value {
    let mut conf = weft_conf(mode);
    conf["name"] = json!("net");
    conf["cniVersion"] = json!(version);
    conf.as_object_mut().unwrap().remove("capabilities");
    conf
}

fn ip_of(result: &Value, index: usize) -> IpAddr {
    let cidr = result["ips"][index]["address"].as_str().unwrap();
    cidr.split('/').next().unwrap().parse().unwrap()
}

/// The address that has the interface in the sandbox called `name`.
fn ip_on(result: &Value, name: &str) -> IpAddr {
    let is_mine = |ip: &Value| {
        let at = ip["interface"].as_u64().and_then(|at| usize::try_from(at).ok());
        at.is_some_and(|at| result["interfaces"][at]["name"] == name)
    };
    let at = result["ips"].as_array().unwrap().iter().position(is_mine).unwrap();
    ip_of(result, at)
}

/// A26: behind other plugins the result is theirs, unchanged and with what we do not know, and ours behind it with
/// indices that fit.
#[test]
fn behind_other_plugins_the_result_is_theirs_and_ours_behind_it() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let pod = node.pod("a");
            let plain = weft.add(&pod, &alone(mode, version)).result();
            weft.del(&pod, &alone(mode, version)).ok_empty();
            let address = |ip: &str, at: u32| {
                let mut entry = json!({"address": ip, "interface": at});
                if version < "1.0.0" {
                    entry["version"] = json!("4");
                }
                entry
            };
            let previous = json!({
                "CNIVersion": version, "vendor": {"key": [1, null]},
                "interfaces": [
                    {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.netns_path(), "vendorKey": 7},
                    {"name": "tun0", "sandbox": pod.netns_path()}
                ],
                "ips": [address("127.0.0.1/8", 0), address("10.9.9.9/24", 1)],
                "routes": [{"dst": "198.51.100.0/24", "gw": "10.9.9.1"}],
                "dns": {"nameservers": ["192.0.2.53"], "search": ["example.org"]}
            });
            let mut conf = alone(mode, version);
            conf["prevResult"] = previous.clone();
            let result = weft.add(&pod, &conf).result();

            let place = format!("{mode} {version}: {result}");
            assert_eq!(result["cniVersion"], version, "{place}");
            assert_eq!(result["vendor"], previous["vendor"], "{place}");
            assert_eq!(result["dns"], previous["dns"], "{place}");
            for key in ["interfaces", "ips", "routes"] {
                let theirs = previous[key].as_array().unwrap();
                let all = result[key].as_array().unwrap();
                assert_eq!(all[..theirs.len()], theirs[..], "{key} {place}");
                assert_eq!(all.len(), theirs.len() + plain[key].as_array().unwrap().len(), "{key} {place}");
            }
            let own_ip = &result["ips"].as_array().unwrap()[2..];
            for (own, plain) in own_ip.iter().zip(plain["ips"].as_array().unwrap()) {
                assert_eq!(
                    own["interface"].as_u64(),
                    plain["interface"].as_u64().map(|at| at + 2),
                    "{place}"
                );
                let at = usize::try_from(own["interface"].as_u64().unwrap()).unwrap();
                assert_eq!(result["interfaces"][at]["name"], "eth0", "{place}");
            }
            weft.del(&pod, &conf).ok_empty();
        }
    }
}

/// A26: a prevResult that cannot be read, and an interface that an earlier plugin of the chain has made: refused,
/// and nothing is left.
#[test]
fn behind_other_plugins_what_does_not_fit_is_refused_without_residue() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        let warm_up = node.pod("warm-up");
        weft.add(&warm_up, &alone(mode, "1.0.0")).result();
        weft.del(&warm_up, &alone(mode, "1.0.0")).ok_empty();
        let before = Residue::take(&node);
        let pod = node.pod("a");
        let wrong = [
            (6, json!("text")),
            (6, json!([])),
            (6, json!({"interfaces": {}})),
            (6, json!({"ips": [{"gateway": "10.0.0.1"}]})),
            (6, json!({"ips": [{"address": "10.0.0.300/24"}]})),
            (1, json!({"cniVersion": "9.9.9", "ips": []})),
        ];
        for (code, previous) in wrong {
            let mut conf = alone(mode, "1.0.0");
            conf["prevResult"] = previous.clone();
            let error = weft.add(&pod, &conf).error();
            assert_eq!(error.code, code, "{previous}: {error:?}");
            assert!(error.msg.starts_with("prevResult"), "{error:?}");
            // A DEL tolerates all of it.
            weft.del(&pod, &conf).ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());

        let conflist = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}, weft_conf(mode)
        ]});
        let chain = node.chain(&conflist, [weft_bin_dir(), reference.clone()]);
        let failure = chain.add(&pod).unwrap_err();
        assert_eq!(failure.plugin, "weft");
        let error = failure.outcome.error();
        assert_eq!(error.code, 101, "{error:?}");
        assert!(error.msg.contains("eth0"), "{error:?}");
        let ping = pod.ping("10.9.0.1".parse().unwrap(), 1);
        assert!(ping, "the interface of the earlier plugin is not touched");
        chain.del(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        before.assert_settles(&node, &Allow::nothing().text("/var/lib/cni/networks/net/").text("forwarding"));
    }
}

/// A26: behind the reference `loopback`, the whole life of a pod.
#[test]
fn behind_loopback_a_pod_lives_and_leaves_nothing() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let server = lab.outside(&node);
        let conflist =
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "loopback"}, weft_conf(mode)]});
        let chain = node.chain(&conflist, [weft_bin_dir(), reference.clone()]);
        let warm_up = node.pod("warm-up");
        chain.add(&warm_up).unwrap_or_else(|failure| panic!("{failure}"));
        chain.del(&warm_up).unwrap_or_else(|failure| panic!("{failure}"));
        let before = Residue::take(&node);
        let pod = node.pod("a");
        let result = chain.add(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(result["interfaces"][0]["name"], "lo", "{result}");
        chain.check(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(pod.seen_by(server.v4()).unwrap(), netns_tests::Server::NODE_V4);
        assert_eq!(pod.seen_by(server.v6()).unwrap(), netns_tests::Server::NODE_V6);
        chain.del(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A26: the plugins of upstream that people chain behind `bridge` work behind ours: the result is ours and what
/// they add, each does its work, CHECK passes, DEL in reverse leaves nothing, also with the result lost.
#[test]
fn upstreams_portmap_bandwidth_firewall_and_tuning_work_behind_weft() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let outside = lab.node(&format!("{mode}-outside"));
        lab.wire((&node, &["198.18.0.1/30"]), (&outside, &["198.18.0.2/30"]));
        for version in ["0.4.0", "1.0.0"] {
            // The reference portmap 1.1.1 fails each CHECK with ports where ip6tables is installed: it looks for
            // IPv4's rules there, too, whatever plugin it is behind. So one run has ports, the other CHECK.
            let has_ports = version == "1.0.0";
            let conflist = json!({"cniVersion": version, "name": "net", "plugins": [
                weft_conf(mode),
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
                {"type": "firewall"},
                {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.eth0.arp_ignore": "1"}},
            ]});
            let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
            let offered = json!({
                "portMappings": if has_ports { ports } else { json!([]) },
                "bandwidth": {"ingressRate": 80_000_000, "ingressBurst": 8_000_000,
                    "egressRate": 80_000_000, "egressBurst": 8_000_000},
                "ips": ["10.244.0.77/24"], "mac": "02:11:22:33:44:55"
            });
            let chain = node.chain(&conflist, [weft_bin_dir(), reference.clone()]);
            let chain = chain.with_capabilities(&offered).with_args("IgnoreUnknown=1;K8S_POD_NAME=a");
            let warm_up = node.pod("warm-up");
            chain.add(&warm_up).unwrap_or_else(|failure| panic!("{mode} {version}: {failure}"));
            chain.del(&warm_up).unwrap_or_else(|failure| panic!("{mode} {version}: {failure}"));
            let before = Residue::take(&node);

            for result_lost in [false, true] {
                let pod = node.pod("a");
                let result = chain.add(&pod).unwrap_or_else(|failure| panic!("{mode} {version}: {failure}"));
                let names = |name: &str| {
                    let all = result["interfaces"].as_array().unwrap();
                    all.iter()
                        .filter(|interface| interface["name"].as_str().unwrap().starts_with(name))
                        .count()
                };
                let ours = if mode == "bridge" { [1, 1, 1, 1] } else { [0, 1, 1, 1] };
                assert_eq!(["cbr0", "veth", "eth0", "bwp"].map(names), ours, "{result}");
                assert_eq!(ip_of(&result, 0), "10.244.0.77".parse::<IpAddr>().unwrap());
                assert!(result.to_string().contains("02:11:22:33:44:55"), "{result}");
                let link = pod.json(["ip", "-j", "link", "show", "eth0"]);
                assert_eq!(
                    (&link[0]["mtu"], &link[0]["address"]),
                    (&json!(1400), &json!("02:11:22:33:44:55"))
                );
                assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_ignore"), "1");

                if has_ports {
                    let _listener = pod.listen(80);
                    let caller = outside.seen_by("198.18.0.1:8080".parse().unwrap()).unwrap();
                    assert_eq!(caller, "198.18.0.2".parse::<IpAddr>().unwrap());
                } else {
                    chain.check(&pod).unwrap_or_else(|failure| panic!("{mode} {version}: {failure}"));
                }
                let qdiscs = node.json(["tc", "-j", "qdisc", "show"]).to_string();
                assert_eq!(qdiscs.matches("\"tbf\"").count(), 2, "{qdiscs}");
                let saved = String::from_utf8(node.run(["iptables-save"]).stdout).unwrap();
                assert!(saved.contains("-A CNI-FORWARD -d 10.244.0.77/32"), "{saved}");

                let cached = result_lost.then(|| chain.forget(&pod));
                chain.del(&pod).unwrap_or_else(|failure| panic!("{mode} {version}: {failure}"));
                // Without prevResult the reference firewall and tuning do nothing (cni.md 2.7): theirs, not ours.
                let allow = if cached.is_some() {
                    Allow::nothing().text("CNI-FORWARD").text("conntrack")
                } else {
                    Allow::nothing()
                };
                before.assert_settles(&node, &allow);
            }
        }
    }
}

/// A26: a later plugin fails ADD; the runtime's DEL of the chain leaves nothing, and the address is free again.
#[test]
fn when_a_later_plugin_fails_del_of_the_chain_leaves_nothing() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let plugins =
            |last: Value| json!({"cniVersion": "1.0.0", "name": "net", "plugins": [weft_conf(mode), last]});
        let dirs = [weft_bin_dir(), reference.clone()];
        let fine = node.chain(&plugins(json!({"type": "tuning"})), dirs.clone());
        let warm_up = node.pod("warm-up");
        fine.add(&warm_up).unwrap();
        fine.del(&warm_up).unwrap();
        let before = Residue::take(&node);
        let failing =
            node.chain(&plugins(json!({"type": "tuning", "sysctl": {"net.no_such": "1"}})), dirs.clone());
        let pod = node.pod("a");
        assert_eq!(failing.add(&pod).unwrap_err().plugin, "tuning");
        failing.del(&pod).unwrap_or_else(|failure| panic!("{failure}"));
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// Sends `bytes` into the pod and waits until it has them all.
fn time_to_receive(pod: &Pod, sender: &impl Inside, ip: IpAddr, bytes: usize) -> Duration {
    let listener = pod.enter(|| TcpListener::bind((ip, 9000))).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(b"got it").unwrap();
        all.len()
    });
    let mut stream = sender.enter(|| TcpStream::connect(SocketAddr::new(ip, 9000))).unwrap();
    let started = Instant::now();
    stream.write_all(&vec![7; bytes]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(receiver.join().unwrap(), bytes);
    started.elapsed()
}

/// A26, upstream's integration/: `ptp` alone, `ptp` with `bandwidth` (its conflist spells `bandWidth`), and two
/// networks on one bridge of which one is shaped: it is at least a second slower.
#[test]
fn upstreams_integration_conflists_pass() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let dirs = [weft_bin_dir(), reference];
    let ptp = json!({"type": "weft", "mode": "veth", "ipMasq": true, "mtu": 512,
        "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}});
    let shaper = json!({"type": "bandwidth", "runtimeConfig": {"bandWidth": {"ingressRate": 800_000,
        "ingressBurst": 80_000, "egressRate": 800_000, "egressBurst": 80_000}}});
    let bridge = |first: &str| {
        json!({"type": "weft", "bridge": "bridge0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "subnet": "10.11.2.0/24", "rangeStart": first}})
    };
    let chain = |name: &str, plugins: Value| {
        node.chain(&json!({"cniVersion": "0.3.1", "name": name, "plugins": plugins}), dirs.clone())
    };
    for (name, plugins) in [("testptp", json!([ptp])), ("chained-ptp-bandwidth", json!([ptp, shaper]))] {
        let chain = chain(name, plugins);
        let pod = node.pod("a");
        let result = chain.add(&pod).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(node.ping(ip_of(&result, 0), 1), "{name}");
        let link = pod.json(["ip", "-j", "link", "show", "eth0"]);
        assert_eq!(link[0]["mtu"], 512);
        chain.del(&pod).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert!(!node.ping(ip_of(&result, 0), 1), "{name}");
    }

    let open = chain("network-chain-1", json!([bridge("10.11.2.2")]));
    let shaped = chain("network-chain-2", json!([bridge("10.11.2.100"), shaper]));
    let pods = [node.pod("open"), node.pod("shaped")];
    let [open_result, shaped_result] = [open.add(&pods[0]), shaped.add(&pods[1])]
        .map(|result| result.unwrap_or_else(|failure| panic!("{failure}")));
    let bridges = [&open_result, &shaped_result].map(|result| result["interfaces"][0]["name"].clone());
    assert_eq!(bridges, ["bridge0", "bridge0"]);
    // 80 kbit of burst, then 1.5 Mbit at 0.8 Mbit/s.
    let fast = time_to_receive(&pods[0], &node, ip_on(&open_result, "eth0"), 200_000);
    let slow = time_to_receive(&pods[1], &node, ip_on(&shaped_result, "eth0"), 200_000);
    assert!(slow > fast + Duration::from_secs(1), "{slow:?} against {fast:?}");
    open.del(&pods[0]).unwrap_or_else(|failure| panic!("{failure}"));
    shaped.del(&pods[1]).unwrap_or_else(|failure| panic!("{failure}"));
}
