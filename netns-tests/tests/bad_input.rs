//! Bad input: names, configurations, namespaces and options that cannot be honoured. Every refusal is one
//! JSON object with a code and a sentence; nothing is created, and nothing of a pod that lives is lost.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_protocol/confs.rs"]
mod confs;
#[path = "common_protocol/refusals.rs"]
mod refusals;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use confs::{MODES, conf, with};
use netns_tests::{Allow, Cni, Inside, Lab, Node, Outcome, Pod, Residue, lab, require, weft_bin_dir};
use refusals::{assert_refused, assert_untouched, problem, refusal};
use serde_json::{Value, json};

/// Verbs with an attachment, and all that read standard input.
const ATTACHED: [&str; 3] = ["ADD", "CHECK", "DEL"];
const READERS: [&str; 5] = ["ADD", "CHECK", "DEL", "GC", "STATUS"];
/// A folder that each node has for itself, and that the plugin has no business with.
const SPARE: &str = "/run/containerd";

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

fn pod_is_bare(pod: &Pod) -> bool {
    pod.json(["ip", "-j", "link", "show"]).as_array().unwrap().len() == 1
}

/// A node with a pod that lives on it and must not notice what goes on.
struct Scene {
    node: Node,
    weft: Cni,
    living: Pod,
    result: Value,
    conf: Value,
    before: Residue,
}

impl Scene {
    fn new(lab: &Lab, mode: &str) -> Self {
        let node = lab.node(mode);
        let weft = weft(&node);
        let living = node.pod("living");
        let conf = conf("1.1.0", mode, "dual");
        let result = weft.add(&living, &conf).result();
        let before = Residue::take(&node);
        before.assert_settles(&node, &Allow::nothing().processes());
        Self { node, weft, living, result, conf, before }
    }

    /// Nothing was created, nothing lost.
    #[track_caller]
    fn assert_unharmed(&self) {
        self.before.assert_settles(&self.node, &Allow::nothing());
        for gateway in ["10.244.0.1", "fd00:244::1"] {
            assert!(self.living.ping(gateway.parse().unwrap(), 1), "the living pod lost {gateway}");
        }
        let conf = with(&self.conf, "prevResult", self.result.clone());
        self.weft.check(&self.living, &conf).ok_empty();
    }
}

// ----------------------------------------------------------------------------------------------------- names

/// A3: container IDs that could be a path or are none are refused before any file is made.
#[test]
fn a_bad_container_id_is_refused_before_any_file_is_made() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let bad = [
        "../../x",
        ".x",
        "a/b",
        "a b",
        "x\n",
        "\nx",
        "-x",
        "_x",
        ".",
        "..",
        "é",
        "aé",
        "a:b",
        "a;b",
        "a%00b",
        "*",
        "a\tb",
        "\u{202e}x",
        "x/../../../etc/passwd",
    ];
    for verb in ATTACHED {
        for id in bad {
            let call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
            let error =
                assert_refused(&format!("{verb} {id:?}"), &call.env("CNI_CONTAINERID", id).run(), 4, &[]);
            assert!(error.msg.contains("CNI_CONTAINERID"), "{}", error.msg);
        }
        let call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
        let outcome = call.env("CNI_CONTAINERID", "").run();
        assert_refused(verb, &outcome, 4, &["required env variables [CNI_CONTAINERID] missing"]);
    }
    assert_untouched(&node);
}

/// A4: interface names that a path or the kernel would trip over are refused before anything is made. One
/// with `%` the kernel takes for a pattern and would make another interface of it.
#[test]
fn a_bad_interface_name_is_refused_before_anything_is_made() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let bad = [
        ".",
        "..",
        "a/b",
        "/",
        "a:b",
        "a b",
        " ",
        "a\tb",
        "a\nb",
        "sixteen_bytes_xx",
        "éééééééé",
        "a\u{a0}b",
        "a\u{2003}b",
        "a\u{85}b",
        "\u{1b}[0m",
        "a\u{7f}",
        "eth%d",
        "%d",
    ];
    for verb in ATTACHED {
        for name in bad {
            let call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
            let error =
                assert_refused(&format!("{verb} {name:?}"), &call.env("CNI_IFNAME", name).run(), 4, &[]);
            assert!(error.msg.contains("CNI_IFNAME"), "{}", error.msg);
        }
        let call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
        let outcome = call.env("CNI_IFNAME", "").run();
        assert_refused(verb, &outcome, 4, &["required env variables [CNI_IFNAME] missing"]);
    }
    assert_untouched(&node);
}

