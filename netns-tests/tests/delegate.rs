//! IPAM delegation: Weft with the reference's and with misbehaving IPAM plugins (A21), and `weft-ipam` under the
//! reference `bridge` and `macvlan`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_tests::weft_bin_dir;
use netns_tests::{Allow, Cni, Inside, Node, Pod, Residue, lab, reference_bin_dir, require, wait_until};
use serde_json::{Value, json};

const MODES: [&str; 2] = ["bridge", "veth"];
/// A folder of the node's own, for scripts that play IPAM plugins and for what they write down.
const BIN: &str = "/run/containerd/bin";

/// The reference plugins' folder, or a loud skip.
fn reference() -> Option<PathBuf> {
    if !require() {
        return None;
    }
    let dir = reference_bin_dir();
    assert!(
        dir.is_some() || std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"),
        "NETNS_TESTS=require, but the reference plugins are not installed"
    );
    dir
}

fn conf(mode: &str, ipam: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": mode, "isDefaultGateway": true, "ipam": ipam})
}

fn with(conf: &Value, key: &str, value: &Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value.clone();
    conf
}

fn ip_of(result: &Value, index: usize) -> IpAddr {
    let cidr = result["ips"][index]["address"].as_str().unwrap();
    cidr.split('/').next().unwrap().parse().unwrap()
}

fn gateway_of(result: &Value, index: usize) -> IpAddr {
    result["ips"][index]["gateway"].as_str().unwrap().parse().unwrap()
}

/// An IPAM plugin written in shell. It appears whole: other threads fork at any time, and a file that they inherited
/// open for writing cannot be run.
fn script(node: &Node, name: &str, body: &str) {
    let path = node.path(BIN).join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let spare = path.with_extension("new");
    fs::write(&spare, format!("#!/bin/sh\necho \"$CNI_COMMAND\" >> {BIN}/calls\n{body}\n")).unwrap();
    fs::set_permissions(&spare, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(spare, path).unwrap();
}

/// The verbs that scripts were called with since the last look.
fn calls(node: &Node) -> Vec<String> {
    let file = node.path(BIN).join("calls");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    text.lines().map(str::to_owned).collect()
}

/// Answers ADD properly.
const GOOD: &str = r#"[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"}]}'; exit 0"#;

/// A node with scripts, on which a pod has lived, so that what pods share is there.
fn warmed_up(lab: &netns_tests::Lab, mode: &str) -> (Node, Cni, Residue) {
    let node = lab.node(mode);
    script(&node, "good", GOOD);
    let weft = node.cni(weft_bin_dir(), "weft").with_path(["/nowhere", BIN]);
    let warm_up = node.pod("warm-up");
    let conf = conf(mode, json!({"type": "good"}));
    weft.add(&warm_up, &conf).result();
    weft.del(&warm_up, &conf).ok_empty();
    assert_eq!(calls(&node), ["ADD", "DEL"]);
    let before = Residue::take(&node);
    (node, weft, before)
}

/// IPAM delegation to the reference's `host-local` and `static`: the whole life of a pod, in both modes.
#[test]
fn weft_works_with_the_references_host_local_and_static() {
    let Some(reference) = reference() else { return };
    let lab = lab!();
    let plugins = [
        (
            "host-local",
            json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]],
            "routes": [{"dst": "198.51.100.0/24"}, {"dst": "2001:db8:99::/48"}]}),
        ),
        (
            "static",
            json!({"type": "static", "addresses": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"address": "fd01::2/64", "gateway": "fd01::1"}],
            "routes": [{"dst": "198.51.100.0/24"}, {"dst": "2001:db8:99::/48", "gw": "fd01::1"}],
            "dns": {"nameservers": ["192.0.2.53"]}}),
        ),
    ];
    for mode in MODES {
        for (name, ipam) in &plugins {
            let node = lab.node(&format!("{mode}-{name}"));
            let weft = node.cni(weft_bin_dir(), "weft").with_path([weft_bin_dir(), reference.clone()]);
            let conf = with(&conf(mode, ipam.clone()), "cniVersion", &json!("1.0.0"));
            let warm_up = node.pod("warm-up");
            weft.add(&warm_up, &conf).result();
            weft.del(&warm_up, &conf).ok_empty();
            let before = Residue::take(&node);
            let pod = node.pod("a");
            let result = weft.add(&pod, &conf).result();
            for index in [0, 1] {
                assert!(pod.ping(gateway_of(&result, index), 2), "{mode} {name}: {result}");
                assert!(node.ping(ip_of(&result, index), 2), "{mode} {name}: {result}");
                let pod_end = if mode == "bridge" { 2 } else { 1 };
                assert_eq!(result["ips"][index]["interface"], pod_end, "{result}");
            }
            assert_eq!(*name == "static", result["dns"]["nameservers"][0] == "192.0.2.53", "{result}");
            let routes = pod.run(["ip", "route"]).stdout;
            let routes = String::from_utf8(routes).unwrap();
            assert!(routes.contains("198.51.100.0/24 via 10.1.0.1"), "{mode} {name}: {routes}");
            weft.check(&pod, &with(&conf, "prevResult", &result)).ok_empty();
            if *name == "host-local" {
                let other = node.pod("b");
                let second = weft.add(&other, &conf).result();
                assert!(pod.ping(ip_of(&second, 0), 2), "{mode}: the other pod");
                weft.del(&other, &conf).ok_empty();
            }
            // The address must be free again though the namespace has gone.
            pod.destroy_netns();
            weft.del(&pod, &conf).ok_empty();
            weft.del(&pod, &conf).ok_empty();
            before.assert_settles(&node, &Allow::nothing().text("last_reserved_ip"));
        }
    }
}

