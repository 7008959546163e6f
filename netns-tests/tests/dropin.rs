//! `"type": "bridge"` → `"type": "weft"` in configurations that people really use: the same result as the reference
//! plugin gives on another node, a working pod, and a switch under running pods.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use netns_tests::{Allow, Chain, Inside, Node, Pod, Residue, Server, lab, reference_bin_dir, require};
use netns_tests::{wait_until, weft_bin_dir};
use serde_json::{Value, json};

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

/// What k3s has: Flannel's conflist as its meta plugin hands the delegate on, with the range of one node.
fn flannel(version: &str) -> Value {
    let delegate = json!({
        "type": "bridge", "hairpinMode": true, "forceAddress": true, "isDefaultGateway": true, "isGateway": true,
        "ipMasq": false, "mtu": 1450,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]],
            "routes": [{"dst": "10.42.0.0/16"}], "dataDir": "/var/lib/cni/k3s-networks"}
    });
    json!({"cniVersion": version, "name": "cbr0", "plugins": [
        delegate, {"type": "portmap", "capabilities": {"portMappings": true}}
    ]})
}

/// The example of the reference plugin's documentation.
fn readme(version: &str) -> Value {
    let plugin = json!({
        "type": "bridge", "bridge": "mynet0", "isDefaultGateway": true, "forceAddress": false, "ipMasq": true,
        "hairpinMode": true, "ipam": {"type": "host-local", "subnet": "10.10.0.0/16"}
    });
    json!({"cniVersion": version, "name": "mynet", "plugins": [plugin]})
}

/// Podman's default network of its CNI days: 87-podman.conflist.
fn podman(version: &str) -> Value {
    json!({"cniVersion": version, "name": "podman", "plugins": [
        {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "firewall"},
        {"type": "tuning"}
    ]})
}

/// The one change that people make.
fn with_weft(conflist: &Value) -> Value {
    let mut conflist = conflist.clone();
    assert_eq!(conflist["plugins"][0]["type"], "bridge");
    conflist["plugins"][0]["type"] = json!("weft");
    conflist
}

/// The same, and the addresses from our own allocator, too.
fn with_weft_ipam(conflist: &Value) -> Value {
    let mut conflist = with_weft(conflist);
    conflist["plugins"][0]["ipam"]["type"] = json!("weft-ipam");
    conflist
}

fn one_port() -> Value {
    json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
}

/// A result with all that may differ between two nodes replaced by what it is.
fn shape(result: &Value, pod: &Pod) -> Value {
    let mut result = result.clone();
    // Libraries before 1.1 print an empty one in every version, later ones up to 0.4.0 (cni.md 1.1).
    if result["cniVersion"] == "1.0.0" && result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if interface["mac"].as_str().is_some_and(|mac| mac.len() == 17) {
            interface["mac"] = json!("a MAC");
        }
        if interface["sandbox"] == pod.netns_path().to_str().unwrap() {
            interface["sandbox"] = json!("the pod");
        }
        let name = interface["name"].as_str().unwrap().to_owned();
        if name.starts_with("veth") {
            interface["name"] = json!("veth…");
        }
        // Where no bridge is named, `bridge` takes cni0 and Weft cbr0 (design §3).
        if name == "cni0" || name == "cbr0" {
            interface["name"] = json!("the default bridge");
        }
    }
    result
}

/// The pod's address, in whichever shape the version has.
fn ip_of(result: &Value) -> IpAddr {
    let cidr = result["ip4"]["ip"].as_str().or(result["ips"][0]["address"].as_str()).unwrap();
    cidr.split('/').next().unwrap().parse().unwrap()
}

fn gateway_of(result: &Value) -> IpAddr {
    result["ip4"]["gateway"].as_str().or(result["ips"][0]["gateway"].as_str()).unwrap().parse().unwrap()
}

fn ok<T>(outcome: Result<T, netns_tests::ChainFailure>) -> T {
    outcome.unwrap_or_else(|failure| panic!("{failure}"))
}

/// What the pods of a chain have and can; the same questions for both plugins.
#[derive(Clone, Debug, PartialEq)]
struct Life {
    results: Vec<Value>,
    /// IPv4 addresses, routes and MTU in the pod.
    inside: Value,
    pings_gateway: bool,
    pings_other_pod: bool,
    host_pings_pod: bool,
    /// The address that a server outside sees.
    seen: Option<IpAddr>,
    host_port: bool,
    checks: bool,
    /// Links of the node that stay after DEL, besides the ones it had.
    links_left: usize,
}

