//! Pods of three nodes reach each other, over both backends and all families, with their own addresses and whole
//! packets.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod common_overlay;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use common_overlay::{Families, Member, VXLAN, World, assert_pings, ping_sized};
use netns_tests::{Inside, Pod, lab, require};
use weft_overlay::wanted::{Backend, Direct};

/// Pods reach each other's addresses, seen as themselves; nodes too, seen as their node address. The largest packet
/// passes whole, one byte more is refused.
fn assert_connected(from: (&Member, &Pod), to: (&Member, &Pod), mtu: u32) {
    let listener = to.1.listen(7000);
    for (target, own) in to.0.pod_addresses().into_iter().zip(from.0.pod_addresses()) {
        let way = format!("{} to {target}", from.0.node.name());
        assert_pings(from.1, target);
        assert!(ping_sized(from.1, target, mtu), "{way}: {mtu} bytes do not pass");
        assert!(!ping_sized(from.1, target, mtu + 1), "{way}: {} bytes pass", mtu + 1);
        let server = SocketAddr::new(target, listener.port());
        assert_eq!(from.1.seen_by(server).unwrap(), own, "{way}");
        let node = from.0.node_addresses().into_iter().find(|ip| ip.is_ipv4() == target.is_ipv4()).unwrap();
        assert_eq!(from.0.node.seen_by(server).unwrap(), node, "{way}, from the node itself");
        assert_pings(
            from.1,
            to.0.node_addresses().into_iter().find(|ip| ip.is_ipv4() == target.is_ipv4()).unwrap(),
        );
    }
}

/// 300 kB, with every ICMP message dropped: only clamped segments come through.
fn assert_flows_without_path_mtu_discovery(from: &Pod, to: &Pod, target: IpAddr) {
    const LENGTH: usize = 300_000;
    for pod in [from, to] {
        pod.run(["nft", "add table inet t; add chain inet t i { type filter hook input priority 0; }"]);
        pod.run(["nft", "add rule inet t i icmp type destination-unreachable drop"]);
        pod.run(["nft", "add rule inet t i icmpv6 type packet-too-big drop"]);
    }
    let listener = to.enter(|| TcpListener::bind((target, 7001))).unwrap();
    let sender = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&[7; LENGTH]));
    let limit = Duration::from_secs(10);
    let mut stream = from.enter(|| TcpStream::connect_timeout(&(target, 7001).into(), limit)).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), LENGTH);
    sender.join().unwrap().unwrap();
}

fn vxlan(families: Families, direct: Direct, mtu: u32, lab: netns_tests::Lab) {
    let mut world = World::new(lab, families);
    world.start(VXLAN, direct);
    let pods: Vec<_> = world.members.iter().map(|member| member.attach(&world.lab)).collect();
    let members = &world.members;
    assert_eq!(members[0].last().unwrap().pod_mtu, Some(mtu));
    // Without a device in between there is no overhead.
    let between = if direct == Direct::SameSubnet { 1500 } else { mtu };
    assert_connected((&members[0], &pods[0]), (&members[1], &pods[1]), between);
    assert_connected((&members[0], &pods[0]), (&members[2], &pods[2]), mtu);
    assert_connected((&members[2], &pods[2]), (&members[1], &pods[1]), mtu);
    for target in members[2].pod_addresses() {
        assert_flows_without_path_mtu_discovery(&pods[0], &pods[2], target);
    }
}

#[test]
fn vxlan_carries_both_families_over_ipv4() {
    if require() {
        vxlan(Families::DUAL, Direct::Never, 1450, lab!());
    }
}

#[test]
fn vxlan_carries_ipv6_pods_over_ipv6() {
    if require() {
        vxlan(Families::V6, Direct::Never, 1430, lab!());
    }
}

#[test]
fn vxlan_carries_ipv6_pods_over_an_underlay_of_ipv4_only() {
    if require() {
        let families = Families { underlay_v6: false, pods_v4: false, ..Families::DUAL };
        vxlan(families, Direct::Never, 1450, lab!());
    }
}

