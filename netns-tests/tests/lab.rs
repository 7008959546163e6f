//! The harness tests itself: isolation, clean-up, the CNI driver with the reference plugins, residue.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use netns_tests::{Allow, Inside, Lab, Node, Residue, Server, StdoutTo, lab, reference_bin_dir, require};
use netns_tests::{wait_for, wait_until};
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

fn bridge_conf(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "bridge", "bridge": "cbr0",
        "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:244::/64"}]]}
    })
}

fn links(node: &impl Inside) -> Vec<String> {
    let links = node.json(["ip", "-j", "link"]);
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nodes_share_neither_links_nor_state_files() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (a, b) = (lab.node("a"), lab.node("b"));
    a.run(["ip", "link", "add", "br9", "type", "bridge"]);
    fs::write(a.path("/run/weft/mark"), "a").unwrap();

    assert_eq!(links(&a), ["lo", "br9"]);
    assert_eq!(links(&b), ["lo"]);
    assert!(a.enter(|| Path::new("/run/weft/mark").exists()));
    assert!(!b.path("/run/weft/mark").exists());
    assert!(!Path::new("/run/weft/mark").exists());
    let seen = |node: &Node| node.enter(|| Path::new("/sys/class/net/br9").exists());
    assert_eq!((seen(&a), seen(&b)), (true, false));
    assert!(a.enter(
        || Path::new("/sys/fs/cgroup/cgroup.procs").exists() || Path::new("/sys/fs/cgroup/pids").exists()
    ));
}

#[test]
fn a_sysctl_and_a_boot_id_belong_to_one_node() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (a, b) = (lab.node("a"), lab.node("b"));
    a.set_sysctl("net.ipv4.ip_forward", "1");
    b.set_sysctl("net.ipv4.ip_forward", "0");
    a.set_boot_id("00000000-0000-4000-8000-000000000001");
    a.set_boot_id("00000000-0000-4000-8000-000000000002");

    assert_eq!(a.sysctl("net/ipv4/ip_forward"), "1");
    let boot_id = "kernel.random.boot_id";
    assert_eq!(a.sysctl(boot_id), "00000000-0000-4000-8000-000000000002");
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(b.sysctl(boot_id), own.trim_end());
}

#[test]
fn a_panic_leaves_no_namespace_file_or_process() {
    if !require() {
        return;
    }
    let mut tag = String::new();
    let mut pid = 0;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::new("panics");
        tag = lab.tag().to_owned();
        let node = lab.node("n1");
        let pod = node.pod("a");
        // A session of its own, as a detached child has it: no process group leads to it.
        let mut sleeper = pod.command("setsid");
        let child = sleeper.args(["-f", "sleep", "1000"]).stdout(Stdio::null()).spawn().unwrap();
        drop(child.wait_with_output());
        pid = wait_for("the sleeper", Duration::from_secs(5), || {
            node.processes().iter().find(|(_, line)| line.contains("sleep")).map(|(pid, _)| *pid)
        });
        panic!("on purpose");
    }));

    assert!(panicked.is_err());
    assert!(!named_after(&tag, "/run/netns") && !named_after(&tag, "/run/weft-lab"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
}

fn named_after(tag: &str, dir: &str) -> bool {
    fs::read_dir(dir).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(tag))
}

#[test]
fn pods_on_the_reference_bridge_reach_each_other_and_the_server_behind_masquerade() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let server = lab.outside(&node);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let bridge = node.cni(&dir, "bridge");
    let conf = bridge_conf("1.0.0");
    let results = [&a, &b].map(|pod| bridge.add(pod, &conf).result());
    let ip = |index: usize, family: usize| address(&results[index], family);

    assert!(a.ping(ip(1, 0), 3) && a.ping(ip(1, 1), 3));
    assert_eq!(a.seen_by(server.v4()).unwrap(), Server::NODE_V4);
    let gateway = "fd00:244::1".parse().unwrap();
    wait_until("the reference bridge's gateway is past DAD", Duration::from_secs(5), || a.ping(gateway, 1));
    assert_eq!(a.seen_by(server.v6()).unwrap(), Server::NODE_V6);
    let listener = b.listen(80);
    assert_eq!(a.seen_by((ip(1, 0), listener.port()).into()).unwrap(), ip(0, 0));

    bridge.del(&a, &conf).ok_empty();
    bridge.del(&b, &conf).ok_empty();
}