/// A3, A4: with a pod on the node, bad names of any kind harm it in no verb; nor do they match it by
/// accident.
#[test]
fn bad_names_do_not_harm_a_living_pod() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let id = scene.living.container_id();
        for verb in ATTACHED {
            let call = || scene.weft.call(verb).pod(&scene.living).conf(&scene.conf);
            for bad in
                [format!("{id}\n"), format!("./{id}"), format!("{id}/"), format!(" {id}"), format!("{id};")]
            {
                assert_refused(verb, &call().env("CNI_CONTAINERID", bad).run(), 4, &["CNI_CONTAINERID"]);
            }
            for bad in ["eth0\n", "eth0 ", "./eth0", "eth0:1"] {
                assert_refused(verb, &call().env("CNI_IFNAME", bad).run(), 4, &["CNI_IFNAME"]);
            }
        }
        for (name, code) in [("../x", 7), ("", 7), ("net\n", 7), ("./net", 7)] {
            for verb in READERS {
                let conf = with(&scene.conf, "name", json!(name));
                let outcome = scene.weft.call(verb).pod(&scene.living).conf(&conf).run();
                assert_refused(&format!("{verb} {name:?}"), &outcome, code, &["network name"]);
            }
        }
        scene.assert_unharmed();
    }
}

// ----------------------------------------------------------------------------------------------------- stdin

/// A5: what is no JSON object is refused within a second in every verb that reads it, without a signal, and a
/// pod that lives does not notice.
#[test]
fn standard_input_that_is_no_json_object_is_refused_at_once() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let good = scene.conf.to_string();
        let nested = |open: &str, close: &str, depth| {
            let (open, close): (String, String) = (open.repeat(depth), close.repeat(depth));
            format!("{},\"x\":{open}1{close}}}", good.strip_suffix('}').unwrap()).into_bytes()
        };
        let inputs: Vec<(&str, Vec<u8>)> = vec![
            ("empty", Vec::new()),
            ("spaces", b" \n\t ".to_vec()),
            ("unfinished", b"{".to_vec()),
            ("cut off", good.as_bytes()[..good.len() / 2].to_vec()),
            ("an array", b"[]".to_vec()),
            ("an array of it", format!("[{good}]").into_bytes()),
            ("null", b"null".to_vec()),
            ("a number", b"12".to_vec()),
            ("a string", format!("{good:?}").into_bytes()),
            ("a word", b"nonsense".to_vec()),
            ("NUL bytes", vec![0; 100]),
            ("a byte order mark", [b"\xef\xbb\xbf".as_slice(), good.as_bytes()].concat()),
            ("UTF-16", good.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("something behind", format!("{good}{{}}").into_bytes()),
            ("a word behind", format!("{good} x").into_bytes()),
            ("a comma behind", format!("{},}}", good.strip_suffix('}').unwrap()).into_bytes()),
            ("a comment", format!("// c\n{good}").into_bytes()),
            (
                "invalid UTF-8",
                good.replace("net", "n\u{1}t")
                    .into_bytes()
                    .iter()
                    .map(|b| if *b == 1 { 0xff } else { *b })
                    .collect(),
            ),
            ("a lone surrogate", good.replace("net", "n\\ud800t").into_bytes()),
            ("100,000 arrays deep", nested("[", "]", 100_000)),
            ("100,000 objects deep", nested("{\"a\":", "}", 100_000)),
            ("arrays never closed", [b"{\"a\":".as_slice(), &vec![b'['; 1 << 20]].concat()),
        ];
        for verb in READERS {
            for (what, input) in &inputs {
                let call = scene.weft.call(verb).pod(&scene.living).stdin(input.clone());
                let outcome = call.run();
                assert_refused(&format!("{verb} {what}"), &outcome, 6, &["network configuration"]);
                assert!(outcome.exited < Duration::from_secs(1), "{verb} {what}: {:?}", outcome.exited);
            }
        }
        scene.assert_unharmed();
    }
}

/// A5: 64 MiB are refused within a second and without being kept in memory: 16 MiB is the limit (and a little
/// less is still read).
#[test]
fn a_configuration_of_64_mib_is_refused_in_bounded_memory() {
    if !require() {
        return;
    }
    let lab = lab!();
    let scene = Scene::new(&lab, "bridge");
    let text = scene.conf.to_string();
    let padded = |length: usize| {
        let head = format!("{},\"x\":\"", text.strip_suffix('}').unwrap());
        let mut bytes = head.into_bytes();
        bytes.resize(length - 2, b'x');
        bytes.extend(b"\"}");
        bytes
    };
    let memory = ["prlimit", "--as=134217728", "--"];
    for verb in READERS {
        let call = || scene.weft.call(verb).pod(&scene.living).wrap(memory);
        let inputs = match verb {
            "ADD" => vec![padded(64 << 20), vec![b' '; 64 << 20], padded((16 << 20) + 1)],
            _ => vec![padded((16 << 20) + 1)],
        };
        for input in inputs {
            // The best of three: the machine may be busy with other tests.
            let refused = || {
                let outcome = call().stdin(input.clone()).run();
                assert_refused(verb, &outcome, 6, &["16 MiB"]);
                outcome.exited
            };
            assert!((0..3).any(|_| refused() < Duration::from_secs(1)), "{verb} takes more than a second");
        }
    }
    scene.assert_unharmed();
    let pod = scene.node.pod("large");
    let large = || padded((16 << 20) - 1);
    scene.weft.call("ADD").pod(&pod).stdin(large()).wrap(memory).run().result();
    scene.weft.call("DEL").pod(&pod).stdin(large()).wrap(memory).run().ok_empty();
}

