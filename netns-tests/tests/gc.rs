//! GC (A25): ends what the runtime does not list, of this network only, and goes on past failures.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::{Allow, Cni, Inside, Lab, Node, Outcome, Pod, Residue, lab, require};
use netns_tests::{wait_until, weft_bin_dir};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
const MODES: [&str; 2] = ["bridge", "veth"];

fn conf(name: &str, mode: &str, subnet: &str) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": name, "type": "weft", "mode": mode, "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"ranges": [[{"subnet": subnet}], [{"subnet": "fd00:244::/64"}]]}
    });
    if mode == "bridge" {
        // Elements of its own for each pod: GC has to remove these too.
        conf["macspoofchk"] = json!(true);
    }
    conf
}

fn entry(pod: &Pod) -> Value {
    json!({"containerID": pod.container_id(), "ifname": pod.ifname()})
}

/// Five pods of one network on a node of their own, and a snapshot of the node with the first two only.
struct Network {
    node: Node,
    weft: Cni,
    conf: Value,
    pods: Vec<Pod>,
    results: Vec<Value>,
    with_two: Residue,
}

impl Network {
    fn of_five(lab: &Lab, name: &str, mode: &str) -> Self {
        let node = lab.node(name);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf("net", mode, "10.244.0.0/24");
        let mut pods = Vec::new();
        let mut results = Vec::new();
        let mut with_two = None;
        for nth in 0..5 {
            if nth == 2 {
                with_two = Some(Residue::take(&node));
            }
            let pod = node.pod(&format!("p{nth}"));
            results.push(weft.add(&pod, &conf).result());
            pods.push(pod);
        }
        Self { node, weft, conf, pods, results, with_two: with_two.unwrap() }
    }

    fn gc(&self, lists: &[(&str, Value)]) -> Outcome {
        let mut conf = self.conf.clone();
        for (key, list) in lists {
            conf[*key] = list.clone();
        }
        self.weft.gc(&conf)
    }

    fn entries(&self, which: &[usize]) -> Value {
        which.iter().map(|nth| entry(&self.pods[*nth])).collect()
    }

    fn passes_check(&self, nth: usize) -> bool {
        let mut conf = self.conf.clone();
        conf["prevResult"] = self.results[nth].clone();
        self.weft.check(&self.pods[nth], &conf).status.success()
    }

    fn gateway(&self) -> IpAddr {
        self.results[0]["ips"][0]["gateway"].as_str().unwrap().parse().unwrap()
    }

    /// The pods that live, whole and pinging.
    fn living(&self) -> Vec<usize> {
        let lives = |nth: &usize| self.passes_check(*nth) && self.pods[*nth].ping(self.gateway(), 1);
        (0..self.pods.len()).filter(lives).collect()
    }
}

/// A25: a list of 2 of 5; the three are gone without residue, the two are untouched; again is fine.
#[test]
fn gc_ends_exactly_what_is_not_listed() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let network = Network::of_five(&lab, mode, mode);
        for _ in 0..2 {
            network.gc(&[(KEYS[0], network.entries(&[0, 1]))]).ok_empty();
            network.with_two.assert_settles(&network.node, &Allow::nothing().text("Neighbour: "));
            assert_eq!(network.living(), [0, 1], "{mode}");
        }
        // What was collected can be attached anew, and its DEL comes late without harm.
        network.weft.del(&network.pods[3], &network.conf).ok_empty();
        assert_eq!(network.living(), [0, 1], "{mode}");
    }
}

