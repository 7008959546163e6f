use std::ffi::OsStr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ip::Subnet;

fn parse_with(version: &str, ipam: Value, more: Value, args: &str) -> Result<IpamConf, Error> {
    let mut conf = json!({"cniVersion": version, "name": "net", "type": "weft", "ipam": ipam});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let conf = NetConf::parse(conf.to_string().as_bytes()).unwrap();
    IpamConf::parse(&conf, &CniArgs::parse(OsStr::new(args)).unwrap())
}

fn parse(ipam: Value) -> Result<IpamConf, Error> {
    parse_with("1.0.0", ipam, json!({}), "")
}

/// The message of a configuration error.
fn refused(outcome: Result<IpamConf, Error>) -> String {
    let error = outcome.unwrap_err();
    assert_eq!(error.code, 7, "{error}");
    error.msg
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Range {
    Range { subnet: subnet.parse().unwrap(), start: ip(start), end: ip(end), gateway: ip(gateway) }
}

fn set(ranges: &[Range]) -> RangeSet {
    RangeSet::new(ranges.to_vec()).unwrap()
}

fn default_range(subnet: &str) -> Range {
    Range::new(subnet.parse().unwrap(), None, None, None).unwrap()
}

#[test]
fn the_old_form_with_a_single_subnet_is_one_set() {
    let conf = parse(json!({"type": "host-local", "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9",
        "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"}));
    let expected = range("10.1.2.0/24", "10.1.2.9", "10.1.2.20", "10.1.2.30");
    assert_eq!(conf.unwrap().sets, [set(&[expected])]);
}

#[test]
fn the_new_form_is_one_set_for_each_inner_list() {
    let conf = parse(json!({"ranges": [
        [{"subnet": "10.1.2.0/24"}, {"Subnet": "11.1.2.0/24", "Gateway": "11.1.2.254"}],
        [{"subnet": "2001:db8:1::/64"}],
    ]}));
    let second = range("11.1.2.0/24", "11.1.2.1", "11.1.2.254", "11.1.2.254");
    let v6 = range("2001:db8:1::/64", "2001:db8:1::1", "2001:db8:1::ffff:ffff:ffff:ffff", "2001:db8:1::1");
    assert_eq!(conf.unwrap().sets, [set(&[default_range("10.1.2.0/24"), second]), set(&[v6])]);
}

#[test]
fn runtime_ranges_come_first_then_the_old_form_then_the_new() {
    let ipam = json!({"subnet": "10.2.0.0/24", "ranges": [[{"subnet": "10.3.0.0/24"}]]});
    let runtime = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}});
    let sets = parse_with("1.0.0", ipam, runtime, "").unwrap().sets;
    let subnets: Vec<String> = sets.iter().map(|set| set.ranges()[0].subnet.to_string()).collect();
    assert_eq!(subnets, ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]);
}

#[test]
fn no_ranges_at_all_means_no_sets() {
    for ipam in [json!(null), json!({}), json!({"type": "weft-ipam", "ranges": []}), json!({"subnet": null})]
    {
        let conf = parse(ipam).unwrap();
        assert_eq!(conf.sets, []);
        assert_eq!(conf.data_dir, PathBuf::from(DATA_DIR));
        assert_eq!((conf.cooldown_seconds, conf.dns), (120, None));
    }
}

