//! The test scenarios of the reference `bridge`, `ptp` and `host-local` plugins (cni.md §3), as far as they concern
//! options that Weft takes. CONTRIBUTING.md has the table of which is which.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::net::IpAddr;

use netns_tests::weft_bin_dir;
use netns_tests::{Allow, Cni, CniError, Inside, Node, Pod, Residue, Server, lab, require, wait_until};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const V4: &str = "10.1.2.0/24";
const V6: &str = "fd01:2::/64";

fn ranges(subnets: &[&str]) -> Value {
    subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect()
}

/// The `ptp` or `bridge` of the reference's tests.
fn conf(version: &str, mode: &str, subnets: &[&str]) -> Value {
    json!({"cniVersion": version, "name": "testConfig", "type": "weft", "mode": mode,
        "ipam": {"type": "weft-ipam", "ranges": ranges(subnets)}})
}

fn bridge(subnets: &[&str]) -> Value {
    let mut conf = conf("1.1.0", "bridge", subnets);
    conf["bridge"] = json!("bridge0");
    conf["isDefaultGateway"] = json!(true);
    conf
}

fn with(conf: &Value, key: &str, value: Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value;
    conf
}

/// `conf` with everything of `changes` laid over it.
fn changed(conf: &Value, changes: &Value) -> Value {
    let mut conf = conf.clone();
    conf.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    conf
}

/// Addresses of a result in any version's shape, with their prefix lengths.
fn addresses(result: &Value) -> Vec<String> {
    let listed = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]);
    let old = ["ip4", "ip6"].into_iter().map(|key| &result[key]["ip"]);
    listed.chain(old).filter_map(|cidr| Some(cidr.as_str()?.to_owned())).collect()
}

fn ips(result: &Value) -> Vec<IpAddr> {
    addresses(result).iter().map(|cidr| cidr.split('/').next().unwrap().parse().unwrap()).collect()
}

fn gateway_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !0xff | 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !0xffff | 1).into()),
    }
}

fn link(place: &impl Inside, name: &str) -> Option<Value> {
    let output = place.try_run(["ip", "-j", "-d", "link", "show", name]);
    let links: Value = serde_json::from_slice(&output.stdout).ok()?;
    links.get(0).cloned()
}

fn mac(place: &impl Inside, name: &str) -> String {
    link(place, name).unwrap()["address"].as_str().unwrap().to_owned()
}

fn links(node: &Node) -> Vec<String> {
    let links = node.json(["ip", "-j", "link"]);
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// Global addresses of a link, as `ip/prefix`.
fn addresses_on(place: &impl Inside, name: &str) -> Vec<String> {
    let shown = place.json(["ip", "-j", "address", "show", "dev", name, "scope", "global"]);
    let infos = shown[0]["addr_info"].as_array().cloned().unwrap_or_default();
    // For each address that the filter left out, `ip` prints an empty object.
    infos
        .iter()
        .filter_map(|info| Some(format!("{}/{}", info["local"].as_str()?, info["prefixlen"])))
        .collect()
}

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

fn reserved(node: &Node) -> usize {
    let out = node.run(["sh", "-c", "ls -d /run/weft/*/pool/*/* 2>/dev/null | wc -l"]).stdout;
    String::from_utf8(out).unwrap().trim().parse().unwrap()
}

/// Whether this kernel's bridges can sort frames by VLAN.
fn has_vlans(lab: &netns_tests::Lab) -> bool {
    let probe = lab.node("vlan-probe");
    probe.try_run(["ip", "link", "add", "b", "type", "bridge", "vlan_filtering", "1"]).status.success()
}

// ---- bridge

/// bridge 1, 5: `vlan` and `vlanTrunk` are parsed, and refused in the reference's words. Where the kernel has no
/// VLAN filtering an ADD fails without residue; the frames themselves are not run here.
#[test]
fn vlans_are_parsed_and_bad_ones_refused_in_the_references_words() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    let status = |key: &str, value: &Value| weft.status(&with(&bridge(&[V4]), key, value.clone()));
    let good = [
        ("vlan", json!(0)),
        ("vlan", json!(100)),
        ("vlan", json!(4094)),
        ("vlan", Value::Null),
        ("vlanTrunk", json!([])),
        ("vlanTrunk", json!([{"id": 101}])),
        ("vlanTrunk", json!([{"minID": 101, "maxID": 101}])),
        ("vlanTrunk", json!([{"minID": 101, "maxID": 110}, {"id": 200}, {"id": 4094}])),
        ("vlanTrunk", json!([{"id": 1}, {"minID": 1, "maxID": 4094, "id": 7}])),
        ("preserveDefaultVlan", json!(true)),
    ];
    for (key, value) in &good {
        status(key, value).ok_empty();
    }
    let both = "minID and maxID should be configured simultaneously";
    let bad = [
        ("vlan", json!(4095), "invalid VLAN ID 4095 (must be between 0 and 4094)".to_owned()),
        ("vlan", json!(-1), "invalid VLAN ID -1 (must be between 0 and 4094)".to_owned()),
        ("vlan", json!(70000), "invalid VLAN ID 70000 (must be between 0 and 4094)".to_owned()),
        ("vlanTrunk", json!([{"minID": 0, "maxID": 100}]), "incorrect trunk minID parameter".to_owned()),
        ("vlanTrunk", json!([{"minID": 4095, "maxID": 4095}]), "incorrect trunk minID parameter".to_owned()),
        ("vlanTrunk", json!([{"minID": 10, "maxID": 4095}]), "incorrect trunk maxID parameter".to_owned()),
        ("vlanTrunk", json!([{"minID": 10, "maxID": 0}]), "incorrect trunk maxID parameter".to_owned()),
        ("vlanTrunk", json!([{"id": 0}]), "incorrect trunk id parameter".to_owned()),
        ("vlanTrunk", json!([{"id": 4095}]), "incorrect trunk id parameter".to_owned()),
        (
            "vlanTrunk",
            json!([{"minID": 110, "maxID": 101}]),
            "minID is greater than maxID in trunk parameter".to_owned(),
        ),
        ("vlanTrunk", json!([{"minID": 10}]), format!("{both}, maxID is missing")),
        ("vlanTrunk", json!([{"id": 5}, {"maxID": 10}]), format!("{both}, minID is missing")),
    ];
    for (key, value, msg) in &bad {
        let error = status(key, value).error();
        assert_eq!((error.code, &error.msg), (7, msg), "{key} {value}");
        let pod = node.pod("bad");
        let error = weft.add(&pod, &with(&bridge(&[V4]), key, value.clone())).error();
        assert_eq!((error.code, &error.msg), (7, msg), "{key} {value}");
    }
    assert_eq!(links(&node), ["lo"], "nothing was made");

    if has_vlans(&lab) {
        return;
    }
    for (key, value) in
        [("vlan", json!(100)), ("vlanTrunk", json!([{"id": 101}, {"minID": 200, "maxID": 210}]))]
    {
        let before = Residue::take(&node);
        let error = weft.add(&node.pod("a"), &with(&bridge(&[V4]), key, value)).error();
        assert_eq!(error.code, 102, "{error:?}");
        assert!(error.msg.contains("bridge0"), "{error:?}");
        before.assert_settles(&node, &Allow::nothing().link("bridge0").path("/var/lib/weft/"));
        assert_eq!(reserved(&node), 0);
    }
}