/// A25: what the two keys say together is kept; `null` is an empty list, whichever key has it.
#[test]
fn gc_keeps_the_union_of_both_lists_and_takes_null_as_empty() {
    if !require() {
        return;
    }
    let lab = lab!();
    type Lists = fn(&Network) -> Vec<(&'static str, Value)>;
    let cases: &[(Lists, &[usize])] = &[
        (|n| vec![(KEYS[0], n.entries(&[0])), (KEYS[1], n.entries(&[1]))], &[0, 1]),
        (|n| vec![(KEYS[0], json!([])), (KEYS[1], n.entries(&[1]))], &[1]),
        (|n| vec![(KEYS[0], Value::Null), (KEYS[1], n.entries(&[0, 4]))], &[0, 4]),
        (|n| vec![(KEYS[1], n.entries(&[2]))], &[2]),
        (|n| vec![("CNI.dev/Valid-Attachments", n.entries(&[2]))], &[2]),
        (|_| vec![(KEYS[0], json!([]))], &[]),
        (|_| vec![(KEYS[0], Value::Null)], &[]),
        (|_| vec![(KEYS[0], Value::Null), (KEYS[1], Value::Null)], &[]),
        (|_| vec![(KEYS[1], json!([]))], &[]),
    ];
    for (at, (lists, left)) in cases.iter().enumerate() {
        let network = Network::of_five(&lab, &format!("n{at}"), MODES[at % 2]);
        network.gc(&lists(&network)).ok_empty();
        assert_eq!(network.living(), *left, "case {at}");
        if left.is_empty() {
            let left = Residue::take(&network.node).lines();
            let is_ours =
                |line: &&String| line.starts_with("File: /run/weft/") || line.contains("alias=weft1 ");
            let mut left = left.iter().filter(is_ours).filter(|line| !line.contains("weft1 bridge"));
            assert_eq!(left.next(), None, "case {at}");
        }
    }
}

/// A25: without a list nobody said that nothing is valid (code 7); a list of the wrong type is code 6, an entry
/// without a container 7. In each case nothing is collected.
#[test]
fn gc_without_a_readable_list_collects_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    let network = Network::of_five(&lab, "n1", "bridge");
    let before = Residue::take(&network.node);
    let entry = &network.entries(&[0])[0];
    let cases: Vec<(u64, Vec<(&str, Value)>)> = vec![
        (7, vec![]),
        (6, vec![(KEYS[0], json!("all"))]),
        (6, vec![(KEYS[0], json!({}))]),
        (6, vec![(KEYS[0], json!(7))]),
        (6, vec![(KEYS[0], json!(["abc"]))]),
        (6, vec![(KEYS[0], json!([{"containerID": 7, "ifname": "eth0"}]))]),
        (6, vec![(KEYS[0], json!([entry])), (KEYS[1], json!(false))]),
        (7, vec![(KEYS[0], json!([{"ifname": "eth0"}]))]),
        (7, vec![(KEYS[0], json!([entry, {}]))]),
    ];
    for (code, lists) in cases {
        let error = network.gc(&lists).error();
        assert_eq!(error.code, code, "{lists:?}: {error:?}");
        let text = format!("{} {}", error.msg, error.details);
        assert!(text.contains("attachments"), "{lists:?}: {error:?}");
        before.assert_same(&Residue::take(&network.node), &Allow::nothing().processes());
    }
    let mut old = network.conf.clone();
    old["cniVersion"] = json!("1.0.0");
    old[KEYS[0]] = json!([]);
    let error = network.weft.gc(&old).error();
    assert_eq!((error.code, error.msg.as_str()), (1, "config version does not allow GC"));
    assert_eq!(network.living(), [0, 1, 2, 3, 4]);
}

/// A25: an entry keeps exactly its container and interface; one without an interface (records of before) the whole
/// container; entries of nobody are no error.
#[test]
fn gc_matches_container_and_interface_exactly() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf("net", mode, "10.244.0.0/24");
        let first = node.pod("a");
        let second = first.with_ifname("net1");
        let whole = node.pod("b");
        let also_whole = whole.with_ifname("net1");
        let near = node.pod("c");
        for pod in [&first, &second, &whole, &also_whole, &near] {
            weft.add(pod, &conf).result();
        }
        let mut gc = conf.clone();
        gc[KEYS[0]] = json!([
            {"containerID": first.container_id(), "ifname": "net1"},
            {"containerID": whole.container_id()},
            {"containerID": "nobody", "ifname": "eth0"},
            {"containerID": &near.container_id()[..63], "ifname": "eth0"},
            {"containerID": near.container_id(), "ifname": "eth"},
            {"containerID": near.container_id(), "ifname": "eth01"},
        ]);
        weft.gc(&gc).ok_empty();
        let has = |pod: &Pod| pod.try_run(["ip", "link", "show", pod.ifname()]).status.success();
        let left = [&first, &second, &whole, &also_whole, &near].map(has);
        assert_eq!(left, [false, true, true, true, false], "{mode}");
    }
}

