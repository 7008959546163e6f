//! The protocol as a runtime sees it: verbs, variables, versions, result shapes, spellings, precedence.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_protocol/confs.rs"]
mod confs;
#[path = "common_protocol/refusals.rs"]
mod refusals;

use std::net::IpAddr;
use std::time::Duration;

use confs::{MODES, conf, with};
use netns_tests::{Allow, Cni, Inside, Node, Pod, Residue, lab, require, weft_bin_dir};
use refusals::{assert_refused, assert_untouched, refusal};
use serde_json::{Map, Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const VERBS: [&str; 5] = ["ADD", "CHECK", "DEL", "GC", "STATUS"];

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

/// A node on which one pod came and went, so that what all pods share is there; and its snapshot.
fn warm(node: &Node, conf: &Value) -> Residue {
    let pod = node.pod("warm-up");
    weft(node).add(&pod, conf).result();
    weft(node).del(&pod, conf).ok_empty();
    let before = Residue::take(node);
    before.assert_settles(node, &Allow::nothing().processes());
    before
}

fn links(place: &impl Inside) -> Vec<String> {
    let links = place.json(["ip", "-j", "link", "show"]);
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// What the kernel says about the pod's interface.
fn kernel_link(pod: &Pod) -> Value {
    pod.json(["ip", "-j", "address", "show", "dev", pod.ifname()])[0].clone()
}

fn cidr(text: &Value) -> (IpAddr, u8) {
    let (ip, length) = text.as_str().unwrap().split_once('/').unwrap();
    (ip.parse().unwrap(), length.parse().unwrap())
}

// ---------------------------------------------------------------------------------------- VERSION, variables

/// A1: VERSION answers whatever standard input is (empty, left open, garbage, libcni's, closed, huge) and
/// however bare the environment; quickly.
#[test]
fn version_names_the_seven_versions_whatever_standard_input_is() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    let call = || weft.call("VERSION");
    let calls = [
        ("empty", call()),
        ("left open", call().stdin_left_open()),
        ("garbage", call().stdin(b"\xff{{{ no JSON")),
        ("another version", call().conf(&json!({"cniVersion": "9.9.9"}))),
        ("closed", call().close_fds([0])),
        ("huge and unread", call().stdin(vec![b' '; 4 << 20])),
        ("bare environment", call().wrap(["env", "-i", "CNI_COMMAND=VERSION"])),
        (
            "bad variables",
            call().env("CNI_IFNAME", "a/b").env("CNI_CONTAINERID", "../x").env("CNI_NETNS", "/"),
        ),
    ];
    for (what, call) in calls {
        let outcome = call.limit(Duration::from_secs(5)).run();
        let answer = outcome.result();
        assert_eq!(answer["supportedVersions"], json!(VERSIONS), "{what}");
        assert_eq!(answer["cniVersion"], "1.1.0", "{what}");
        assert_eq!(answer.as_object().unwrap().len(), 2, "{what}: {answer}");
        assert!(outcome.stderr.is_empty(), "{what}: {outcome}");
    }
    assert_eq!(weft.version().result()["supportedVersions"], json!(VERSIONS));
    let quickest = (0..20).map(|_| call().run().exited).min().unwrap();
    assert!(quickest < Duration::from_millis(20), "VERSION takes {quickest:?}");
    assert_untouched(&node);
    assert!(!node.path("/var/log/weft/weft.log").exists(), "nobody needs a line for each VERSION");
}

/// A1: VERSION opens no file, no socket, starts no process: seen by its system calls.
#[test]
fn version_touches_neither_files_nor_netlink() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let trace = "/var/log/weft/trace";
    let filter = "trace=%file,%network,%process,openat,open_tree,unshare,setns";
    let strace = ["strace", "-f", "-qq", "-o", trace, "-e", filter, "-e", "signal=none"];
    weft(&node).call("VERSION").wrap(strace).run().result();
    let lines = std::fs::read_to_string(node.path(trace)).unwrap();
    let touching: Vec<&str> =
        lines.lines().filter(|line| !line.contains("execve(") && !line.contains("exit_group(")).collect();
    assert!(lines.contains("execve("), "strace saw nothing: {lines}");
    assert!(touching.is_empty(), "{touching:#?}");
}

/// §1.3: the answer is written whole, in one system call.
#[test]
fn an_answer_is_one_write() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let trace = "/var/log/weft/trace";
    let strace =
        || ["strace", "-f", "-qq", "-s", "40", "-o", trace, "-e", "trace=write,writev", "-e", "signal=none"];
    let good = conf("1.1.0", "bridge", "dual");
    let bad = with(&good, "mtu", json!(1));
    for (conf, works) in [(&bad, false), (&good, true)] {
        let outcome = weft(&node).call("ADD").pod(&pod).conf(conf).wrap(strace()).run();
        assert_eq!(outcome.status.success(), works, "{outcome}");
        let lines = std::fs::read_to_string(node.path(trace)).unwrap();
        let answers = lines.lines().filter(|line| line.contains("\\\"cniVersion\\\"")).count();
        assert_eq!(answers, 1, "{lines}");
    }
    weft(&node).del(&pod, &good).ok_empty();
}

/// A2: called by hand, without a verb, it says what it is and which versions it speaks, on standard error.
#[test]
fn without_a_verb_a_person_is_told_what_this_is() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    for call in [weft.call("").without("CNI_COMMAND"), weft.call(""), weft.call("").stdin_left_open()] {
        let outcome = call.limit(Duration::from_secs(5)).run();
        outcome.ok_empty();
        let text = String::from_utf8(outcome.stderr).unwrap();
        assert!(text.starts_with("weft "), "{text}");
        assert!(
            text.contains("CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0")
        );
    }
    assert_untouched(&node);
}

/// A2: an unknown verb is refused by name; verbs are spelt in capitals.
#[test]
fn an_unknown_verb_is_refused_by_name() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    for verb in ["FOO", "add", "Add", "ADD ", "DELETE", "0", "UPDATE", "é"] {
        let call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
        let error = assert_refused(verb, &call.run(), 4, &[]);
        assert_eq!(error.msg, format!("unknown CNI_COMMAND: {verb}"));
    }
    let bytes = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"AD\xff");
    let call = weft(&node).call("ADD").env("CNI_COMMAND", bytes).pod(&pod);
    assert_refused("not UTF-8", &call.run(), 4, &["unknown CNI_COMMAND: AD"]);
    assert_untouched(&node);
}