/// bridge 2: the bridge is made once and keeps its index; one that is there already is adopted, with what it has;
/// a device of another kind is refused and not touched.
#[test]
fn the_bridge_is_made_once_and_a_plain_one_is_adopted() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    weft.add(&node.pod("a"), &bridge(&[V4])).result();
    let first = link(&node, "bridge0").unwrap();
    weft.add(&node.pod("b"), &bridge(&[V4])).result();
    let second = link(&node, "bridge0").unwrap();
    for key in ["ifindex", "address", "mtu"] {
        assert_eq!(first[key], second[key], "{key}");
    }

    let other = lab.node("n2");
    other.run(["ip", "link", "add", "bridge0", "address", "02:00:00:00:00:77", "type", "bridge"]);
    let plain = link(&other, "bridge0").unwrap();
    let result = self::weft(&other).add(&other.pod("a"), &bridge(&[V4])).result();
    let adopted = link(&other, "bridge0").unwrap();
    assert_eq!((&plain["ifindex"], &adopted["address"]), (&adopted["ifindex"], &json!("02:00:00:00:00:77")));
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:77");
    assert_eq!(adopted["operstate"], "UP");

    let third = lab.node("n3");
    third.run(["ip", "link", "add", "bridge0", "type", "veth", "peer", "name", "other0"]);
    let before = Residue::take(&third);
    let error = self::weft(&third).add(&third.pod("a"), &bridge(&[V4])).error();
    assert_eq!((error.code, error.msg.as_str()), (7, "bridge0 already exists but is not a bridge"));
    assert!(error.details.contains("veth"), "{error:?}");
    before.assert_settles(&third, &Allow::nothing().path("/var/lib/weft/"));
}

/// bridge 3, 13, 17: STATUS, ADD, CHECK and DEL in every version × {IPv4, IPv6, dual, three subnets}, DNS from
/// resolvConf; what is in the result is in the kernel, and after DEL is not.
#[test]
fn add_check_and_del_in_every_version_and_family() {
    if !require() {
        return;
    }
    let lab = lab!();
    let cases: [&[&str]; 4] = [&[V4], &[V6], &[V4, V6], &[V4, V6, "192.168.0.0/24"]];
    for (at, subnets) in cases.iter().enumerate() {
        let node = lab.node(&format!("n{at}"));
        let weft = weft(&node);
        fs::write(node.path("/run/containerd/resolv.conf"), "nameserver 192.0.2.3\n").unwrap();
        for version in VERSIONS {
            let mut conf = with(&bridge(subnets), "cniVersion", json!(version));
            conf["ipam"]["resolvConf"] = json!("/run/containerd/resolv.conf");
            let pod = node.pod("a");
            if version == "1.1.0" {
                weft.status(&conf).ok_empty();
            }
            if version <= "0.2.0" && subnets.len() == 3 {
                let error = weft.add(&pod, &conf).error();
                let msg = format!("CNI version {version} does not support more than 1 address per family");
                assert_eq!((error.code, error.msg), (7, msg));
                assert_eq!(reserved(&node), 0);
                continue;
            }
            let result = weft.add(&pod, &conf).result();
            let place = format!("{version} {subnets:?}: {result}");
            assert_eq!(result["cniVersion"], version, "{place}");
            assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.3"]}), "{place}");
            assert_eq!(ips(&result).len(), subnets.len(), "{place}");
            if version > "0.2.0" {
                assert_interfaces(&node, &pod, &result);
            }
            let mut on_bridge = addresses_on(&node, "bridge0");
            let mut gateways: Vec<String> = addresses(&result)
                .iter()
                .map(|cidr| {
                    let (ip, length) = cidr.split_once('/').unwrap();
                    format!("{}/{length}", gateway_of(ip.parse().unwrap()))
                })
                .collect();
            on_bridge.sort();
            gateways.sort();
            assert_eq!(on_bridge, gateways, "{place}");
            let mut inside = addresses_on(&pod, "eth0");
            let mut given = addresses(&result);
            inside.sort();
            given.sort();
            assert_eq!(inside, given, "{place}");
            let first = |v4: bool| ips(&result).into_iter().find(|ip| ip.is_ipv4() == v4);
            for ip in [first(true), first(false)].into_iter().flatten() {
                let family = if ip.is_ipv4() { "-4" } else { "-6" };
                let default = pod.json(["ip", "-j", family, "route", "show", "default"]);
                assert_eq!(default[0]["gateway"], gateway_of(ip).to_string(), "{place}");
                assert!(pod.ping(gateway_of(ip), 1) && node.ping(ip, 1), "{place}");
            }
            if version >= "0.4.0" {
                weft.check(&pod, &with(&conf, "prevResult", result.clone())).ok_empty();
            }
            weft.del(&pod, &conf).ok_empty();
            assert_eq!(link(&pod, "eth0"), None, "{place}");
            assert_eq!(links(&node), ["lo", "bridge0"], "{place}");
            assert_eq!(reserved(&node), 0);
        }
    }
}

/// Bridge, host end, pod end: names, MACs, sandboxes, and that each `ips` points to the pod end.
fn assert_interfaces(node: &Node, pod: &Pod, result: &Value) {
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 3, "{result}");
    let name = |at: usize| interfaces[at]["name"].as_str().unwrap();
    assert_eq!((name(0), name(2)), ("bridge0", "eth0"), "{result}");
    assert!(name(1).starts_with("veth"), "{result}");
    for (at, interface) in interfaces.iter().enumerate() {
        let known = interface["mac"].as_str().unwrap();
        assert_eq!(known.len(), 17, "{result}");
        let real = if at == 2 { mac(pod, name(at)) } else { mac(node, name(at)) };
        assert_eq!(known, real, "{result}");
        let sandbox = interface["sandbox"].as_str().unwrap_or_default();
        assert_eq!(sandbox, if at == 2 { pod.netns_path().to_str().unwrap() } else { "" }, "{result}");
    }
    assert_eq!(link(node, name(1)).unwrap()["master"], "bridge0");
    assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 2), "{result}");
}

/// bridge 4: a network without addresses: `ipam` empty, or of an empty type. The VLANs of that scenario are not run
/// here.
#[test]
fn a_network_without_ipam_is_a_link_without_addresses() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    for version in VERSIONS {
        for ipam in [json!({}), json!({"type": ""}), json!({"type": null})] {
            let conf = json!({"cniVersion": version, "name": "l2", "type": "weft", "bridge": "bridge0", "ipam": ipam});
            let pod = node.pod("a");
            let outcome = weft.add(&pod, &conf);
            if version <= "0.2.0" {
                let error = outcome.error();
                assert!(error.msg.contains("cannot convert: no valid IP addresses"), "{error:?}");
                assert_eq!(link(&pod, "eth0"), None);
                continue;
            }
            let result = outcome.result();
            assert_interfaces(&node, &pod, &with(&result, "ips", json!([])));
            assert!(ips(&result).is_empty(), "{result}");
            assert_eq!(link(&pod, "eth0").unwrap()["operstate"], "UP");
            assert_eq!(addresses_on(&pod, "eth0"), [""; 0]);
            if version >= "0.4.0" {
                weft.check(&pod, &with(&conf, "prevResult", result)).ok_empty();
            }
            weft.del(&pod, &conf).ok_empty();
            assert_eq!(link(&pod, "eth0"), None);
        }
    }
}