/// A25: pods of another network are not touched, even on the same bridge and with the same container ids.
#[test]
fn gc_leaves_other_networks_alone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let network = Network::of_five(&lab, mode, mode);
        let mut other = conf("net2", mode, "10.245.0.0/24");
        other["ipam"]["ranges"] = json!([[{"subnet": "10.245.0.0/24"}]]);
        let pods: Vec<Pod> = network.pods.iter().map(|pod| pod.with_ifname("net1")).collect();
        if mode == "bridge" {
            other["bridge"] = json!("br2");
        }
        let results: Vec<Value> = pods.iter().map(|pod| network.weft.add(pod, &other).result()).collect();
        network.gc(&[(KEYS[0], Value::Null), (KEYS[1], Value::Null)]).ok_empty();
        assert_eq!(network.living(), [0_usize; 0]);
        for (pod, result) in pods.iter().zip(&results) {
            let mut check = other.clone();
            check["prevResult"] = result.clone();
            network.weft.check(pod, &check).ok_empty();
        }
    }
}

/// A25: GC goes on past what fails, and reports all of it: a delegate whose DEL fails for some and whose GC fails.
#[test]
fn gc_goes_on_past_errors_and_reports_them_all() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    node.mount_tmpfs("/run/containerd");
    let script = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> /run/containerd/log
case "$CNI_COMMAND" in
ADD) n=$(($(cat /run/containerd/n 2>/dev/null || echo 1) + 1)); echo $n > /run/containerd/n
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.1.0.$n/24\",\"gateway\":\"10.1.0.1\"}]}";;
DEL) case "$CNI_CONTAINERID" in bad*) echo "{\"cniVersion\":\"1.1.0\",\"code\":107,\"msg\":\"lost $CNI_CONTAINERID\"}"; exit 1;; esac;;
GC) echo '{"cniVersion":"1.1.0","code":108,"msg":"the store is away"}'; exit 1;;
esac
"#;
    let dir = node.path("/run/containerd/bin");
    fs::create_dir(&dir).unwrap();
    write_script(&dir.join("fake"), script);
    let weft = node.cni(weft_bin_dir(), "weft").with_path(["/run/containerd/bin"]);
    let conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft", "isGateway": true, "ipam": {"type": "fake"}});
    let base = ["ok1", "bad1", "ok2", "bad2", "kept"];
    let pods = base.map(|id| node.pod(id).with_container_id(id));
    pods.iter().for_each(|pod| drop(weft.add(pod, &conf).result()));
    let mut gc = conf.clone();
    gc[KEYS[0]] = json!([entry(&pods[4])]);

    let error = weft.gc(&gc).error();
    let text = format!("{} {}", error.msg, error.details);
    for words in ["lost bad1", "lost bad2", "the store is away"] {
        assert!(text.contains(words), "{error:?}");
    }
    let has = |pod: &Pod| pod.try_run(["ip", "link", "show", "eth0"]).status.success();
    wait_until("the links are gone", Duration::from_secs(3), || !has(&pods[0]) && !has(&pods[2]));
    assert!(has(&pods[4]));
    let log = fs::read_to_string(node.path("/run/containerd/log")).unwrap();
    let count = |line: &str| log.lines().filter(|found| *found == line).count();
    assert_eq!(
        [count("DEL ok1 eth0"), count("DEL ok2 eth0"), count("DEL kept eth0"), count("GC  ")],
        [1, 1, 0, 1],
        "{log}"
    );
    // The two that failed are still known: the next GC tries them again.
    assert!(weft.gc(&gc).error().details.contains("lost bad2"));
    write_script(&dir.join("fake"), "#!/bin/sh\nexit 0\n");
    weft.gc(&gc).ok_empty();
    let owners = files_of(&node, "owner");
    assert_eq!(owners.len(), 1, "{owners:?}");
}

