//! Point 1: a real etcd, three nodes, every backend, family and underlay: all pods reach all pods under their own
//! addresses, TCP arrives intact, and the largest packet is exactly as large as it should be.

#![expect(clippy::print_stderr, reason = "figures for the person who reads the log")]

use std::net::IpAddr;

use netns_tests::cluster::{
    ClusterLab, ClusterPod, Layout, Network, Underlay, is_largest, long, long_or, require_cluster, transfer,
};
use netns_tests::{Inside, wait_until};

/// VXLAN's overhead over IPv4 and over IPv6 (design §6).
const VXLAN_V4: u32 = 50;
const VXLAN_V6: u32 = 70;

/// Two pods on the first node and one on each other.
fn pods_of(lab: &ClusterLab) -> Vec<ClusterPod> {
    let mut pods = lab.pod_on_each("p");
    pods.push(lab.pod(0, "second"));
    pods
}

/// Everything that holds of a cluster that works.
fn assert_works(what: &str, lab: &ClusterLab, network: &Network, path_mtu: u32) {
    eprintln!("{what}");
    lab.start_all(network);
    let pods = pods_of(lab);
    lab.assert_all_reach_all(&pods);
    lab.assert_nothing_given_twice();
    let [first, second, third] = [&pods[0], &pods[1], &pods[2]];
    std::thread::scope(|scope| {
        for (from, to) in [(first, third), (third, first), (second, third)] {
            for ip in &to.ips {
                scope.spawn(move || {
                    is_largest(from, *ip, path_mtu).unwrap_or_else(|wrong| panic!("{what}: {wrong}"))
                });
            }
        }
    });
    assert_nodes_reach_pods(what, lab, &pods);
    for ip in &third.ips {
        let bytes = long_or(1 << 30, 16 << 20);
        transfer(first, third, *ip, bytes).unwrap_or_else(|error| panic!("{what}: {ip}: {error}"));
    }
    pods.iter().for_each(ClusterPod::stop);
}

/// F3: what the node itself sends to pods of other nodes comes from its node address, which is no pod's.
fn assert_nodes_reach_pods(what: &str, lab: &ClusterLab, pods: &[ClusterPod]) {
    for node in &lab.nodes {
        let status = node.weftd().status();
        let own: Vec<IpAddr> = status["node_addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect();
        for pod in pods {
            for ip in &pod.ips {
                let seen = node.seen_by(pod.server(*ip));
                let seen = seen.unwrap_or_else(|error| panic!("{what}: {} → {ip}: {error}", node.name()));
                assert!(
                    own.contains(&seen),
                    "{what}: {} is seen as {seen} by {ip}, not as {own:?}",
                    node.name()
                );
            }
        }
    }
}

fn families() -> Vec<(&'static str, Network)> {
    let network = Network::default;
    vec![("dual", network()), ("IPv4", network().v4()), ("IPv6", network().v6())]
}

#[test]
fn vxlan_joins_nodes_of_two_subnets_over_ipv4() {
    if !require_cluster() {
        return;
    }
    for (family, network) in families().into_iter().take(long_or(3, 1)) {
        let lab = ClusterLab::new("vxlan4", &Layout::default());
        assert_works(&format!("vxlan over IPv4, {family} pods"), &lab, &network, 1500 - VXLAN_V4);
    }
}

#[test]
fn vxlan_joins_nodes_of_two_subnets_over_ipv6() {
    if !require_cluster() {
        return;
    }
    for (family, network) in families().into_iter().rev().take(long_or(3, 1)) {
        let lab = ClusterLab::new("vxlan6", &Layout::default().underlay(Underlay::V6));
        let network = network.mode("veth");
        assert_works(&format!("vxlan over IPv6, {family} pods"), &lab, &network, 1500 - VXLAN_V6);
    }
}

#[test]
fn plain_routes_join_nodes_of_one_subnet() {
    if !require_cluster() {
        return;
    }
    for mode in ["bridge", "veth"].into_iter().take(long_or(2, 1)) {
        for (family, network) in families().into_iter().take(long_or(3, 1)) {
            let lab = ClusterLab::new("routes", &Layout::default().flat().underlay(Underlay::Dual));
            let network = network.backend("routes").mode(mode);
            assert_works(&format!("routes, {family} pods, {mode}"), &lab, &network, 1500);
        }
    }
}

#[test]
fn plain_routes_carry_ipv6_pods_over_an_ipv6_underlay() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("routes6", &Layout::default().flat().underlay(Underlay::V6));
    let network = Network::default().v6().backend("routes").mode("veth");
    assert_works("routes over IPv6, IPv6 pods", &lab, &network, 1500);
}

/// The two near nodes use plain routes, whose packets are as large as the underlay's; the far one is behind VXLAN,
/// and a pod's large packets to it are told so.
#[test]
fn direct_uses_plain_routes_in_a_subnet_and_vxlan_beyond_it() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("direct", &Layout::default());
    let network = Network::default().direct();
    assert_works("mixed", &lab, &network, 1500 - VXLAN_V4);
    let near = lab.nodes[0].json(["ip", "-j", "route", "show", "proto", "87"]);
    let devices: Vec<&str> =
        near.as_array().into_iter().flatten().filter_map(|route| route["dev"].as_str()).collect();
    assert!(devices.contains(&"eth0") && devices.contains(&"weft-vx"), "{near:#}");
}

/// The MTU of the underlay is found again when it changes.
#[test]
fn a_smaller_underlay_makes_packets_smaller() {
    if !require_cluster() {
        return;
    }
    let layout = Layout { mtu: 1400, ..Layout::default() };
    let lab = ClusterLab::new("mtu", &layout);
    lab.start_all(&Network::default().v4());
    let pods = lab.pod_on_each("p");
    lab.assert_all_reach_all(&pods);
    let ip = pods[2].ip();
    assert!(is_largest(&pods[0], ip, 1350).is_ok());
    for node in &lab.nodes {
        node.run(["ip", "link", "set", "eth0", "mtu", "1300"]);
    }
    wait_until("the change is noticed", netns_tests::cluster::PATIENCE, || {
        is_largest(&pods[0], ip, 1250).is_ok()
    });
    if long() {
        transfer(&pods[0], &pods[2], ip, 1 << 30).expect("intact");
    }
}