/// bridge 6, ptp: DEL of what was never added, and DEL twice, in every version.
#[test]
fn del_of_the_never_added_and_del_twice_succeed() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let weft = weft(&node);
        for version in VERSIONS {
            let conf = conf(version, mode, &[V4, V6]);
            let pod = node.pod("a");
            weft.del(&pod, &conf).ok_empty();
            weft.add(&pod, &conf).result();
            weft.del(&pod, &conf).ok_empty();
            weft.del(&pod, &conf).ok_empty();
            assert_eq!(reserved(&node), 0);
        }
    }
}

/// bridge 7: another address on the bridge: IPv4 is in the way, IPv6 only if the subnets overlap; `forceAddress`
/// replaces it, and only it.
#[test]
fn another_address_on_the_bridge_is_in_the_way_unless_forced() {
    if !require() {
        return;
    }
    let lab = lab!();
    let cases = [
        (V4, "10.9.0.1/24", false, Err("\"bridge0\" already has an IP address different from 10.1.2.1/24")),
        (V4, "10.9.0.1/24", true, Ok(vec!["10.1.2.1/24"])),
        (V4, "10.1.2.7/24", false, Err("\"bridge0\" already has an IP address different from 10.1.2.1/24")),
        (V4, "10.1.2.1/24", false, Ok(vec!["10.1.2.1/24"])),
        (V4, "10.1.2.1/16", true, Ok(vec!["10.1.2.1/24"])),
        (
            V6,
            "fd01:2::77/64",
            false,
            Err("\"bridge0\" already has an IP address different from fd01:2::1/64"),
        ),
        (V6, "fd01:2::77/64", true, Ok(vec!["fd01:2::1/64"])),
        (V6, "fd09::1/64", false, Ok(vec!["fd01:2::1/64", "fd09::1/64"])),
        (V6, "fd09::1/64", true, Ok(vec!["fd01:2::1/64", "fd09::1/64"])),
        (V6, "10.9.0.1/24", false, Ok(vec!["10.9.0.1/24", "fd01:2::1/64"])),
        (V4, "fd01:2::77/64", true, Ok(vec!["10.1.2.1/24", "fd01:2::77/64"])),
    ];
    for (at, (subnet, present, force, wanted)) in cases.into_iter().enumerate() {
        let node = lab.node(&format!("n{at}"));
        node.run(["ip", "link", "add", "bridge0", "type", "bridge"]);
        node.run(["ip", "address", "add", present, "dev", "bridge0"]);
        let conf = with(&bridge(&[subnet]), "forceAddress", json!(force));
        let outcome = weft(&node).add(&node.pod("a"), &conf);
        let place = format!("{subnet} beside {present}, force {force}: {outcome}");
        match wanted {
            Err(msg) => {
                let error = outcome.error();
                assert_eq!((error.code, error.msg.as_str()), (7, msg), "{place}");
                assert!(error.details.contains(present) && error.details.contains("forceAddress"), "{place}");
                assert_eq!(addresses_on(&node, "bridge0"), [present], "{place}");
                assert_eq!(reserved(&node), 0, "{place}");
            }
            Ok(wanted) => {
                outcome.result();
                let mut on_bridge = addresses_on(&node, "bridge0");
                on_bridge.sort();
                assert_eq!(on_bridge, wanted, "{place}");
            }
        }
    }
}

/// bridge 8, 16, 18: promiscuous mode is the bridge's, hairpin and isolation the port's; both of the first are
/// refused. Isolated pods reach the gateway and not each other.
#[test]
fn promiscuous_hairpin_and_isolation_are_set_and_do_what_they_say() {
    if !require() {
        return;
    }
    let lab = lab!();
    let cases = [
        (json!({}), [false, false, false]),
        (json!({"promiscMode": true}), [true, false, false]),
        (json!({"hairpinMode": true}), [false, true, false]),
        (json!({"portIsolation": true}), [false, false, true]),
        (json!({"promiscMode": false, "hairpinMode": true, "portIsolation": true}), [false, true, true]),
    ];
    for (at, (options, wanted)) in cases.iter().enumerate() {
        let node = lab.node(&format!("n{at}"));
        let weft = weft(&node);
        let conf = changed(&bridge(&[V4]), options);
        let (a, b) = (node.pod("a"), node.pod("b"));
        let result = weft.add(&a, &conf).result();
        let other = weft.add(&b, &conf).result();
        let port = link(&node, result["interfaces"][1]["name"].as_str().unwrap()).unwrap();
        let flags = port["linkinfo"]["info_slave_data"].clone();
        let promiscuous =
            link(&node, "bridge0").unwrap()["flags"].as_array().unwrap().contains(&json!("PROMISC"));
        let found = [json!(promiscuous), flags["hairpin"].clone(), flags["isolated"].clone()];
        assert_eq!(found, wanted.map(|flag| json!(flag)), "{options}");
        assert!(a.ping("10.1.2.1".parse().unwrap(), 1), "{options}");
        assert_eq!(a.ping(ips(&other)[0], 1), !wanted[2], "{options}");
        weft.check(&a, &with(&conf, "prevResult", result)).ok_empty();
    }
    let node = lab.node("both");
    let both = changed(&bridge(&[V4]), &json!({"promiscMode": true, "hairpinMode": true}));
    let error = weft(&node).add(&node.pod("a"), &both).error();
    let msg = "cannot set hairpin mode and promiscuous mode at the same time";
    assert_eq!((error.code, error.msg.as_str()), (7, msg));
    assert_eq!(links(&node), ["lo"]);
}

/// bridge 9: the bridge's MAC stays the same while ports come and go, on our own bridge and on one that others
/// made, and is no port's.
#[test]
fn the_bridges_mac_is_stable_over_port_churn() {
    if !require() {
        return;
    }
    let lab = lab!();
    for (name, subnet, plain) in
        [("v4", V4, false), ("v6", V6, false), ("v4-plain", V4, true), ("v6-plain", V6, true)]
    {
        let node = lab.node(name);
        if plain {
            node.run(["ip", "link", "add", "bridge0", "type", "bridge"]);
        }
        let weft = weft(&node);
        let pods: Vec<Pod> = (0..4).map(|nth| node.pod(&format!("p{nth}"))).collect();
        let first = weft.add(&pods[0], &bridge(&[subnet])).result();
        let wanted = mac(&node, "bridge0");
        assert_eq!(first["interfaces"][0]["mac"], wanted);
        let stays = |what: &str| assert_eq!(mac(&node, "bridge0"), wanted, "{name}: {what}");
        for pod in &pods[1..] {
            let result = weft.add(pod, &bridge(&[subnet])).result();
            stays("after an ADD");
            assert_ne!(result["interfaces"][1]["mac"], wanted);
            // Lower than any: a bridge that follows its lowest port follows this one.
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            node.run(["ip", "link", "set", host, "address", "02:00:00:00:00:01"]);
            stays("after a port's MAC changed");
        }
        for pod in &pods {
            weft.del(pod, &bridge(&[subnet])).ok_empty();
            stays("after a DEL");
        }
    }
}