/// The programs of this machine are busy with forks: a script that is just being written must not be inherited
/// open for writing, so it gets its name when it is whole.
fn write_script(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let spare = path.with_extension("new");
    fs::write(&spare, text).unwrap();
    fs::set_permissions(&spare, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(spare, path).unwrap();
}

/// A25, design §3: what another runtime of the node made is spared and named as long as it lives, and collected
/// once its pod is gone.
#[test]
fn gc_spares_what_another_runtime_made_while_it_lives() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf("net", mode, "10.244.0.0/24");
        let (ours, theirs) = (node.pod("ours"), node.pod("theirs"));
        weft.add(&ours, &conf).result();
        let shell = weft.call("ADD").pod(&theirs).conf(&conf).wrap(["sh", "-c", "\"$0\"; exit $?"]).run();
        let gateway: IpAddr = shell.result()["ips"][0]["gateway"].as_str().unwrap().parse().unwrap();
        let mut gc = conf.clone();
        gc[KEYS[0]] = Value::Null;

        let error = weft.gc(&gc).error();
        let text = format!("{} {}", error.msg, error.details);
        assert!(text.contains(theirs.container_id()) && text.contains("disableGC"), "{error:?}");
        assert!(theirs.ping(gateway, 1), "{mode}");
        assert!(!ours.try_run(["ip", "link", "show", "eth0"]).status.success(), "{mode}");

        theirs.destroy_netns();
        wait_until("its record is collected", Duration::from_secs(5), || weft.gc(&gc).status.success());
        assert_eq!(files_of(&node, "owner"), Vec::<PathBuf>::new());
    }
}

/// A25: addresses that host-local gave before the network was switched are released for containers that are gone.
#[test]
fn gc_releases_what_host_local_gave_to_containers_that_are_gone() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = node.cni(weft_bin_dir(), "weft");
    let folder = node.path("/var/lib/cni/networks/net");
    fs::create_dir_all(&folder).unwrap();
    let files = [
        ("10.244.0.2", "gone\r\neth0"),
        ("10.244.0.3", "kept\r\neth0"),
        ("10.244.0.4", "kept\r\nnet1"),
        ("10.244.0.5", "kept"),
        ("10.244.0.6", ""),
        ("last_reserved_ip.0", "10.244.0.6"),
        ("lock", ""),
    ];
    files.iter().for_each(|(name, content)| fs::write(folder.join(name), content).unwrap());
    let mut gc = conf("net", "veth", "10.244.0.0/24");
    gc[KEYS[0]] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    weft.gc(&gc).ok_empty();
    let left = |name: &&(&str, &str)| folder.join(name.0).exists();
    let left: Vec<&str> = files.iter().filter(left).map(|(name, _)| *name).collect();
    // An empty file tells nobody's name; it is left, and its address is not given.
    assert_eq!(left, ["10.244.0.3", "10.244.0.5", "10.244.0.6", "last_reserved_ip.0", "lock"]);
}

/// A25: 10,000 stale attachments are collected in at most 5 s, and a living pod is not disturbed.
#[test]
fn gc_ends_ten_thousand_stale_attachments_in_five_seconds() {
    const STALE: u32 = 10_000;
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let weft = node.cni(weft_bin_dir(), "weft");
    let mut conf = conf("net", "bridge", "10.64.0.0/16");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.64.0.0/16"}]]);
    let pod = node.pod("lives");
    let result = weft.add(&pod, &conf).result();
    let state = fs::read_dir(node.path("/run/weft")).unwrap().next().unwrap().unwrap().path();
    let template = fs::read_to_string(files_of(&node, "record").first().unwrap()).unwrap();
    let template: Value = serde_json::from_str(&template).unwrap();
    for nth in 0..STALE {
        make_stale(&state, &template, nth);
    }
    assert_eq!(files_of(&node, "pool").len(), STALE as usize + 1);

    conf[KEYS[0]] = json!([entry(&pod)]);
    let (started, before) = (Instant::now(), cpu_of_children());
    weft.gc(&conf).ok_empty();
    let (took, worked) = (started.elapsed(), cpu_of_children() - before);
    // Others may keep the machine busy, so its own work is what is promised. Waiting for the kernel in each of the
    // ten thousand (8 ms, were it for netfilter) would still be seen.
    assert!(worked < Duration::from_secs(5), "{worked:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    for folder in ["owner", "record", "pool"] {
        assert_eq!(files_of(&node, folder).len(), 1, "{folder}");
    }
    conf["prevResult"] = result;
    weft.check(&pod, &conf).ok_empty();
}

