//! Faults around the plugin: a state folder that cannot be written, damaged files, a process started badly,
//! an answer that nobody reads, a lock that is never given back.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_protocol/confs.rs"]
mod confs;
#[path = "common_protocol/refusals.rs"]
mod refusals;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use confs::{MODES, conf, with};
use netns_tests::{Allow, Call, Cni, Inside, Lab, Node, Outcome, Pod, Residue, Running, StdoutTo};
use netns_tests::{lab, reference_bin_dir, require, wait_until, weft_bin_dir};
use refusals::{assert_refused, assert_untouched, problem};
use serde_json::{Value, json};

/// How long an operation may take by its own limit (design §3).
const LIMIT: Duration = Duration::from_secs(25);

fn weft(node: &Node) -> Cni {
    node.cni(weft_bin_dir(), "weft")
}

/// A node with a pod that lives on it. The network has addresses for few pods.
struct Scene {
    node: Node,
    weft: Cni,
    living: Pod,
    result: Value,
    conf: Value,
    before: Residue,
}

impl Scene {
    fn new(lab: &Lab, name: &str, mode: &str) -> Self {
        let node = lab.node(name);
        let weft = weft(&node);
        let ranges = json!([
            [{"subnet": "10.244.0.0/24", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.13"}],
            [{"subnet": "fd00:244::/64"}]
        ]);
        let conf = with(&conf("1.1.0", mode, "dual"), "/ipam/ranges", ranges);
        // A pod that came and went, so that its traces are not taken for those of later ones.
        let first = node.pod("first");
        weft.add(&first, &conf).result();
        let living = node.pod("living");
        let result = weft.add(&living, &conf).result();
        weft.del(&first, &conf).ok_empty();
        let before = Residue::take(&node);
        before.assert_settles(&node, &Allow::nothing().processes());
        Self { node, weft, living, result, conf, before }
    }

    fn call(&self, verb: &str, pod: &Pod) -> Call {
        self.weft.call(verb).pod(pod).conf(&self.conf)
    }

    /// The state folder, as the node sees it.
    fn state(&self) -> String {
        let mut folders = fs::read_dir(self.node.path("/run/weft")).unwrap().flatten();
        let name = folders.next().unwrap().file_name();
        assert!(folders.next().is_none(), "more than one state folder");
        format!("/run/weft/{}", name.to_str().unwrap())
    }

    /// The file of the state folder that holds `what` (`owner`, `record`) of a pod.
    fn file(&self, what: &str, pod: &Pod) -> PathBuf {
        let owners = self.node.path(&format!("{}/owner", self.state()));
        let of_pod =
            |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(pod.container_id()));
        let owner = fs::read_dir(owners).unwrap().flatten().find(|entry| of_pod(&entry.path())).unwrap();
        self.node.path(&format!("{}/{what}/{}", self.state(), owner.file_name().to_str().unwrap()))
    }

    /// The pod that lives has all it had, and nothing else is there.
    #[track_caller]
    fn assert_unharmed(&self, what: &str) {
        let left = self.before.settle(&self.node, &Allow::nothing());
        assert!(left.is_empty(), "{what}: the node is not as it was:\n{}", left.join("\n"));
        self.assert_lives(&self.living, what);
        let conf = with(&self.conf, "prevResult", self.result.clone());
        self.weft.check(&self.living, &conf).ok_empty();
    }

    #[track_caller]
    fn assert_lives(&self, pod: &Pod, what: &str) {
        for gateway in ["10.244.0.1", "fd00:244::1"] {
            assert!(pod.ping(gateway.parse().unwrap(), 1), "{what}: a living pod lost {gateway}");
        }
    }
}

fn is_bare(pod: &Pod) -> bool {
    pod.json(["ip", "-j", "link", "show"]).as_array().unwrap().len() == 1
}

fn first_ip(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

/// The host ends on a node.
fn host_ends(node: &Node) -> usize {
    node.json(["ip", "-j", "link", "show", "type", "veth"]).as_array().unwrap().len()
}

// ------------------------------------------------------------------------------------- A20: the state folder

/// How much of the file system of `/run/weft` is in use: pages and inodes.
fn in_use(node: &Node) -> (u64, u64) {
    node.enter(|| {
        let stat = nix::sys::statvfs::statvfs("/run/weft").unwrap();
        (stat.blocks() - stat.blocks_free(), stat.files() - stat.files_free())
    })
}

/// A20: a state folder without room (pages, or inodes) fails an ADD with code 5 and leaves nothing of it, at
/// whichever file the room ends: with 0, 1, 2, … left, until the ADD succeeds.
#[test]
fn an_add_without_room_for_its_files_is_undone_at_whichever_file_it_ends() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        for (kind, most) in [("pages", 30), ("inodes", 30)] {
            let scene = Scene::new(&lab, &format!("{mode}-{kind}"), mode);
            let pod = scene.node.pod("a");
            let mut failures = 0;
            let result = (0..most).find_map(|room| {
                leave_room(&scene.node, kind, room);
                let outcome = scene.weft.add(&pod, &scene.conf);
                if outcome.status.success() {
                    return Some(outcome.result());
                }
                let what = format!("{mode}, room for {room} {kind}");
                assert_refused(&what, &outcome, 5, &["No space left on device", "/run/weft"]);
                assert!(is_bare(&pod), "{what}");
                scene.assert_unharmed(&what);
                failures += 1;
                None
            });
            assert!(result.is_some(), "{mode}: even {most} {kind} are not enough");
            assert!(failures >= 1, "{mode}: the limit of {kind} was none");
            scene.weft.del(&pod, &scene.conf).ok_empty();
            scene.assert_unharmed(mode);
        }
    }
}