/// A21: how an IPAM plugin may fail ADD: name, script, code, words of the error.
const FAILURES: &[(&str, &str, u64, &[&str])] = &[
    (
        "an error of its own",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0
      echo '{"cniVersion":"1.1.0","code":107,"msg":"no luck today","details":"come back"}'; exit 1"#,
        107,
        &["no luck today", "come back", "broken"],
    ),
    (
        "an error without object",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; echo 'panic: oops'; exit 3"#,
        104,
        &["broken", "exit status 3", "panic: oops"],
    ),
    (
        "an error without a word",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; exit 9"#,
        104,
        &["broken", "exit status 9"],
    ),
    ("killed", r#"[ "$CNI_COMMAND" = DEL ] && exit 0; kill -9 $$"#, 104, &["broken", "signal 9"]),
    (
        "junk",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; echo 'level=info msg="hello"'; echo '{"ips":[]}'"#,
        6,
        &["broken", "level=info"],
    ),
    (
        "half an object",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; printf '{"cniVersion":"1.1.0","ips":[{"addr'"#,
        6,
        &["broken"],
    ),
    (
        "17 MiB",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; head -c 17825792 /dev/zero | tr '\0' ' '"#,
        6,
        &["broken", "16 MiB"],
    ),
    ("nothing", "exit 0", 104, &["IPAM plugin returned missing IP config", "broken"]),
    ("null", "echo null", 104, &["IPAM plugin returned missing IP config"]),
    ("no ips", r#"echo '{"cniVersion":"1.1.0","ips":[]}'"#, 104, &["IPAM plugin returned missing IP config"]),
    (
        "an unknown version",
        r#"echo '{"cniVersion":"9.9.9","ips":[{"address":"10.1.0.2/24"}]}'"#,
        1,
        &["9.9.9"],
    ),
    (
        "no address",
        r#"echo '{"cniVersion":"1.1.0","ips":[{"gateway":"10.1.0.1"}]}'"#,
        6,
        &["broken", "address"],
    ),
    (
        "no CIDR",
        r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2"}]}'"#,
        6,
        &["broken", "10.1.0.2"],
    ),
    ("an array", r#"echo '[]'"#, 6, &["broken"]),
    (
        "a route that the kernel refuses",
        r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/24",
      "gateway":"10.1.0.1"}],"routes":[{"dst":"198.51.100.0/24","gw":"10.1.0.1","scope":254}]}'"#,
        102,
        &["198.51.100.0/24"],
    ),
];