/// Writes the files of an attachment whose link is gone, as an ADD of before wrote them.
fn make_stale(state: &std::path::Path, template: &Value, nth: u32) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let hash = |text: &str| hex(&Sha256::digest(text)[..8]);
    let container = format!("stale{nth}");
    let hashes = [hash("net"), hash(&container), hash("eth0")];
    let id = hex(&Sha256::digest(hashes.join(" "))[..16]);
    let ip = std::net::Ipv4Addr::from(0x0a40_1000 + nth);
    let file = format!("pool/{}/{ip}", hashes[0]);
    let owner = json!({
        "format": 1, "network": "net", "containerID": container, "ifname": "eth0", "hashes": hashes
    });
    let mut record = template.clone();
    record["addresses"][0]["address"] = json!(format!("{ip}/16"));
    record["addresses"][0]["file"] = json!(file);
    record["host"]["name"] = json!(format!("veth{}", &id[..11]));
    record["host"]["index"] = json!(1_000_000 + nth);
    record["host"]["alias"] = json!("gone");
    fs::write(state.join("owner").join(&id), owner.to_string()).unwrap();
    fs::hard_link(state.join("owner").join(&id), state.join(file)).unwrap();
    fs::write(state.join("record").join(&id), record.to_string()).unwrap();
}

/// A25: a delegate of before that does not know the verb has nothing to collect: its addresses go by its DEL.
#[test]
fn gc_with_a_delegate_that_does_not_know_the_verb_collects_by_del() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let node = lab.node(mode);
        let dir = node.path("/run/containerd/bin");
        fs::create_dir(&dir).unwrap();
        write_script(
            &dir.join("old"),
            r#"#!/bin/sh
case "$CNI_COMMAND" in
ADD) n=$(($(cat /run/containerd/n 2>/dev/null || echo 1) + 1)); echo $n > /run/containerd/n
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.1.0.$n/24\",\"gateway\":\"10.1.0.1\"}]}";;
DEL) echo "$CNI_CONTAINERID $CNI_IFNAME" >> /run/containerd/released;;
*) echo "{\"cniVersion\":\"1.1.0\",\"code\":4,\"msg\":\"unknown CNI_COMMAND: $CNI_COMMAND\"}"; exit 1;;
esac
"#,
        );
        let weft = node.cni(weft_bin_dir(), "weft").with_path(["/run/containerd/bin"]);
        let mut conf = conf("net", mode, "10.244.0.0/24");
        conf["ipam"] = json!({"type": "old"});
        let (stale, kept) = (node.pod("stale"), node.pod("kept"));
        weft.add(&stale, &conf).result();
        weft.add(&kept, &conf).result();
        conf[KEYS[0]] = json!([entry(&kept)]);
        weft.gc(&conf).ok_empty();
        let released = fs::read_to_string(node.path("/run/containerd/released")).unwrap();
        assert_eq!(released, format!("{} eth0\n", stale.container_id()));
        assert!(!stale.try_run(["ip", "link", "show", "eth0"]).status.success());
        assert!(kept.try_run(["ip", "link", "show", "eth0"]).status.success());
    }
}

fn files_of(node: &Node, name: &str) -> Vec<PathBuf> {
    let stamps = fs::read_dir(node.path("/run/weft")).unwrap().flatten();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = stamps.map(|stamp| stamp.path().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let micros: i64 =
        [usage.user_time(), usage.system_time()].iter().map(TimeValLike::num_microseconds).sum();
    Duration::from_micros(micros.unsigned_abs())
}