fn leave_room(node: &Node, kind: &str, room: u64) {
    let (pages, inodes) = in_use(node);
    let option = match kind {
        "pages" => format!("remount,size={}", (pages + room) * 4096),
        _ => format!("remount,nr_inodes={}", inodes + room),
    };
    node.run(["mount", "-o", &option, "/run/weft"]);
}

/// A20: DEL needs no room: it succeeds in a state folder without a free page or inode, and frees everything.
#[test]
fn del_needs_no_room() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let pod = scene.node.pod("a");
        scene.weft.add(&pod, &scene.conf).result();
        leave_room(&scene.node, "pages", 0);
        leave_room(&scene.node, "inodes", 0);
        assert!(scene.node.enter(|| fs::write("/run/weft/x", "x").is_err()), "there is still room");
        scene.weft.del(&pod, &scene.conf).ok_empty();
        assert!(is_bare(&pod));
        scene.assert_unharmed(mode);
        scene.weft.del(&pod, &scene.conf).ok_empty();
    }
}

/// A20: a read-only state folder fails an ADD with code 5; a DEL cleans the kernel's side and says code 5,
/// since trying again can help; and does once the folder can be written again.
#[test]
fn a_read_only_state_folder_fails_add_and_leaves_del_to_be_repeated() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let (pod, going) = (scene.node.pod("a"), scene.node.pod("going"));
        scene.weft.add(&going, &scene.conf).result();
        scene.node.run(["mount", "-o", "remount,ro", "/run/weft"]);

        let words = ["Read-only file system", "/run/weft"];
        assert_refused(mode, &scene.weft.add(&pod, &scene.conf), 5, &words);
        assert!(is_bare(&pod) && host_ends(&scene.node) == 2);
        for attempt in ["first", "second"] {
            assert_refused(attempt, &scene.weft.del(&going, &scene.conf), 5, &words);
            assert!(is_bare(&going) && host_ends(&scene.node) == 1, "{mode}: the kernel's side is gone");
        }
        let check = with(&scene.conf, "prevResult", scene.result.clone());
        scene.weft.check(&scene.living, &check).ok_empty();

        scene.node.run(["mount", "-o", "remount,rw", "/run/weft"]);
        scene.weft.del(&going, &scene.conf).ok_empty();
        scene.assert_unharmed(mode);
        scene.weft.add(&pod, &scene.conf).result();
        scene.weft.del(&pod, &scene.conf).ok_empty();
        scene.assert_unharmed(mode);
    }
}

/// Root without the capabilities that make it stand above file modes.
fn as_everybody(call: Call) -> Outcome {
    call.wrap(["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]).run()
}

/// Takes a folder away from everybody, or gives it back to root.
fn forbid(node: &Node, folder: &str, forbidden: bool) {
    let path = node.path(folder);
    std::os::unix::fs::chown(&path, Some(if forbidden { 65534 } else { 0 }), None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(if forbidden { 0 } else { 0o700 })).unwrap();
}

/// A20: the same with a state folder that may not be entered (EACCES).
#[test]
fn a_forbidden_state_folder_fails_add_and_leaves_del_to_be_repeated() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let (pod, going) = (scene.node.pod("a"), scene.node.pod("going"));
        scene.weft.add(&going, &scene.conf).result();
        let state = scene.state();
        forbid(&scene.node, &state, true);

        let words = ["Permission denied", "/run/weft"];
        assert_refused(mode, &as_everybody(scene.call("ADD", &pod)), 5, &words);
        assert!(is_bare(&pod) && host_ends(&scene.node) == 2);
        for attempt in ["first", "second"] {
            assert_refused(attempt, &as_everybody(scene.call("DEL", &going)), 5, &words);
            assert!(is_bare(&going) && host_ends(&scene.node) == 1, "{mode}: the kernel's side is gone");
        }
        forbid(&scene.node, &state, false);
        scene.weft.del(&going, &scene.conf).ok_empty();
        scene.assert_unharmed(mode);
    }
}