/// A5: a name that is missing or could be a path is code 7, one of another type code 6.
#[test]
fn a_network_without_a_proper_name_is_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let table = [
        (Value::Null, 7, "missing network name"),
        (json!(""), 7, "missing network name"),
        (json!("../x"), 7, "invalid characters found in network name"),
        (json!(".x"), 7, "invalid characters"),
        (json!("a/b"), 7, "invalid characters"),
        (json!("a b"), 7, "invalid characters"),
        (json!("a\n"), 7, "invalid characters"),
        (json!("nét"), 7, "invalid characters"),
        (json!("a\u{0}b"), 7, "invalid characters"),
        (json!(5), 6, "name: expected a string"),
        (json!(["net"]), 6, "name: expected a string"),
        (json!({"a": 1}), 6, "name: expected a string"),
    ];
    for verb in READERS {
        for (name, code, words) in &table {
            let conf = with(&conf("1.1.0", "bridge", "v4"), "name", name.clone());
            let outcome = weft(&node).call(verb).pod(&pod).conf(&conf).run();
            assert_refused(&format!("{verb} {name}"), &outcome, *code, &[words]);
        }
    }
    assert_untouched(&node);
}

// ------------------------------------------------------------------------------------------------ namespaces

/// Paths that lead to no pod's namespace, and what the answer must say beside the path.
fn bad_paths(node: &Node) -> Vec<(&'static str, String)> {
    let at = |name: &str| format!("{SPARE}/{name}");
    fs::write(node.path(&at("file")), "").unwrap();
    fs::create_dir(node.path(&at("folder"))).unwrap();
    node.run(["mkfifo", &at("fifo")]);
    std::os::unix::fs::symlink(node.netns_path(), node.path(&at("link"))).unwrap();
    std::os::unix::fs::symlink(at("loop"), node.path(&at("loop"))).unwrap();
    let socket = at("socket");
    node.enter(|| drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()));
    let gone = node.pod("gone");
    gone.destroy_netns();
    vec![
        ("the node's own", node.netns_path().display().to_string()),
        ("the node's own, by /proc", "/proc/self/ns/net".to_owned()),
        ("the node's own, by the thread", "/proc/thread-self/ns/net".to_owned()),
        ("a link to the node's own", at("link")),
        ("a plain file", at("file")),
        ("a folder", at("folder")),
        ("a FIFO", at("fifo")),
        ("a socket", socket),
        ("a device", "/dev/null".to_owned()),
        ("a link to itself", at("loop")),
        ("a namespace of another kind", "/proc/self/ns/uts".to_owned()),
        ("a mount namespace", "/proc/self/ns/mnt".to_owned()),
        ("nothing", at("nothing")),
        ("nothing in nothing", "/nonexistent/a/b".to_owned()),
        ("a relative path", "etc".to_owned()),
        ("a file as a folder", format!("{}/x", at("file"))),
        ("a pod's that is gone", gone.netns_path().display().to_string()),
        ("too long a path", format!("/{}", "x".repeat(5000))),
    ]
}

/// A8: what is no pod's namespace is refused with code 8 naming the path, before anything is changed; a FIFO
/// does not make it wait. CHECK says the same.
#[test]
fn a_path_that_is_no_namespace_of_a_pod_is_refused_before_any_change() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let conf = conf("1.1.0", mode, "dual");
        let check = with(&conf, "prevResult", json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []}));
        for (what, path) in bad_paths(&node) {
            for (verb, conf) in [("ADD", &conf), ("CHECK", &check)] {
                let call = weft(&node).call(verb).pod(&pod).conf(conf).env("CNI_NETNS", &path);
                let outcome = call.limit(Duration::from_secs(5)).run();
                assert_refused(&format!("{verb} {what}"), &outcome, 8, &[&path]);
            }
        }
        let bytes = OsStr::from_bytes(b"/run/\xff\xfe");
        let outcome = weft(&node).call("ADD").pod(&pod).conf(&conf).env("CNI_NETNS", bytes).run();
        assert_refused("not UTF-8", &outcome, 8, &["/run/"]);
        assert_untouched(&node);
    }
}