/// bridge 10: the pod's MAC from CNI_ARGS, args.cni and runtimeConfig; the later wins; one that is none is refused
/// by value.
#[test]
fn the_pods_mac_can_be_asked_for_in_three_places() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (from_env, from_args, from_runtime) = ("c2:11:22:33:44:55", "c2:11:22:33:44:66", "c2:11:22:33:44:77");
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let weft = weft(&node);
        for sources in 0..8_u8 {
            let mut conf = conf("1.0.0", mode, &[V4]);
            let mut wanted = None;
            let pod = node.pod("a");
            let mut call = weft.call("ADD").pod(&pod);
            if sources & 1 != 0 {
                call = call.env("CNI_ARGS", format!("IgnoreUnknown=1;MAC={from_env}"));
                wanted = Some(from_env);
            }
            if sources & 2 != 0 {
                conf["args"] = json!({"cni": {"mac": from_args}});
                wanted = Some(from_args);
            }
            if sources & 4 != 0 {
                conf["runtimeConfig"] = json!({"mac": from_runtime});
                wanted = Some(from_runtime);
            }
            let result = call.conf(&conf).run().result();
            let at = if mode == "bridge" { 2 } else { 1 };
            let real = mac(&pod, "eth0");
            assert_eq!(result["interfaces"][at]["mac"], real);
            assert!(wanted.is_none_or(|wanted| wanted == real), "{mode} {sources}: {real}");
            weft.del(&pod, &conf).ok_empty();
        }
        for bad in ["c2:11", "x", "01:00:5e:00:00:01:02"] {
            let bad_conf = with(&conf("1.0.0", mode, &[V4]), "runtimeConfig", json!({"mac": bad}));
            let error = weft.add(&node.pod("a"), &bad_conf).error();
            assert!(error.code == 7 && error.msg.contains("mac") && error.msg.contains(bad), "{error:?}");
        }
        assert_eq!(reserved(&node), 0);
    }
}

/// bridge 11: an address is given back when a later step of ADD fails.
#[test]
fn the_address_is_given_back_when_a_step_after_ipam_fails() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let weft = weft(&node);
        let warm_up = node.pod("warm-up");
        weft.add(&warm_up, &conf("1.1.0", mode, &[V4, V6])).result();
        weft.del(&warm_up, &conf("1.1.0", mode, &[V4, V6])).ok_empty();
        let before = Residue::take(&node);
        let mut broken = conf("1.1.0", mode, &[V4, V6]);
        broken["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "10.1.2.1", "scope": 254}]);
        let error = weft.add(&node.pod("a"), &broken).error();
        assert_eq!(error.code, 102, "{error:?}");
        assert!(error.msg.contains("198.51.100.0/24 via 10.1.2.1"), "{error:?}");
        assert_eq!(reserved(&node), 0);
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// bridge 12, ptp: masquerading by default backend and by nftables; the backend that we do not have is refused by
/// name. The rules are one interval per range, not per pod (design §3), so DEL leaves them as they are.
#[test]
fn masquerading_is_one_interval_for_all_pods_of_a_range() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        for (name, options) in [
            ("default", json!({"ipMasq": true})),
            ("empty", json!({"ipMasq": true, "ipMasqBackend": ""})),
            ("nftables", json!({"ipMasq": true, "ipMasqBackend": "nftables"})),
        ] {
            let node = lab.node(&format!("{mode}-{name}"));
            let server = lab.outside(&node);
            let weft = weft(&node);
            let conf =
                changed(&with(&conf("1.1.0", mode, &[V4, V6]), "isDefaultGateway", json!(true)), &options);
            let (a, b) = (node.pod("a"), node.pod("b"));
            weft.add(&a, &conf).result();
            let with_one = rules(&node);
            let second = weft.add(&b, &conf).result();
            assert_eq!(rules(&node), with_one, "{mode} {name}");
            assert_eq!(a.seen_by(server.v4()).unwrap(), Server::NODE_V4, "{mode} {name}");
            assert_eq!(a.seen_by(server.v6()).unwrap(), Server::NODE_V6, "{mode} {name}");
            // Inside the network the source stays.
            let listener = b.listen(80);
            let seen = a.seen_by((ips(&second)[0], listener.port()).into()).unwrap();
            assert_ne!(seen, gateway_of(ips(&second)[0]));
            assert_eq!(seen.to_string(), "10.1.2.2", "{mode} {name}");
            drop(listener);
            weft.del(&a, &conf).ok_empty();
            weft.del(&b, &conf).ok_empty();
            assert_eq!(rules(&node), with_one, "{mode} {name}");
        }
        let node = lab.node(&format!("{mode}-none"));
        let weft = weft(&node);
        weft.add(&node.pod("a"), &conf("1.1.0", mode, &[V4, V6])).result();
        assert_eq!(rules(&node), "", "no rule without ipMasq");
        for backend in ["iptables", "pf"] {
            let conf =
                changed(&conf("1.1.0", mode, &[V4]), &json!({"ipMasq": true, "ipMasqBackend": backend}));
            let error = weft.add(&node.pod("b"), &conf).error();
            assert_eq!(error.code, 2, "{error:?}");
            assert!(error.msg.contains(&format!("ipMasqBackend: {backend}")), "{error:?}");
        }
    }
}

fn rules(node: &Node) -> String {
    String::from_utf8(node.run(["nft", "list", "ruleset"]).stdout).unwrap()
}

/// bridge 14: with `macspoofchk` a pod sends from its own MAC only; the rules go with the pod.
#[test]
fn macspoofchk_drops_foreign_macs_and_goes_with_the_pod() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    let conf = with(&bridge(&[V4]), "macspoofchk", json!(true));
    let warm_up = node.pod("warm-up");
    weft.add(&warm_up, &conf).result();
    weft.del(&warm_up, &conf).ok_empty();
    let before = Residue::take(&node);
    let pod = node.pod("a");
    let result = weft.add(&pod, &conf).result();
    let gateway = gateway_of(ips(&result)[0]);
    let own = mac(&pod, "eth0");
    assert!(pod.ping(gateway, 2));
    assert!(
        rules(&node).contains(result["interfaces"][1]["name"].as_str().unwrap())
            || rules(&node).contains(&own)
    );
    pod.run(["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    assert!(!pod.ping(gateway, 2), "a frame with a foreign MAC passed");
    pod.run(["ip", "link", "set", "eth0", "address", &own]);
    wait_until("its own MAC passes", std::time::Duration::from_secs(5), || pod.ping(gateway, 1));
    weft.del(&pod, &conf).ok_empty();
    before.assert_settles(&node, &Allow::nothing());

    let unguarded = node.pod("b");
    weft.add(&unguarded, &bridge(&[V4])).result();
    unguarded.run(["ip", "link", "set", "eth0", "address", "02:00:00:00:00:98"]);
    unguarded.run(["ip", "neigh", "flush", "all"]);
    wait_until("without the option any MAC passes", std::time::Duration::from_secs(5), || {
        unguarded.ping(gateway, 1)
    });
}

/// bridge 15: `disableContainerInterface` leaves the pod end down, and goes without IPAM only.
#[test]
fn a_disabled_container_interface_stays_down_and_takes_no_ipam() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let weft = weft(&node);
        let with_ipam = with(&conf("1.0.0", mode, &[V4]), "disableContainerInterface", json!(true));
        let error = weft.add(&node.pod("a"), &with_ipam).error();
        let msg = "cannot use IPAM when DisableContainerInterface flag is set";
        assert_eq!((error.code, error.msg.as_str()), (7, msg));
        assert_eq!(links(&node), ["lo"]);

        let without = with(&with_ipam, "ipam", json!({}));
        let pod = node.pod("b");
        let result = weft.add(&pod, &without).result();
        let flags = link(&pod, "eth0").unwrap()["flags"].clone();
        assert!(!flags.as_array().unwrap().contains(&json!("UP")), "{flags}");
        weft.check(&pod, &with(&without, "prevResult", result)).ok_empty();
        weft.del(&pod, &without).ok_empty();
    }
}