/// A2: every set of missing variables is reported at once, in the order of the reference library; an empty
/// one is missing. `CNI_PATH` is not asked for: only a delegate needs it (cni.md §1.2, "be lenient").
#[test]
fn missing_variables_are_reported_all_together() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    let required: [(&str, &[&str]); 3] =
        [("ADD", &all), ("CHECK", &all), ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])];
    for (verb, required) in required {
        for chosen in 1..1_u32 << required.len() {
            for empty in [false, true] {
                let mut call = weft(&node).call(verb).pod(&pod).conf(&conf("1.1.0", "bridge", "v4"));
                let missing: Vec<&str> =
                    (0..required.len()).filter(|at| chosen >> at & 1 == 1).map(|at| required[at]).collect();
                for name in &missing {
                    call = if empty { call.env(name, "") } else { call.without(name) };
                }
                let error = assert_refused(verb, &call.without("CNI_PATH").run(), 4, &[]);
                assert_eq!(
                    error.msg,
                    format!("required env variables [{}] missing", missing.join(",")),
                    "{verb}"
                );
            }
        }
    }
    assert_untouched(&node);
}

/// A2: an invalid value comes before missing ones and alone; variables that a verb does not need are not
/// judged.
#[test]
fn an_invalid_variable_is_reported_first_and_only_where_it_matters() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node);
    let conf = conf("1.1.0", "bridge", "v4");
    for verb in ["ADD", "CHECK", "DEL"] {
        let error = refusal(&weft.call(verb).env("CNI_CONTAINERID", "a/b").conf(&conf).run());
        assert_eq!(error.code, 4);
        assert!(error.msg.contains("CNI_CONTAINERID") && !error.msg.contains("CNI_IFNAME"), "{}", error.msg);
        let error = refusal(&weft.call(verb).env("CNI_IFNAME", "a/b").conf(&conf).run());
        assert_eq!(error.code, 4);
        assert!(error.msg.contains("CNI_IFNAME") && !error.msg.contains("CNI_CONTAINERID"), "{}", error.msg);
    }
    assert_untouched(&node);
    let mut list = conf.clone();
    list["cni.dev/valid-attachments"] = json!([]);
    for verb in ["GC", "STATUS"] {
        let call =
            weft.call(verb).env("CNI_IFNAME", "a/b").env("CNI_CONTAINERID", "../x").env("CNI_NETNS", "/x");
        call.env("CNI_ARGS", "junk").without("CNI_PATH").conf(&list).run().ok_empty();
    }
}

/// §1.7: `CNI_ARGS` that cannot be split are refused; keys of others are nobody's business; DEL never
/// stumbles.
#[test]
fn args_of_others_are_ignored_and_broken_ones_refused_on_add_only() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let conf = conf("1.1.0", "bridge", "v4");
    let call =
        |verb: &str, args: &str| weft(&node).call(verb).pod(&pod).conf(&conf).env("CNI_ARGS", args).run();
    for (args, bad) in [("junk", "junk"), ("A=1;junk;B=2", "junk"), ("A=1=2", "A=1=2"), ("A=1;", "")] {
        assert_refused(args, &call("ADD", args), 4, &["CNI_ARGS", &format!("invalid pair {bad:?}")]);
    }
    assert_untouched(&node);
    for args in [
        "",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=d;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=x",
        "K8S_POD_UID=1;K8S_POD_NAME=p;IgnoreUnknown=true",
        "SOMETHING_NEW=1;X=;mac=nonsense;ip=nonsense",
    ] {
        call("ADD", args).result();
        call("DEL", args).ok_empty();
    }
    call("ADD", "").result();
    call("DEL", "junk;=;;==").ok_empty();
    assert_eq!(links(&pod), ["lo"]);
}

// ----------------------------------------------------------------------------------------------------- names