fn address(result: &Value, index: usize) -> std::net::IpAddr {
    let cidr = result["ips"][index]["address"].as_str().unwrap();
    cidr.split('/').next().unwrap().parse().unwrap()
}

#[test]
fn without_masquerade_the_server_is_out_of_reach_until_it_has_a_return_route() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let server = lab.outside(&node);
    let pod = node.pod("a");
    let mut conf = bridge_conf("1.0.0");
    conf["ipMasq"] = json!(false);
    let result = node.cni(&dir, "bridge").add(&pod, &conf).result();

    assert!(!pod.ping(Server::V4, 1));
    server.add_return_route("10.244.0.0/24");
    assert_eq!(pod.seen_by(server.v4()).unwrap(), address(&result, 0));
}

#[test]
fn a_wire_joins_two_nodes() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (a, b) = (lab.node("a"), lab.node("b"));
    let wire = lab.wire((&a, &["198.18.0.1/30", "fd00:18::1/64"]), (&b, &["198.18.0.2/30", "fd00:18::2/64"]));
    assert!(a.ping("198.18.0.2".parse().unwrap(), 2));
    assert!(b.ping("fd00:18::1".parse().unwrap(), 2));
    assert!(links(&a).contains(&wire.link));
}

#[test]
fn a_chain_passes_results_and_capabilities_on_and_leaves_nothing_behind() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let plugin = bridge_conf("1.0.0");
    let conflist = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
        plugin, {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
    ]});
    let ports =
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "mac": "x"});
    let chain = node.chain(&conflist, [&dir]).with_capabilities(&ports).with_args("IgnoreUnknown=1");
    let warm_up = node.pod("warm-up");
    chain.add(&warm_up).unwrap();
    chain.del(&warm_up).unwrap();
    let before = Residue::take(&node);

    let pod = node.pod("a");
    let result = chain.add(&pod).unwrap();
    let _listener = pod.listen(80);
    let other = lab.node("n2");
    lab.wire((&node, &["198.18.0.1/30"]), (&other, &["198.18.0.2/30"]));
    assert!(other.seen_by("198.18.0.1:8080".parse().unwrap()).is_ok());
    assert_eq!(result["interfaces"][2]["sandbox"], pod.netns_path().to_str().unwrap());
    assert_eq!(chain.conf(0).get("runtimeConfig"), None);
    assert_eq!(chain.version()[0][0], "0.1.0");

    chain.del(&pod).unwrap();
    let wire = Allow::nothing().text("wire").text("198.18.0.").text("last_reserved_ip");
    before.assert_settles(&node, &wire);
}

#[test]
fn a_chain_checks_with_the_result_of_add_and_stops_at_the_plugin_that_fails() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let conflist = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
        bridge_conf("1.0.0"), {"type": "tuning", "mtu": 1400}
    ]});
    let chain = node.chain(&conflist, [&dir]);
    let pod = node.pod("a");
    chain.add(&pod).unwrap();
    chain.check(&pod).unwrap();

    pod.run(["ip", "address", "flush", "dev", "eth0"]);
    assert_eq!(chain.check(&pod).unwrap_err().plugin, "bridge");
    chain.del(&pod).unwrap();
    chain.del(&pod).unwrap();
    assert_eq!(chain.result(&pod), None);
}

#[test]
fn a_call_can_be_shaped_as_badly_as_a_runtime_could() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let bridge = node.cni(&dir, "bridge");
    let conf = bridge_conf("0.4.0");

    let error = bridge.call("ADD").pod(&pod).without("CNI_IFNAME").conf(&conf).run();
    assert_ne!(error.status.code(), Some(0));
    assert!(
        serde_json::from_slice::<Value>(&error.stdout).unwrap()["msg"]
            .as_str()
            .unwrap()
            .contains("CNI_IFNAME")
    );
    assert_eq!(bridge.version().result()["supportedVersions"][0], "0.1.0");
    let version = |call: netns_tests::Call| call.run();
    assert!(!version(bridge.call("VERSION").close_fds([0, 2])).stdout.is_empty());
    assert!(version(bridge.call("VERSION").stdout(StdoutTo::Closed)).stdout.is_empty());
    assert!(version(bridge.call("VERSION").umask(0o777).nofile(64).cwd_deleted()).status.success());
    assert!(!version(bridge.call("VERSION").stdout(StdoutTo::Full)).status.success());
    let wrapped = bridge.call("VERSION").stdin_left_open().wrap(["env", "-i", "CNI_COMMAND=VERSION"]).run();
    assert!(wrapped.status.success() && wrapped.elapsed >= wrapped.exited);
    assert!(bridge.call("VERSION").stdin(vec![b' '; 1 << 22]).run().status.success());
}

