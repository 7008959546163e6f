//! Point 5: others delete what `weftd` made. It is back within a second; against somebody who does it again and again
//! it stays cheap and names him; what is not Weft's is never touched, also not by `uninstall`.

use std::time::{Duration, Instant};

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Layout, Network, PATIENCE, ProbeReport, Prober, long, long_or, require_cluster,
};
use netns_tests::{Allow, Inside, Residue, wait_until};

/// Deletes something of `weftd`'s on a node.
type Damage = (&'static str, &'static [&'static [&'static str]]);

const DAMAGES: [Damage; 4] = [
    (
        "ip route flush proto 87",
        &[&["ip", "-4", "route", "flush", "proto", "87"], &["ip", "-6", "route", "flush", "proto", "87"]],
    ),
    ("ip link delete weft-vx", &[&["ip", "link", "delete", "weft-vx"]]),
    (
        "bridge fdb flush",
        &[&[
            "sh",
            "-c",
            "bridge fdb show dev weft-vx | while read mac rest; do bridge fdb del $mac dev weft-vx $(echo $rest | sed 's/dev weft-vx//;s/self.*//;s/permanent//') self 2>/dev/null; done; true",
        ]],
    ),
    ("nft flush ruleset", &[&["nft", "flush", "ruleset"]]),
];

fn started(name: &str) -> (ClusterLab, Vec<ClusterPod>) {
    let lab = ClusterLab::new(name, &Layout::default());
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    (lab, pods)
}

/// Strict on a machine that does nothing else; on one that runs other tests too, the same within a generous time.
fn limit() -> Duration {
    long_or(Duration::from_secs(1), Duration::from_secs(4))
}

/// Weft's packet rules, without counters; nothing where there are none.
fn rules(node: &impl Inside) -> Vec<String> {
    let listed = node.try_run(["nft", "-s", "list", "table", "inet", "weft"]);
    let mut lines: Vec<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    // Elements of a set come in any order.
    lines.sort();
    lines
}

#[test]
fn what_others_delete_is_back_within_a_second_while_pods_come_and_go() {
    if !require_cluster() {
        return;
    }
    let (lab, pods) = started("heal");
    let node = &lab.nodes[0];
    for (what, commands) in DAMAGES {
        let mut worst = Duration::ZERO;
        let (rules, mut bare) = (rules(node), Duration::ZERO);
        for round in 0..long_or(20, 2) {
            let probers: Vec<_> = pods[2].ips.iter().map(|ip| Prober::start(&pods[0], *ip)).collect();
            commands.iter().for_each(|command| drop(node.run(*command)));
            let deleted = Instant::now();
            wait_until("the rules are as before", PATIENCE, || self::rules(node) == rules);
            bare = bare.max(deleted.elapsed());
            let young = lab.pod(0, &format!("young{round}"));
            wait_until("traffic is back", PATIENCE, || pods[2].ips.iter().all(|ip| young.ping(*ip, 1)));
            young.stop();
            let reports: Vec<ProbeReport> = Prober::finish_all(probers);
            worst = worst.max(reports.iter().map(|report| report.outage).max().unwrap_or_default());
        }
        eprintln!("{what}: traffic is back within {worst:?} at most, the packet rules within {bare:?}");
        assert!(worst <= limit(), "{what}: {worst:?}");
        // A flush of the rules stops no traffic that needs none of them: they are looked at themselves.
        assert!(bare <= limit(), "{what}: the packet rules after {bare:?}");
    }
    lab.assert_all_reach_all(&pods);
}

#[test]
fn against_a_persistent_deleter_weftd_stays_cheap_and_names_him() {
    if !require_cluster() {
        return;
    }
    let (lab, _pods) = started("deleter");
    let node = &lab.nodes[0];
    let before = node.weftd().inspect(netns_tests::cluster::Process::cpu);
    let started = Instant::now();
    while started.elapsed() < long_or(Duration::from_secs(60), Duration::from_secs(8)) {
        node.run(["ip", "-4", "route", "flush", "proto", "87"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = node.weftd().inspect(netns_tests::cluster::Process::cpu) - before;
    let share = used.as_secs_f64() / started.elapsed().as_secs_f64();
    eprintln!("{:.2} % of one CPU", share * 100.0);
    // A debug build on a busy machine; the release build is held to 5 %.
    assert!(share < if long() { 0.05 } else { 0.25 }, "{:.1} %", share * 100.0);
    let finding = node.weftd().wait_finding("plane-taken-away", true);
    assert!(finding["sentence"].to_string().contains("ip (process"), "{finding}");
    let log = node.weftd().log();
    let lines = log.lines().count();
    assert!(lines < 400, "it says so once, not each time: {lines} lines");
}

/// Routes, rules, links and tables of others stay as they are, with `weftd` and after its `uninstall`.
#[test]
fn what_is_not_wefts_is_never_touched_and_uninstall_leaves_nothing() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("foreign", &Layout::default());
    let node = &lab.nodes[0];
    for command in [
        "ip link add other0 type bridge",
        "ip link set other0 up",
        "ip address add 198.51.100.1/24 dev other0",
        "ip route add 203.0.113.0/24 via 198.51.100.2 dev other0 proto static",
        "ip route add 10.99.0.0/16 dev other0 proto bird",
        "ip -6 route add 2001:db8:9::/48 dev other0 proto ra",
        "ip rule add from 198.51.100.7 lookup 100 priority 1000",
        "ip route add default dev other0 table 100",
        "ip link add vxlan9 type vxlan id 9 dstport 8472 dev eth0",
        "nft add table inet other",
        "nft 'add chain inet other in { type filter hook input priority 0; policy accept; }'",
        "nft add rule inet other in tcp dport 9999 drop",
        "nft add table ip nat",
        "nft 'add chain ip nat post { type nat hook postrouting priority 100; policy accept; }'",
    ] {
        node.run(["sh", "-c", command]);
    }
    let before = Residue::take(&node.node);
    lab.start_all(&Network::default());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let lines = Residue::take(&node.node).lines();
    let lost: Vec<String> = before
        .lines()
        .into_iter()
        .filter(|line| !lines.contains(line))
        // Forwarding is the node's as a whole, and the kernel copies it to every link.
        .filter(|line| line.contains("other") && !line.contains("forwarding = "))
        .collect();
    assert!(lost.is_empty(), "foreign things changed: {lost:#?}");

    let refused = node.weftd().command(&["uninstall"]);
    assert_eq!(refused.status.code(), Some(1), "pods live: {refused:?}");
    let (pod, others) = pods.split_first().expect("three pods");
    pod.stop();
    node.weftd().stop();
    node.weftd().command_ok(&["uninstall"]);
    let left = Allow::nothing()
        .forwarding()
        .processes()
        .path("/var/lib/weft")
        .path("/run/weft")
        .text("conf/all")
        .text("conf/default");
    before.assert_settles(&node.node, &left);
    let others: Vec<&ClusterPod> = others.iter().collect();
    netns_tests::cluster::assert_all_reach_all(&others);
}