#[test]
fn ranges_have_sane_defaults() {
    for (subnet, start, end) in [
        ("192.0.2.0/24", "192.0.2.1", "192.0.2.254"),
        ("192.0.2.0/25", "192.0.2.1", "192.0.2.126"),
        ("192.0.2.0/30", "192.0.2.1", "192.0.2.2"),
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
        ("2001:DB8:1::/64", "2001:db8:1::1", "2001:db8:1::ffff:ffff:ffff:ffff"),
        ("2001:db8::/126", "2001:db8::1", "2001:db8::3"),
    ] {
        assert_eq!(default_range(subnet), range(subnet, start, end, start));
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused_with_the_known_words() {
    for (given, msg) in [
        (json!({"subnet": "192.0.2.0/31"}), "Network 192.0.2.0/31 too small to allocate from"),
        (json!({"subnet": "192.0.2.1/32"}), "Network 192.0.2.1/32 too small to allocate from"),
        (json!({"subnet": "2001:db8::/127"}), "Network 2001:db8::/127 too small to allocate from"),
        (
            json!({"subnet": "192.0.2.12/24"}),
            "Network has host bits set. For a subnet mask of length 24 the network address is 192.0.2.0",
        ),
        (
            json!({"subnet": "2001:DB8:24:19ff::/63"}),
            "Network has host bits set. For a subnet mask of length 63 the network address is 2001:db8:24:19fe::",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "192.168.1.1"}),
            "gateway 192.168.1.1 not in network 10.0.0.0/24",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "2001:db8::1"}),
            "gateway 2001:db8::1 not in network 10.0.0.0/24",
        ),
        (
            json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.0"}),
            "192.0.3.0 not in network 192.0.2.0/24",
        ),
        (json!({"subnet": "192.0.2.0/24", "rangeEnd": "192.0.4.0"}), "192.0.4.0 not in network 192.0.2.0/24"),
        (
            json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "rangeEnd": "192.0.2.40"}),
            "192.0.2.40 is in network 192.0.2.0/24 but before start 192.0.2.50",
        ),
        (
            json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.255"}),
            "192.0.2.254 is in network 192.0.2.0/24 but before start 192.0.2.255",
        ),
        (
            json!({"subnet": "192.0.2.0/24", "rangeEnd": "2001:db8::1"}),
            "IP 2001:db8::1 is not the same protocol as subnet 192.0.2.0/24",
        ),
        (json!({"subnet": "::ffff:10.0.0.0/120"}), "IPNet IP and Mask version mismatch"),
    ] {
        let msg = format!("invalid range set 0: {msg}");
        assert_eq!(refused(parse(json!({"ranges": [[given]]}))), msg, "{given}");
    }
}

#[test]
fn addresses_that_are_none_name_their_place() {
    let bad =
        json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24", "rangeStart": "x"}]]});
    let msg = "invalid range set 1: ipam.ranges[1][0].rangeStart: \"x\" is not an IP address";
    assert_eq!(refused(parse(bad)), msg);
    assert_eq!(
        refused(parse(json!({"ranges": [[{}]]}))),
        "invalid range set 0: ipam.ranges[0][0].subnet is missing"
    );
    assert!(refused(parse(json!({"subnet": ""}))).ends_with("ipam.subnet is missing"));
    assert!(refused(parse(json!({"subnet": "10.0.0.0"}))).contains("ipam.subnet: \"10.0.0.0\" is not"));
}

#[test]
fn lists_of_the_wrong_type_are_decode_failures() {
    for (ipam, msg) in [
        (json!({"ranges": {}}), "ipam.ranges: expected an array, found an object"),
        (
            json!({"ranges": [{"subnet": "10.0.0.0/24"}]}),
            "ipam.ranges[0]: expected an array, found an object",
        ),
        (json!({"ranges": [[3]]}), "ipam.ranges[0][0]: expected an object, found the number 3"),
        (json!({"dataDir": 1}), "ipam.dataDir: expected a string, found the number 1"),
        (
            json!({"cooldown": "1m"}),
            "ipam.cooldown: expected a number that is not negative, found the string \"1m\"",
        ),
    ] {
        assert_eq!(parse(ipam), Err(Error::decode(msg)));
    }
}

#[test]
fn sets_do_not_mix_families_and_are_not_empty() {
    let mixed = json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "2001:db8::/64"}]]});
    assert_eq!(refused(parse(mixed)), "invalid range set 0: mixed address families");
    assert_eq!(refused(parse(json!({"ranges": [[]]}))), "invalid range set 0: empty range set");
}

#[test]
fn overlaps_are_refused_within_a_set_and_between_sets() {
    let one = json!({"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.128"});
    let two = json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.15"});
    assert_eq!(refused(parse(json!({"ranges": [[one], [two]]}))), "range set 0 overlaps with 1");
    assert_eq!(
        refused(parse(json!({"ranges": [[one, two]]}))),
        "invalid range set 0: subnets 10.1.2.1-10.1.2.128 and 10.1.2.15-10.1.2.254 overlap"
    );
    let between = json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}], [one], [two]]});
    assert_eq!(refused(parse(between)), "range set 2 overlaps with 3");
}

#[test]
fn overlap_is_of_addresses_not_of_subnets_and_symmetric() {
    let part = |subnet: &str, start: Option<&str>, end: Option<&str>| {
        Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), None).unwrap()
    };
    let low = part("10.0.0.0/24", None, Some("10.0.0.127"));
    for (a, b, expected) in [
        (default_range("10.0.0.0/24"), default_range("10.0.1.0/24"), false),
        (default_range("0.0.0.0/24"), default_range("::/24"), false),
        (default_range("10.0.0.0/24"), default_range("10.0.0.0/24"), true),
        (default_range("10.0.0.0/20"), default_range("10.0.1.0/24"), true),
        (low, part("10.0.0.0/24", Some("10.0.0.128"), None), false),
        (low, part("10.0.0.0/24", Some("10.0.0.127"), None), true),
    ] {
        assert_eq!((a.overlaps(&b), b.overlaps(&a)), (expected, expected), "{a} {b}");
    }
}