#[test]
fn vxlan_leaves_its_device_out_between_nodes_of_one_subnet() {
    if require() {
        vxlan(Families::V4, Direct::SameSubnet, 1450, lab!());
    }
}

fn routes(families: Families, lab: netns_tests::Lab) {
    let mut world = World::new(lab, families);
    world.start(Backend::Routes, Direct::Never);
    let pods: Vec<_> = world.members.iter().map(|member| member.attach(&world.lab)).collect();
    let members = &world.members;
    assert_eq!(members[0].last().unwrap().pod_mtu, Some(1500));
    for (target, server) in members[1].pod_addresses().into_iter().zip(members[1].pod_addresses()) {
        assert_pings(&pods[0], target);
        let listener = pods[1].listen(7000);
        let seen = pods[0].seen_by(SocketAddr::new(server, listener.port())).unwrap();
        assert!(members[0].pod_addresses().contains(&seen), "{seen}");
    }
    // Node c is behind a router, which plain routes cannot cross: said, and refused instead of sent there.
    let report = members[0].last().unwrap();
    let blocks = members[2].blocks().len();
    let behind =
        report.findings.iter().filter(|finding| finding.code == "no-route" && finding.subject == "c");
    assert_eq!(behind.count(), blocks, "{report:?}");
    assert!(!pods[0].ping(members[2].pod_addresses()[0], 1));
}

#[test]
fn routes_carry_both_families() {
    if require() {
        routes(Families::DUAL, lab!());
    }
}

#[test]
fn routes_carry_ipv6_pods_over_ipv6() {
    if require() {
        routes(Families::V6, lab!());
    }
}

#[test]
fn routes_carry_ipv4_pods_over_ipv6() {
    if require() {
        routes(Families { underlay_v4: false, pods_v6: false, ..Families::DUAL }, lab!());
    }
}

/// What leaves the cluster does so under the node's address; what nobody has never leaves at all: neither past the
/// unreachable route nor, once that is taken away under a daemon that is gone, past the rules.
#[test]
fn unknown_blocks_never_leave_and_the_world_sees_the_node() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), Families::DUAL);
    world.start(Backend::Routes, Direct::Never);
    let pod = world.members[0].attach(&world.lab);
    let listener = world.router.listen(7000);
    for (server, node) in [("192.0.2.254", "192.0.2.1"), ("2001:db8::fe", "2001:db8::1")] {
        let server = SocketAddr::new(server.parse().unwrap(), listener.port());
        assert_eq!(pod.seen_by(server).unwrap(), node.parse::<IpAddr>().unwrap());
    }
    world
        .router
        .run(["nft", "add table inet t; add chain inet t p { type filter hook prerouting priority -300; }"]);
    world.router.run(["nft", "add rule inet t p ip daddr 10.1.0.0/16 counter drop"]);
    world.router.run(["nft", "add rule inet t p ip6 daddr fd00:1::/48 counter drop"]);
    assert_kept(&world, &pod, "with the route");
    world.members[0].stop();
    let node = &world.members[0].node;
    node.run(["ip", "route", "flush", "proto", "87"]);
    node.run(["ip", "-6", "route", "flush", "proto", "87"]);
    assert_kept(&world, &pod, "with the rules alone");
    // The counter would have seen it.
    node.run(["nft", "delete", "table", "inet", "weft"]);
    assert!(!pod.ping("10.1.99.1".parse().unwrap(), 1));
    let rules = world.router.run(["nft", "list", "table", "inet", "t"]);
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("10.1.0.0/16 counter packets 0 "));
}

fn assert_kept(world: &World, pod: &Pod, when: &str) {
    for target in ["10.1.99.1", "fd00:1::99:1"] {
        let target = target.parse().unwrap();
        assert!(!pod.ping(target, 1), "{when}: {target} answers");
        assert!(!world.members[0].node.ping(target, 1), "{when}: {target} answers the node");
    }
    let rules = world.router.run(["nft", "list", "table", "inet", "t"]);
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert_eq!(rules.matches("packets 0 ").count(), 2, "{when}: {rules}");
}