/// Two pods of `conflist` live and die on a node of their own.
fn live(lab: &netns_tests::Lab, name: &str, conflist: &Value, dirs: &[PathBuf]) -> Life {
    let node = lab.node(name);
    let server = lab.outside(&node);
    let masquerades = conflist["plugins"][0]["ipMasq"] == true;
    if !masquerades {
        server.add_return_route("10.42.0.0/16");
    }
    let chain = node.chain(conflist, dirs.to_vec()).with_capabilities(&one_port());
    let before = links(&node);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let first = ok(chain.add(&a));
    let other = node.chain(conflist, dirs.to_vec());
    let second = ok(other.add(&b));
    let _listener = a.listen(80);
    let has_ports = conflist["plugins"].as_array().unwrap().len() > 1;
    let outside: IpAddr = Server::NODE_V4;
    let version = conflist["cniVersion"].as_str().unwrap();
    let life = Life {
        inside: inside(&a),
        pings_gateway: a.ping(gateway_of(&first), 2),
        pings_other_pod: a.ping(ip_of(&second), 2),
        host_pings_pod: node.ping(ip_of(&first), 2),
        seen: a.seen_by(server.v4()).ok(),
        host_port: has_ports && server.seen_by((outside, 8080).into()).is_ok(),
        // The reference portmap fails CHECK with ports, whatever is before it.
        checks: version >= "0.4.0" && other.check(&b).is_ok(),
        results: vec![shape(&first, &a), shape(&second, &b)],
        links_left: 0,
    };
    ok(chain.del(&a));
    ok(other.del(&b));
    wait_until("the links are gone", Duration::from_secs(3), || links(&node) <= before + 1);
    Life { links_left: links(&node) - before, ..life }
}

fn links(node: &Node) -> usize {
    node.json(["ip", "-j", "link"]).as_array().unwrap().len()
}

fn inside(pod: &Pod) -> Value {
    let link = pod.json(["ip", "-j", "-4", "address", "show", "dev", "eth0"]);
    let mut routes: Vec<String> = pod
        .json(["ip", "-j", "-4", "route"])
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            format!("{} via {} dev {} src {}", route["dst"], route["gateway"], route["dev"], route["prefsrc"])
        })
        .collect();
    routes.sort();
    let address = |entry: &Value| format!("{}/{}", entry["local"], entry["prefixlen"]);
    let addresses: Vec<String> = link[0]["addr_info"].as_array().unwrap().iter().map(address).collect();
    json!({"mtu": link[0]["mtu"], "addresses": addresses, "routes": routes})
}

/// A conflist with `bridge`, and with `weft` on another node: the same in every respect. The versions are some of
/// those that the reference plugins of this machine (1.1.1) speak.
fn assert_same_life(conflist: fn(&str) -> Value, versions: &[&str]) {
    let Some(reference) = reference() else { return };
    let lab = netns_tests::Lab::new(conflist("1.0.0")["name"].as_str().unwrap());
    for (at, version) in versions.iter().enumerate() {
        let theirs = live(&lab, &format!("r{at}"), &conflist(version), std::slice::from_ref(&reference));
        let dirs = [weft_bin_dir(), reference.clone()];
        let mut changes: Vec<(&str, Value)> = vec![("w", with_weft(&conflist(version)))];
        changes.extend((at == 0).then(|| ("i", with_weft_ipam(&conflist(version)))));
        for (kind, ours) in changes {
            let ours = live(&lab, &format!("{kind}{at}"), &ours, &dirs);
            // The reference's own CHECK fails for Flannel: it does not find the route of the IPAM without gateway.
            assert_eq!(ours.checks, version >= &"0.4.0", "{version}");
            let theirs = Life { checks: ours.checks, ..theirs.clone() };
            assert_eq!(ours, theirs, "{version}, left is weft, right the reference ({kind})");
        }
        assert!(theirs.pings_gateway && theirs.pings_other_pod && theirs.seen.is_some(), "{theirs:?}");
    }
}

/// Point 3: k3s and Flannel.
#[test]
fn flannels_delegate_gives_the_same_result_and_a_working_pod() {
    assert_same_life(flannel, &["1.0.0", "0.2.0", "0.4.0"]);
}