/// A20: each part of the state folder, forbidden alone: an ADD succeeds or fails with code 5 and gives the
/// pod nothing; after the repair one DEL leaves nothing.
#[test]
fn any_forbidden_part_of_the_state_folder_leaves_nothing_that_one_del_does_not_take_away() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let parts: Vec<String> = subfolders(&scene);
        assert!(parts.iter().any(|part| part.starts_with("pool/")), "{parts:?}");
        let mut failed = Vec::new();
        for part in &parts {
            let pod = scene.node.pod("a");
            let folder = format!("{}/{part}", scene.state());
            forbid(&scene.node, &folder, true);
            let outcome = as_everybody(scene.call("ADD", &pod));
            if !outcome.status.success() {
                assert_refused(part, &outcome, 5, &["Permission denied"]);
                assert!(
                    is_bare(&pod) && host_ends(&scene.node) == 1,
                    "{mode} {part}: the kernel's side is gone"
                );
                failed.push(part.as_str());
            }
            scene.assert_lives(&scene.living, part);
            let _may_fail = as_everybody(scene.call("DEL", &pod));
            assert!(is_bare(&pod), "{mode} {part}");
            forbid(&scene.node, &folder, false);
            scene.weft.del(&pod, &scene.conf).ok_empty();
            scene.assert_unharmed(&format!("{mode} {part}"));
        }
        assert!(failed.contains(&"owner") && failed.contains(&"record"), "{mode}: only {failed:?} failed");
    }
}

fn subfolders(scene: &Scene) -> Vec<String> {
    let state = scene.node.path(&scene.state());
    let folders = |path: PathBuf| {
        let entries = fs::read_dir(path).unwrap().flatten();
        entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path())
    };
    let mut all: Vec<PathBuf> = folders(state.clone()).collect();
    all.extend(all.clone().into_iter().flat_map(folders));
    all.iter().map(|path| path.strip_prefix(&state).unwrap().to_str().unwrap().to_owned()).collect()
}

/// A20: a state folder that is not there is made by ADD, not missed by DEL, and an address of a pod that
/// lives is not given again.
#[test]
fn a_missing_state_folder_is_made_again() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let (pod, going) = (scene.node.pod("a"), scene.node.pod("going"));
        scene.weft.add(&going, &scene.conf).result();
        let wipe = || fs::remove_dir_all(scene.node.path(&scene.state())).unwrap();
        wipe();
        scene.weft.del(&going, &scene.conf).ok_empty();
        assert!(is_bare(&going) && host_ends(&scene.node) == 1);
        if scene.node.path("/run/weft").read_dir().unwrap().next().is_some() {
            wipe();
        }
        scene.weft.del(&going, &scene.conf).ok_empty();
        let result = scene.weft.add(&pod, &scene.conf).result();
        assert_ne!(first_ip(&result), first_ip(&scene.result), "{mode}");
        scene.weft.del(&pod, &scene.conf).ok_empty();
        scene.assert_lives(&scene.living, mode);
        scene.weft.del(&scene.living, &scene.conf).ok_empty();
        assert_eq!(host_ends(&scene.node), 0);
    }
}