/// A3: container IDs have no length limit: 300 and 4,096 characters work in every verb and leave nothing.
#[test]
fn container_ids_of_any_length_work() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = weft(&node);
        let conf = conf("1.1.0", mode, "dual");
        let before = warm(&node, &conf);
        for length in [1, 255, 256, 300, 4096] {
            let pod = node.pod("a").with_container_id(&"Z".repeat(length));
            let result = weft.add(&pod, &conf).result();
            weft.check(&pod, &with(&conf, "prevResult", result)).ok_empty();
            weft.del(&pod, &conf).ok_empty();
            assert_eq!(links(&pod), ["lo"], "{mode} {length}");
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A3: two IDs of 300 characters that differ in the last one are two attachments.
#[test]
fn long_container_ids_that_differ_in_the_last_character_do_not_collide() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = weft(&node);
        let conf = conf("1.0.0", mode, "v4");
        let before = warm(&node, &conf);
        let stem = "a.b-c_".repeat(50);
        let id = |last: char| format!("{}{last}", &stem[..299]);
        let (a, b) = (node.pod("a").with_container_id(&id('1')), node.pod("b").with_container_id(&id('2')));
        let ips = [&a, &b].map(|pod| cidr(&weft.add(pod, &conf).result()["ips"][0]["address"]).0);
        assert_ne!(ips[0], ips[1], "{mode}");
        assert!(a.ping(ips[1], 3), "{mode}");
        weft.del(&a, &conf).ok_empty();
        assert_eq!((links(&a).len(), links(&b).len()), (1, 2), "{mode}: DEL took the right one");
        assert!(b.ping("10.244.0.1".parse().unwrap(), 3), "{mode}: the other one still works");
        weft.del(&b, &conf).ok_empty();
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A4: interface names may have 15 bytes, of whatever characters.
#[test]
fn interface_names_of_fifteen_bytes_work() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = weft(&node);
        let conf = conf("1.1.0", mode, "dual");
        let before = warm(&node, &conf);
        for name in ["fifteen_bytes_x", "ééééééé1", "网络接口一", "...", "a", "eth0.100", "-x", "eth0@if2"]
        {
            assert!(name.len() <= 15);
            let pod = node.pod("a").with_ifname(name);
            let result = weft.add(&pod, &conf).result();
            assert_eq!(result["interfaces"].as_array().unwrap().last().unwrap()["name"], name);
            let there = pod.enter(|| nix_name(name));
            assert!(there, "{mode}: no {name} in the pod: {:?}", links(&pod));
            weft.check(&pod, &with(&conf, "prevResult", result)).ok_empty();
            weft.del(&pod, &conf).ok_empty();
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// Whether the calling thread's namespace has a link of this name.
fn nix_name(name: &str) -> bool {
    let listed = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    listed.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")))
}

// -------------------------------------------------------------------------------------------------- versions

/// A7: a version that is none of the seven, or has no such verb, is refused with the list; nothing is
/// allocated.
#[test]
fn a_version_we_do_not_speak_is_refused_with_the_list_of_those_we_do() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let list = r#"plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    let incompatible = "incompatible CNI versions";
    let parse = "cannot be parsed as a version";
    // (cniVersion, verbs, code, words)
    let table: [(Value, &[&str], u64, &[&str]); 18] = [
        (json!("9.9.9"), &VERBS, 1, &[incompatible, r#"config is "9.9.9""#, list]),
        (json!("1.0"), &["ADD", "DEL", "CHECK"], 1, &[incompatible, r#"config is "1.0""#, list]),
        (json!("1.1"), &VERBS, 1, &[incompatible, r#"config is "1.1""#, list]),
        (json!("v1.0.0"), &["ADD", "DEL"], 1, &[incompatible, r#"config is "v1.0.0""#, list]),
        (json!("1.0.0 "), &["ADD", "DEL"], 1, &[incompatible, list]),
        (json!("0.5.0"), &["ADD", "DEL", "CHECK"], 1, &[incompatible, list]),
        (json!("abc"), &["ADD", "DEL"], 1, &[incompatible, r#"config is "abc""#, list]),
        (json!("abc"), &["CHECK", "GC", "STATUS"], 6, &["abc", parse]),
        (json!("v1.1.0"), &["CHECK", "GC", "STATUS"], 6, &[parse]),
        (json!(12), &VERBS, 6, &["cniVersion", "12"]),
        (json!({}), &VERBS, 6, &["cniVersion"]),
        (json!(["1.1.0"]), &VERBS, 6, &["cniVersion"]),
        (json!("0.3.1"), &["CHECK"], 1, &["config version does not allow CHECK"]),
        (json!("0.1.0"), &["CHECK"], 1, &["config version does not allow CHECK"]),
        (json!("1.0.0"), &["GC"], 1, &["config version does not allow GC"]),
        (json!("1.0.0"), &["STATUS"], 1, &["config version does not allow STATUS"]),
        (json!("0.4.0"), &["GC", "STATUS"], 1, &["config version does not allow"]),
        (Value::Null, &["CHECK", "GC", "STATUS"], 1, &["config version does not allow"]),
    ];
    for (version, verbs, code, words) in table {
        for verb in verbs {
            for mode in MODES {
                let conf = with(&conf("1.1.0", mode, "v4"), "cniVersion", version.clone());
                let what = format!("{verb} {version} {mode}");
                assert_refused(&what, &weft(&node).call(verb).pod(&pod).conf(&conf).run(), code, words);
            }
        }
    }
    assert_untouched(&node);
}

/// A7: without `cniVersion` the result has the oldest shape.
#[test]
fn a_missing_version_is_the_oldest() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let mut bare = conf("0.1.0", mode, "v4");
        bare.as_object_mut().unwrap().remove("cniVersion");
        for version in [None, Some(json!("")), Some(Value::Null)] {
            let conf = version.map_or_else(|| bare.clone(), |version| with(&bare, "cniVersion", version));
            let result = weft(&node).add(&pod, &conf).result();
            assert_shape(&result, &SHAPES[0], "0.1.0");
            assert!(result["ip4"]["ip"].as_str().unwrap().starts_with("10.244.0."));
            weft(&node).del(&pod, &conf).ok_empty();
        }
    }
}

/// §1.3: an error has the configuration's version, or a known one if that is unknown.
#[test]
fn an_error_object_has_the_version_of_its_configuration() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let told = |version: Value| {
        let conf = with(&with(&conf("1.1.0", "bridge", "v4"), "cniVersion", version), "mtu", json!(1));
        let outcome = weft(&node).add(&pod, &conf);
        refusal(&outcome);
        serde_json::from_slice::<Value>(&outcome.stdout).unwrap()["cniVersion"].as_str().unwrap().to_owned()
    };
    for version in VERSIONS {
        assert_eq!(told(json!(version)), version);
    }
    assert_eq!(told(json!("9.9.9")), "1.1.0");
    assert_eq!(told(json!(12)), "1.1.0");
    assert_untouched(&node);
}

/// §1.3: what succeeds without a result prints nothing, in each version that has the verb.
#[test]
fn verbs_without_a_result_print_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = weft(&node);
        let pod = node.pod("a");
        for (at, version) in VERSIONS.into_iter().enumerate() {
            let conf = conf(version, mode, "v4");
            let result = weft.add(&pod, &conf).result();
            if at >= 4 {
                weft.check(&pod, &with(&conf, "prevResult", result)).ok_empty();
            }
            if at >= 6 {
                weft.status(&conf).ok_empty();
                let mut list = conf.clone();
                list["cni.dev/valid-attachments"] =
                    json!([{"containerID": pod.container_id(), "ifname": pod.ifname()}]);
                weft.gc(&list).ok_empty();
                assert_eq!(links(&pod).len(), 2, "GC spares what is listed");
            }
            weft.del(&pod, &conf).ok_empty();
            weft.del(&pod, &conf).ok_empty();
        }
    }
}

// ---------------------------------------------------------------------------------------------------- shapes

/// The keys that a version's specification has; with `?`, keys that may be absent. Written from the
/// specification's texts, not from the plugin.
struct Shape {
    result: &'static [&'static str],
    /// Up to 0.2.0: the objects `ip4` and `ip6`.
    family: &'static [&'static str],
    interface: &'static [&'static str],
    ip: &'static [&'static str],
    route: &'static [&'static str],
}

const OLD: Shape = Shape {
    result: &["cniVersion", "ip4?", "ip6?", "dns"],
    family: &["ip", "gateway?", "routes?"],
    interface: &[],
    ip: &[],
    route: &["dst", "gw?"],
};
const MIDDLE: Shape = Shape {
    result: &["cniVersion", "interfaces?", "ips?", "routes?", "dns"],
    family: &[],
    interface: &["name", "mac?", "sandbox?"],
    ip: &["version", "address", "gateway?", "interface?"],
    route: &["dst", "gw?"],
};
const ONE: Shape = Shape {
    result: &["cniVersion", "interfaces?", "ips?", "routes?", "dns?"],
    family: &[],
    interface: &["name", "mac?", "sandbox?"],
    ip: &["address", "gateway?", "interface?"],
    route: &["dst", "gw?"],
};
const ONE_ONE: Shape = Shape {
    result: ONE.result,
    family: &[],
    interface: &["name", "mac?", "sandbox?", "mtu?", "socketPath?", "pciID?"],
    ip: ONE.ip,
    route: &["dst", "gw?", "mtu?", "advmss?", "priority?", "table?", "scope?"],
};
/// In the order of [`VERSIONS`].
const SHAPES: [Shape; 7] = [OLD, OLD, MIDDLE, MIDDLE, MIDDLE, ONE, ONE_ONE];
const DNS: &[&str] = &["nameservers?", "domain?", "search?", "options?"];

#[track_caller]
fn assert_keys(object: &Value, keys: &[&str], place: &str) {
    let found = object.as_object().unwrap_or_else(|| panic!("{place} is no object: {object}"));
    for key in found.keys() {
        let known = keys.iter().any(|name| name.trim_end_matches('?') == key);
        assert!(known, "{place} has the foreign key {key}: {object}");
    }
    for key in keys.iter().filter(|key| !key.ends_with('?')) {
        assert!(found.contains_key(*key), "{place} lacks {key}: {object}");
    }
    assert!(found.values().all(|value| !value.is_null()), "{place} has a null: {object}");
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

#[track_caller]
fn assert_shape(result: &Value, shape: &Shape, version: &str) {
    assert_keys(result, shape.result, "result");
    assert_eq!(result["cniVersion"], version);
    for (family, v4) in [("ip4", true), ("ip6", false)] {
        let Some(family) = result.get(family) else { continue };
        assert_keys(family, shape.family, "family");
        assert_eq!(cidr(&family["ip"]).0.is_ipv4(), v4);
        for route in each(&family["routes"]) {
            assert_eq!(cidr(&route["dst"]).0.is_ipv4(), v4, "routes stand beneath their family: {result}");
        }
    }
    let routes = [&result["routes"], &result["ip4"]["routes"], &result["ip6"]["routes"]];
    for route in routes.into_iter().flat_map(each) {
        assert_keys(route, shape.route, "route");
        cidr(&route["dst"]);
        assert!(route["gw"].is_null() || route["gw"].as_str().unwrap().parse::<IpAddr>().is_ok(), "{route}");
        for number in ["mtu", "advmss", "priority", "table", "scope"] {
            assert!(route.get(number).is_none_or(Value::is_u64), "{route}");
        }
    }
    for interface in each(&result["interfaces"]) {
        assert_keys(interface, shape.interface, "interface");
        let mac = interface["mac"].as_str().unwrap();
        assert!(
            mac.len() == 17 && mac.split(':').all(|octet| u8::from_str_radix(octet, 16).is_ok()),
            "{mac}"
        );
        assert!(
            interface.get("mtu").is_none_or(|mtu| mtu.as_u64().is_some_and(|mtu| mtu >= 68)),
            "{interface}"
        );
    }
    for ip in each(&result["ips"]) {
        assert_keys(ip, shape.ip, "ip");
        let family = if cidr(&ip["address"]).0.is_ipv4() { "4" } else { "6" };
        assert!(ip.get("version").is_none_or(|version| version == family), "{ip}");
        let interfaces = result["interfaces"].as_array().unwrap();
        let index = usize::try_from(ip["interface"].as_u64().unwrap()).unwrap();
        assert!(!interfaces[index]["sandbox"].is_null(), "{ip} is not on the pod's interface");
    }
    if let Some(dns) = result.get("dns") {
        assert_keys(dns, DNS, "dns");
    }
}

/// §1.1: the result of an ADD has the shape of each of the seven versions, in each mode and family, with
/// nothing but addresses and with everything that a result can have.
#[test]
fn results_have_the_shape_of_their_version() {
    if !require() {
        return;
    }
    let lab = lab!();
    let dns =
        json!({"nameservers": ["10.96.0.10"], "domain": "x.y", "search": ["a", "b"], "options": ["ndots:5"]});
    for mode in MODES {
        for family in ["v4", "v6", "dual"] {
            let node = lab.node(&format!("{mode}-{family}"));
            let pod = node.pod("a");
            for (version, shape) in VERSIONS.into_iter().zip(&SHAPES) {
                let plain = conf(version, mode, family);
                let rich = with(&with(&plain, "dns", dns.clone()), "ipam/routes", rich_routes(family));
                for (conf, rich) in [(plain, false), (rich, true)] {
                    let result = weft(&node).add(&pod, &conf).result();
                    assert_shape(&result, shape, version);
                    assert_meaning(&result, &pod, (mode, family), version);
                    let dns = if rich { Some(&dns) } else { (version < "1.0.0").then_some(&Value::Null) };
                    let expected = dns.map(|dns| if dns.is_null() { json!({}) } else { dns.clone() });
                    assert_eq!(result.get("dns"), expected.as_ref(), "{mode} {family} {version}");
                    if rich {
                        assert_rich_routes(&result, family, version);
                    }
                    weft(&node).del(&pod, &conf).ok_empty();
                }
            }
        }
    }
}

/// Routes with every attribute there is.
fn rich_routes(family: &str) -> Value {
    let extra = |dst: &str| json!({"dst": dst, "mtu": 1400, "advmss": 1300, "priority": 77, "table": 1234, "scope": 0});
    let mut routes = Vec::new();
    if family != "v6" {
        routes.push(extra("198.51.100.0/24"));
    }
    if family != "v4" {
        routes.push(extra("2001:db8:51::/48"));
    }
    routes.into()
}

#[track_caller]
fn assert_rich_routes(result: &Value, family: &str, version: &str) {
    let routes = [&result["routes"], &result["ip4"]["routes"], &result["ip6"]["routes"]];
    let routes: Vec<&Value> = routes.into_iter().flat_map(each).collect();
    for wanted in each(&rich_routes(family)) {
        let found = routes.iter().find(|route| route["dst"] == wanted["dst"]);
        let found = found.unwrap_or_else(|| panic!("no route {wanted} in {result}"));
        for number in ["mtu", "advmss", "priority", "table", "scope"] {
            let expected = (version == "1.1.0").then(|| &wanted[number]);
            assert_eq!(found.get(number), expected, "{number} in {version}: {found}");
        }
    }
}

/// That what the result says is what the pod has.
#[track_caller]
fn assert_meaning(result: &Value, pod: &Pod, (mode, family): (&str, &str), version: &str) {
    let families: &[bool] = match family {
        "v4" => &[true],
        "v6" => &[false],
        _ => &[true, false],
    };
    let kernel = kernel_link(pod);
    let old = version < "0.3.0";
    let mut told: Vec<(IpAddr, u8)> = Vec::new();
    let mut gateways = 0;
    for ip in each(&result["ips"]) {
        told.push(cidr(&ip["address"]));
        gateways += usize::from(ip.get("gateway").is_some());
    }
    for ip in [&result["ip4"], &result["ip6"]].into_iter().filter(|ip| !ip.is_null()) {
        told.push(cidr(&ip["ip"]));
        gateways += usize::from(ip.get("gateway").is_some());
        assert!(each(&ip["routes"]).any(|route| cidr(&route["dst"]).1 == 0), "no default route: {result}");
    }
    let by_family: Vec<bool> = told.iter().map(|(ip, _)| ip.is_ipv4()).collect();
    assert_eq!(by_family, families, "{mode} {family} {version}: {result}");
    assert_eq!(gateways, families.len(), "a gateway for each: {result}");
    for (ip, length) in told {
        let there = each(&kernel["addr_info"])
            .any(|info| info["local"] == ip.to_string() && info["prefixlen"] == u64::from(length));
        assert!(there, "{ip}/{length} is not in the pod: {kernel}");
    }
    if old {
        return;
    }
    let interfaces = result["interfaces"].as_array().unwrap();
    let names: Vec<&str> = interfaces.iter().map(|interface| interface["name"].as_str().unwrap()).collect();
    let expected = if mode == "bridge" { 3 } else { 2 };
    assert_eq!(names.len(), expected, "{result}");
    assert!(mode != "bridge" || names[0] == "cbr0", "{result}");
    assert!(names[expected - 2].starts_with("veth") && names[expected - 2].len() <= 15, "{result}");
    let last = interfaces.last().unwrap();
    assert_eq!(last["name"], pod.ifname());
    assert_eq!(last["sandbox"], pod.netns_path().to_str().unwrap(), "CNI_NETNS as it was given");
    assert_eq!(last["mac"], kernel["address"]);
    assert!(interfaces[..expected - 1].iter().all(|host| host.get("sandbox").is_none()), "{result}");
    assert!(version != "1.1.0" || last["mtu"] == kernel["mtu"], "{result}");
    assert!(each(&result["ips"]).all(|ip| ip["interface"] == expected - 1), "{result}");
    assert_eq!(each(&result["routes"]).filter(|route| cidr(&route["dst"]).1 == 0).count(), families.len());
}

/// §1.1: up to 0.2.0 a result can say one address of each family, so more are refused, and nothing stays
/// behind.
#[test]
fn two_addresses_of_a_family_are_refused_where_a_result_cannot_say_them() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let two = json!([[{"subnet": "10.244.0.0/24"}], [{"subnet": "10.245.0.0/24"}]]);
        for version in VERSIONS {
            let conf = with(&conf(version, mode, "v4"), "ipam/ranges", two.clone());
            let outcome = weft(&node).add(&pod, &conf);
            if version < "0.3.0" {
                let words = format!("CNI version {version} does not support more than 1 address per family");
                assert_refused(version, &outcome, 7, &[&words]);
                assert_untouched(&node);
            } else {
                assert_eq!(outcome.result()["ips"].as_array().unwrap().len(), 2, "{version}");
                weft(&node).del(&pod, &conf).ok_empty();
            }
        }
    }
}