/// A8, design §3 (DEL works without a namespace): DEL with any such path is done in silence, and never
/// touches an interface of the node's own, even one that has the name.
#[test]
fn del_with_a_bad_path_succeeds_and_touches_nothing_of_the_node() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let node = &scene.node;
        node.run(["ip", "link", "add", "eth0", "type", "bridge"]);
        node.run(["ip", "address", "add", "192.0.2.77/24", "dev", "eth0"]);
        let before = Residue::take(node);
        let never = node.pod("never");
        for (what, path) in bad_paths(node) {
            let call = scene.weft.call("DEL").pod(&never).conf(&scene.conf).env("CNI_NETNS", &path);
            let outcome = call.limit(Duration::from_secs(5)).run();
            assert!(outcome.status.success() && outcome.stdout.is_empty(), "{what}: {outcome}");
        }
        before.assert_settles(node, &Allow::nothing());
        // And for a pod that there is: its link goes, the node's own of that name stays.
        let call = scene.weft.call("DEL").pod(&scene.living).conf(&scene.conf);
        call.env("CNI_NETNS", node.netns_path()).run().ok_empty();
        let own = node.json(["ip", "-j", "address", "show", "dev", "eth0"]);
        assert!(own.to_string().contains("192.0.2.77"), "{mode}: {own}");
        assert!(pod_is_bare(&scene.living), "{mode}");
    }
}

/// A8: `CNI_NETNS_OVERRIDE` of `1` or `true` skips the test for the node's own namespace, and no other one.
#[test]
fn the_override_allows_the_nodes_own_namespace_and_nothing_else() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let weft = weft(&node);
        let conf = conf("1.1.0", mode, "v4");
        let own = |verb: &str, switch: &str| {
            let call = weft.call(verb).pod(&pod).conf(&conf).env("CNI_NETNS", node.netns_path());
            call.env("CNI_NETNS_OVERRIDE", switch).run()
        };
        for switch in ["0", "false", "yes", "", "2", "11"] {
            let words = "plugin's netns and netns from CNI_NETNS should not be the same";
            assert_refused(switch, &own("ADD", switch), 8, &[words]);
        }
        for (what, path) in bad_paths(&node).into_iter().filter(|(what, _)| !what.contains("the node's own"))
        {
            let call =
                weft.call("ADD").pod(&pod).conf(&conf).env("CNI_NETNS", &path).env("CNI_NETNS_OVERRIDE", "1");
            assert_refused(what, &call.run(), 8, &[&path]);
        }
        assert_untouched(&node);
        let before = Residue::take(&node);
        for switch in ["1", "true", "TRUE", "True"] {
            let outcome = own("ADD", switch);
            if mode == "bridge" {
                let result = outcome.result();
                let there = node.json(["ip", "-j", "address", "show", "dev", "eth0"]);
                let ip = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
                assert!(there.to_string().contains(ip), "{mode} {switch}: {there}");
            } else {
                // Point to point both ends' routes meet in one table: the kernel refuses, and that is undone.
                assert_refused(switch, &outcome, 102, &["10.244.0.1"]);
            }
            own("DEL", switch).ok_empty();
            assert!(!node.try_run(["ip", "link", "show", "dev", "eth0"]).status.success(), "{mode} {switch}");
        }
        let allow = Allow::nothing().link("cbr0").table("inet weft").forwarding().path("/var/lib/weft/");
        let masquerade = allow.text("Element: inet weft");
        before.assert_settles(&node, &masquerade);
    }
}

// --------------------------------------------------------------------------------------------------- options

/// A changed key, the code it is refused with, and words of the refusal.
type Refusal = (&'static str, Value, u64, Vec<&'static str>);