/// A20, design §1.2 ("a wiped state folder"): any part of the folder may be missing: pods come and go, and
/// nobody gets the address of a pod that lives.
#[test]
fn any_missing_part_of_the_state_folder_is_survived() {
    if !require() {
        return;
    }
    let lab = lab!();
    let mut problems = Vec::new();
    for mode in MODES {
        let parts = ["owner", "record", "pool", "block", "slot", "name", "verified", "ready"];
        for (at, part) in parts.into_iter().enumerate() {
            // How a pod is joined to its node matters for what is rebuilt from the kernel alone.
            if mode == "veth" && at > 2 {
                continue;
            }
            let scene = Scene::new(&lab, &format!("{mode}-{part}"), mode);
            let path = scene.node.path(&format!("{}/{part}", scene.state()));
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap()
            } else {
                fs::remove_file(path).unwrap()
            }
            let pods = [scene.node.pod("a"), scene.node.pod("b"), scene.node.pod("c")];
            for pod in &pods {
                let outcome = scene.weft.add(pod, &scene.conf);
                if !outcome.status.success() {
                    problems.push(format!("{mode} without {part}: {outcome}"));
                } else if first_ip(&outcome.result()) == first_ip(&scene.result) {
                    problems
                        .push(format!("{mode} without {part}: a living pod's address was given: {outcome}"));
                }
            }
            scene.assert_lives(&scene.living, part);
            for pod in pods.iter().chain([&scene.living]) {
                let outcome = scene.weft.del(pod, &scene.conf);
                if !outcome.status.success() || !is_bare(pod) {
                    problems.push(format!("{mode} without {part}: DEL: {outcome}"));
                }
            }
            assert_eq!(host_ends(&scene.node), 0, "{mode} without {part}");
            let left = Residue::take(&scene.node).lines().into_iter();
            let left: Vec<String> = left.filter(|line| line.starts_with("File: /run/weft")).collect();
            if !left.is_empty() {
                problems.push(format!("{mode} without {part}: left behind: {left:#?}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Ways to damage a file in place.
const DAMAGES: [(&str, &[u8]); 5] = [
    ("empty", b""),
    ("garbage", b"\x00\xff\x80 not JSON at all \xfe"),
    ("cut off", b"{\"format\":1,\"pha"),
    ("other JSON", b"[1,2,3]"),
    ("of another format", b"{\"format\":99,\"phase\":\"done\",\"created\":0}"),
];

/// A20: a damaged record or owner file is fatal for nobody else, its address is not given while the pod
/// lives, and its own DEL still ends everything.
#[test]
fn a_damaged_file_harms_nobody_else_and_its_own_del_still_works() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        for file in ["record", "owner"] {
            for (damage, bytes) in DAMAGES {
                let what = format!("{mode}: {file} {damage}");
                let damaged = scene.node.pod("damaged");
                let result = scene.weft.add(&damaged, &scene.conf).result();
                fs::write(scene.file(file, &damaged), bytes).unwrap();

                // Two of four addresses are taken; two more pods come, a third finds none.
                let others = [scene.node.pod("a"), scene.node.pod("b")];
                for pod in &others {
                    let outcome = scene.weft.add(pod, &scene.conf);
                    assert!(outcome.status.success(), "{what}: {outcome}");
                    assert_ne!(first_ip(&outcome.result()), first_ip(&result), "{what}");
                }
                let third = scene.node.pod("c");
                assert_refused(&what, &scene.weft.add(&third, &scene.conf), 11, &["10.244.0.10-10.244.0.13"]);
                assert_refused(&what, &scene.weft.status(&scene.conf), 50, &["10.244.0.10-10.244.0.13"]);
                scene.assert_lives(&damaged, &what);
                scene.assert_lives(&scene.living, &what);
                let check = with(&scene.conf, "prevResult", scene.result.clone());
                scene.weft.check(&scene.living, &check).ok_empty();

                let outcome = scene.weft.del(&damaged, &scene.conf);
                assert!(outcome.status.success() && outcome.stdout.is_empty(), "{what}: {outcome}");
                assert!(is_bare(&damaged), "{what}");
                let outcome = scene.weft.add(&third, &scene.conf);
                assert!(outcome.status.success(), "{what}: its address is not free: {outcome}");
                assert_eq!(first_ip(&outcome.result()), first_ip(&result), "{what}");
                for pod in others.iter().chain([&third]) {
                    scene.weft.del(pod, &scene.conf).ok_empty();
                }
                scene.assert_unharmed(&what);
            }
        }
    }
}

/// A20: GC goes over damaged files as over others: it keeps what is listed, ends what is not.
#[test]
fn gc_is_not_stopped_by_a_damaged_file() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        for (damage, bytes) in DAMAGES {
            let (damaged, stale) = (scene.node.pod("damaged"), scene.node.pod("stale"));
            for pod in [&damaged, &stale] {
                scene.weft.add(pod, &scene.conf).result();
            }
            fs::write(scene.file("record", &damaged), bytes).unwrap();
            let listed = |pods: &[&Pod]| {
                let entry = |pod: &&Pod| json!({"containerID": pod.container_id(), "ifname": pod.ifname()});
                let list: Vec<Value> = pods.iter().map(entry).collect();
                let mut conf = scene.conf.clone();
                conf["cni.dev/valid-attachments"] = list.into();
                conf
            };
            scene.weft.gc(&listed(&[&scene.living, &damaged])).ok_empty();
            assert!(is_bare(&stale), "{mode} {damage}");
            scene.assert_lives(&damaged, damage);
            scene.weft.gc(&listed(&[&scene.living])).ok_empty();
            assert!(is_bare(&damaged), "{mode} {damage}");
            scene.assert_unharmed(&format!("{mode} {damage}"));
        }
    }
}

/// A20: a record that has become another pod's (a restored backup, a bad disk) does not make DEL end the
/// other pod.
#[test]
fn a_record_that_describes_another_pod_does_not_end_that_pod() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let going = scene.node.pod("going");
        scene.weft.add(&going, &scene.conf).result();
        fs::copy(scene.file("record", &scene.living), scene.file("record", &going)).unwrap();
        scene.weft.del(&going, &scene.conf).ok_empty();
        assert!(is_bare(&going), "{mode}");
        scene.assert_unharmed(mode);
    }
}