/// §1.1: up to 0.2.0 there is no result without an address: a link alone is refused, and taken away again.
#[test]
fn a_link_without_address_needs_a_version_that_can_say_so() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let before = warm(&node, &conf("1.0.0", "bridge", "v4"));
    let pod = node.pod("a");
    for ipam in [json!({}), json!({"type": ""})] {
        for (version, shape) in VERSIONS.into_iter().zip(&SHAPES) {
            let conf =
                json!({"cniVersion": version, "name": "net", "type": "weft", "bridge": "cbr0", "ipam": ipam});
            let outcome = weft(&node).add(&pod, &conf);
            if version < "0.3.0" {
                assert_refused(version, &outcome, 6, &["no valid IP addresses"]);
            } else {
                let result = outcome.result();
                assert_shape(&result, shape, version);
                assert_eq!((result.get("ips"), result.get("routes")), (None, None), "{result}");
                assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
                assert_eq!(kernel_link(&pod)["operstate"], "UP");
                weft(&node).del(&pod, &conf).ok_empty();
            }
            assert_eq!(links(&pod), ["lo"], "{version}");
        }
    }
    before.assert_settles(&node, &Allow::nothing());
}

// ------------------------------------------------------------------------------------------- spelling, nulls

/// How a key is written.
type Spelling = fn(&str) -> String;