fn refused_in_both_modes() -> Vec<Refusal> {
    let mut table: Vec<Refusal> = vec![
        // What another plugin must do.
        (
            "/runtimeConfig/portMappings",
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
            2,
            vec!["portMappings", "8080", "portmap"],
        ),
        (
            "/RuntimeConfig/PortMappings",
            json!([{"HostPort": 8081, "ContainerPort": 80}]),
            2,
            vec!["portMappings", "8081"],
        ),
        (
            "/runtimeConfig/bandwidth",
            json!({"ingressRate": 1000, "ingressBurst": 77}),
            2,
            vec!["bandwidth", "1000", "77"],
        ),
        ("/runtimeConfig/bandWidth", json!({"EgressRate": 4242}), 2, vec!["bandwidth", "4242"]),
        ("ipMasqBackend", json!("iptables"), 2, vec!["ipMasqBackend", "iptables", "nftables"]),
        ("ipMasqBackend", json!("ipvs"), 2, vec!["ipMasqBackend", "ipvs"]),
        ("ipMasqBackend", json!(5), 6, vec!["ipMasqBackend", "5"]),
        ("mode", json!("router"), 2, vec!["mode", "router", "bridge", "veth"]),
        ("mode", json!("Veth"), 2, vec!["mode", "Veth"]),
        ("mode", json!(1), 6, vec!["mode"]),
        ("statusOnExhausted", json!("maybe"), 2, vec!["statusOnExhausted", "maybe"]),
        ("logLevel", json!("debug"), 2, vec!["logLevel", "debug", "info", "error", "off"]),
        ("logLevel", json!("INFO "), 2, vec!["logLevel"]),
        ("logLevel", json!(3), 6, vec!["logLevel", "3"]),
        ("logFormat", json!("xml"), 2, vec!["logFormat", "xml", "text", "json"]),
        ("logFile", json!("relative.log"), 2, vec!["logFile", "relative.log", "absolute"]),
        ("logFile", json!("stdout"), 2, vec!["logFile", "stdout", "stderr"]),
        ("logFile", json!(true), 6, vec!["logFile"]),
        // MTU and MAC.
        ("mtu", json!(67), 7, vec!["mtu 67", "68"]),
        ("mtu", json!(65536), 7, vec!["mtu 65536", "65535"]),
        ("mtu", json!(-1), 6, vec!["mtu", "-1"]),
        ("mtu", json!("1500"), 6, vec!["mtu", "1500"]),
        ("mtu", json!(1500.5), 6, vec!["mtu", "1500.5"]),
        ("mtu", json!(4_294_967_296_u64), 6, vec!["mtu", "4294967296"]),
        ("/runtimeConfig/mac", json!("zz"), 7, vec!["mac", "zz"]),
        ("/runtimeConfig/mac", json!("01:00:5e:00:00:01"), 7, vec!["mac", "01:00:5e:00:00:01"]),
        ("/runtimeConfig/mac", json!("00:00:00:00:00:00"), 7, vec!["mac", "00:00:00:00:00:00"]),
        ("/runtimeConfig/mac", json!("02:00:00:00:00"), 7, vec!["mac", "02:00:00:00:00"]),
        ("/runtimeConfig/mac", json!("02:00:00:00:00:00:01"), 7, vec!["mac"]),
        ("/runtimeConfig/mac", json!("+2:00:00:00:00:01"), 7, vec!["mac", "+2"]),
        ("/runtimeConfig/mac", json!(5), 6, vec!["runtimeConfig.mac", "5"]),
        ("/args/cni/mac", json!("nonsense"), 7, vec!["mac", "nonsense"]),
        ("/args/cni/mac", json!([]), 6, vec!["args.cni.mac"]),
        // Objects that are none.
        ("runtimeConfig", json!([]), 6, vec!["runtimeConfig"]),
        ("args", json!("x"), 6, vec!["args"]),
        ("args", json!({"cni": 5}), 6, vec!["args.cni", "5"]),
        ("dns", json!("10.0.0.1"), 6, vec!["dns", "10.0.0.1"]),
        ("dns", json!({"nameservers": "10.0.0.1"}), 6, vec!["dns.nameservers", "10.0.0.1"]),
        ("dns", json!({"search": [5]}), 6, vec!["dns.search[0]", "5"]),
        ("prevResult", json!("x"), 6, vec!["prevResult"]),
        ("prevResult", json!({"cniVersion": "9.9.9"}), 1, vec!["prevResult", "9.9.9"]),
        (
            "prevResult",
            json!({"ips": [{"address": "nonsense"}]}),
            6,
            vec!["prevResult", "ips[0].address", "nonsense"],
        ),
        ("prevResult", json!({"ips": [{}]}), 6, vec!["prevResult", "ips[0].address"]),
        ("prevResult", json!({"interfaces": {}}), 6, vec!["prevResult", "interfaces"]),
        (
            "disableContainerInterface",
            json!(true),
            7,
            vec!["cannot use IPAM when DisableContainerInterface flag is set"],
        ),
        // IPAM.
        ("ipam", json!("host-local"), 6, vec!["ipam", "host-local"]),
        ("/ipam/type", json!(5), 6, vec!["ipam.type", "5"]),
        ("/ipam/type", json!("../evil"), 7, vec!["../evil"]),
        ("/ipam/type", json!("a/b"), 7, vec!["a/b"]),
        ("/ipam/type", json!(".."), 7, vec![".."]),
        ("/ipam/type", json!("no-such-plugin"), 7, vec!["no-such-plugin", "/release"]),
        ("/ipam/routes", json!("x"), 6, vec!["ipam.routes"]),
        ("/ipam/routes", json!([{}]), 7, vec!["ipam.routes[0].dst"]),
        ("/ipam/routes", json!([{"dst": "nonsense"}]), 7, vec!["ipam.routes[0].dst", "nonsense"]),
        ("/ipam/routes", json!([{"dst": "10.1.2.3/8"}]), 7, vec!["10.1.2.3/8", "host bits", "10.0.0.0/8"]),
        (
            "/ipam/routes",
            json!([{"dst": "::/0"}, {"dst": "::/0", "gw": "x"}]),
            7,
            vec!["ipam.routes[1].gw", "x"],
        ),
        ("/ipam/routes", json!([{"dst": "10.0.0.0/8", "mtu": -1}]), 6, vec!["ipam.routes[0].mtu", "-1"]),
        (
            "/ipam/routes",
            json!([{"dst": "10.0.0.0/8", "table": "main"}]),
            6,
            vec!["ipam.routes[0].table", "main"],
        ),
        (
            "/ipam/resolvConf",
            json!("/nonexistent/resolv.conf"),
            5,
            vec!["resolvConf", "/nonexistent/resolv.conf"],
        ),
        ("/ipam/resolvConf", json!(5), 6, vec!["ipam.resolvConf", "5"]),
        ("/ipam/cooldown", json!(-1), 6, vec!["ipam.cooldown", "-1"]),
        ("/ipam/cooldown", json!("2m"), 6, vec!["ipam.cooldown", "2m"]),
        ("/runtimeConfig/ips", json!("10.244.0.5"), 6, vec!["runtimeConfig.ips", "10.244.0.5"]),
        ("/runtimeConfig/ips", json!(["10.244.0.999"]), 7, vec!["runtimeConfig.ips", "10.244.0.999"]),
        ("/args/cni/ips", json!([5]), 6, vec!["args.cni.ips[0]", "5"]),
        ("/runtimeConfig/ipRanges", json!([{"subnet": "10.9.0.0/24"}]), 6, vec!["runtimeConfig.ipRanges[0]"]),
    ];
    table.extend(bad_ranges().into_iter().map(|(ranges, code, words)| ("/ipam/ranges", ranges, code, words)));
    for key in ["ipMasq", "isDefaultGateway", "enabledad", "disableContainerInterface"] {
        table.push((key, json!("yes"), 6, vec![key, "yes"]));
        table.push((key, json!(1), 6, vec![key, "1"]));
    }
    table
}

