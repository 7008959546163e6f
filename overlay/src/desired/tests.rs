use weft_cni::ip::IfAddr;

use super::*;
use crate::objects::{Hop, ROUTE_METRIC, UNREACHABLE_METRIC};
use crate::share::shared_subnet;
use crate::testing::{facts, peer, wanted};
use crate::underlay::{Facts, detect};
use crate::wanted::Direct;

const VXLAN: Backend = Backend::Vxlan { vni: 7, port: 4789 };

fn eth0() -> Facts {
    facts(&[("eth0", 1500, &["192.0.2.1/24"])])
}

fn both() -> Facts {
    facts(&[("eth0", 1500, &["192.0.2.1/24", "2001:db8::1/64"])])
}

fn dual(backend: Backend) -> Wanted {
    let mut wanted = wanted(backend);
    wanted.cidrs.push("fd00:1::/48".parse().unwrap());
    wanted.this.blocks.push("fd00:1::1:0/112".parse().unwrap());
    wanted.this.node_addresses.push("fd00:1::1:0".parse().unwrap());
    wanted.this.published.push("2001:db8::1/64".parse().unwrap());
    wanted
}

fn decide(wanted: &Wanted, facts: &Facts) -> Desired {
    desired(wanted, &detect(facts, &wanted.this))
}

fn hop<'a>(desired: &'a Desired, block: &str) -> &'a Hop {
    match desired.objects.get(&Key::route(block.parse().unwrap())) {
        Some(Object::Hop(hop)) => hop,
        other => panic!("no route to {block}: {other:?}\n{:?}", desired.findings),
    }
}

fn codes(desired: &Desired) -> Vec<&str> {
    desired.findings.iter().map(|finding| finding.code).collect()
}

fn text(hop: &Hop) -> (String, &str, Option<u32>) {
    (hop.via.to_string(), &hop.link, hop.mtu)
}

#[test]
fn the_cluster_is_unreachable_before_and_behind_everything() {
    let desired = decide(&wanted(Backend::Routes), &Facts::default());
    let first: Vec<_> = desired.objects.keys().take(2).map(ToString::to_string).collect();
    assert_eq!(first, ["unreachable route 10.1.0.0/16", "unreachable route 10.1.1.0/24"]);
    assert_eq!(codes(&desired), ["no-underlay"]);
    const { assert!(ROUTE_METRIC < UNREACHABLE_METRIC) };
}

#[test]
fn a_route_goes_by_the_node_with_the_node_address_as_source() {
    let mut wanted = wanted(Backend::Routes);
    wanted.peers.insert("b".into(), peer(&["192.0.2.2/24"], &["10.1.2.0/24", "10.1.3.0/24"], 2));
    let desired = decide(&wanted, &eth0());
    assert_eq!(text(hop(&desired, "10.1.3.0/24")), ("192.0.2.2".to_owned(), "eth0", Some(1500)));
    assert_eq!(hop(&desired, "10.1.2.0/24").source, Some("10.1.1.0".parse().unwrap()));
    assert_eq!(desired.rules.next_hops, ["192.0.2.2".parse().unwrap()].into());
    assert_eq!((codes(&desired), desired.pod_mtu), (vec![], Some(1500)));
}

#[test]
fn behind_a_router_plain_routes_are_no_use_and_that_is_said() {
    let mut wanted = wanted(Backend::Routes);
    wanted.peers.insert("c".into(), peer(&["198.51.100.3/24"], &["10.1.3.0/24"], 3));
    let desired = decide(&wanted, &eth0());
    assert_eq!(codes(&desired), ["no-route"]);
    assert!(desired.findings.first().unwrap().text.contains("198.51.100.3/24"));
    assert!(!desired.objects.contains_key(&Key::route("10.1.3.0/24".parse().unwrap())));
}

#[test]
fn ipv6_pods_find_no_way_over_an_ipv4_underlay_by_routes_but_by_vxlan() {
    let v6_peer = || peer(&["192.0.2.2/24"], &["fd00:1::2:0/112"], 2);
    let mut wanted = dual(Backend::Routes);
    wanted.peers.insert("b".into(), v6_peer());
    let desired = decide(&wanted, &both());
    assert_eq!(codes(&desired), ["no-route"]);
    assert!(desired.findings.first().unwrap().text.contains("IPv6 packets need an IPv6 next hop"));
    wanted.backend = VXLAN;
    let desired = decide(&wanted, &both());
    assert_eq!(codes(&desired), Vec::<&str>::new());
    assert_eq!(text(hop(&desired, "fd00:1::2:0/112")), ("fd00:1::2:0".to_owned(), "weft-vx", Some(1450)));
}