/// Point 3: the example of the reference plugin's documentation.
#[test]
fn the_reference_readmes_example_gives_the_same_result_and_a_working_pod() {
    assert_same_life(readme, &["1.0.0", "0.1.0", "0.3.0", "0.3.1"]);
}

/// Point 3: podman. Its chain has `firewall`, which needs 0.4.0.
#[test]
fn podmans_default_network_gives_the_same_result_and_a_working_pod() {
    assert_same_life(podman, &["1.0.0", "0.4.0"]);
}

/// The files of host-local's folder that stand for addresses.
fn reservations(node: &Node, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(node.path(folder)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
    names.sort();
    names
}

/// Design §3: the type is switched while pods of before run. Their addresses are not given, they and the new pods
/// reach each other, their DEL goes through Weft and frees what they had, and then it is given again.
fn assert_switch(lab: &netns_tests::Lab, name: &str, conflist: &Value, switched: &Value, folder: &str) {
    let reference = reference_bin_dir().unwrap();
    let node = lab.node(name);
    let before: Chain = node.chain(conflist, [reference.clone()]);
    let after: Chain = node.chain(switched, [weft_bin_dir(), reference]);
    let old: Vec<Pod> = (0..3).map(|nth| node.pod(&format!("old{nth}"))).collect();
    let old_results: Vec<Value> = old.iter().map(|pod| ok(before.add(pod))).collect();
    let old_ips: Vec<IpAddr> = old_results.iter().map(ip_of).collect();
    assert_eq!(reservations(&node, folder).len(), 3);

    // /29: five addresses, three of which old pods have.
    let new: Vec<Pod> = (0..2).map(|nth| node.pod(&format!("new{nth}"))).collect();
    let new_results: Vec<Value> = new.iter().map(|pod| ok(after.add(pod))).collect();
    let new_ips: Vec<IpAddr> = new_results.iter().map(ip_of).collect();
    assert!(new_ips.iter().all(|ip| !old_ips.contains(ip)), "{old_ips:?} {new_ips:?}");
    let late = node.pod("late");
    assert_eq!(after.add(&late).unwrap_err().plugin, "weft");
    ok(after.del(&late));
    assert_eq!(
        reservations(&node, folder).iter().filter(|ip| old_ips.contains(&ip.parse().unwrap())).count(),
        3
    );

    let gateway = gateway_of(&old_results[0]);
    assert_eq!(gateway_of(&new_results[0]), gateway);
    for (pod, others) in [(&old[0], &new_ips), (&new[0], &old_ips)] {
        assert!(reaches(pod, gateway), "{name}: the gateway\n{}", neighbours(&node, pod));
        assert!(others.iter().all(|ip| reaches(pod, *ip)), "{name}: {others:?}");
    }
    assert!(old_ips.iter().chain(&new_ips).all(|ip| reaches(&node, *ip)), "{name}: from the node");

    // A stranger's DEL frees nothing; the pod's own does, once and repeatedly, with and without namespace.
    ok(after.del(&node.pod("stranger")));
    let held = reservations(&node, folder).len();
    old[1].destroy_netns();
    let end = |pod: &Pod| {
        ok(after.del(pod));
        ok(after.del(pod));
    };
    end(&old[0]);
    let mut conf = after.conf(0);
    conf["prevResult"] = old_results[1].clone();
    let weft = node.cni(weft_bin_dir(), "weft").with_path([weft_bin_dir(), reference_bin_dir().unwrap()]);
    weft.call("DEL")
        .pod(&old[2])
        .env("CNI_NETNS", "")
        .conf(&conf)
        .env("CNI_CONTAINERID", old[1].container_id())
        .run()
        .ok_empty();
    assert_eq!(reservations(&node, folder).len(), held - 2);
    assert!(reaches(&old[2], gateway) && reaches(&new[0], old_ips[2]), "{name}: the others live on");
    assert!(new_ips.iter().all(|ip| reaches(&old[2], *ip)));

    // The runtime takes the namespace, and with it the old link.
    old[0].destroy_netns();
    let again = [node.pod("again0"), node.pod("again1")];
    let mut given: Vec<IpAddr> = again.iter().map(|pod| ip_of(&ok(after.add(pod)))).collect();
    given.sort();
    let mut freed = old_ips[..2].to_vec();
    freed.sort();
    assert_eq!(given, freed, "{name}");
    assert!(again.iter().all(|pod| reaches(pod, gateway)));
    for pod in again.iter().chain(&new).chain(&old[2..]) {
        ok(after.del(pod));
    }
    assert_eq!(reservations(&node, folder), [""; 0]);
}

/// Whether `ip` answers the very first echo.
fn reaches(from: &impl Inside, ip: IpAddr) -> bool {
    from.ping(ip, 1)
}

/// What node and pod know of their neighbours, for a message.
fn neighbours(node: &Node, pod: &Pod) -> String {
    let say = |words: &[&str], out: std::process::Output| {
        format!("{words:?}: {}", String::from_utf8_lossy(&out.stdout))
    };
    let ask = |words: &[&str]| [say(words, node.run(words)), say(words, pod.run(words))].concat();
    [ask(&["ip", "neigh"]), ask(&["ip", "-br", "link"]), ask(&["ip", "-br", "address"])].concat()
}

fn small(mut conflist: Value) -> Value {
    conflist["plugins"][0]["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/29"}]],
        "dataDir": "/var/lib/cni/elsewhere", "routes": [{"dst": "10.42.0.0/16"}]});
    conflist
}