/// The same with every key spelt otherwise.
fn respelt(value: &Value, spell: Spelling) -> Value {
    match value {
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| (spell(key), respelt(value, spell)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(|item| respelt(item, spell)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn capitalised(key: &str) -> String {
    let mut letters = key.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn alternating(key: &str) -> String {
    let letter =
        |(at, c): (usize, char)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
    key.chars().enumerate().map(letter).collect()
}

/// A configuration that uses most of what there is.
fn full(mode: &str) -> Value {
    let mut conf = conf("1.1.0", mode, "dual");
    conf["mtu"] = json!(1400);
    conf["dns"] = json!({"nameservers": ["10.96.0.10"], "domain": "x.y", "search": ["a"], "options": ["b"]});
    conf["ipam"] = json!({
        "type": "weft-ipam", "dataDir": "/var/lib/cni/networks",
        "ranges": [
            [{"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.20", "gateway": "10.244.0.9"}],
            [{"subnet": "fd00:244::/64"}]
        ],
        "routes": [{"dst": "198.51.100.0/24", "gw": "10.244.0.9", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 99}]
    });
    conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:05", "ips": ["10.244.0.12/24"]});
    conf["args"] = json!({"cni": {"ips": ["fd00:244::77"]}});
    conf["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:01", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "203.0.113.0/24", "gw": "192.0.2.1"}]
    });
    if mode == "bridge" {
        conf["hairpinMode"] = json!(true);
        conf["portIsolation"] = json!(true);
        conf["bridge"] = json!("br-other");
    }
    conf
}

/// ADD on a node of its own, so that two configurations can be compared; what cannot be the same is left out.
fn comparable(node: &Node, conf: &Value) -> Value {
    let pod = node.pod("a").with_container_id("the-same");
    let mut result = weft(node).add(&pod, conf).result();
    let mut check = conf.clone();
    check.as_object_mut().unwrap().retain(|key, _| !key.eq_ignore_ascii_case("prevResult"));
    check["prevResult"] = result.clone();
    // The route of the earlier plugin, which is only made up here, would be missed.
    check["prevResult"]["routes"].as_array_mut().unwrap().retain(|route| route["dst"] != "203.0.113.0/24");
    weft(node).check(&pod, &check).ok_empty();
    let host = result["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["name"].as_str().unwrap().starts_with("veth"));
    let host = host.unwrap()["name"].as_str().unwrap().to_owned();
    let port = node.json(["bridge", "-j", "-d", "link", "show", "dev", &host]);
    for interface in result["interfaces"].as_array_mut().unwrap() {
        if interface["sandbox"] == pod.netns_path().to_str().unwrap() {
            interface["sandbox"] = json!("the pod");
        } else if interface["name"].as_str().unwrap().starts_with("br") || interface["name"] == "cbr0" {
            interface["mac"] = json!("differs between nodes");
        }
    }
    weft(node).del(&pod, conf).ok_empty();
    assert_eq!(links(&pod), ["lo"]);
    json!({"result": result, "hairpin": port[0]["hairpin"], "isolated": port[0]["isolated"]})
}

/// A6: keys are matched without case, in the configuration, its capabilities and its prevResult.
#[test]
fn keys_are_matched_without_case() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let full = full(mode);
        let expected = comparable(&lab.node(&format!("{mode}-plain")), &full);
        let last = expected["result"]["interfaces"].as_array().unwrap().last().unwrap();
        assert_eq!(last["mac"], "02:00:00:00:00:05", "{expected}");
        assert_eq!(
            expected["result"]["ips"][0]["address"], "192.0.2.9/24",
            "prevResult is passed on: {expected}"
        );
        assert_eq!(cidr(&expected["result"]["ips"][1]["address"]).0.to_string(), "10.244.0.12");
        assert_eq!(cidr(&expected["result"]["ips"][2]["address"]).0.to_string(), "fd00:244::77");
        let spellings: [(&str, Spelling); 4] = [
            ("upper", |key| key.to_ascii_uppercase()),
            ("lower", |key| key.to_ascii_lowercase()),
            ("capitalised", capitalised),
            ("alternating", alternating),
        ];
        for (name, spell) in spellings {
            let node = lab.node(&format!("{mode}-{name}"));
            assert_eq!(comparable(&node, &respelt(&full, spell)), expected, "{mode} {name}");
        }
    }
}

/// A6: `null` is absent, for every optional key, and keys that nobody knows are ignored.
#[test]
fn null_is_absent_and_unknown_keys_are_ignored() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let plain = conf("1.1.0", mode, "dual");
        let expected = comparable(&lab.node(&format!("{mode}-plain")), &plain);

        let mut nulls = plain.clone();
        for key in [
            "isGateway",
            "forceAddress",
            "ipMasqBackend",
            "mtu",
            "hairpinMode",
            "promiscMode",
            "vlan",
            "vlanTrunk",
            "preserveDefaultVlan",
            "macspoofchk",
            "enabledad",
            "portIsolation",
            "disableContainerInterface",
            "dns",
            "prevResult",
            "runtimeConfig",
            "args",
            "logFile",
            "logLevel",
            "logFormat",
            "statusOnExhausted",
            "capabilities",
            "cni.dev/valid-attachments",
        ] {
            nulls[key] = Value::Null;
        }
        if mode == "veth" {
            nulls["bridge"] = Value::Null;
        }
        for key in [
            "type",
            "subnet",
            "rangeStart",
            "rangeEnd",
            "gateway",
            "routes",
            "resolvConf",
            "dataDir",
            "cooldown",
        ] {
            nulls["ipam"][key] = Value::Null;
        }
        for key in ["rangeStart", "rangeEnd", "gateway"] {
            nulls["ipam"]["ranges"][0][0][key] = Value::Null;
        }
        let mut inner = plain.clone();
        inner["runtimeConfig"] = json!({"portMappings": null, "bandwidth": null, "ips": null, "mac": null,
            "ipRanges": null, "dns": null, "infinibandGUID": null, "deviceID": null, "aliases": null});
        inner["args"] = json!({"cni": {"ips": null, "mac": null, "labels": null}});
        inner["dns"] = json!({"nameservers": null, "domain": null, "search": null, "options": null});
        inner["prevResult"] =
            json!({"cniVersion": null, "interfaces": null, "ips": null, "routes": null, "dns": null});
        let mut cni = plain.clone();
        cni["args"] = json!({"cni": null});
        cni["runtimeConfig"] = json!({"portMappings": [], "bandwidth": {}});

        let mut unknown = plain.clone();
        unknown["x-unknown"] = json!({"deep": [{"er": [null, 1.5e300, "\u{1f980}"]}]});
        unknown["cni.dev/future"] = json!(true);
        unknown["capabilities"] = json!({"portMappings": true});
        unknown["ipam"]["unknown"] = json!([1]);
        unknown["ipam"]["ranges"][0][0]["unknown"] = json!("x");
        unknown["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"a": "b"}, "unknown": 1});
        unknown["args"] =
            json!({"unknown": 1, "cni": {"labels": [{"key": "a", "value": "b"}], "unknown": []}});
        unknown["dns"] = json!({"unknown": ["x"]});

        for (name, conf) in [("null", nulls), ("inner", inner), ("cni", cni), ("unknown", unknown)] {
            assert_eq!(comparable(&lab.node(&format!("{mode}-{name}")), &conf), expected, "{mode} {name}");
        }
    }
}