#[test]
fn ipv4_pods_take_an_ipv6_next_hop_where_there_is_nothing_else() {
    let mut wanted = dual(Backend::Routes);
    wanted.peers.insert("b".into(), peer(&["2001:db8::2/64"], &["10.1.2.0/24", "fd00:1::2:0/112"], 2));
    let desired = decide(&wanted, &both());
    assert_eq!(hop(&desired, "10.1.2.0/24").via.to_string(), "2001:db8::2");
    assert_eq!(desired.rules.unseen.len(), 1);
    assert_eq!(desired.rules.next_hops.len(), 1);
}

#[test]
fn vxlan_makes_device_neighbour_forwarding_entry_and_route_in_that_order() {
    let mut wanted = wanted(VXLAN);
    wanted.peers.insert("b".into(), peer(&["198.51.100.2/24"], &["10.1.2.0/24"], 2));
    let desired = decide(&wanted, &eth0());
    let keys: Vec<_> = desired.objects.keys().map(ToString::to_string).collect();
    assert_eq!(
        keys,
        [
            "unreachable route 10.1.0.0/16",
            "unreachable route 10.1.1.0/24",
            "link weft-node",
            "link weft-vx",
            "address 10.1.1.0 on weft-node",
            "neighbour 10.1.2.0 on weft-vx",
            "forwarding entry 02:00:00:00:00:02 on weft-vx",
            "route 10.1.2.0/24",
        ]
    );
    assert_eq!(text(hop(&desired, "10.1.2.0/24")), ("10.1.2.0".to_owned(), "weft-vx", Some(1450)));
    assert_eq!(desired.pod_mtu, Some(1450));
    assert!(desired.rules.next_hops.is_empty());
}

/// D5: both nodes come to the same answer from the same two records, also where a link's prefix says otherwise.
#[test]
fn nodes_of_one_published_subnet_go_direct_both_ways_or_neither() {
    let mut ours = wanted(VXLAN);
    ours.direct = Direct::SameSubnet;
    ours.peers.insert("b".into(), peer(&["192.0.2.2/24"], &["10.1.2.0/24"], 2));
    ours.peers.insert("c".into(), peer(&["192.0.2.3/25"], &["10.1.3.0/24"], 3));
    ours.peers.insert("d".into(), peer(&["198.51.100.4/24"], &["10.1.4.0/24"], 4));
    let desired = decide(&ours, &eth0());
    let links: Vec<_> =
        ["10.1.2.0/24", "10.1.3.0/24", "10.1.4.0/24"].map(|block| &*hop(&desired, block).link).into();
    assert_eq!(links, ["eth0", "weft-vx", "weft-vx"]);
    let address = |text: &str| vec![text.parse::<IfAddr>().unwrap()];
    for (a, b) in
        [("192.0.2.1/24", "192.0.2.2/24"), ("192.0.2.1/24", "192.0.2.3/25"), ("192.0.2.1/32", "192.0.2.1/32")]
    {
        let there = shared_subnet(&address(a), &address(b)).is_some();
        assert_eq!(there, shared_subnet(&address(b), &address(a)).is_some(), "{a} {b}");
    }
}

#[test]
fn two_families_meet_in_the_one_that_both_publish() {
    let mut wanted = dual(VXLAN);
    wanted.peers.insert("v4".into(), peer(&["198.51.100.2/24"], &["10.1.2.0/24"], 2));
    wanted.peers.insert("v6".into(), peer(&["2001:db8:1::3/64"], &["10.1.3.0/24"], 3));
    let desired = decide(&wanted, &both());
    assert_eq!(text(hop(&desired, "10.1.2.0/24")), ("10.1.2.0".to_owned(), "weft-vx", Some(1450)));
    assert_eq!(text(hop(&desired, "10.1.3.0/24")), ("10.1.3.0".to_owned(), "weft-vx6", Some(1430)));
    wanted.this.published.remove(0);
    let alone = decide(&wanted, &both());
    assert_eq!(codes(&alone), ["no-common-family"]);
    assert_eq!(&*hop(&alone, "10.1.3.0/24").link, "weft-vx");
    assert_eq!(alone.pod_mtu, Some(1430));
}

#[test]
fn two_nodes_of_one_mac_are_told_and_the_first_is_reached() {
    let mut wanted = wanted(VXLAN);
    wanted.peers.insert("b".into(), peer(&["198.51.100.2/24"], &["10.1.2.0/24"], 2));
    wanted.peers.insert("c".into(), peer(&["198.51.100.3/24"], &["10.1.3.0/24"], 2));
    let desired = decide(&wanted, &eth0());
    assert_eq!(codes(&desired), ["clash"]);
    assert_eq!(&*hop(&desired, "10.1.2.0/24").link, "weft-vx");
    assert!(!desired.objects.contains_key(&Key::route("10.1.3.0/24".parse().unwrap())));
}