/// A21: whatever the IPAM plugin does wrong, the error says it with the plugin's code, its DEL runs exactly once,
/// and nothing is left.
#[test]
fn a_failing_ipam_plugin_fails_add_without_residue_and_gets_one_del() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let (node, weft, before) = warmed_up(&lab, mode);
        let conf = conf(mode, json!({"type": "broken"}));
        for (name, body, code, words) in FAILURES {
            script(&node, "broken", body);
            let pod = node.pod("a");
            let error = weft.add(&pod, &conf).error();
            let place = format!("{mode}, {name}: {error:?}");
            assert_eq!(error.code, *code, "{place}");
            let text = format!("{} {}", error.msg, error.details);
            words.iter().for_each(|word| assert!(text.contains(word), "no {word:?} in {place}"));
            assert_eq!(calls(&node), ["ADD", "DEL"], "{place}");
            before.assert_settles(&node, &Allow::nothing());
            // The runtime's own DEL, and another pod.
            weft.del(&pod, &conf).ok_empty();
            calls(&node);
        }
        script(&node, "broken", GOOD);
        let pod = node.pod("b");
        assert!(pod.ping(gateway_of(&weft.add(&pod, &conf).result(), 0), 2));
    }
}

/// A21: oddities that are no failure: interfaces and indices that a delegate must not name, unknown keys, stdin not
/// read, a helper that keeps stdout open, noise on stderr.
#[test]
fn an_odd_ipam_plugin_is_put_up_with() {
    if !require() {
        return;
    }
    let lab = lab!();
    let odd = [
        (
            "an index",
            r#"echo '{"cniVersion":"1.1.0","interfaces":[{"name":"x"}],"ips":[{"address":"10.1.0.2/24",
          "gateway":"10.1.0.1","interface":7}],"foo":{}}'"#,
        ),
        (
            "capital keys",
            r#"echo '{"CNIVersion":"1.0.0","IPs":[{"Address":"10.1.0.2/24","Gateway":"10.1.0.1"}],"routes":null}'"#,
        ),
        ("no version", r#"echo '{"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"}]}'"#),
        ("0.2.0", r#"echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1"}}'"#),
        ("stdin closed", r#"exec 0<&-; echo '{"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"}]}'"#),
        (
            "a helper",
            r#"sleep 20 2>/dev/null & echo '{"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"}]}'"#,
        ),
        ("noise", r#"echo noise >&2; echo '{"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"}]}'"#),
    ];
    for mode in MODES {
        let (node, weft, before) = warmed_up(&lab, mode);
        let conf = conf(mode, json!({"type": "odd", "filler": "x".repeat(1 << 20)}));
        for (name, body) in odd {
            script(&node, "odd", &format!("[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{body}"));
            let pod = node.pod("a");
            let outcome = weft.add(&pod, &conf);
            assert!(outcome.elapsed < Duration::from_secs(10), "{name}: {outcome}");
            let result = outcome.result();
            let pod_end = if mode == "bridge" { 2 } else { 1 };
            assert_eq!(result["ips"][0]["interface"], pod_end, "{mode} {name}: {result}");
            assert_eq!(result["interfaces"].as_array().unwrap().len(), pod_end + 1, "{result}");
            assert!(pod.ping(gateway_of(&result, 0), 2), "{mode} {name}");
            weft.del(&pod, &conf).ok_empty();
        }
        for (pid, line) in node.processes() {
            if line.contains("sleep 20") {
                node.run(["kill", &pid.to_string()]);
            }
        }
        before.assert_settles(&node, &Allow::nothing());
    }
}

/// A21: a plugin that is missing is looked for in every folder of `CNI_PATH`, which are named; a type that leads out
/// of them is refused without being run. Nothing is left, also no record that a DEL would have to end.
#[test]
fn a_missing_ipam_plugin_is_named_with_its_folders_and_a_path_is_never_run() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let (node, weft, before) = warmed_up(&lab, mode);
        let pod = node.pod("a");
        let missing = conf(mode, json!({"type": "no-such-ipam"}));
        let error = weft.add(&pod, &missing).error();
        assert_eq!(error.code, 7, "{error:?}");
        for word in ["no-such-ipam", "/nowhere", BIN] {
            assert!(error.msg.contains(word), "{error:?}");
        }
        before.assert_settles(&node, &Allow::nothing());

        fs::create_dir_all(node.path("/run/containerd/bin/sub")).unwrap();
        for place in ["../evil", "sub/evil", "evil"] {
            script(&node, place, "touch /run/containerd/ran");
        }
        let absolute = "/run/containerd/evil";
        for kind in ["../evil", "sub/evil", "./evil", absolute, "..", ".", "evil/"] {
            let conf = conf(mode, json!({"type": kind}));
            for (verb, conf) in [
                ("ADD", conf.clone()),
                ("DEL", conf.clone()),
                ("STATUS", conf.clone()),
                ("GC", with(&conf, "cni.dev/valid-attachments", &json!([]))),
            ] {
                let outcome = weft.call(verb).pod(&pod).conf(&conf).run();
                if verb == "ADD" || verb == "STATUS" {
                    let error = outcome.error();
                    assert!(error.code == 7 && error.msg.contains(kind), "{kind} {verb}: {error:?}");
                }
                assert_eq!(calls(&node), [""; 0], "{kind} {verb}");
                assert!(!node.path("/run/containerd/ran").exists(), "{kind} {verb}");
            }
            before.assert_settles(&node, &Allow::nothing());
        }

        script(&node, "not-executable", "exit 0");
        let file = node.path(BIN).join("not-executable");
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = weft.add(&pod, &conf(mode, json!({"type": "not-executable"}))).error();
        assert!(error.code == 5 && error.msg.contains("not-executable"), "{error:?}");
        let left = before.settle(&node, &Allow::nothing().text("/run/weft/"));
        assert_eq!(left, [""; 0]);
    }
}