/// bridge, feature table: `mtu` is for both ends and for a bridge that is made; `enabledad` for IPv6 addresses.
#[test]
fn mtu_and_enabledad_reach_the_kernel() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        for (mtu, dad) in [(1400, false), (9000, true)] {
            let node = lab.node(&format!("{mode}{mtu}"));
            let weft = weft(&node);
            let conf = changed(&conf("1.1.0", mode, &[V4, V6]), &json!({"mtu": mtu, "enabledad": dad}));
            let pod = node.pod("a");
            let result = weft.add(&pod, &conf).result();
            for interface in result["interfaces"].as_array().unwrap() {
                let name = interface["name"].as_str().unwrap();
                let real = if name == "eth0" { link(&pod, name) } else { link(&node, name) };
                assert_eq!(interface["mtu"], mtu, "{result}");
                assert_eq!(real.unwrap()["mtu"], mtu, "{name}");
            }
            let shown =
                pod.json(["ip", "-j", "-6", "address", "show", "dev", "eth0", "tentative"]).to_string();
            assert!(!shown.contains("fd01:2::"), "{shown}");
            let accept_dad = pod.sysctl("net/ipv6/conf/eth0/accept_dad");
            assert_eq!(accept_dad, if dad { "1" } else { "0" });
        }
    }
    let node = lab.node("bad");
    for mtu in [-1, 67, 65536] {
        let error = weft(&node).add(&node.pod("a"), &with(&bridge(&[V4]), "mtu", json!(mtu))).error();
        assert!((error.code == 7 || error.code == 6) && error.msg.contains("mtu"), "{error:?}");
    }
}

/// bridge in veth mode: what needs a bridge is refused by name, never ignored.
#[test]
fn veth_mode_refuses_what_needs_a_bridge_by_name_and_value() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    for (key, value) in [
        ("hairpinMode", json!(true)),
        ("promiscMode", json!(true)),
        ("macspoofchk", json!(true)),
        ("portIsolation", json!(true)),
        ("forceAddress", json!(true)),
        ("preserveDefaultVlan", json!(true)),
        ("bridge", json!("br7")),
        ("vlan", json!(7)),
        ("vlanTrunk", json!([{"id": 7}])),
    ] {
        let error =
            weft(&node).add(&node.pod("a"), &with(&conf("1.0.0", "veth", &[V4]), key, value.clone())).error();
        assert_eq!(error.code, 2, "{key}: {error:?}");
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert!(error.msg.contains(key) && error.msg.contains(&shown), "{error:?}");
    }
    for (key, value) in
        [("hairpinMode", json!(false)), ("bridge", json!("")), ("vlan", json!(0)), ("vlan", Value::Null)]
    {
        let conf = with(&conf("1.1.0", "veth", &[V4]), key, value);
        weft(&node).status(&conf).ok_empty();
    }
}

// ---- ptp

/// ptp: ADD, CHECK, STATUS and DEL, plain, masqueraded, and dual stack with routes, in every version.
#[test]
fn veth_mode_lives_as_ptp_does_in_every_version() {
    if !require() {
        return;
    }
    let lab = lab!();
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16"}, {"dst": "fd99::/48"}]);
    let cases: [(&str, Value, &[&str]); 4] = [
        ("plain", json!({}), &[V4]),
        ("masq", json!({"ipMasq": true, "mtu": 5000}), &[V4]),
        ("nftables", json!({"ipMasq": true, "ipMasqBackend": "nftables"}), &[V4, V6]),
        (
            "routes",
            json!({"ipam": {"type": "weft-ipam", "ranges": ranges(&[V4, V6]), "routes": routes}}),
            &[V4, V6],
        ),
    ];
    for (name, options, subnets) in &cases {
        let node = lab.node(name);
        let weft = weft(&node);
        for version in VERSIONS {
            let conf = changed(&conf(version, "veth", subnets), options);
            let pod = node.pod("a");
            if version == "1.1.0" {
                weft.status(&conf).ok_empty();
            }
            let result = weft.add(&pod, &conf).result();
            let place = format!("{name} {version}: {result}");
            if version > "0.2.0" {
                let interfaces = result["interfaces"].as_array().unwrap();
                assert_eq!(interfaces.len(), 2, "{place}");
                assert_eq!(interfaces[1]["sandbox"], pod.netns_path().to_str().unwrap(), "{place}");
                assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 1), "{place}");
            }
            for ip in ips(&result) {
                assert!(pod.ping(gateway_of(ip), 1) && node.ping(ip, 1), "{place}");
                let host_route = node.json(["ip", "-j", "route", "get", &ip.to_string()]);
                assert!(host_route[0]["dev"].as_str().unwrap().starts_with("veth"), "{place}");
            }
            if *name == "routes" {
                for (family, dst, via) in
                    [("-4", "192.168.0.0/16", "10.1.2.1"), ("-6", "fd99::/48", "fd01:2::1")]
                {
                    let found = pod.json(["ip", "-j", family, "route", "show", dst]);
                    assert_eq!(found[0]["gateway"], via, "{place}");
                }
            }
            if version >= "0.4.0" {
                weft.check(&pod, &with(&conf, "prevResult", result.clone())).ok_empty();
            } else {
                let error = weft.check(&pod, &with(&conf, "prevResult", result.clone())).error();
                assert_eq!((error.code, error.msg.as_str()), (1, "config version does not allow CHECK"));
            }
            weft.del(&pod, &conf).ok_empty();
            assert_eq!(links(&node), ["lo"], "{place}");
            assert_eq!(link(&pod, "eth0"), None, "{place}");
        }
    }
}

/// ptp, bridge: `dns` of the configuration replaces the IPAM's wholly as soon as any of its keys is set, even to an
/// empty list.
#[test]
fn dns_of_the_configuration_replaces_the_ipams_wholly() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = json!({"nameservers": ["192.0.2.3"], "domain": "example.org", "search": ["a.example", "b.example"],
        "options": ["ndots:2"]});
    let cases = [
        (Value::Null, all.clone()),
        (json!({}), all.clone()),
        (json!({"nameservers": null}), all.clone()),
        (json!({"nameservers": ["192.0.2.99"]}), json!({"nameservers": ["192.0.2.99"]})),
        (json!({"domain": "other.example"}), json!({"domain": "other.example"})),
        (json!({"search": ["c.example"]}), json!({"search": ["c.example"]})),
        (json!({"options": ["timeout:1"]}), json!({"options": ["timeout:1"]})),
        (json!({"nameservers": [], "search": [], "options": []}), json!({})),
        (json!({"Nameservers": ["192.0.2.98"], "Search": []}), json!({"nameservers": ["192.0.2.98"]})),
    ];
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let text = "# made by hand\nnameserver 192.0.2.3\ndomain example.org\n\
            search a.example b.example\n; more\noptions ndots:2\nsortlist 10.0.0.0\n";
        fs::write(node.path("/run/containerd/resolv.conf"), text).unwrap();
        for version in ["0.4.0", "1.0.0"] {
            for (dns, wanted) in &cases {
                let mut conf = with(&conf(version, mode, &[V4]), "dns", dns.clone());
                conf["ipam"]["resolvConf"] = json!("/run/containerd/resolv.conf");
                let pod = node.pod("a");
                let result = weft(&node).add(&pod, &conf).result();
                let found = result.get("dns").cloned().unwrap_or(json!({}));
                assert_eq!(found, *wanted, "{mode} {version} {dns}");
                // Up to 0.4.0 it is printed even when empty, later not (cni.md 1.1).
                assert_eq!(
                    result.get("dns").is_some(),
                    version == "0.4.0" || *wanted != json!({}),
                    "{dns}: {result}"
                );
                weft(&node).del(&pod, &conf).ok_empty();
            }
        }
    }
}

