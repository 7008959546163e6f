//! Plans for the cases that people have, and the laws that hold for all.

use proptest::prelude::*;
use std::net::IpAddr;

use serde_json::{Value, json};
use weft_cni::args::CniArgs;
use weft_cni::conf::NetConf;
use weft_cni::dns::Dns;
use weft_cni::ip::IfAddr;
use weft_cni::result::IpConfig;
use weft_cni::route::Route;

use super::{Granted, Plan, PodRoute, is_default, plan};
use crate::conf::Conf;

fn conf(extra: Value) -> Conf {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "weft"});
    for (key, value) in extra.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let conf = NetConf::parse(conf.to_string().as_bytes()).unwrap();
    Conf::parse(&conf, &CniArgs::default()).unwrap()
}

fn granted(addresses: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)], cluster: bool) -> Granted {
    let ip = |(address, gateway): &(&str, Option<&str>)| IpConfig {
        address: address.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        interface: None,
    };
    let route = |(dst, gw): &(&str, Option<&str>)| Route {
        gw: gw.map(|gw| gw.parse().unwrap()),
        ..Route::new(dst.parse().unwrap())
    };
    Granted {
        ips: addresses.iter().map(ip).collect(),
        routes: routes.iter().map(route).collect(),
        dns: Dns::default(),
        cluster,
        node_addresses: Vec::new(),
    }
}

/// `destination via gateway`, as `ip route` would say it.
fn routes(plan: &Plan) -> Vec<String> {
    let line = |route: &PodRoute| {
        let via = route.via.map_or_else(String::new, |via| format!(" via {via}"));
        let optional = if route.unless_default { " unless there is one" } else { "" };
        format!("{}{via}{optional}", route.route.dst)
    };
    plan.routes.iter().map(line).collect()
}

fn gateways(plan: &Plan) -> Vec<String> {
    plan.gateways.iter().map(IfAddr::to_string).collect()
}

#[test]
fn a_bridge_without_gateway_gives_no_route_and_carries_nothing() {
    let plan = plan(&conf(json!({})), &granted(&[("10.1.0.5/24", Some("10.1.0.1"))], &[], false)).unwrap();
    assert!(plan.routes.is_empty() && plan.gateways.is_empty());
    assert_eq!(plan.addresses[0].address.to_string(), "10.1.0.5/24");
}

#[test]
fn a_default_gateway_is_carried_with_the_subnets_length_and_routed_by() {
    let granted = granted(&[("10.1.0.5/24", None), ("fd00::5/64", Some("fd00::9"))], &[], false);
    let plan = plan(&conf(json!({"isDefaultGateway": true})), &granted).unwrap();
    assert_eq!(gateways(&plan), ["10.1.0.1/24", "fd00::9/64"], "without one named: the subnet's first");
    assert_eq!(routes(&plan), ["0.0.0.0/0 via 10.1.0.1", "::/0 via fd00::9"]);
}

#[test]
fn a_default_route_of_the_ipam_with_gateway_is_not_doubled() {
    let conf = conf(json!({"isDefaultGateway": true}));
    let addresses = [("10.1.0.5/24", Some("10.1.0.1"))];
    let with = plan(&conf, &granted(&addresses, &[("0.0.0.0/0", Some("10.1.0.7"))], false)).unwrap();
    assert_eq!(routes(&with), ["0.0.0.0/0 via 10.1.0.7"]);
    let without = plan(&conf, &granted(&addresses, &[("0.0.0.0/0", None)], false)).unwrap();
    assert_eq!(routes(&without), ["0.0.0.0/0 via 10.1.0.1"]);
    assert_eq!(without.routes[0].route.gw, None, "reported as the IPAM gave it");
}

#[test]
fn veth_mode_gives_the_address_alone_and_the_network_by_the_gateway() {
    let granted = granted(&[("10.1.0.5/24", Some("10.1.0.1")), ("fd00::5/64", Some("fd00::1"))], &[], false);
    let plan = plan(&conf(json!({"mode": "veth"})), &granted).unwrap();
    let addresses: Vec<_> = plan.addresses.iter().map(|pod| pod.address.to_string()).collect();
    assert_eq!(addresses, ["10.1.0.5/32", "fd00::5/128"]);
    assert_eq!(gateways(&plan), ["10.1.0.1/32", "fd00::1/128", "fe80::1/64"]);
    assert_eq!(
        routes(&plan),
        [
            "10.1.0.0/24 via 10.1.0.1",
            "fd00::/64 via fd00::1",
            "0.0.0.0/0 via 10.1.0.1 unless there is one",
            "::/0 via fd00::1 unless there is one",
        ]
    );
    assert!(plan.routes.iter().all(|route| route.onlink));
}