/// A21: a plugin that hangs in ADD is killed with all that it started at our own deadline, code 11; its DEL still
/// runs, and nothing is left.
#[test]
fn a_hung_ipam_plugin_is_killed_with_its_group_at_the_deadline() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (node, weft, before) = warmed_up(&lab, "bridge");
    script(&node, "hung", "[ \"$CNI_COMMAND\" = ADD ] || exit 0\nsleep 1000 &\nsleep 1001");
    let conf = conf("bridge", json!({"type": "hung"}));
    let pod = node.pod("a");
    let outcome = weft.add(&pod, &conf);
    let error = outcome.error();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.msg.contains("hung") && error.msg.contains("killed"), "{error:?}");
    assert!(
        outcome.exited > Duration::from_secs(20) && outcome.exited < Duration::from_secs(40),
        "{outcome}"
    );
    assert_eq!(calls(&node), ["ADD", "DEL"]);
    wait_until("its helpers are dead", Duration::from_secs(3), || node.processes().is_empty());
    before.assert_settles(&node, &Allow::nothing());
}

/// A21, STATUS: a delegate that hangs costs a second, for runtimes hold locks meanwhile; its word is ours; one that
/// does not know the verb has nothing to say.
#[test]
fn status_is_forwarded_and_never_waits_long() {
    if !require() {
        return;
    }
    let lab = lab!();
    let (node, weft, _) = warmed_up(&lab, "veth");
    let conf = conf("veth", json!({"type": "asked"}));
    let cases: [(&str, Option<(u64, &str)>); 5] = [
        ("exit 0", None),
        (r#"echo '{"code":50,"msg":"no addresses left"}'; exit 1"#, Some((50, "no addresses left"))),
        (r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: STATUS"}'; exit 1"#, None),
        (
            r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: FOO"}'; exit 1"#,
            Some((4, "unknown CNI_COMMAND: FOO")),
        ),
        ("sleep 1000 & sleep 1000", Some((11, "asked"))),
    ];
    for (body, wanted) in cases {
        script(&node, "asked", body);
        let outcome = weft.status(&conf);
        match wanted {
            None => outcome.ok_empty(),
            Some((code, words)) => {
                let error = outcome.error();
                assert!(error.code == code && error.msg.contains(words), "{body}: {error:?}");
            }
        }
        assert!(outcome.exited < Duration::from_secs(5), "{body}: {outcome}");
        assert_eq!(calls(&node), ["STATUS"]);
    }
    wait_until("its helpers are dead", Duration::from_secs(3), || node.processes().is_empty());
}

/// cni.md 1.8: the delegate gets our variables and the whole configuration, in every verb.
#[test]
fn a_delegate_gets_the_same_environment_and_the_whole_configuration() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let (node, weft, _) = warmed_up(&lab, mode);
        script(&node, "curious", &format!("cat > {BIN}/stdin; env | grep ^CNI_ | sort > {BIN}/env; {GOOD}"));
        let mut conf = conf(mode, json!({"type": "curious", "own": {"key": [1, null, "ü"]}}));
        conf["unknownKey"] = json!({"a": 1});
        conf["runtimeConfig"] = json!({"ips": ["10.1.0.9"]});
        let pod = node.pod("a");
        let read = |name: &str| fs::read_to_string(node.path(BIN).join(name)).unwrap();
        let sent = |conf: &Value| {
            assert_eq!(serde_json::from_str::<Value>(&read("stdin")).unwrap(), *conf, "{mode}");
            read("env")
        };
        let of_pod = |verb: &str| {
            format!(
                "CNI_ARGS=IgnoreUnknown=1;K=v\nCNI_COMMAND={verb}\nCNI_CONTAINERID={}\nCNI_IFNAME=eth0\nCNI_NETNS={}\nCNI_PATH=/nowhere:{BIN}\n",
                pod.container_id(),
                pod.netns_path().display()
            )
        };
        let args = "IgnoreUnknown=1;K=v";
        let result = weft.call("ADD").pod(&pod).env("CNI_ARGS", args).conf(&conf).run().result();
        assert_eq!(sent(&conf), of_pod("ADD"));
        let checked = with(&conf, "prevResult", &result);
        weft.call("CHECK").pod(&pod).env("CNI_ARGS", args).conf(&checked).run().ok_empty();
        assert_eq!(sent(&checked), of_pod("CHECK"));
        weft.call("DEL").pod(&pod).env("CNI_ARGS", args).conf(&checked).run().ok_empty();
        assert_eq!(sent(&checked), of_pod("DEL"));
        let gc = with(&conf, "cni.dev/valid-attachments", &json!([]));
        weft.gc(&gc).ok_empty();
        assert_eq!(sent(&gc), format!("CNI_COMMAND=GC\nCNI_PATH=/nowhere:{BIN}\n"));
        weft.status(&conf).ok_empty();
        assert_eq!(sent(&conf), format!("CNI_COMMAND=STATUS\nCNI_PATH=/nowhere:{BIN}\n"));
        assert_eq!(calls(&node), ["ADD", "CHECK", "DEL", "GC", "STATUS"]);
    }
}