#[test]
fn a_call_can_be_killed_and_the_pod_can_vanish_before_del() {
    let Some(dir) = reference() else { return };
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let bridge = node.cni(&dir, "bridge");
    let mut running = bridge.call("ADD").pod(&pod).stdin_left_open().spawn();
    assert!(!running.is_done());
    running.kill();
    assert_eq!(running.wait().status.code(), None);

    bridge.add(&pod, &bridge_conf("1.0.0")).result();
    pod.destroy_netns();
    wait_until("its host end is gone", Duration::from_secs(5), || links(&node) == ["lo", "cbr0"]);
    bridge.del(&pod, &bridge_conf("1.0.0")).ok_empty();
}

#[test]
fn residue_names_a_leaked_link_address_route_rule_neighbour_file_element_and_process() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let before = Residue::take(&node);
    before.assert_same(&Residue::take(&node), &Allow::nothing());

    for line in [
        "ip link add br9 type bridge",
        "ip link set br9 up",
        "ip address add 10.9.0.1/24 dev br9",
        "ip route add 10.8.0.0/24 dev br9 table 77",
        "ip rule add to 10.8.0.0/24 table 77",
        "ip neigh add 10.9.0.7 lladdr 02:00:00:00:00:07 dev br9 nud stale extern_learn",
        "tc qdisc add dev br9 root tbf rate 1mbit burst 32k latency 50ms",
        "iptables -A FORWARD -s 10.9.0.7 -j ACCEPT",
        "nft add table inet weft",
        "nft add set inet weft masq { type ipv4_addr; flags interval; }",
        "nft add element inet weft masq { 10.9.0.0/24 }",
        "sysctl -qw net.ipv4.conf.all.route_localnet=1",
    ] {
        node.run(line.split(' '));
    }
    fs::create_dir_all(node.path("/run/weft/stamp/record")).unwrap();
    fs::write(node.path("/run/weft/stamp/record/x"), "").unwrap();
    fs::write(node.path("/run/weft/stamp/ready"), "").unwrap();
    let mut sleeper = node.command("sleep").arg("1000").spawn().unwrap();
    let after = Residue::take(&node);
    let lines = before.difference(&after, &Allow::nothing()).join("\n");
    for wanted in [
        "+ Link: br9 bridge",
        "+ Address: 10.9.0.1/24 dev br9",
        r#""dst":"10.8.0.0/24""#,
        "+ Rule: -4",
        "+ Neighbour: 10.9.0.7 02:00:00:00:00:07 dev br9",
        "+ Qdisc: tbf",
        "+ Iptables: iptables-save filter -A FORWARD -s 10.9.0.7/32",
        r#"+ Element: inet weft masq: {"prefix":{"addr":"10.9.0.0","len":24}}"#,
        "+ Nft: table",
        "- Sysctl: ipv4/conf/all/route_localnet = 0",
        "+ File: /run/weft/stamp/record/x",
        "+ Process: ",
    ] {
        assert!(lines.contains(wanted), "no {wanted} in:\n{lines}");
    }
    assert!(!lines.contains("ready"));

    let allow =
        Allow::nothing().link("br9").table("inet weft").path("/run/weft/").processes().text("route_localnet");
    let left = before.difference(&after, &allow);
    let still_counts = |line: &String| {
        ["10.8.0.0", "10.9.0.7", "10.9.0.0", "iptables-save", r#""family":"ip""#]
            .iter()
            .any(|word| line.contains(word))
    };
    assert!(left.iter().all(still_counts), "{left:#?}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}