/// A6: of keys that differ in case the exact one wins, else the last; of equal keys the last (A5 lists
/// duplicate keys among bad input; Go takes them, and so did every plugin that people's configurations were
/// written for).
#[test]
fn of_duplicate_keys_the_exact_one_wins_and_else_the_last() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let base = conf("1.1.0", "veth", "v4").to_string();
    for (extra, mtu) in [
        (r#""mtu":1300,"mtu":1400"#, 1400),
        (r#""MTU":1300,"mtu":1400"#, 1400),
        (r#""mtu":1400,"MTU":1300"#, 1400),
        (r#""MTU":1300,"Mtu":1400"#, 1400),
        (r#""Mtu":1300,"MTU":1400"#, 1400),
    ] {
        let text = format!("{},{extra}}}", base.strip_suffix('}').unwrap());
        let outcome = weft(&node).call("ADD").pod(&pod).stdin(text.clone()).run();
        assert_eq!(outcome.result()["interfaces"][1]["mtu"], mtu, "{extra}");
        weft(&node).call("DEL").pod(&pod).stdin(text).run().ok_empty();
    }
}

/// A6: GC's list is understood in any spelling: a live pod is not collected because of it.
#[test]
fn the_list_of_gc_is_matched_without_case() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let (kept, stale) = (node.pod("kept"), node.pod("stale"));
    let conf = conf("1.1.0", "bridge", "v4");
    for (key, id, ifname) in [
        ("cni.dev/valid-attachments", "ContainerID", "IfName"),
        ("CNI.DEV/VALID-ATTACHMENTS", "CONTAINERID", "IFNAME"),
        ("Cni.dev/Attachments", "containerid", "ifName"),
    ] {
        for pod in [&kept, &stale] {
            weft(&node).add(pod, &conf).result();
        }
        let list = with(&conf, "list", json!([{id: kept.container_id(), ifname: kept.ifname()}]));
        let text = list.to_string().replacen("\"list\"", &format!("{key:?}"), 1);
        weft(&node).call("GC").stdin(text).run().ok_empty();
        assert_eq!((links(&kept).len(), links(&stale).len()), (2, 1), "{key}");
        for pod in [&kept, &stale] {
            weft(&node).del(pod, &conf).ok_empty();
        }
    }
}

// ------------------------------------------------------------------------------------------------ precedence

/// §1.7: `runtimeConfig.mac` before `args.cni.mac` before `CNI_ARGS` MAC, in every combination.
#[test]
fn a_mac_is_taken_from_the_capability_then_args_then_the_variable() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        for given in 0..8_u32 {
            let mut conf = conf("1.0.0", mode, "dual");
            let mut args = "IgnoreUnknown=1".to_owned();
            let mut expected = None;
            if given & 1 == 1 {
                args.push_str(";MAC=02:00:00:00:00:01");
                expected = Some("02:00:00:00:00:01");
            }
            if given & 2 == 2 {
                conf["args"] = json!({"cni": {"mac": "02:00:00:00:00:02"}});
                expected = Some("02:00:00:00:00:02");
            }
            if given & 4 == 4 {
                conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
                expected = Some("02:00:00:00:00:03");
            }
            let outcome = weft(&node).call("ADD").pod(&pod).conf(&conf).env("CNI_ARGS", &args).run();
            let mac = outcome.result()["interfaces"].as_array().unwrap().last().unwrap()["mac"].clone();
            assert_eq!(mac, kernel_link(&pod)["address"], "{mode} {given}");
            assert!(expected.is_none_or(|expected| mac == expected), "{mode} {given}: {mac}");
            let own = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];
            assert!(expected.is_some() || own.iter().all(|own| mac != *own));
            weft(&node).del(&pod, &conf).ok_empty();
        }
    }
}

