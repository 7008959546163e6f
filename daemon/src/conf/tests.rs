use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;

const STORE: &str = "[store]\nendpoints = [\"http://10.0.0.1:2379\"]\n";

fn read(text: &str) -> Result<Conf, Vec<Invalid>> {
    Conf::read(&Layers::new().file(text), "host-1")
}

fn bad(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("test_data/conf/{name}.toml"));
    let problems = read(&fs::read_to_string(path).unwrap()).unwrap_err();
    problems.into_iter().map(|invalid| (invalid.field, invalid.problem)).collect()
}

/// Each bad sample, and the exact fields that are named in it.
#[test]
fn every_bad_sample_names_its_faults() {
    let expected: [(&str, &[&str]); 11] = [
        ("unknown_key", &["store.endpoint"]),
        ("unknown_top_level_keys", &["nodes", "cidrs"]),
        ("unknown_section", &["networks"]),
        ("node_name_with_capitals", &["node"]),
        ("no_endpoints", &["store.endpoints"]),
        ("bad_urls", &["store.endpoints"; 6]),
        ("half_of_a_pair", &["store.ca", "store.key", "store.password"]),
        ("bad_cidrs", &["network.cidrs", "network.cidrs", "network.cidrs", "network.block_size_v4"]),
        ("not_built", &["wireguard.port", "metrics.listen", "network.backend"]),
        (
            "wrong_types_and_ranges",
            &[
                "node",
                "store.endpoints",
                "store.endpoints",
                "data_dir",
                "network.block_size_v4",
                "network.mode",
                "network.mtu",
                "network.masquerade",
            ],
        ),
        ("not_toml", &["(file)"]),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data/conf");
    assert_eq!(fs::read_dir(folder).unwrap().count(), expected.len(), "each sample is tested");
    for (name, fields) in expected {
        let mut named: Vec<String> = bad(name).into_iter().map(|(field, _)| field).collect();
        let mut fields: Vec<&str> = fields.to_vec();
        named.sort();
        fields.sort_unstable();
        assert_eq!(named, fields, "{name}: {:#?}", bad(name));
    }
}

#[test]
fn a_mistyped_key_is_answered_with_the_one_that_is_meant() {
    let meant = |name: &str| -> Vec<String> {
        let all = bad(name).into_iter().map(|(field, problem)| {
            let meant = problem.strip_prefix("there is no such key; is ").unwrap();
            format!("{field} -> {}", meant.strip_suffix(" meant?").unwrap())
        });
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    };
    assert_eq!(meant("unknown_key"), ["store.endpoint -> store.endpoints"]);
    assert_eq!(meant("unknown_top_level_keys"), ["cidrs -> network.cidrs", "nodes -> node"]);
    assert_eq!(meant("unknown_section"), ["networks -> network"]);
}

#[test]
fn what_is_refused_is_told_in_words() {
    let sentences =
        |name: &str| bad(name).into_iter().map(|(_, problem)| problem).collect::<Vec<_>>().join("\n");
    let cidrs = sentences("bad_cidrs");
    for part in [
        "10.244.0.1/16 has host bits set; the network is 10.244.0.0/16",
        "10.1.0.0/16 overlaps with 10.0.0.0/8",
        "a block of /26 does not fit into 10.9.0.0/28",
    ] {
        assert!(cidrs.contains(part), "{part}: {cidrs}");
    }
    let urls = sentences("bad_urls");
    for part in ["\"10.0.0.1:2379\" is no URL", "neither https nor http", "has no port", "names no host"] {
        assert!(urls.contains(part), "{part}: {urls}");
    }
    let types = sentences("wrong_types_and_ranges");
    for part in [
        "is a number, not a string",
        "is a string, not an array of strings",
        "\"var/lib\" is no absolute path",
        "100 is not within 576 to 65535",
        "33 is not within 1 to 32",
        "is a string, not true or false",
        "\"brigde\" is none of \"bridge\", \"veth\"",
    ] {
        assert!(types.contains(part), "{part}: {types}");
    }
    assert!(sentences("not_built").contains("not built in this version"));
}

#[test]
fn without_a_name_the_node_is_called_as_its_host() {
    assert_eq!(read(STORE).unwrap().node.as_str(), "host-1");
    let error = Conf::read(&Layers::new().file(STORE), "my_host").unwrap_err();
    assert!(error[0].problem.ends_with("(the host name; give `node`)"), "{error:?}");
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let variables: BTreeMap<String, String> =
        [("WEFT_NODE", "b"), ("WEFT_NETWORK_MTU", "1400"), ("WEFT_PORT", "tcp://1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let flags = [
        (Key::find("node").unwrap(), "c"),
        (Key::find("store.endpoints").unwrap(), "http://a:1, http://b:2"),
    ];
    let layers = Layers::new().file(&format!("node = \"a\"\n{STORE}")).variables(&variables).flags(flags);
    let conf = Conf::read(&layers, "host").unwrap();
    assert_eq!((conf.node.as_str(), conf.network.mtu), ("c", Some(1400)));
    assert_eq!(conf.store.endpoints, ["http://a:1", "http://b:2"]);
}

#[test]
fn a_mistyped_variable_is_refused_by_its_name() {
    let variables = [("WEFT_STORE_ENDPIONTS".to_owned(), "http://a:1".to_owned())].into();
    let problems = Conf::read(&Layers::new().file(STORE).variables(&variables), "h").unwrap_err();
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["WEFT_STORE_ENDPIONTS: there is no such variable; is WEFT_STORE_ENDPOINTS meant?"]);
}

#[test]
fn the_password_of_a_changed_file_is_found_or_it_is_said_why_not() {
    use super::read_password;
    assert_eq!(read_password("[store]\npassword = \"new\"\n").as_deref(), Ok("new"));
    for (text, why) in [
        ("[store]\n", "it has no store.password any more"),
        ("[store]\npassword = 7\n", "store.password is no string with something in it"),
        ("[store]\npassword = \"hunter2", "it is no TOML"),
    ] {
        assert_eq!(read_password(text), Err(why.to_owned()));
    }
}

#[test]
fn a_problem_names_the_flag_or_variable_that_it_came_from() {
    let variables = [("WEFT_NETWORK_MTU".to_owned(), "x".to_owned())].into();
    let flags = [(Key::find("network.masquerade").unwrap(), "maybe"), (Key::find("node").unwrap(), "-")];
    let problems =
        Conf::read(&Layers::new().file(STORE).variables(&variables).flags(flags), "h").unwrap_err();
    let fields: Vec<&str> = problems.iter().map(|invalid| invalid.field.as_str()).collect();
    let expected =
        ["network.mtu (WEFT_NETWORK_MTU)", "network.masquerade (--network-masquerade)", "node (--node)"];
    assert_eq!(fields, expected);
}

#[test]
fn a_password_is_never_printed() {
    let conf = read(&format!("{STORE}username = \"u\"\npassword = \"hunter2\"\n")).unwrap();
    assert!(!format!("{conf:?}").contains("hunter2"));
    assert_eq!(conf.store.password.unwrap().reveal(), "hunter2");
}

#[test]
fn the_sample_is_valid_and_explains_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/weftd.toml");
    let text = fs::read_to_string(path).unwrap();
    let conf = read(&text).unwrap();
    assert_eq!(conf.store.endpoints.len(), 3);
    // Every key is there, set or shown behind a '#', in its section.
    let mut section = String::new();
    let mut shown = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches('#');
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ")
            && !name.contains(' ')
        {
            shown.push(format!("{section}{name}"));
        }
    }
    let keys: Vec<&str> = KEYS.iter().map(|key| key.path).collect();
    for key in &keys {
        assert!(shown.contains(&(*key).to_owned()), "{key} is not explained in conf/weftd.toml");
    }
    for name in &shown {
        assert!(keys.contains(&name.as_str()), "{name} is explained but does not exist");
    }
}