/// A20: hints are only hints: whatever stands in the slot files, addresses are given, and each once.
#[test]
fn damaged_hints_neither_stop_an_add_nor_give_an_address_twice() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let slots = scene.node.path(&format!("{}/slot", scene.state()));
        let huge = [0xff_u8; 4096];
        let zeros = [0_u8; 4096];
        for (what, bytes) in
            [("empty", b"".as_slice()), ("odd", b"abc"), ("all ones", &huge), ("all zero", &zeros)]
        {
            let pods = [scene.node.pod("a"), scene.node.pod("b"), scene.node.pod("c")];
            let mut seen = vec![first_ip(&scene.result)];
            for pod in &pods {
                for entry in fs::read_dir(&slots).unwrap().flatten() {
                    fs::write(entry.path(), bytes).unwrap();
                }
                let outcome = scene.weft.add(pod, &scene.conf);
                assert!(outcome.status.success(), "{mode} {what}: {outcome}");
                seen.push(first_ip(&outcome.result()));
            }
            seen.sort();
            assert_eq!(seen, ["10.244.0.10", "10.244.0.11", "10.244.0.12", "10.244.0.13"], "{mode} {what}");
            for pod in &pods {
                scene.weft.del(pod, &scene.conf).ok_empty();
            }
            scene.assert_unharmed(what);
        }
    }
}

// ----------------------------------------------------------------------------------- A31: a bad way to start

/// A31: an ADD whose answer cannot be delivered (stdout closed, its reader gone, full) fails and is undone:
/// the runtime may never send a DEL. What went wrong is on standard error.
#[test]
fn an_add_whose_answer_cannot_be_delivered_is_undone() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let pod = scene.node.pod("a");
        for to in [StdoutTo::Closed, StdoutTo::ReaderGone, StdoutTo::Full] {
            let outcome = scene.call("ADD", &pod).stdout(to).run();
            assert_eq!(outcome.status.code(), Some(1), "{mode} {to:?}: {outcome}");
            let text = String::from_utf8_lossy(&outcome.stderr);
            assert!(text.contains("write the result to stdout"), "{mode} {to:?}: {outcome}");
            assert!(is_bare(&pod), "{mode} {to:?}");
            scene.assert_unharmed(&format!("{mode} {to:?}"));
            let log = fs::read_to_string(scene.node.path("/var/log/weft/weft.log")).unwrap();
            let line = log.lines().rfind(|line| line.contains(pod.container_id())).unwrap();
            assert!(line.contains("nobody read the answer; undone"), "{log}");
        }
        scene.weft.add(&pod, &scene.conf).result();
        scene.weft.del(&pod, &scene.conf).ok_empty();
        scene.assert_unharmed(mode);
    }
}

/// A31: the same with a delegated IPAM plugin: its reservation is given back, too.
#[test]
fn an_add_whose_answer_cannot_be_delivered_gives_the_delegates_address_back() {
    if !require() {
        return;
    }
    let Some(reference) = reference_bin_dir() else {
        assert!(std::env::var_os("NETNS_TESTS").is_none_or(|mode| mode != "require"), "no reference plugins");
        return;
    };
    let lab = lab!();
    let node = lab.node("n1");
    let weft = weft(&node).with_path([weft_bin_dir(), reference]);
    let conf = with(&conf("1.0.0", "bridge", "dual"), "/ipam/type", json!("host-local"));
    let warm_up = node.pod("warm-up");
    weft.add(&warm_up, &conf).result();
    weft.del(&warm_up, &conf).ok_empty();
    let before = Residue::take(&node);
    let pod = node.pod("a");
    for to in [StdoutTo::Closed, StdoutTo::ReaderGone, StdoutTo::Full] {
        let outcome = weft.call("ADD").pod(&pod).conf(&conf).stdout(to).run();
        assert_eq!(outcome.status.code(), Some(1), "{to:?}: {outcome}");
        before.assert_settles(&node, &Allow::nothing().text("last_reserved_ip"));
    }
}

/// A31: a verb without an answer does not mind where standard output goes; a refusal goes to standard error
/// then.
#[test]
fn only_an_answer_needs_standard_output() {
    if !require() {
        return;
    }
    let lab = lab!();
    let scene = Scene::new(&lab, "n1", "bridge");
    let mut list = scene.conf.clone();
    list["cni.dev/valid-attachments"] =
        json!([{"containerID": scene.living.container_id(), "ifname": scene.living.ifname()}]);
    let check = with(&scene.conf, "prevResult", scene.result.clone());
    for to in [StdoutTo::Closed, StdoutTo::ReaderGone, StdoutTo::Full] {
        let call = |verb: &str| scene.weft.call(verb).stdout(to);
        assert!(call("CHECK").pod(&scene.living).conf(&check).run().status.success(), "{to:?}");
        assert!(call("GC").conf(&list).run().status.success(), "{to:?}");
        assert!(call("STATUS").conf(&scene.conf).run().status.success(), "{to:?}");
        let pod = scene.node.pod("a");
        scene.weft.add(&pod, &scene.conf).result();
        assert!(call("DEL").pod(&pod).conf(&scene.conf).run().status.success(), "{to:?}");
        assert!(!call("VERSION").run().status.success(), "{to:?}");

        let refused = call("ADD").pod(&pod).conf(&with(&scene.conf, "mtu", json!(1))).run();
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("mtu 1 is out of range"), "{refused}");
    }
    scene.assert_unharmed("n1");
}