/// §1.7, host-local: the lists of requested addresses (`CNI_ARGS` IP, `args.cni.ips`, `runtimeConfig.ips`)
/// are one list.
#[test]
fn requested_addresses_of_all_three_places_are_one_list() {
    if !require() {
        return;
    }
    let lab = lab!();
    // (CNI_ARGS IP, args.cni.ips, runtimeConfig.ips)
    let table = [
        ("10.244.0.77,fd00:244::77", json!([]), json!([])),
        ("", json!(["10.244.0.77", "fd00:244::77"]), json!([])),
        ("", json!([]), json!(["10.244.0.77/24", "fd00:244::77/64"])),
        ("10.244.0.77", json!(["fd00:244::77"]), json!(null)),
        ("fd00:244::77", json!(null), json!(["10.244.0.77"])),
        ("", json!(["10.244.0.77/24"]), json!(["fd00:244:0:0::77"])),
        ("10.244.0.77", json!(["10.244.0.77"]), json!(["10.244.0.77", "fd00:244::77"])),
    ];
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        for (variable, args, capability) in &table {
            let mut conf = conf("1.0.0", mode, "dual");
            conf["args"] = json!({"cni": {"ips": args}});
            conf["runtimeConfig"] = json!({"ips": capability});
            let call = weft(&node).call("ADD").pod(&pod).conf(&conf);
            let result = call.env("CNI_ARGS", format!("IP={variable}")).run().result();
            let ips: Vec<String> =
                each(&result["ips"]).map(|ip| cidr(&ip["address"]).0.to_string()).collect();
            assert_eq!(ips, ["10.244.0.77", "fd00:244::77"], "{mode} {variable} {args} {capability}");
            weft(&node).del(&pod, &conf).ok_empty();
        }
    }
}