#[test]
fn uncommented_defaults_of_the_sample_are_valid_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/weftd.toml");
    let text = fs::read_to_string(path).unwrap();
    let is_setting = |line: &str| line.starts_with('#') && line.contains(" = ") && !line.starts_with("# ");
    let unbuilt = |line: &str| line.contains("implementation") || line.contains("51820");
    let all: Vec<&str> = text
        .lines()
        .map(|line| if is_setting(line) && !unbuilt(line) { line.trim_start_matches('#') } else { line })
        .collect();
    let conf = read(&all.join("\n")).unwrap();
    assert_eq!((conf.vxlan.vni, conf.network.mtu), (Some(1), Some(1450)));
}

#[test]
fn a_pod_network_that_hides_the_hosts_own_is_refused() {
    let conf = read(&format!("{STORE}[network]\ncidrs = [\"10.0.0.0/8\", \"fd00::/64\"]\n")).unwrap();
    let network =
        |subnet: &str, what: &str| HostNetwork { subnet: subnet.parse().unwrap(), what: what.to_owned() };
    let networks =
        vec![network("192.168.0.0/24", "eth1"), network("10.1.0.0/16", "the address 10.1.0.5/16 on eth0")];
    let problems = conf.check(&HostFacts { networks, ..HostFacts::default() });
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "network.cidrs");
    assert!(
        problems[0]
            .problem
            .starts_with("10.0.0.0/8 overlaps with the address 10.1.0.5/16 on eth0 of this host")
    );
    assert_eq!(conf.check(&HostFacts::default()), []);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let text = "[store]\nendpoints = [\"https://a:1\"]\nca = \"/ca\"\ncert = \"/c\"\nkey = \"/k\"\n";
    let conf = read(text).unwrap();
    let unreadable = [("/k".into(), "Permission denied".to_owned()), ("/c".into(), "gone".to_owned())].into();
    let problems = conf.check(&HostFacts { unreadable, ..HostFacts::default() });
    let expected = [
        Invalid::new("store.cert", "read /c: gone"),
        Invalid::new("store.key", "read /k: Permission denied"),
    ];
    assert_eq!(problems, expected);
}