/// A31: descriptors 0 to 2 may be closed in any combination: nothing of the plugin's own lands in their
/// place, and an ADD either succeeds with an answer or leaves nothing.
#[test]
fn standard_descriptors_may_be_closed_in_any_combination() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let pod = scene.node.pod("a");
        for closed in 1..8_u32 {
            let fds: Vec<i32> = (0..3).filter(|fd| closed >> fd & 1 == 1).collect();
            let run = |verb: &str| scene.call(verb, &pod).close_fds(fds.clone()).run();
            let what = format!("{mode} without {fds:?}");
            let outcome = run("ADD");
            if fds == [2] {
                outcome.result();
                assert!(run("DEL").status.success(), "{what}");
            } else {
                assert_eq!(outcome.status.code(), Some(1), "{what}: {outcome}");
                if !fds.contains(&1) {
                    assert_refused(&what, &outcome, 6, &["network configuration is empty"]);
                }
            }
            assert!(is_bare(&pod), "{what}");
            scene.assert_unharmed(&what);
        }
        // DEL needs its configuration, and nothing else.
        for fds in [vec![1], vec![2], vec![1, 2]] {
            scene.weft.add(&pod, &scene.conf).result();
            let outcome = scene.call("DEL", &pod).close_fds(fds.clone()).run();
            assert!(outcome.status.success(), "{mode} {fds:?}: {outcome}");
            scene.assert_unharmed(mode);
        }
        // The descriptors that were closed were not used for state: the files are whole.
        let record = fs::read(scene.file("record", &scene.living)).unwrap();
        assert!(serde_json::from_slice::<Value>(&record).is_ok());
    }
}

/// A31: whatever the mask, files are for root alone, and the plugin can read them again.
#[test]
fn files_are_for_root_alone_whatever_the_mask() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mask in [0o000, 0o022, 0o277, 0o777] {
        for mode in MODES {
            let node = lab.node(&format!("{mode}-{mask:o}"));
            let conf = conf("1.1.0", mode, "dual");
            let pods = [node.pod("a"), node.pod("b")];
            let call = |verb: &str, pod: &Pod| weft(&node).call(verb).pod(pod).conf(&conf).umask(mask);
            for pod in &pods {
                call("ADD", pod).run().result();
            }
            let mut seen = 0;
            for folder in ["/run/weft", "/var/lib/weft", "/var/log/weft"] {
                seen += assert_modes(&node.path(folder));
            }
            assert!(seen > 10, "only {seen} files");
            for pod in &pods {
                call("DEL", pod).run().ok_empty();
            }
        }
    }
}

/// Asserts 0600 for each file and 0700 for each folder below; returns how many there are.
fn assert_modes(folder: &Path) -> usize {
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o7777);
        if entry.file_type().unwrap().is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            seen += assert_modes(&path);
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        seen += 1;
    }
    seen
}

/// A31: a working directory that is gone, and standard input that is huge and not read, do no harm.
#[test]
fn neither_a_deleted_working_directory_nor_unread_input_matters() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let pod = scene.node.pod("a");
        let result = scene.call("ADD", &pod).cwd_deleted().run().result();
        let check = with(&scene.conf, "prevResult", result);
        scene.weft.call("CHECK").pod(&pod).conf(&check).cwd_deleted().run().ok_empty();
        scene.call("DEL", &pod).cwd_deleted().run().ok_empty();
        let huge = vec![b' '; 8 << 20];
        let refused = scene.weft.call("FOO").stdin(huge.clone()).run();
        assert_refused("unknown verb", &refused, 4, &["unknown CNI_COMMAND: FOO"]);
        let refused = scene.weft.call("ADD").stdin(huge.clone()).run();
        assert_refused("no variables", &refused, 4, &["missing"]);
        scene.weft.call("VERSION").stdin(huge).run().result();
        scene.assert_unharmed(mode);
    }
}