/// Design §3: switching `bridge` to `weft` under running pods; host-local stays the IPAM plugin.
#[test]
fn the_type_can_be_switched_under_running_pods_with_host_local() {
    if reference().is_none() {
        return;
    }
    let lab = lab!();
    for (name, conflist) in [("readme", readme("1.0.0")), ("podman", podman("0.4.0"))] {
        let conflist = small(conflist);
        let folder = format!("/var/lib/cni/elsewhere/{}", conflist["name"].as_str().unwrap());
        assert_switch(&lab, name, &conflist, &with_weft(&conflist), &folder);
    }
}

/// Design §3: switching `bridge` to `weft` and `host-local` to `weft-ipam` (or to no type) under running pods.
#[test]
fn the_type_can_be_switched_under_running_pods_with_our_own_allocator() {
    if reference().is_none() {
        return;
    }
    let lab = lab!();
    for (name, conflist) in [("readme", readme("1.0.0")), ("podman", podman("0.4.0"))] {
        let conflist = small(conflist);
        let folder = format!("/var/lib/cni/elsewhere/{}", conflist["name"].as_str().unwrap());
        let mut switched = with_weft_ipam(&conflist);
        if name == "podman" {
            switched["plugins"][0]["ipam"].as_object_mut().unwrap().remove("type");
        }
        assert_switch(&lab, name, &conflist, &switched, &folder);
    }
}

/// Design §3: Flannel's conflist names no bridge, and the node has pods on the reference's `cni0`: the new pods
/// and the old ones work all the same.
#[test]
fn the_type_can_be_switched_under_running_pods_where_no_bridge_is_named() {
    if reference().is_none() {
        return;
    }
    let lab = lab!();
    let conflist = small(flannel("1.0.0"));
    assert_switch(&lab, "n1", &conflist, &with_weft(&conflist), "/var/lib/cni/elsewhere/cbr0");
}

/// A26, point 3: after all DELs of a switched conflist nothing of ours is left but what the node shares.
#[test]
fn reverse_del_of_each_conflist_leaves_nothing_of_ours() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    let versions: [fn(&str) -> Value; 3] = [flannel, readme, podman];
    for (at, conflist) in versions.iter().enumerate() {
        for ours in [with_weft(&conflist("0.4.0")), with_weft_ipam(&conflist("0.4.0"))] {
            let kind = ours["plugins"][0]["ipam"]["type"].as_str().unwrap();
            let node = lab.node(&format!("n{at}-{kind}"));
            let chain = node.chain(&ours, [weft_bin_dir(), reference.clone()]).with_capabilities(&one_port());
            let warm_up = node.pod("warm-up");
            ok(chain.add(&warm_up));
            ok(chain.del(&warm_up));
            let before = Residue::take(&node);
            for loses_netns in [false, true] {
                let pod = node.pod("a");
                ok(chain.add(&pod));
                if loses_netns {
                    pod.destroy_netns();
                }
                ok(chain.del(&pod));
                let allow = Allow::nothing().text("last_reserved_ip");
                before.assert_settles(&node, &allow);
            }
        }
    }
}