#[test]
fn changes_are_read_by_short_or_full_names_and_all_faults_are_named() {
    let words = |changes: &[&str]| changes.iter().map(|change| (*change).to_owned()).collect::<Vec<_>>();
    let good = ["cidrs=10.1.0.0/16,10.2.0.0/16", "network.masquerade=false", "vni=7", "reissue_after=60"];
    let asked = read_changes(&words(&good)).unwrap();
    assert_eq!((asked.cidrs.unwrap().len(), asked.masquerade, asked.vni), (2, Some(false), Some(7)));
    assert_eq!((asked.reissue_after, asked.block_size_v4), (Some(60), None));
    let bad = ["cidr=10.1.0.0/16", "mtu=1400", "masquerade=maybe", "backend", "port=0", "node=a"];
    let problems = read_changes(&words(&bad)).unwrap_err();
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "cidr: there is no such key of the cluster; is cidrs meant?",
            "network.mtu: is each node's own: set it in its weftd.toml",
            "backend: is no change, as in cidrs=10.244.0.0/16",
            "node: there is no such key of the cluster; is mode meant?",
            "network.masquerade (--network-masquerade): \"maybe\" is neither true nor false",
            "vxlan.port (--vxlan-port): 0 is not within 1 to 65535",
        ]
    );
}

#[test]
fn a_file_that_says_nothing_about_the_cluster_obeys() {
    assert_eq!(read(STORE).unwrap().asked(), None);
    let mode = read(&format!("{STORE}[network]\nmode = \"veth\"\nmtu = 1400\n")).unwrap();
    assert_eq!(mode.asked(), None, "keys of the node are none of the cluster's");
    let asked = read(&format!("{STORE}[network]\nbackend = \"routes\"\n")).unwrap().asked().unwrap();
    assert_eq!(asked.vxlan, Some(false));
}

/// systemd would delete the records of running pods with every stop; and a right more than needed is one too many.
#[test]
fn the_unit_leaves_run_weft_alone_and_asks_for_two_rights() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/weftd.service");
    let unit = fs::read_to_string(path).unwrap();
    let settings: Vec<(&str, &str)> =
        unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect();
    let values = |name: &str| -> Vec<&str> {
        settings.iter().filter(|(key, _)| *key == name).map(|(_, value)| *value).collect()
    };
    for name in
        ["RuntimeDirectory", "RuntimeDirectoryPreserve", "StateDirectory", "PrivateNetwork", "ReadOnlyPaths"]
    {
        assert_eq!(values(name), Vec::<&str>::new(), "{name}");
    }
    assert_eq!(values("Type"), ["notify"]);
    assert_eq!(values("CapabilityBoundingSet"), ["CAP_NET_ADMIN CAP_NET_RAW"]);
    assert_eq!(values("Restart"), ["always"]);
    assert_eq!(values("RestartPreventExitStatus"), ["1"], "what was refused is refused again");
    assert!(values("WatchdogSec")[0].parse::<u32>().unwrap() >= 30, "a slow disk is no hang");
    assert!(values("ExecStart")[0].ends_with("weftd run --config /etc/weft/weftd.toml"));
}