fn bad_ranges() -> Vec<(Value, u64, Vec<&'static str>)> {
    let one = |range: Value| json!([[range]]);
    vec![
        (json!("10.244.0.0/24"), 6, vec!["ipam.ranges"]),
        (json!([{"subnet": "10.244.0.0/24"}]), 6, vec!["ipam.ranges[0]", "an array"]),
        (json!([["10.244.0.0/24"]]), 6, vec!["ipam.ranges[0][0]", "10.244.0.0/24"]),
        (json!([[]]), 7, vec!["empty range set"]),
        (one(json!({})), 7, vec!["subnet is missing"]),
        (one(json!({"subnet": 5})), 6, vec!["subnet", "5"]),
        (one(json!({"subnet": "nonsense"})), 7, vec!["subnet", "nonsense"]),
        (one(json!({"subnet": "10.244.0.0/33"})), 7, vec!["10.244.0.0/33"]),
        (one(json!({"subnet": "10.244.0.5/24"})), 7, vec!["host bits set", "10.244.0.0"]),
        (one(json!({"subnet": "10.244.0.0/31"})), 7, vec!["10.244.0.0/31", "too small"]),
        (one(json!({"subnet": "fd00::/127"})), 7, vec!["fd00::/127", "too small"]),
        (
            one(json!({"subnet": "10.244.0.0/24", "rangeStart": "10.245.0.1"})),
            7,
            vec!["10.245.0.1", "10.244.0.0/24"],
        ),
        (
            one(json!({"subnet": "10.244.0.0/24", "rangeEnd": "10.243.0.1"})),
            7,
            vec!["10.243.0.1", "10.244.0.0/24"],
        ),
        (
            one(json!({"subnet": "10.244.0.0/24", "rangeStart": "fd00::1"})),
            7,
            vec!["fd00::1", "10.244.0.0/24"],
        ),
        (one(json!({"subnet": "10.244.0.0/24", "rangeStart": "x"})), 7, vec!["rangeStart", "x"]),
        (
            one(json!({"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.9", "rangeEnd": "10.244.0.5"})),
            7,
            vec!["10.244.0.5", "10.244.0.9"],
        ),
        (
            one(json!({"subnet": "10.244.0.0/24", "gateway": "10.245.0.1"})),
            7,
            vec!["gateway 10.245.0.1", "10.244.0.0/24"],
        ),
        (
            json!([[{"subnet": "10.244.0.0/24"}], [{"subnet": "10.244.0.128/25"}]]),
            7,
            vec!["range set 0 overlaps with 1"],
        ),
        (
            json!([[{"subnet": "10.244.0.0/24"}, {"subnet": "10.244.0.0/25"}]]),
            7,
            vec!["overlap", "10.244.0.1"],
        ),
        (json!([[{"subnet": "10.244.0.0/24"}, {"subnet": "fd00::/64"}]]), 7, vec!["mixed address families"]),
    ]
}