#[test]
fn up_to_0_2_0_there_is_one_set_of_each_family() {
    let two_v4 = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "11.1.2.0/24"}]]});
    let both = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/48"}]]});
    for version in ["0.1.0", "0.2.0"] {
        assert!(parse_with(version, both.clone(), json!({}), "").is_ok());
        let msg = format!("CNI version {version} does not support more than 1 address per family");
        assert_eq!(refused(parse_with(version, two_v4.clone(), json!({}), "")), msg);
    }
    assert!(parse_with("0.3.0", two_v4, json!({}), "").is_ok());
}

/// Three sets, as in the tests of `host-local`.
fn three_sets() -> Value {
    json!({"ranges": [
        [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.10"}],
        [{"subnet": "11.1.2.0/24"}],
        [{"subnet": "2001:db8:1::/64"}],
    ]})
}

#[test]
fn requested_addresses_are_collected_from_all_three_places() {
    let more = json!({
        "args": {"cni": {"ips": ["11.1.2.11", "11.1.2.11"]}},
        "runtimeConfig": {"ips": ["2001:db8:1::11/64"]},
    });
    let conf = parse_with("1.0.0", three_sets(), more, "IP=10.1.2.11").unwrap();
    assert_eq!(conf.requested, [ip("10.1.2.11"), ip("11.1.2.11"), ip("2001:db8:1::11")]);
    for (set, requested) in conf.sets.iter().zip(&conf.requested) {
        assert_eq!(conf.requested_from(set), Some(*requested));
    }
}

#[test]
fn cni_args_may_list_several_addresses() {
    let conf = parse_with("1.0.0", three_sets(), json!({}), "IP=10.1.2.11, 11.1.2.11/24,").unwrap();
    assert_eq!(conf.requested, [ip("10.1.2.11"), ip("11.1.2.11")]);
    assert_eq!(parse_with("1.0.0", three_sets(), json!({}), "IP=").unwrap().requested, Vec::<IpAddr>::new());
    // An IPv4 address written as IPv6 is the IPv4 address.
    let mapped = parse_with("1.0.0", three_sets(), json!({}), "IP=::ffff:10.1.2.11").unwrap();
    assert_eq!(mapped.requested, [ip("10.1.2.11")]);
}

#[test]
fn requests_that_no_set_can_fulfil_are_refused() {
    for (ips, msg) in [
        ("10.1.2.8", "failed to allocate all requested IPs: 10.1.2.8"),
        ("192.0.2.1,10.1.2.9,fd00::1", "failed to allocate all requested IPs: 192.0.2.1 fd00::1"),
        ("10.1.2.11,10.1.2.12", "failed to allocate all requested IPs: 10.1.2.12"),
        ("10.1.2.10", "requested ip 10.1.2.10 is subnet's gateway"),
    ] {
        assert_eq!(refused(parse_with("1.0.0", three_sets(), json!({}), &format!("IP={ips}"))), msg);
    }
}

#[test]
fn without_sets_any_address_may_be_requested() {
    let conf = parse_with("1.0.0", json!({}), json!({}), "IP=10.9.9.9").unwrap();
    assert_eq!(conf.requested, [ip("10.9.9.9")]);
}

#[test]
fn requested_addresses_that_are_none_name_where_they_came_from() {
    let error = parse_with("1.0.0", three_sets(), json!({}), "IP=x").unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str()),
        (4, "CNI_ARGS IP: cannot understand ip: \"x\" is not an IP address")
    );
    for (more, place) in [
        (json!({"args": {"cni": {"ips": ["10.1.2.011"]}}}), "args.cni.ips"),
        (json!({"runtimeConfig": {"ips": ["10.1.2.11/33"]}}), "runtimeConfig.ips"),
    ] {
        let msg = refused(parse_with("1.0.0", three_sets(), more, ""));
        assert!(msg.starts_with(&format!("{place}: cannot understand ip: ")), "{msg}");
    }
}

#[test]
fn routes_are_strict_and_keep_all_their_fields() {
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.1", "mtu": 1400, "table": 7}]);
    let conf = parse(json!({"subnet": "10.1.2.0/24", "routes": routes})).unwrap();
    assert_eq!(conf.routes[0], Route::new("0.0.0.0/0".parse().unwrap()));
    assert_eq!((conf.routes[1].mtu, conf.routes[1].table), (Some(1400), Some(7)));
    let bad = parse(json!({"subnet": "10.1.2.0/24", "routes": [{"dst": "10.9.0.1/16"}]}));
    assert!(refused(bad).starts_with("ipam.routes[0].dst: 10.9.0.1/16 has host bits set"));
}