/// §1.7, host-local: a requested address that cannot be had is an error, never another address.
#[test]
fn a_requested_address_that_cannot_be_had_is_refused() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let (holder, pod) = (node.pod("holder"), node.pod("a"));
        let base = conf("1.0.0", mode, "v4");
        let asking = |ips: Value| with(&base, "runtimeConfig", json!({"ips": ips}));
        weft(&node).add(&holder, &asking(json!(["10.244.0.50"]))).result();
        let before = Residue::take(&node);
        let failed = "failed to allocate all requested IPs: ";
        let table: [(Value, u64, &[&str]); 6] = [
            (json!(["10.245.0.1"]), 7, &[failed, "10.245.0.1"]),
            (json!(["fd00:244::5"]), 7, &[failed, "fd00:244::5"]),
            (json!(["10.244.0.60", "10.244.0.61"]), 7, &[failed, "10.244.0.61"]),
            (json!(["10.244.0.1"]), 7, &["10.244.0.1", "gateway"]),
            (json!(["10.244.0.255"]), 7, &[failed, "10.244.0.255"]),
            (
                json!(["10.244.0.50"]),
                104,
                &["requested IP address 10.244.0.50 is not available in range set"],
            ),
        ];
        for (ips, code, words) in table {
            assert_refused(&format!("{mode} {ips}"), &weft(&node).add(&pod, &asking(ips)), code, words);
            assert_eq!(links(&pod), ["lo"]);
        }
        let asked = weft(&node).call("ADD").pod(&pod).conf(&base).env("CNI_ARGS", "IP=nonsense").run();
        assert_refused("CNI_ARGS", &asked, 4, &["CNI_ARGS IP", "nonsense"]);
        for (place, code) in [("/args/cni/ips", 7), ("/runtimeConfig/ips", 7)] {
            let asked = weft(&node).add(&pod, &with(&base, place, json!(["nonsense"])));
            assert_refused(
                place,
                &asked,
                code,
                &["nonsense", place.trim_start_matches('/').replace('/', ".").as_str()],
            );
        }
        before.assert_settles(&node, &Allow::nothing());
        assert!(holder.ping("10.244.0.1".parse().unwrap(), 3), "{mode}: the holder was not disturbed");
    }
}

/// §1.7, host-local: `runtimeConfig.ipRanges` comes before the configuration's own ranges, one address for
/// each.
#[test]
fn ranges_of_the_capability_come_first() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let mut conf = conf("1.0.0", mode, "v4");
        conf["runtimeConfig"] = json!({"ipRanges": [
            [{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.30", "rangeEnd": "10.99.0.40", "gateway": "10.99.0.9"}],
            [{"subnet": "fd00:99::/64"}]
        ]});
        let result = weft(&node).add(&pod, &conf).result();
        let ips: Vec<String> = each(&result["ips"]).map(|ip| cidr(&ip["address"]).0.to_string()).collect();
        assert_eq!(ips, ["10.99.0.30", "fd00:99::2", "10.244.0.2"], "{mode}");
        assert_eq!(result["ips"][0]["gateway"], "10.99.0.9", "{mode}");
        weft(&node).del(&pod, &conf).ok_empty();

        conf["ipam"] = json!({"type": "weft-ipam"});
        let result = weft(&node).add(&pod, &conf).result();
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "the capability alone is enough: {result}");
        weft(&node).del(&pod, &conf).ok_empty();
    }
}

/// §2.1: any key of the configuration's `dns`, even an empty list, replaces wholly what the allocator says;
/// else its `resolvConf` counts.
#[test]
fn dns_of_the_configuration_replaces_that_of_the_allocator_wholly() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let text = "nameserver 192.0.2.53\ndomain from.file\nsearch s1 s2\noptions ndots:2\n";
        std::fs::write(node.path("/var/lib/cni/resolv.conf"), text).unwrap();
        let base = with(&conf("1.0.0", mode, "v4"), "ipam/resolvConf", json!("/var/lib/cni/resolv.conf"));
        let of_file = json!({"nameservers": ["192.0.2.53"], "domain": "from.file", "search": ["s1", "s2"],
            "options": ["ndots:2"]});
        for (dns, expected) in [
            (Value::Null, Some(of_file.clone())),
            (json!({}), Some(of_file.clone())),
            (json!({"domain": ""}), Some(of_file)),
            (json!({"domain": "mine"}), Some(json!({"domain": "mine"}))),
            (json!({"nameservers": ["10.0.0.1"]}), Some(json!({"nameservers": ["10.0.0.1"]}))),
            (json!({"options": ["a"], "search": []}), Some(json!({"options": ["a"]}))),
            (json!({"search": []}), None),
        ] {
            let result = weft(&node).add(&pod, &with(&base, "dns", dns.clone())).result();
            assert_eq!(result.get("dns"), expected.as_ref(), "{mode} {dns}");
            weft(&node).del(&pod, &base).ok_empty();
        }
    }
}

/// §1.7, CONVENTIONS "dns": what the runtime passes for the capability comes before the configuration;
/// containerd spells the keys `Servers`, `Searches`, `Options`. An empty one says nothing.
#[test]
fn dns_of_the_capability_comes_first() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let pod = node.pod("a");
        let own = json!({"nameservers": ["10.0.0.1"], "domain": "mine"});
        for (given, expected) in [
            (
                json!({"servers": ["10.9.9.9"], "searches": ["run.time"], "options": ["x"]}),
                json!({"nameservers": ["10.9.9.9"], "search": ["run.time"], "options": ["x"]}),
            ),
            (
                json!({"Servers": ["10.9.9.9"], "Searches": [], "Options": null}),
                json!({"nameservers": ["10.9.9.9"]}),
            ),
            (json!({"Servers": [], "Searches": [], "Options": []}), own.clone()),
            (json!({}), own.clone()),
        ] {
            for base in [conf("1.0.0", mode, "v4"), with(&conf("1.0.0", mode, "v4"), "dns", own.clone())] {
                let conf = with(&base, "runtimeConfig", json!({"dns": given}));
                let result = weft(&node).add(&pod, &conf).result();
                weft(&node).del(&pod, &conf).ok_empty();
                let expected = (expected != own || base.get("dns").is_some()).then_some(&expected);
                assert_eq!(result.get("dns"), expected, "{mode} {given}");
            }
        }
    }
}