fn refused_in_bridge_mode() -> Vec<Refusal> {
    let trunk = |entry: Value| json!([entry]);
    let both = "minID and maxID should be configured simultaneously, ";
    let mut table: Vec<Refusal> = vec![
        ("bridge", json!("a/b"), 7, vec!["bridge", "a/b"]),
        ("bridge", json!("sixteen_bytes_xx"), 7, vec!["bridge", "sixteen_bytes_xx", "15"]),
        ("bridge", json!(".."), 7, vec!["bridge", ".."]),
        ("bridge", json!("a b"), 7, vec!["bridge", "a b"]),
        ("bridge", json!("br%d"), 7, vec!["bridge", "br%d"]),
        ("bridge", json!(5), 6, vec!["bridge", "5"]),
        ("vlan", json!(4095), 7, vec!["invalid VLAN ID 4095 (must be between 0 and 4094)"]),
        ("vlan", json!(-1), 7, vec!["invalid VLAN ID -1 (must be between 0 and 4094)"]),
        ("vlan", json!(70000), 7, vec!["invalid VLAN ID 70000"]),
        ("vlan", json!("100"), 6, vec!["vlan", "100"]),
        ("vlanTrunk", json!({"id": 5}), 6, vec!["vlanTrunk"]),
        ("vlanTrunk", json!([5]), 6, vec!["vlanTrunk[0]"]),
        ("vlanTrunk", trunk(json!({"id": 0})), 7, vec!["incorrect trunk id parameter"]),
        ("vlanTrunk", trunk(json!({"id": 4095})), 7, vec!["incorrect trunk id parameter"]),
        ("vlanTrunk", trunk(json!({"minID": 0, "maxID": 5})), 7, vec!["incorrect trunk minID parameter"]),
        ("vlanTrunk", trunk(json!({"minID": 5, "maxID": 4095})), 7, vec!["incorrect trunk maxID parameter"]),
        (
            "vlanTrunk",
            trunk(json!({"minID": 10, "maxID": 5})),
            7,
            vec!["minID is greater than maxID in trunk parameter"],
        ),
        ("vlanTrunk", trunk(json!({"minID": 5})), 7, vec![both, "maxID is missing"]),
        ("vlanTrunk", trunk(json!({"maxID": 5})), 7, vec![both, "minID is missing"]),
    ];
    for key in [
        "isGateway",
        "forceAddress",
        "hairpinMode",
        "promiscMode",
        "portIsolation",
        "macspoofchk",
        "preserveDefaultVlan",
    ] {
        table.push((key, json!("true"), 6, vec![key]));
    }
    table
}

fn refused_in_veth_mode() -> Vec<Refusal> {
    let mut table: Vec<Refusal> = vec![
        ("bridge", json!("cbr0"), 2, vec!["bridge", "cbr0", "mode \"veth\""]),
        ("vlan", json!(100), 2, vec!["vlan", "100", "mode \"veth\""]),
        ("vlanTrunk", json!([{"id": 101}]), 2, vec!["vlanTrunk", "101", "mode \"veth\""]),
    ];
    for key in
        ["hairpinMode", "promiscMode", "macspoofchk", "portIsolation", "forceAddress", "preserveDefaultVlan"]
    {
        table.push((key, json!(true), 2, vec![key, "true", "mode \"veth\""]));
        table.push((key, json!("true"), 6, vec![key]));
    }
    table
}

/// Issue, "What to build" and point 5: an option that cannot be honoured, or makes no sense, is refused by
/// name and value, by ADD, CHECK and STATUS alike; a DEL with it succeeds, for the configuration may have
/// been changed since.
#[test]
fn an_option_that_cannot_be_honoured_is_refused_by_name_and_value() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let pod = scene.node.pod("a");
        let mut problems = Vec::new();
        let own = if mode == "bridge" { refused_in_bridge_mode() } else { refused_in_veth_mode() };
        for (path, value, code, words) in refused_in_both_modes().into_iter().chain(own) {
            let conf = with(&scene.conf, path, value.clone());
            let what = |verb: &str| format!("{verb} in {mode} mode with {path} = {value}");
            let call = |verb: &str| scene.weft.call(verb).pod(&pod).conf(&conf).run();
            let verbs: &[&str] = match path {
                // Not read by STATUS; the delegate's absence is noticed by each verb at its own time.
                "prevResult" => &["ADD", "CHECK"],
                "/ipam/type" => &["ADD"],
                _ => &["ADD", "CHECK", "STATUS"],
            };
            for verb in verbs {
                problems.extend(problem(&what(verb), &call(verb), code, &words));
            }
            if path != "/ipam/type" {
                let outcome = call("DEL");
                let silent = outcome.status.success() && outcome.stdout.is_empty();
                problems.extend((!silent).then(|| format!("{}: {outcome}", what("DEL"))));
            }
            if !pod_is_bare(&pod) {
                scene.weft.del(&pod, &scene.conf).ok_empty();
            }
        }
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        scene.assert_unharmed();
    }
}

/// Point 5: the same on a node that never had a pod: neither bridge nor state folder is made, forwarding is
/// not switched on.
#[test]
fn a_refused_option_makes_neither_bridge_nor_state_folder() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let mut problems = Vec::new();
        let own = if mode == "bridge" { refused_in_bridge_mode() } else { refused_in_veth_mode() };
        let base = conf("1.1.0", mode, "dual");
        for (path, value, code, words) in refused_in_both_modes().into_iter().chain(own) {
            // Whether a delegate is there is found out when it is needed.
            if path == "/ipam/type" && value.is_string() {
                continue;
            }
            let conf = with(&base, path, value.clone());
            let what = format!("ADD in {mode} mode with {path} = {value}");
            problems.extend(problem(&what, &weft(&node).add(&pod, &conf), code, &words));
        }
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        assert_untouched(&node);
    }
}