/// A31: 16 descriptors are enough for every verb; with fewer an ADD fails whole, whichever open meets the
/// limit, and so that one DEL (with enough) leaves nothing.
#[test]
fn sixteen_descriptors_are_enough_and_fewer_leave_nothing() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in MODES {
        let scene = Scene::new(&lab, mode, mode);
        let pod = scene.node.pod("a");
        let mut fewest = None;
        for limit in (3..=16).rev() {
            let what = format!("{mode} with {limit} descriptors");
            let outcome = scene.call("ADD", &pod).nofile(limit).run();
            if limit == 16 {
                let check = with(&scene.conf, "prevResult", outcome.result());
                scene.weft.call("CHECK").pod(&pod).conf(&check).nofile(limit).run().ok_empty();
                scene.weft.call("STATUS").conf(&scene.conf).nofile(limit).run().ok_empty();
            }
            if outcome.status.success() {
                fewest = Some(limit);
                outcome.result();
                let del = scene.call("DEL", &pod).nofile(limit).run();
                assert!(limit < 16 || del.status.success(), "{what}: {del}");
                assert!(
                    del.status.success()
                        || problem(&what, &del, 5, &[]).is_none()
                        || problem(&what, &del, 102, &[]).is_none(),
                    "{what}: {del}"
                );
            } else if !outcome.stdout.is_empty() {
                let text = outcome.error();
                let words = format!("{} {}", text.msg, text.details);
                assert!(matches!(text.code, 5 | 8 | 102), "{what}: {outcome}");
                assert!(words.contains("os error 24"), "{what}: {outcome}");
            } else {
                // Not even standard output could be used: the sentence is on standard error.
                assert_eq!(outcome.status.code(), Some(1), "{what}: {outcome}");
                assert!(!outcome.stderr.is_empty(), "{what}: {outcome}");
            }
            scene.weft.del(&pod, &scene.conf).ok_empty();
            assert!(is_bare(&pod), "{what}");
            scene.assert_unharmed(&what);
        }
        assert!(fewest.is_some_and(|fewest| fewest <= 16), "{mode}: {fewest:?}");
    }
}

/// A31: variables that are no UTF-8 are refused where they are names, and ignored elsewhere.
#[test]
fn variables_that_are_no_utf8_are_refused_or_ignored() {
    if !require() {
        return;
    }
    let lab = lab!();
    let node = lab.node("n1");
    let pod = node.pod("a");
    let bytes = OsStr::from_bytes(b"a\xff\xfeb");
    let conf = conf("1.1.0", "bridge", "v4");
    let call = |verb: &str| weft(&node).call(verb).pod(&pod).conf(&conf);
    for (name, code) in [("CNI_CONTAINERID", 4), ("CNI_IFNAME", 4), ("CNI_COMMAND", 4), ("CNI_NETNS", 8)] {
        assert_refused(name, &call("ADD").env(name, bytes).run(), code, &[]);
    }
    assert_untouched(&node);
    for name in ["CNI_PATH", "CNI_NETNS_OVERRIDE", "PATH", "LANG", "CNI_OTHER", "TRACEPARENT"] {
        call("ADD").env(name, bytes).run().result();
        call("DEL").env(name, bytes).run().ok_empty();
    }
    call("ADD").env("CNI_ARGS", OsStr::from_bytes(b"A=\xff;IgnoreUnknown=1")).run().result();
    call("DEL").env("CNI_ARGS", OsStr::from_bytes(b"\xff")).run().ok_empty();
    call("DEL").env("CNI_NETNS", bytes).run().ok_empty();
}

// ------------------------------------------------------------------------------------------------ A32: locks