/// DEL through a delegate that fails: the kernel side is gone, the error is the delegate's, the next DEL asks it
/// again, and by the record even when the configuration names another plugin by then.
#[test]
fn del_asks_the_delegate_again_until_it_says_yes() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let (node, weft, before) = warmed_up(&lab, mode);
        script(
            &node,
            "good",
            &format!("[ -e {BIN}/down ] && echo '{{\"code\":107,\"msg\":\"store away\"}}' && exit 1\n{GOOD}"),
        );
        let conf = conf(mode, json!({"type": "good"}));
        let pod = node.pod("a");
        weft.add(&pod, &conf).result();
        calls(&node);
        fs::write(node.path(BIN).join("down"), "").unwrap();
        for _ in 0..2 {
            let error = weft.del(&pod, &conf).error();
            assert!(error.code == 107 && error.msg.contains("store away"), "{error:?}");
            assert!(!error.msg.contains("not found"), "go-cni would swallow it: {error:?}");
            assert_eq!(calls(&node), ["DEL"]);
            let link = pod.try_run(["ip", "link", "show", "eth0"]);
            assert!(!link.status.success(), "{mode}: the link is still there");
        }
        fs::remove_file(node.path(BIN).join("down")).unwrap();
        let mut changed = conf.clone();
        changed["ipam"] = json!({"ranges": [[{"subnet": "10.7.0.0/24"}]]});
        weft.call("DEL").pod(&pod).env("CNI_NETNS", "").conf(&changed).run().ok_empty();
        assert_eq!(calls(&node), ["DEL"]);
        before.assert_settles(&node, &Allow::nothing());
    }
}