#[test]
fn a_default_route_in_veth_mode_can_be_demanded_and_forbidden() {
    let granted = granted(&[("10.1.0.5/24", Some("10.1.0.1"))], &[], false);
    let demanded = plan(&conf(json!({"mode": "veth", "isDefaultGateway": true})), &granted).unwrap();
    assert_eq!(routes(&demanded), ["10.1.0.0/24 via 10.1.0.1", "0.0.0.0/0 via 10.1.0.1"]);
    let forbidden = plan(&conf(json!({"mode": "veth", "isDefaultGateway": false})), &granted).unwrap();
    assert_eq!(routes(&forbidden), ["10.1.0.0/24 via 10.1.0.1"]);
}

#[test]
fn cluster_pods_go_by_the_link_local_gateway_in_both_modes() {
    for mode in ["bridge", "veth"] {
        let granted = granted(&[("10.9.0.5/32", None), ("fd00:9::5/128", None)], &[], true);
        let plan = plan(&conf(json!({"mode": mode})), &granted).unwrap();
        assert_eq!(gateways(&plan), ["169.254.1.1/32", "fe80::1/64"], "{mode}");
        assert_eq!(
            routes(&plan),
            ["0.0.0.0/0 via 169.254.1.1 unless there is one", "::/0 via fe80::1 unless there is one",],
            "{mode}"
        );
        assert_eq!(plan.routed, mode == "bridge");
    }
}

#[test]
fn the_node_address_goes_into_the_plan_of_a_cluster_pod() {
    let node: IpAddr = "10.9.0.0".parse().unwrap();
    let granted = Granted { node_addresses: vec![node], ..granted(&[("10.9.0.5/32", None)], &[], true) };
    assert_eq!(plan(&conf(json!({"mode": "veth"})), &granted).unwrap().node_addresses, [node]);
}

#[test]
fn an_ipam_without_gateway_gets_the_link_local_one_in_veth_mode() {
    let plan = plan(&conf(json!({"mode": "veth"})), &granted(&[("192.0.2.5/24", None)], &[], false)).unwrap();
    assert_eq!(gateways(&plan), ["169.254.1.1/32"]);
}

proptest! {
    /// Every gateway that a route names is an address of the pod's gateways, and of the route's family; what veth
    /// mode puts on the pod is a host address.
    #[test]
    fn every_route_has_a_next_hop_of_its_family(
        v4 in any::<bool>(), v6 in any::<bool>(), veth in any::<bool>(), cluster in any::<bool>(),
        host in 2u8..250, default in proptest::option::of(any::<bool>()),
    ) {
        let (four, six) = (format!("10.7.0.{host}/24"), format!("fd00:7::{host:x}/64"));
        let mut addresses = Vec::new();
        if v4 { addresses.push((four.as_str(), Some("10.7.0.1"))); }
        if v6 { addresses.push((six.as_str(), None)); }
        let mode = if veth { "veth" } else { "bridge" };
        let conf = conf(json!({"mode": mode, "isGateway": true, "isDefaultGateway": default}));
        let plan = plan(&conf, &granted(&addresses, &[], cluster)).unwrap();
        for route in &plan.routes {
            let via = route.via.unwrap();
            prop_assert_eq!(via.is_ipv4(), route.route.dst.is_ipv4());
            prop_assert!(plan.addresses.iter().any(|pod| pod.gateway == Some(via)));
            prop_assert!(plan.gateways.iter().any(|carried| carried.addr() == via));
        }
        for pod in &plan.addresses {
            let bits = if pod.address.is_ipv4() { 32 } else { 128 };
            prop_assert_eq!(pod.address.prefix_len() == bits, veth || cluster);
        }
        let defaults = |v4: bool| plan.routes.iter().filter(|r| is_default(&r.route) && r.route.dst.is_ipv4() == v4).count();
        prop_assert!(defaults(true) <= 1 && defaults(false) <= 1);
    }
}