// ---- host-local

/// `weft-ipam` on a node, for attachments that all live in one namespace.
struct Allocator {
    node: Node,
    ipam: Cni,
    pod: Pod,
}

impl Allocator {
    fn new(node: Node) -> Self {
        let ipam = node.cni(weft_bin_dir(), "weft-ipam");
        let pod = node.pod("all");
        Self { node, ipam, pod }
    }

    fn pod(&self, id: &str) -> Pod {
        self.pod.with_container_id(id)
    }

    fn add(&self, id: &str, conf: &Value) -> Vec<String> {
        addresses(&self.ipam.add(&self.pod(id), conf).result())
    }

    fn add_one(&self, id: &str, conf: &Value) -> String {
        let mut all = self.add(id, conf);
        assert_eq!(all.len(), 1);
        let cidr = all.remove(0);
        cidr.split('/').next().unwrap().to_owned()
    }

    fn refused(&self, id: &str, conf: &Value) -> CniError {
        self.ipam.add(&self.pod(id), conf).error()
    }

    fn del(&self, id: &str, conf: &Value) {
        self.ipam.del(&self.pod(id), conf).ok_empty();
    }
}

fn ipam_conf(version: &str, ipam: &Value) -> Value {
    let mut ipam = ipam.clone();
    ipam["type"] = json!("weft-ipam");
    json!({"cniVersion": version, "name": "mynet", "type": "ipvlan", "master": "foo0", "ipam": ipam})
}