// ---- weft-ipam under the plugins of others

/// What `weft-ipam` is put under: the plugin's name and its configuration.
///
/// For one family, since the reference plugins wait for duplicate address detection, a second for each pod.
fn hosts(node: &Node) -> Vec<(&'static str, Value)> {
    let ipam = json!({"type": "weft-ipam", "ranges": [[{"subnet": "10.244.0.0/29"}]], "routes": [{"dst": "0.0.0.0/0"}]});
    let base = |kind: &str| json!({"cniVersion": "1.0.0", "name": "net", "type": kind, "ipam": ipam});
    let mut bridge = base("bridge");
    bridge["isGateway"] = json!(true);
    let mut all = vec![("bridge", bridge)];
    node.run(["ip", "link", "add", "parent0", "type", "veth", "peer", "name", "parent1"]);
    node.run(["ip", "link", "set", "parent0", "up"]);
    node.run(["ip", "link", "set", "parent1", "up"]);
    let probe = node.try_run(["ip", "link", "add", "link", "parent0", "probe0", "type", "macvlan"]);
    if probe.status.success() {
        node.run(["ip", "link", "del", "probe0"]);
        let mut macvlan = base("macvlan");
        macvlan["master"] = json!("parent0");
        all.push(("macvlan", macvlan));
    } else {
        // Past the test runner's capture.
        let _ = writeln!(std::io::stderr(), "SKIPPED weft-ipam under macvlan: this kernel has none");
    }
    all
}