#[test]
fn a_forced_mtu_counts_everywhere_and_one_too_large_is_told() {
    let mut wanted = wanted(VXLAN);
    wanted.peers.insert("b".into(), peer(&["198.51.100.2/24"], &["10.1.2.0/24"], 2));
    wanted.mtu = Some(1300);
    let desired = decide(&wanted, &eth0());
    assert_eq!(
        (desired.pod_mtu, hop(&desired, "10.1.2.0/24").mtu, codes(&desired)),
        (Some(1300), Some(1300), vec![])
    );
    wanted.mtu = Some(1500);
    assert_eq!(codes(&decide(&wanted, &eth0())), ["mtu-too-large"]);
    wanted.cidrs.push("fd00:1::/48".parse().unwrap());
    wanted.mtu = Some(1279);
    assert_eq!(codes(&decide(&wanted, &eth0())), ["mtu-too-small"]);
}

#[test]
fn masquerade_spares_the_cluster_and_the_exclusions() {
    let mut wanted = dual(Backend::Routes);
    wanted.no_masquerade.push("10.9.0.0/16".parse().unwrap());
    let rules = decide(&wanted, &both()).rules;
    assert_eq!((rules.cluster.len(), rules.masquerade.len(), rules.plain.len()), (2, 2, 1));
    assert_eq!(rules.outside, ["eth0".to_owned()].into());
    wanted.masquerade = false;
    assert!(decide(&wanted, &both()).rules.masquerade.is_empty());
}

#[test]
fn a_node_address_inside_the_cluster_is_told() {
    let mut wanted = wanted(VXLAN);
    wanted.peers.insert("b".into(), peer(&["10.1.200.2/24"], &["10.1.2.0/24"], 2));
    let desired = decide(&wanted, &eth0());
    assert_eq!(codes(&desired), ["underlay-in-cluster"]);
    assert_eq!(desired.findings.first().unwrap().subject, "b");
}

mod changes {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Few values, so that nodes clash, share addresses and come back.
    fn some_peer() -> impl Strategy<Value = Option<Arc<Peer>>> {
        let addresses = ["192.0.2.2/24", "192.0.2.3/24", "198.51.100.3/24", "2001:db8::2/64", "10.1.9.9/24"];
        let blocks = ["10.1.2.0/24", "10.1.3.0/24", "10.1.4.0/24", "10.1.5.0/24", "fd00:1::2:0/112"];
        let addresses = prop::sample::subsequence(addresses.to_vec(), 0..3);
        let blocks = prop::sample::subsequence(blocks.to_vec(), 0..4);
        prop::option::of(
            (addresses, blocks, 2u8..8).prop_map(|(addresses, blocks, mac)| peer(&addresses, &blocks, mac)),
        )
    }

    fn orders() -> impl Strategy<Value = Vec<(usize, Option<Arc<Peer>>)>> {
        prop::collection::vec((0..5usize, some_peer()), 1..12)
    }

    proptest! {
        #[test]
        fn peer_by_peer_comes_to_the_same_as_all_at_once(
            orders in orders(), routes: bool, same_subnet: bool, forced in prop::option::of(1200u32..1700),
        ) {
            let mut wanted = dual(if routes { Backend::Routes } else { VXLAN });
            wanted.mtu = forced;
            if same_subnet {
                wanted.direct = Direct::SameSubnet;
            }
            let underlay = detect(&both(), &wanted.this);
            let mut now = desired(&wanted, &underlay);
            for (node, peer) in orders {
                let name = ["b", "c", "d", "e", "f"][node];
                let former = match &peer {
                    Some(peer) => wanted.peers.insert(name.into(), peer.clone()),
                    None => wanted.peers.remove(name),
                };
                let all = desired(&wanted, &underlay);
                let before = now.clone();
                match now.change(&wanted, &underlay, name, [former.as_deref(), peer.as_deref()]) {
                    Change::Done { keys, rules } => {
                        let keys: BTreeSet<_> = keys.into_iter().collect();
                        let differs = |key: &&Key| before.objects.get(*key) != all.objects.get(*key);
                        let missed = before.objects.keys().chain(all.objects.keys()).filter(differs);
                        prop_assert!(missed.clone().all(|key| keys.contains(key)));
                        prop_assert!(rules || before.rules == now.rules);
                        let findings = (now.findings.clone(), all.findings.clone());
                        prop_assert!(findings.1.is_subset(&findings.0));
                        // What is about a link may stay a little longer.
                        prop_assert!(findings.0.difference(&findings.1).all(|one| one.code.starts_with("mtu-")));
                        now.findings = findings.1;
                        prop_assert_eq!(now.clone(), all);
                    }
                    Change::Entangled => {
                        prop_assert_eq!(&now, &before);
                        now = all;
                    }
                }
            }
        }
    }
}