#[test]
fn a_resolv_conf_is_read_and_a_missing_one_is_an_io_failure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.3\nsearch a b\n").unwrap();
    let conf = parse(json!({"resolvConf": path})).unwrap();
    assert_eq!(conf.dns.unwrap().to_value(), json!({"nameservers": ["192.0.2.3"], "search": ["a", "b"]}));
    assert_eq!(parse(json!({"resolvConf": ""})).unwrap().dns, None);
    let error = parse(json!({"resolvConf": "/nonexistent/resolv.conf"})).unwrap_err();
    assert_eq!(error.code, 5);
    assert!(error.msg.starts_with("read resolvConf /nonexistent/resolv.conf: "), "{error}");
}

#[test]
fn the_data_folder_is_found_even_if_the_ranges_are_invalid() {
    let conf = br#"{"name":"net","ipam":{"dataDir":"/run/x","subnet":"nonsense"}}"#;
    assert_eq!(data_dir(&NetConf::parse(conf).unwrap()), Ok(PathBuf::from("/run/x")));
}

#[test]
fn a_range_knows_its_addresses_its_gateway_and_its_prefix() {
    let range = range("192.0.2.0/24", "192.0.2.40", "192.0.2.50", "192.0.2.254");
    for (text, inside) in [
        ("192.0.2.39", false),
        ("192.0.2.40", true),
        ("192.0.2.50", true),
        ("192.0.2.51", false),
        ("::c000:22d", false),
    ] {
        assert_eq!(range.contains(ip(text)), inside, "{text}");
    }
    assert_eq!((range.len(), range.nth(0), range.nth(10)), (11, ip("192.0.2.40"), ip("192.0.2.50")));
    assert_eq!(range.nth(u128::MAX), ip("192.0.2.50"));
    assert!(range.is_gateway(ip("192.0.2.254")) && !range.is_gateway(ip("192.0.2.40")));
    assert_eq!(range.with_prefix(ip("192.0.2.40")).unwrap().to_string(), "192.0.2.40/24");
    assert_eq!(range.with_prefix(ip("10.0.0.1")), None);
}

#[test]
fn the_whole_of_ipv6_does_not_overflow() {
    let all = Range::new("::/0".parse().unwrap(), Some(ip("::")), None, None).unwrap();
    assert_eq!(all.len(), u128::MAX);
    assert_eq!(all.index_of(all.end), Some(u128::MAX));
    assert_eq!(all.nth(u128::MAX), all.end);
}

#[test]
fn sets_are_printed_as_ranges_with_commas() {
    let both = set(&[default_range("10.0.0.0/30"), default_range("10.0.1.0/30")]);
    assert_eq!(both.to_string(), "10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.2");
}

/// Any valid range: a subnet of either family and two offsets in it.
fn ranges() -> impl Strategy<Value = Range> {
    (any::<bool>(), any::<u128>(), 0u8..=126, any::<u128>(), any::<u128>()).prop_map(
        |(v4, bits, prefix, a, b)| {
            let address = |bits: u128| match v4 {
                true => IpAddr::from(<[u8; 4]>::try_from(&bits.to_be_bytes()[12..]).unwrap()),
                false => IpAddr::from(bits.to_be_bytes()),
            };
            let (prefix, width) = if v4 { (prefix % 31, 32) } else { (prefix, 128) };
            let host = u128::MAX.checked_shr(128 - width + u32::from(prefix)).unwrap_or(0);
            let network = bits & !host;
            let (start, end) = ((a & host).min(b & host), (a & host).max(b & host));
            let subnet = Subnet::new(address(network), prefix).unwrap();
            Range::new(subnet, Some(address(network | start)), Some(address(network | end)), None).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn nth_and_index_of_are_inverse_and_stay_inside(range in ranges(), at in any::<u128>()) {
        let index = at % range.len();
        let ip = range.nth(index);
        prop_assert!(range.contains(ip) && range.subnet.contains(ip));
        prop_assert_eq!(range.index_of(ip), Some(index));
        prop_assert_eq!(range.nth(0), range.start);
        prop_assert_eq!(range.index_of(range.end), Some(range.len() - 1));
    }

    #[test]
    fn every_given_address_has_the_prefix_of_its_subnet(range in ranges(), at in any::<u128>()) {
        let addr = range.with_prefix(range.nth(at % range.len()));
        prop_assert_eq!(addr.map(|addr| addr.subnet()), Some(range.subnet));
    }
}