/// §2.1: hairpin and promiscuous mode exclude each other.
#[test]
fn hairpin_and_promiscuous_mode_together_are_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let conf =
        with(&with(&conf("1.1.0", "bridge", "v4"), "hairpinMode", json!(true)), "promiscMode", json!(true));
    let words = "cannot set hairpin mode and promiscuous mode at the same time";
    for verb in ["ADD", "CHECK", "STATUS"] {
        assert_refused(verb, &weft(&node).call(verb).pod(&pod).conf(&conf).run(), 7, &[words]);
    }
    assert_untouched(&node);
}

/// Point 5: what says nothing is not refused: empty capabilities, options switched off, the values that are
/// the default.
#[test]
fn options_that_ask_for_nothing_are_accepted() {
    if !require() {
        return;
    }
    let mut problems = Vec::new();
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let mut table = vec![
            ("/runtimeConfig/portMappings", json!([])),
            ("/runtimeConfig/bandwidth", json!({})),
            ("/runtimeConfig/mac", json!("")),
            ("/runtimeConfig/ips", json!([])),
            ("/runtimeConfig/ipRanges", json!([])),
            ("/args/cni/ips", json!([])),
            ("ipMasqBackend", json!("")),
            ("ipMasqBackend", json!("nftables")),
            ("mtu", json!(0)),
            ("logFile", json!("")),
            ("logLevel", json!("")),
            ("logFormat", json!("")),
            ("statusOnExhausted", json!("")),
            ("/ipam/type", json!("weft-ipam")),
            ("/ipam/routes", json!([])),
            ("/ipam/resolvConf", json!("")),
            ("/ipam/dataDir", json!("")),
            ("/ipam/cooldown", json!(0)),
            ("vlan", json!(0)),
            ("vlanTrunk", json!([])),
            ("bridge", json!("")),
        ];
        for key in [
            "hairpinMode",
            "promiscMode",
            "macspoofchk",
            "portIsolation",
            "forceAddress",
            "preserveDefaultVlan",
        ] {
            table.push((key, json!(false)));
        }
        for (path, value) in table {
            let conf = with(&conf("1.1.0", mode, "dual"), path, value.clone());
            let outcome = weft(&node).add(&pod, &conf);
            if !outcome.status.success() {
                problems.push(format!("{mode} {path} = {value}: {outcome}"));
            }
            weft(&node).del(&pod, &conf).ok_empty();
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Point 5: a route that cannot be, refused at once or late by the kernel, is undone: the pod has nothing,
/// the address is free again, and the other pod's network works.
#[test]
fn what_the_kernel_refuses_is_undone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let pod = scene.node.pod("a");
        let late = [
            (
                "a route by a gateway that is nowhere",
                "/ipam/routes",
                json!([{"dst": "203.0.113.0/24", "gw": "8.8.8.8"}]),
            ),
            (
                "a gateway of the other family",
                "/ipam/routes",
                json!([{"dst": "203.0.113.0/24", "gw": "fd00:244::1"}]),
            ),
            ("a scope that is none", "/ipam/routes", json!([{"dst": "203.0.113.0/24", "scope": 300}])),
        ];
        for (what, path, value) in late {
            // In veth mode every gateway is on the link.
            if mode == "veth" && what.contains("nowhere") {
                continue;
            }
            let outcome = scene.weft.add(&pod, &with(&scene.conf, path, value));
            let error = late_refusal(what, &outcome);
            assert!(
                error.contains("203.0.113.0/24") || error.contains("routes[0]"),
                "{mode} {what}: {outcome}"
            );
            assert!(pod_is_bare(&pod), "{mode} {what}");
        }
        scene.assert_unharmed();
    }
}

#[track_caller]
fn late_refusal(what: &str, outcome: &Outcome) -> String {
    assert!(!outcome.status.success(), "{what} should be refused: {outcome}");
    let error = refusal(outcome);
    assert!(matches!(error.code, 6 | 7 | 102), "{what}: {outcome}");
    format!("{} {}", error.msg, error.details)
}

/// Point 5: an interface of that name that somebody else made is left alone, and so is its pod.
#[test]
fn an_interface_that_is_there_already_is_not_touched() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode);
        let pod = scene.node.pod("a");
        pod.run(["ip", "link", "add", "eth0", "type", "bridge"]);
        pod.run(["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"]);
        let before = pod.json(["ip", "-j", "-d", "address", "show"]);
        assert_refused(mode, &scene.weft.add(&pod, &scene.conf), 101, &["eth0"]);
        assert_eq!(pod.json(["ip", "-j", "-d", "address", "show"]), before);
        scene.assert_unharmed();
        scene.weft.del(&pod, &scene.conf).ok_empty();
        assert_eq!(pod.json(["ip", "-j", "-d", "address", "show"]), before, "DEL leaves it, too");
    }
}
