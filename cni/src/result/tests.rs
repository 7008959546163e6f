use serde_json::json;

use super::*;

fn dual_stack() -> AddResult {
    let host = Interface { name: "veth1".into(), mac: "aa:bb:cc:dd:ee:00".into(), ..Interface::default() };
    let pod = Interface {
        name: "eth0".into(),
        mac: "aa:bb:cc:dd:ee:ff".into(),
        mtu: Some(1450),
        sandbox: "/run/netns/x".into(),
        socket_path: Some("/run/s".into()),
        pci_id: Some("0000:01:00.0".into()),
        ..Interface::default()
    };
    let mut default4 = Route::new("0.0.0.0/0".parse().unwrap());
    default4.gw = Some("10.1.0.1".parse().unwrap());
    default4.mtu = Some(1400);
    AddResult {
        interfaces: vec![host, pod],
        ips: vec![ip("10.1.0.5/24", Some("10.1.0.1")), ip("fd00::5/64", None), ip("10.2.0.5/24", None)],
        routes: vec![default4, Route::new("::/0".parse().unwrap())],
        ..AddResult::default()
    }
}

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    let gateway = gateway.map(|text| text.parse().unwrap());
    IpConfig { address: address.parse().unwrap(), gateway, interface: Some(1) }
}

#[test]
fn up_to_0_2_0_the_first_address_of_each_family_is_left() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0"}]},
            "dns": {},
        });
        assert_eq!(dual_stack().to_value(version), Ok(expected));
    }
}

#[test]
fn from_0_3_0_to_0_4_0_addresses_say_their_version_and_dns_is_always_there() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "veth1", "mac": "aa:bb:cc:dd:ee:00"},
                {"name": "eth0", "mac": "aa:bb:cc:dd:ee:ff", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
                {"version": "6", "address": "fd00::5/64", "interface": 1},
                {"version": "4", "address": "10.2.0.5/24", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}],
            "dns": {},
        });
        assert_eq!(dual_stack().to_value(version), Ok(expected));
    }
}

#[test]
fn at_1_0_0_addresses_lose_their_version_and_empty_dns_goes() {
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth1", "mac": "aa:bb:cc:dd:ee:00"},
            {"name": "eth0", "mac": "aa:bb:cc:dd:ee:ff", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
            {"address": "10.2.0.5/24", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}],
    });
    assert_eq!(dual_stack().to_value(Version::V1_0_0), Ok(expected));
}

#[test]
fn at_1_1_0_interfaces_and_routes_have_their_new_fields() {
    let value = dual_stack().to_value(Version::V1_1_0).unwrap();
    assert_eq!(
        value["interfaces"][1],
        json!({"name": "eth0", "mac": "aa:bb:cc:dd:ee:ff", "sandbox": "/run/netns/x", "mtu": 1450,
            "socketPath": "/run/s", "pciID": "0000:01:00.0"})
    );
    assert_eq!(value["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}));
    assert_eq!(value.get("dns"), None);
}

#[test]
fn every_version_reads_its_own_print() {
    for version in Version::ALL {
        let printed = dual_stack().to_value(version).unwrap();
        let read = AddResult::parse(&printed).unwrap();
        assert_eq!(read.to_value(version), Ok(printed), "{version}");
        assert_eq!(read.extra, Map::new());
    }
    let latest = dual_stack().to_value(Version::V1_1_0).unwrap();
    assert_eq!(AddResult::parse(&latest), Ok(dual_stack()));
}

#[test]
fn a_network_without_addresses_cannot_be_told_before_0_3_0() {
    let layer2 = AddResult { ips: vec![], ..dual_stack() };
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let error = layer2.to_value(version).unwrap_err();
        assert_eq!(error.msg, "cannot convert: no valid IP addresses");
    }
    assert_eq!(layer2.to_value(Version::V0_3_0).unwrap().get("ips"), None);
}

#[test]
fn dns_is_printed_when_set_in_every_version() {
    let mut result = dual_stack();
    result.dns.nameservers.push("1.1.1.1".into());
    for version in Version::ALL {
        assert_eq!(result.to_value(version).unwrap()["dns"], json!({"nameservers": ["1.1.1.1"]}));
    }
}

#[test]
fn case_nulls_and_unknown_keys_do_not_matter() {
    let plain = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x", "vendor": {"a": 1}}],
        "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "vendor": [1],
    });
    let shouted = json!({
        "CNIVersion": "1.0.0",
        "Interfaces": [{"Name": "eth0", "Mac": null, "Mtu": null, "Sandbox": "/x", "PCIID": null, "vendor": {"a": 1}}],
        "IPs": [{"Version": null, "Address": "10.1.0.5/24", "Gateway": "10.1.0.1", "Interface": 0}],
        "Routes": [{"Dst": "0.0.0.0/0", "GW": null}],
        "DNS": null,
        "ip4": null,
        "vendor": [1],
    });
    let read = AddResult::parse(&shouted).unwrap();
    assert_eq!(AddResult::parse(&plain).as_ref(), Ok(&read));
    assert_eq!(read.to_value(Version::V1_0_0), Ok(plain));
}

#[test]
fn a_route_with_host_bits_is_masked() {
    let read = AddResult::parse(&json!({"routes": [{"dst": "10.1.2.3/8"}]})).unwrap();
    assert_eq!(read.routes, [Route::new("10.0.0.0/8".parse().unwrap())]);
}

#[test]
fn broken_results_say_what_is_broken() {
    for (value, code, msg) in [
        (json!([]), 6, "expected an object, found an array"),
        (json!({"ips": {}}), 6, "ips: expected an array, found an object"),
        (json!({"ips": [{}]}), 6, "ips[0].address is missing"),
        (
            json!({"ips": [{"address": "10.0.0.1/24", "interface": -1}]}),
            6,
            "ips[0].interface: expected a number from 0 to 4294967295, found the number -1",
        ),
        (json!({"ip4": {"ip": 7}}), 6, "ip4.ip: expected a string, found the number 7"),
        (json!({"interfaces": [null]}), 6, "interfaces[0]: expected an object, found null"),
        (json!({"cniVersion": 1}), 6, "cniVersion: expected a string, found the number 1"),
        (json!({"cniVersion": "9.9.9"}), 1, "result: incompatible CNI versions"),
    ] {
        let error = AddResult::parse(&value).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (code, msg), "{value}");
    }
}

#[test]
fn an_interface_index_beyond_the_list_is_an_error_and_no_panic() {
    let mut result = dual_stack();
    assert_eq!(result.interface_of(&result.ips[0]).unwrap().unwrap().name, "eth0");
    result.ips[0].interface = Some(2);
    assert_eq!(result.interface_of(&result.ips[0]).unwrap_err().code, 6);
    result.ips[0].interface = None;
    assert_eq!(result.interface_of(&result.ips[0]), Ok(None));
}

#[test]
fn two_addresses_of_a_family_need_0_3_0() {
    for version in Version::ALL {
        assert_eq!(check_family_limit(version, 1, 1), Ok(()));
        assert_eq!(check_family_limit(version, 2, 0).is_ok(), version >= Version::V0_3_0);
        assert_eq!(check_family_limit(version, 0, 2).is_ok(), version >= Version::V0_3_0);
    }
    let error = check_family_limit(Version::V0_2_0, 2, 0).unwrap_err();
    assert_eq!(error.msg, "CNI version 0.2.0 does not support more than 1 address per family");
}