fn state_files(node: &Node, name: &str) -> Vec<PathBuf> {
    let stamps = fs::read_dir(node.path("/run/weft")).into_iter().flatten().flatten();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = stamps.map(|stamp| stamp.path().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

/// The configuration in the version that has GC and STATUS, as a newer `bridge` would hand it on.
fn newest(conf: &Value) -> Value {
    with(conf, "cniVersion", &json!("1.1.0"))
}

/// A node with the reference's plugins and `weft-ipam`, for each plugin that it can be put under.
fn under_each(lab: &netns_tests::Lab, work: impl Fn(&Node, &Cni, &Cni, &Value)) {
    let Some(reference) = reference() else { return };
    let count = hosts(&lab.node("probe")).len();
    for at in 0..count {
        let node = lab.node(&format!("n{at}"));
        let (kind, conf) = hosts(&node).swap_remove(at);
        let plugin = node.cni(&reference, kind).with_path([reference.clone(), weft_bin_dir()]);
        let ipam = node.cni(weft_bin_dir(), "weft-ipam");
        work(&node, &plugin, &ipam, &conf);
    }
}

/// weft-ipam under the reference `bridge` and `macvlan`: ADD, CHECK, DEL; the pods reach each other; a lost
/// reservation fails CHECK; a second ADD of the same attachment is refused and disturbs nothing.
#[test]
fn weft_ipam_serves_the_reference_bridge_and_macvlan() {
    if !require() {
        return;
    }
    let lab = lab!();
    under_each(&lab, |node, plugin, ipam, conf| {
        let (a, b) = (node.pod("a"), node.pod("b"));
        let mut conf = conf.clone();
        conf["ipam"]["ranges"].as_array_mut().unwrap().push(json!([{"subnet": "fd00:244::/64"}]));
        let conf = &conf;
        let first = plugin.add(&a, conf).result();
        let second = plugin.add(&b, conf).result();
        assert_eq!(
            [ip_of(&first, 0), ip_of(&second, 0)].map(|ip| ip.to_string()),
            ["10.244.0.2", "10.244.0.3"]
        );
        assert_eq!(first["ips"][0]["gateway"], "10.244.0.1");
        assert!(a.ping(ip_of(&second, 0), 3), "{conf}");
        wait_until("past DAD", Duration::from_secs(5), || a.ping(ip_of(&second, 1), 1));
        plugin.check(&a, &with(conf, "prevResult", &first)).ok_empty();

        let error = ipam.add(&a, conf).error();
        assert_eq!(error.code, 100, "{error:?}");
        for word in ["10.244.0.2", a.container_id(), "duplicate allocation is not allowed"] {
            assert!(error.msg.contains(word), "{error:?}");
        }
        assert_eq!(state_files(node, "pool").len(), 4);

        let file = state_files(node, "pool").into_iter().find(|file| file.ends_with("10.244.0.3")).unwrap();
        fs::remove_file(file).unwrap();
        let outcome = plugin.check(&b, &with(conf, "prevResult", &second));
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert!(
            !outcome.status.success() && text.contains("the reservation of 10.244.0.3 is lost"),
            "{outcome}"
        );
        plugin.check(&a, &with(conf, "prevResult", &first)).ok_empty();

        plugin.del(&a, conf).ok_empty();
        plugin.del(&a, conf).ok_empty();
        b.destroy_netns();
        plugin.del(&b, conf).ok_empty();
        for folder in ["owner", "record", "pool"] {
            assert_eq!(state_files(node, folder), Vec::<PathBuf>::new());
        }
    });
}

/// weft-ipam: STATUS knows exhaustion, ADD says "try again" with the range; a namespace that vanished without DEL is
/// collected by the ADD that needs its address, and by nobody while it lives.
#[test]
fn weft_ipam_collects_what_a_vanished_namespace_held() {
    if !require() {
        return;
    }
    let lab = lab!();
    under_each(&lab, |node, plugin, ipam, conf| {
        ipam.status(&newest(conf)).ok_empty();
        let pods: Vec<Pod> = (0..5).map(|nth| node.pod(&format!("p{nth}"))).collect();
        let results: Vec<Value> = pods.iter().map(|pod| plugin.add(pod, conf).result()).collect();
        let status = ipam.status(&newest(conf)).error();
        assert_eq!(status.code, 50, "{status:?}");
        assert!(
            status.msg.contains("10.244.0.1-10.244.0.6") && status.details.contains("5 of 5"),
            "{status:?}"
        );
        let late = node.pod("late");
        let error = ipam.add(&late, conf).error();
        assert_eq!(error.code, 11, "{error:?}");
        assert!(error.msg.contains("10.244.0.1-10.244.0.6") && error.details.contains("5 of 5"), "{error:?}");
        assert_eq!(state_files(node, "pool").len(), 5, "a failed ADD keeps nothing");

        pods[3].destroy_netns();
        ipam.status(&newest(conf)).ok_empty();
        let again = plugin.add(&late, conf).result();
        assert_eq!(ip_of(&again, 0), ip_of(&results[3], 0));
        // The late DEL of the one that vanished takes nothing from its successor.
        plugin.del(&pods[3], conf).ok_empty();
        plugin.check(&late, &with(conf, "prevResult", &again)).ok_empty();
        // A path that is a plain file by now is no namespace either.
        pods[1].destroy_netns();
        fs::write(pods[1].netns_path(), "").unwrap();
        let next = plugin.add(&node.pod("next"), conf).result();
        assert_eq!(ip_of(&next, 0), ip_of(&results[1], 0));
        fs::remove_file(pods[1].netns_path()).unwrap();
    });
}

/// weft-ipam: GC ends what is not listed, of this network only; without a list nothing.
#[test]
fn weft_ipam_gc_ends_exactly_what_is_not_listed() {
    if !require() {
        return;
    }
    let lab = lab!();
    under_each(&lab, |node, plugin, ipam, conf| {
        let other_net = with(conf, "name", &json!("net2"));
        let pods: Vec<Pod> = (0..4).map(|nth| node.pod(&format!("p{nth}"))).collect();
        let results: Vec<Value> = pods.iter().map(|pod| plugin.add(pod, conf).result()).collect();
        let elsewhere = pods[0].with_ifname("net1");
        let other = ipam.add(&elsewhere, &other_net).result();
        // An attachment of weft itself on a network of this name is that plugin's to collect.
        let own = node.pod("own");
        let own_conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": "veth",
            "ipam": {"ranges": [[{"subnet": "10.77.0.0/24"}]]}});
        let weft = node.cni(weft_bin_dir(), "weft");
        let own_result = weft.add(&own, &own_conf).result();

        assert_eq!(ipam.gc(&newest(conf)).error().code, 7);
        let entry = |pod: &Pod| json!({"containerID": pod.container_id(), "ifname": pod.ifname()});
        let gc = newest(&with(
            conf,
            "cni.dev/valid-attachments",
            &json!([entry(&pods[1]), entry(&pods[2].with_ifname("net7"))]),
        ));
        ipam.gc(&gc).ok_empty();
        let checks =
            |nth: usize| plugin.check(&pods[nth], &with(conf, "prevResult", &results[nth])).status.success();
        assert_eq!([0, 1, 2, 3].map(checks), [false, true, false, false], "{conf}");
        ipam.check(&elsewhere, &with(&other_net, "prevResult", &other)).ok_empty();
        weft.check(&own, &with(&own_conf, "prevResult", &own_result)).ok_empty();
        ipam.gc(&newest(&with(conf, "cni.dev/valid-attachments", &Value::Null))).ok_empty();
        assert!(!checks(1));
        let left = state_files(node, "pool");
        let left: Vec<&str> = left.iter().filter_map(|file| Path::new(file).file_name()?.to_str()).collect();
        assert_eq!(left.len(), 2, "of the other network and of weft itself: {left:?}");
    });
}