/// Starts an ADD that stops itself (SIGSTOP) at its `n`-th system call `name`, and returns its own process
/// id.
fn stopped_add(scene_call: Call, node: &Node, name: &str, n: usize) -> (Running, i32) {
    let inject = format!("inject={name}:signal=SIGSTOP:when={n}");
    let trace = format!("trace={name}");
    let running =
        scene_call.wrap(["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]).spawn();
    let program = weft_bin_dir().join("weft");
    let own = || node.processes().into_iter().find(|(_, line)| line.starts_with(program.to_str().unwrap()));
    let (mut pid, mut last, mut same) = (0, String::new(), 0);
    // A traced process halts at each system call, for a moment; one that has stopped is not switched to any
    // more.
    wait_until("the ADD stops", Duration::from_secs(10), || {
        pid = own().map_or(0, |(pid, _)| pid);
        let now = halted(pid).unwrap_or_default();
        same = if !now.is_empty() && now == last { same + 1 } else { 0 };
        last = now;
        same == 5
    });
    (running, pid)
}

/// How often a process that halts at this moment was switched to; `None` if it runs or is gone.
fn halted(pid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let stopped = ["State:\tT", "State:\tt"].iter().any(|state| status.contains(state));
    let counts = status.lines().filter(|line| line.contains("ctxt_switches")).collect();
    stopped.then_some(counts)
}

#[track_caller]
fn assert_gave_up(what: &str, outcome: &Outcome, holder: i32) {
    assert_refused(what, outcome, 11, &[&holder.to_string(), "process"]);
    let (least, most) = (LIMIT - Duration::from_secs(1), LIMIT + Duration::from_secs(3));
    assert!((least..most).contains(&outcome.exited), "{what}: gave up after {:?}", outcome.exited);
}

/// A32: an operation that waits for the lock of a stopped process gives up at its own limit (25 s) with code
/// 11 and the holder's process id; when the holder dies, its lock is free at once. So for the lock of one
/// attachment and for that of the state folder; side by side, because both take 25 s.
#[test]
fn a_lock_held_by_a_stopped_process_is_waited_for_until_the_limit_and_not_after_its_death() {
    if !require() {
        return;
    }
    let lab = lab!();
    std::thread::scope(|scope| {
        let folder = scope.spawn(|| wait_for_the_lock_of_the_state_folder(&lab));
        wait_for_the_lock_of_an_attachment(&lab);
        folder.join().unwrap();
    });
}

/// A stopped ADD holds its attachment; other pods do not wait.
fn wait_for_the_lock_of_an_attachment(lab: &Lab) {
    let scene = Scene::new(lab, "attachment", "bridge");
    let pod = scene.node.pod("a");
    // The first link of an ADD gives its owner file, locked, a name.
    let (mut stopped, holder) = stopped_add(scene.call("ADD", &pod), &scene.node, "linkat", 1);
    let check = with(&scene.conf, "prevResult", scene.result.clone());
    let waiting = [
        ("ADD", scene.call("ADD", &pod).spawn()),
        ("DEL", scene.call("DEL", &pod).spawn()),
        ("CHECK", scene.weft.call("CHECK").pod(&pod).conf(&check).spawn()),
    ];
    let other = scene.node.pod("b");
    for _ in 0..3 {
        let started = Instant::now();
        scene.weft.add(&other, &scene.conf).result();
        scene.weft.del(&other, &scene.conf).ok_empty();
        scene.weft.status(&scene.conf).ok_empty();
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "another pod had to wait {:?}",
            started.elapsed()
        );
    }
    for (verb, running) in waiting {
        assert_gave_up(verb, &running.wait(), holder);
    }
    // Now it dies, while one waits.
    let waiting = scene.call("DEL", &pod).spawn();
    scene.node.run(["kill", "-KILL", &holder.to_string()]);
    let outcome = waiting.wait();
    outcome.ok_empty();
    assert!(
        outcome.exited < Duration::from_secs(5),
        "a dead holder's lock was waited for: {:?}",
        outcome.exited
    );
    stopped.kill();
    stopped.wait();
    scene.assert_unharmed("after the holder's death");
    scene.weft.add(&pod, &scene.conf).result();
    scene.weft.del(&pod, &scene.conf).ok_empty();
    scene.assert_unharmed("after the next pod");
}

/// A stopped ADD was to build the state folder: ADD and DEL give up at 25 s, STATUS (runtimes ask for it
/// every few seconds) within 3 s with code 50.
fn wait_for_the_lock_of_the_state_folder(lab: &Lab) {
    let node = lab.node("folder");
    let conf = conf("1.1.0", "veth", "dual");
    let pod = node.pod("a");
    let call = |verb: &str, pod: &Pod| weft(&node).call(verb).pod(pod).conf(&conf);
    // The folder is ready when `ready` gets its name: the builder stops before, or at, that.
    let (mut stopped, holder) = stopped_add(call("ADD", &pod), &node, "?mkdir,?mkdirat", 3);
    let other = node.pod("b");
    let waiting = [("ADD", call("ADD", &other).spawn()), ("DEL", call("DEL", &other).spawn())];
    let status = weft(&node).status(&conf);
    assert_refused("STATUS", &status, 50, &[&holder.to_string(), "process"]);
    assert!(status.exited < Duration::from_secs(3), "STATUS took {:?}", status.exited);
    for (verb, running) in waiting {
        assert_gave_up(verb, &running.wait(), holder);
    }
    assert!(is_bare(&other));
    let waiting = call("ADD", &other).spawn();
    node.run(["kill", "-KILL", &holder.to_string()]);
    let outcome = waiting.wait();
    outcome.result();
    assert!(
        outcome.exited < Duration::from_secs(5),
        "a dead builder's lock was waited for: {:?}",
        outcome.exited
    );
    stopped.kill();
    stopped.wait();
    call("DEL", &pod).run().ok_empty();
    call("DEL", &other).run().ok_empty();
    let files = Residue::take(&node).lines().into_iter().filter(|line| line.starts_with("File: /run/weft"));
    assert_eq!(files.collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(host_ends(&node), 0);
}