/// host-local: allocate and release, one and two families, in every version; the shapes; a second interface of the
/// same container; the same attachment again; an unknown container; nothing on stderr.
#[test]
fn the_allocator_gives_and_takes_back_as_host_local_does() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = Allocator::new(lab.node("n1"));
    for version in VERSIONS {
        let conf = ipam_conf(
            version,
            &json!({"ranges": ranges(&[V4, V6]), "routes": [
            {"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.2.9"}]}),
        );
        let pod = all.pod("dummy");
        let first = all.ipam.add(&pod, &conf);
        assert_eq!(String::from_utf8(first.stderr.clone()).unwrap(), "");
        let result = first.result();
        let old = version <= "0.2.0";
        let key = if old { "ip4" } else { "ips" };
        assert!(result[key].is_object() == old && result.get("interfaces").is_none(), "{result}");
        if old {
            assert_eq!(result["ip4"]["gateway"], "10.1.2.1");
            assert_eq!(
                result["ip4"]["routes"],
                json!([{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.2.9"}])
            );
            assert_eq!(result["ip6"]["routes"], json!([{"dst": "::/0"}]));
        } else {
            assert_eq!(result["routes"].as_array().unwrap().len(), 3, "{result}");
            for (ip, family) in result["ips"].as_array().unwrap().iter().zip(["4", "6"]) {
                assert_eq!(ip.get("interface"), None, "{result}");
                assert_eq!(ip.get("version"), (version < "1.0.0").then_some(&json!(family)), "{result}");
            }
        }
        let given = addresses(&result);
        assert!(given[0].ends_with("/24") && given[1].ends_with("/64"), "{given:?}");

        let second = addresses(&all.ipam.add(&pod.with_ifname("eth1"), &conf).result());
        assert!(second.iter().all(|address| !given.contains(address)), "{given:?} {second:?}");
        let error = all.refused("dummy", &conf);
        assert_eq!(error.code, 100, "{error:?}");
        assert!(error.msg.contains("duplicate allocation is not allowed"), "{error:?}");
        assert_eq!(reserved(&all.node), 4);
        all.del("unknown", &conf);
        assert_eq!(reserved(&all.node), 4);
        all.del("dummy", &conf);
        all.del("dummy", &conf);
        assert_eq!(reserved(&all.node), 2, "the other interface keeps its own");
        all.ipam.del(&pod.with_ifname("eth1"), &conf).ok_empty();
        assert_eq!(reserved(&all.node), 0);
    }
}

/// host-local: reservations in its own files are respected and released, with interface, without (old format), with
/// whitespace; another folder by `dataDir`; its lock and bookkeeping stay.
#[test]
fn host_locals_own_files_are_respected_and_released() {
    if !require() {
        return;
    }
    let lab = lab!();
    for (name, data_dir) in [("default", None), ("other", Some("/run/containerd/data"))] {
        let all = Allocator::new(lab.node(name));
        let mut conf = ipam_conf("1.0.0", &json!({"ranges": ranges(&["10.1.2.0/28"])}));
        if let Some(dir) = data_dir {
            conf["ipam"]["dataDir"] = json!(dir);
        }
        let folder = all.node.path(&format!("{}/mynet", data_dir.unwrap_or("/var/lib/cni/networks")));
        fs::create_dir_all(&folder).unwrap();
        let files = [
            ("10.1.2.2", "dummy\r\neth0"),
            ("10.1.2.3", "dummy"),
            ("10.1.2.4", " dummy \n"),
            ("10.1.2.5", "dummy\r\neth1"),
            ("10.1.2.6", "other\r\neth0"),
            ("lock", ""),
            ("last_reserved_ip.0", "10.1.2.6"),
        ];
        files.iter().for_each(|(file, text)| fs::write(folder.join(file), text).unwrap());
        assert_eq!(all.add_one("new", &conf), "10.1.2.7");
        let error = all.refused("wants", &with(&conf, "args", json!({"cni": {"ips": ["10.1.2.6"]}})));
        assert!(
            error.msg.contains("requested IP address 10.1.2.6 is not available in range set"),
            "{error:?}"
        );
        all.del("dummy", &conf);
        let left = |file: &&str| folder.join(file).exists();
        let left: Vec<&str> = files.iter().map(|(file, _)| *file).filter(left).collect();
        assert_eq!(left, ["10.1.2.5", "10.1.2.6", "lock", "last_reserved_ip.0"], "{name}");
        assert_eq!(
            all.add_one("wants", &with(&conf, "args", json!({"cni": {"ips": ["10.1.2.2"]}}))),
            "10.1.2.2"
        );
    }
}

/// host-local: addresses asked for by CNI_ARGS, args.cni and runtimeConfig, alone and together, one for each set;
/// outside, twice from one set, a gateway, and taken ones are refused in its words.
#[test]
fn addresses_can_be_asked_for_in_three_places() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = Allocator::new(lab.node("n1"));
    let conf = ipam_conf(
        "1.0.0",
        &json!({"ranges": [
        [{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.4.0/24"}], [{"subnet": "10.1.3.0/24"}], [{"subnet": V6}]]}),
    );
    let ask = |id: &str, env: &str, args: &[&str], runtime: &[&str]| {
        let mut conf = conf.clone();
        conf["args"] = json!({"cni": {"ips": args}});
        conf["runtimeConfig"] = json!({"ips": runtime});
        let call = all.ipam.call("ADD").pod(&all.pod(id)).conf(&conf);
        if env.is_empty() {
            call.run()
        } else {
            call.env("CNI_ARGS", format!("IgnoreUnknown=1;IP={env}")).run()
        }
    };
    let given = |outcome: &netns_tests::Outcome| {
        ips(&outcome.result()).iter().map(IpAddr::to_string).collect::<Vec<_>>()
    };
    assert_eq!(given(&ask("a", "10.1.2.88", &[], &[]))[0], "10.1.2.88");
    assert_eq!(given(&ask("b", "", &["10.1.4.89"], &[]))[0], "10.1.4.89");
    assert_eq!(given(&ask("c", "", &[], &["10.1.3.90/24"]))[1], "10.1.3.90");
    let all_three = ask("d", "10.1.3.77", &["10.1.2.77"], &["fd01:2::77/64"]);
    assert_eq!(given(&all_three), ["10.1.2.77", "10.1.3.77", "fd01:2::77"]);
    assert_eq!(
        given(&ask("e", "fd01:2::e,10.1.2.90", &[], &["10.1.2.90"])),
        ["10.1.2.90", "10.1.3.4", "fd01:2::e"]
    );

    let before = reserved(&all.node);
    let cases = [
        (ask("x", "10.9.9.9", &[], &[]), 7, "failed to allocate all requested IPs: 10.9.9.9"),
        (
            ask("x", "", &["10.1.2.91", "10.1.4.91"], &[]),
            7,
            "failed to allocate all requested IPs: 10.1.4.91",
        ),
        (ask("x", "", &[], &["10.1.2.1"]), 7, "requested ip 10.1.2.1 is subnet's gateway"),
        (
            ask("x", "", &["10.1.2.88"], &[]),
            104,
            "requested IP address 10.1.2.88 is not available in range set",
        ),
        (ask("x", "10.1.2.92", &[], &["10.1.3.77"]), 104, "requested IP address 10.1.3.77 is not available"),
        (ask("x", "", &["10.1.2.255"], &[]), 7, "failed to allocate all requested IPs: 10.1.2.255"),
        (ask("x", "10.1.2.300", &[], &[]), 4, "10.1.2.300"),
        (ask("x", "", &["here"], &[]), 7, "here"),
    ];
    for (outcome, code, words) in cases {
        let error = outcome.error();
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.msg.contains(words), "{error:?}");
        assert_eq!(reserved(&all.node), before, "{error:?}");
    }
}

/// host-local's allocator: round robin from behind the last one, over the end and back to the beginning, past those
/// in use; never the gateway, the network's or the broadcast address; across the ranges of a set; and its words
/// when all are in use.
#[test]
fn the_allocator_goes_round_and_gives_neither_gateway_nor_broadcast() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = Allocator::new(lab.node("n1"));
    // Cool-down off, so that the order alone decides.
    let small = ipam_conf("1.0.0", &json!({"cooldown": 0, "ranges": ranges(&["10.1.2.0/29"])}));
    let mut order = Vec::new();
    for _ in 0..7 {
        order.push(all.add_one("a", &small));
        all.del("a", &small);
    }
    let wanted = [2, 3, 4, 5, 6, 2, 3].map(|last| format!("10.1.2.{last}"));
    assert_eq!(order, wanted, "round robin");
    // In use: the next one, then the middle and the end of what is left.
    let held: Vec<String> = (0..3).map(|nth| all.add_one(&format!("held{nth}"), &small)).collect();
    assert_eq!(held, [4, 5, 6].map(|last| format!("10.1.2.{last}")));
    all.del("held1", &small);
    let mut rest: Vec<String> = (0..3).map(|nth| all.add_one(&format!("rest{nth}"), &small)).collect();
    rest.sort();
    assert_eq!(rest, [2, 3, 5].map(|last| format!("10.1.2.{last}")));
    let error = all.refused("more", &small);
    assert_eq!(error.code, 11);
    assert_eq!(error.msg, "no IP addresses available in range set: 10.1.2.1-10.1.2.6");
    assert!(error.details.contains("5 of 5"), "{error:?}");
    all.del("held0", &small);
    assert_eq!(all.add_one("more", &small), "10.1.2.4", "the only free one");

    // A set of two ranges; addresses before and behind the range are no part of it.
    let two = json!({"cooldown": 0, "ranges": [[
        {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.11"},
        {"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.254", "rangeEnd": "10.3.0.254", "gateway": "10.3.0.254"},
        {"subnet": "10.4.0.0/30"}]]});
    let two = with(&ipam_conf("1.0.0", &two), "name", json!("two"));
    let given: Vec<String> = (0..3).map(|nth| all.add_one(&format!("t{nth}"), &two)).collect();
    assert_eq!(given, ["10.2.0.10", "10.2.0.11", "10.4.0.2"]);
    let error = all.refused("t9", &two);
    assert!(error.msg.contains("10.2.0.10-10.2.0.11, 10.3.0.254-10.3.0.254, 10.4.0.1-10.4.0.2"), "{error:?}");
    all.del("t1", &two);
    assert_eq!(all.add_one("t9", &two), "10.2.0.11");
}

/// host-local's configuration: the old form, the new one, both, `runtimeConfig.ipRanges` before all; defaults and
/// limits of a range: the first address that each gives.
#[test]
fn ranges_are_read_as_host_local_reads_them() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = Allocator::new(lab.node("n1"));
    let cases = [
        (json!({"subnet": V4}), json!({}), vec!["10.1.2.2/24"]),
        (
            json!({"subnet": V4, "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"}),
            json!({}),
            vec!["10.1.2.9/24"],
        ),
        (json!({"subnet": V4, "gateway": "10.1.2.2"}), json!({}), vec!["10.1.2.1/24"]),
        (json!({"ranges": [[{"subnet": V4, "rangeStart": "10.1.2.1"}]]}), json!({}), vec!["10.1.2.2/24"]),
        (json!({"ranges": [[{"subnet": "10.1.2.0/30"}]]}), json!({}), vec!["10.1.2.2/30"]),
        (json!({"ranges": [[{"subnet": "10.1.2.64/26"}]]}), json!({}), vec!["10.1.2.66/26"]),
        (json!({"ranges": [[{"subnet": "fd01::/126"}]]}), json!({}), vec!["fd01::2/126"]),
        (
            json!({"ranges": [[{"subnet": "FD01:0::/64", "rangeStart": "fd01::0:ff"}]]}),
            json!({}),
            vec!["fd01::ff/64"],
        ),
        (
            json!({"subnet": V4, "ranges": ranges(&["10.1.3.0/24", V6])}),
            json!({}),
            vec!["10.1.2.2/24", "10.1.3.2/24", "fd01:2::2/64"],
        ),
        (
            json!({"subnet": V4, "ranges": ranges(&[V6])}),
            json!({"ipRanges": ranges(&["10.1.9.0/24", "fd09::/64"])}),
            vec!["10.1.9.2/24", "fd09::2/64", "10.1.2.2/24", "fd01:2::2/64"],
        ),
        (
            json!({}),
            json!({"ipRanges": [[{"subnet": "10.1.9.0/24", "rangeStart": "10.1.9.7"}]]}),
            vec!["10.1.9.7/24"],
        ),
        (json!({"Ranges": [[{"Subnet": V4, "RangeStart": "10.1.2.50"}]]}), json!({}), vec!["10.1.2.50/24"]),
    ];
    for (at, (ipam, runtime, wanted)) in cases.iter().enumerate() {
        let conf = with(&ipam_conf("1.0.0", ipam), "runtimeConfig", runtime.clone());
        let conf = with(&conf, "name", json!(format!("net{at}")));
        assert_eq!(all.add("a", &conf), *wanted, "{ipam} {runtime}");
        all.del("a", &conf);
    }
    // One of each family is what 0.2.0 can say.
    for version in ["0.1.0", "0.2.0"] {
        let dual = ipam_conf(version, &json!({"ranges": ranges(&[V4, V6])}));
        assert_eq!(all.add("old", &dual).len(), 2);
        all.del("old", &dual);
        for subnets in [[V4, "10.1.3.0/24"], [V6, "fd09::/64"]] {
            let error = all.refused("old", &ipam_conf(version, &json!({"ranges": ranges(&subnets)})));
            let msg = format!("CNI version {version} does not support more than 1 address per family");
            assert_eq!((error.code, error.msg), (7, msg));
        }
    }
}

/// host-local's configuration: what makes no sense is refused, in its words, and reserves nothing.
#[test]
fn ranges_that_make_no_sense_are_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    let all = Allocator::new(lab.node("n1"));
    let one = |range: Value| json!({"ranges": [[range]]});
    let cases = [
        (one(json!({"subnet": "10.1.2.3/24"})), "host bits set"),
        (one(json!({"subnet": "fd01::5/64"})), "host bits set"),
        (one(json!({"subnet": "10.1.2.0/31"})), "too small to allocate from"),
        (one(json!({"subnet": "10.1.2.7/32"})), "too small to allocate from"),
        (one(json!({"subnet": "fd01::/127"})), "too small to allocate from"),
        (one(json!({"subnet": "10.1.2/24"})), "subnet"),
        (one(json!({"subnet": "10.1.2.0"})), "subnet"),
        (one(json!({"rangeStart": "10.1.2.2"})), "subnet is missing"),
        (one(json!({"subnet": V4, "rangeStart": "10.1.3.2"})), "10.1.3.2 not in network 10.1.2.0/24"),
        (one(json!({"subnet": V4, "rangeEnd": "10.1.3.2"})), "10.1.3.2 not in network 10.1.2.0/24"),
        (one(json!({"subnet": V4, "rangeStart": "x"})), "rangeStart"),
        (one(json!({"subnet": V4, "rangeEnd": ""})), ""),
        (one(json!({"subnet": V4, "gateway": "10.1.2"})), "gateway"),
        (
            one(json!({"subnet": V4, "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"})),
            "but before start 10.1.2.9",
        ),
        (one(json!({"subnet": V4, "rangeStart": "fd01::1"})), "not the same protocol"),
        (json!({"ranges": [[{"subnet": V4}, {"subnet": "10.1.2.128/25"}]]}), "overlap"),
        (json!({"ranges": [[{"subnet": V4}, {"subnet": V6}]]}), "mixed address families"),
        (json!({"ranges": [[{"subnet": V4}], [{"subnet": "10.1.0.0/16"}]]}), "range set 0 overlaps with 1"),
        (json!({"subnet": V4, "ranges": [[{"subnet": V4}]]}), "range set 0 overlaps with 1"),
        (json!({"ranges": [[]]}), "empty range set"),
        (json!({"subnet": V4, "routes": [{"gw": "10.1.2.1"}]}), "routes[0].dst is missing"),
    ];
    for (ipam, words) in cases {
        let conf = ipam_conf("1.0.0", &ipam);
        if words.is_empty() {
            // Empty is absent, as Go has it.
            all.add("a", &conf);
            all.del("a", &conf);
            continue;
        }
        let error = all.refused("a", &conf);
        assert_eq!(error.code, 7, "{ipam}: {error:?}");
        assert!(format!("{} {}", error.msg, error.details).contains(words), "{ipam}: {error:?}");
        assert_eq!(reserved(&all.node), 0);
    }
}

/// host-local, cni.md 2.9 #10: routes with `mtu`, `advmss`, `priority`, `table` and `scope` are in the 1.1.0 result
/// and, which the reference leaves out for the first two, in the kernel.
#[test]
fn route_attributes_are_reported_and_installed() {
    if !require() {
        return;
    }
    let lab = lab!();
    let routes = json!([
        {"dst": "198.51.100.0/24", "gw": "10.1.2.1", "mtu": 1300, "advmss": 1200, "priority": 77},
        {"dst": "203.0.113.0/24", "gw": "10.1.2.1", "table": 100},
        {"dst": "192.0.2.0/28", "scope": 253},
        {"dst": "fd99::/48", "gw": "fd01:2::1", "mtu": 1290, "priority": 55},
    ]);
    for mode in ["bridge", "veth"] {
        let node = lab.node(mode);
        let weft = weft(&node);
        let mut conf = with(&conf("1.1.0", mode, &[V4, V6]), "isGateway", json!(true));
        conf["ipam"]["routes"] = routes.clone();
        let pod = node.pod("a");
        let outcome = weft.add(&pod, &conf);
        let result = outcome.result();
        for route in routes.as_array().unwrap() {
            let same = |found: &&Value| found["dst"] == route["dst"];
            let found = result["routes"].as_array().unwrap().iter().find(same).unwrap();
            for (key, value) in route.as_object().unwrap() {
                assert_eq!(&found[key], value, "{mode} {key}: {result}");
            }
        }
        let show = |words: &[&str]| {
            let line = ["ip"].iter().chain(words).copied().collect::<Vec<_>>();
            String::from_utf8(pod.run(line).stdout).unwrap()
        };
        let main = show(&["-4", "route", "show", "table", "main"]);
        assert!(main.contains("198.51.100.0/24 via 10.1.2.1 dev eth0"), "{mode}: {main}");
        assert!(
            main.contains("metric 77") && main.contains("mtu 1300") && main.contains("advmss 1200"),
            "{mode}: {main}"
        );
        assert!(main.contains("192.0.2.0/28 dev eth0 proto static scope link"), "{mode}: {main}");
        let table = show(&["-4", "route", "show", "table", "100"]);
        assert!(table.contains("203.0.113.0/24 via 10.1.2.1"), "{mode}: {table}");
        let six = show(&["-6", "route"]);
        assert!(
            six.contains("fd99::/48 via fd01:2::1 dev eth0") && six.contains("metric 55"),
            "{mode}: {six}"
        );
        assert!(six.contains("mtu 1290"), "{mode}: {six}");
        weft.check(&pod, &with(&conf, "prevResult", result)).ok_empty();
        weft.del(&pod, &conf).ok_empty();
    }
}