/// weft-ipam: its records wiped under running pods cannot be rebuilt, for the links are not ours: ADD and STATUS
/// refuse with the way out, DEL works, and the way out is one.
#[test]
fn weft_ipam_refuses_after_a_wipe_and_says_the_way_out() {
    if !require() {
        return;
    }
    let lab = lab!();
    under_each(&lab, |node, plugin, ipam, conf| {
        let old = node.pod("old");
        plugin.add(&old, conf).result();
        node.run(["sh", "-c", "rm -rf /run/weft/*"]);
        let pod = node.pod("a");
        for _ in 0..2 {
            let error = ipam.add(&pod, conf).error();
            assert_eq!(error.code, 11, "{error:?}");
            assert!(error.msg.contains("wiped") && error.details.contains("remove /run/weft/"), "{error:?}");
            let status = ipam.status(&newest(conf)).error();
            assert_eq!(status.code, 50, "{status:?}");
            assert!(status.details.contains("remove /run/weft/"), "{status:?}");
        }
        let through = plugin.add(&pod, conf);
        assert!(!through.status.success(), "{through}");
        assert!(String::from_utf8_lossy(&through.stdout).contains("remove /run/weft/"), "{through}");
        pod.destroy_netns();
        plugin.del(&old, conf).ok_empty();
        for folder in ["owner", "record", "pool"] {
            assert_eq!(state_files(node, folder), Vec::<PathBuf>::new(), "a refused ADD leaves nothing");
        }

        let file = ipam.add(&node.pod("b"), conf).error().details;
        let file = file.rsplit("remove ").next().unwrap().trim().to_owned();
        node.run(["rm", &file]);
        ipam.status(&newest(conf)).ok_empty();
        plugin.add(&node.pod("c"), conf).result();
    });
}

/// Design §3: the same node's own attachments do not suffer from a wipe: `weft` rebuilds, only `weft-ipam` refuses.
#[test]
fn a_wipe_does_not_stop_weft_itself() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf(mode, json!({"type": "weft-ipam", "ranges": [[{"subnet": "10.244.0.0/29"}]]}));
        let first = weft.add(&node.pod("a"), &conf).result();
        node.run(["sh", "-c", "rm -rf /run/weft/*"]);
        weft.status(&conf).ok_empty();
        let others: Vec<IpAddr> =
            (0..4).map(|nth| ip_of(&weft.add(&node.pod(&format!("p{nth}")), &conf).result(), 0)).collect();
        assert!(!others.contains(&ip_of(&first, 0)), "{mode}: {others:?}");
        assert_eq!(weft.add(&node.pod("late"), &conf).error().code, 11);
        let ipam = node.cni(weft_bin_dir(), "weft-ipam");
        assert_eq!(ipam.add(&node.pod("delegated"), &conf).error().code, 11);
    }
}
