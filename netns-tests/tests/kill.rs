//! SIGKILL at every system call of ADD, DEL and GC. Whatever was cut off: others go on at once, and DEL leaves nothing.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_kill/grant.rs"]
mod grant;
#[path = "common_kill/seed.rs"]
mod seed;
#[path = "common_kill/stepper.rs"]
mod stepper;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use grant::grant;
use netns_tests::{Allow, Cni, Lab, Node, Outcome, Pod, Residue, lab, require, weft_bin_dir};
use seed::{say, seed};
use serde_json::{Value, json};
use stepper::{Fate, Stepper, Strike};

/// An ADD beside a dead one. The kernel's own work is milliseconds; a second means that it waited for something.
const AT_ONCE: Duration = Duration::from_secs(1);
/// More system calls than any verb makes: a strike that never comes is a fault of the stepper.
const ENDLESS: u32 = 5_000;
/// Where Debian has host-local.
const REFERENCE: &str = "/usr/lib/cni";
const COMPLAINTS: usize = 8;
/// "run DEL before ADD".
const ALREADY_ATTACHED: u64 = 100;
/// "Try again later": no address is free.
const TRY_AGAIN: u64 = 11;

fn conf(mode: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": mode, "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"type": "weft-ipam", "cooldown": 0,
            "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]}
    })
}

/// A node on which everything shared is there already, and what it looked like before.
struct World {
    _lab: Lab,
    node: Node,
    conf: Value,
    weft: Cni,
    pod: Pod,
    other: Pod,
    before: Residue,
    strays: BTreeSet<String>,
    complaints: Vec<String>,
}

impl World {
    fn new(lab: Lab, conf: Value) -> Self {
        let node = lab.node("n1");
        Self::on(lab, node, conf)
    }

    fn on(lab: Lab, node: Node, conf: Value) -> Self {
        let weft = node.cni(weft_bin_dir(), "weft").with_path([weft_bin_dir(), REFERENCE.into()]);
        let (pod, other) = (node.pod("struck"), node.pod("other"));
        weft.add(&other, &conf).result();
        weft.del(&other, &conf).ok_empty();
        let before = Residue::take(&node);
        Self {
            _lab: lab,
            node,
            conf,
            weft,
            pod,
            other,
            before,
            strays: BTreeSet::new(),
            complaints: Vec::new(),
        }
    }

    fn step(&self, verb: &str, conf: &Value, strike: Strike) -> Fate {
        let pod = (verb != "GC").then_some(&self.pod);
        Stepper::new(&self.node).run(verb, pod, conf, strike)
    }

    /// What the runtime and its other pods see after the strike; then nothing may be left.
    fn aftermath(&mut self, strike: Strike, fate: &Fate) {
        let other = self.weft.add(&self.other, &self.conf);
        let slow = other.elapsed > AT_ONCE;
        let mut found = Vec::from_iter(slow.then(|| format!("another pod's ADD took {:?}", other.elapsed)));
        found.extend(failed(&other).map(|what| format!("another pod's ADD: {what}")));
        found.extend(silent(&self.weft.del(&self.pod, &self.conf)).map(|what| format!("DEL: {what}")));
        found.extend(
            silent(&self.weft.del(&self.other, &self.conf)).map(|what| format!("another pod's DEL: {what}")),
        );
        found.extend(self.left());
        self.complain(strike, fate, &found);
    }

    /// Whatever is on the node and was not before: facts of the kernel, files, locks, processes, taken addresses.
    fn left(&mut self) -> Vec<String> {
        let mut left = self.before.settle(&self.node, &Allow::nothing());
        if !left.is_empty() {
            // So that the next strike is judged by what it leaves itself.
            self.before = Residue::take(&self.node);
        }
        let strays = strays(&self.node);
        left.extend(strays.difference(&self.strays).map(|path| format!("a stray file {path}")));
        self.strays = strays;
        left
    }

    fn complain(&mut self, strike: Strike, fate: &Fate, found: &[String]) {
        if !found.is_empty() {
            let call = fate.call.unwrap_or_default();
            self.complaints
                .push(format!("{strike:?}, instead of system call {call}: {}", found.join("\n    ")));
        }
    }

    #[track_caller]
    fn done(self) {
        let count = self.complaints.len();
        let some = self.complaints.iter().take(COMPLAINTS).cloned().collect::<Vec<_>>().join("\n");
        assert!(count == 0, "{count} strikes were not survived, among them:\n{some}");
    }
}

fn failed(outcome: &Outcome) -> Option<String> {
    (!outcome.status.success()).then(|| outcome.to_string())
}

fn silent(outcome: &Outcome) -> Option<String> {
    (!outcome.status.success() || !outcome.stdout.is_empty()).then(|| outcome.to_string())
}

/// Files that were to be renamed, or never were meant to stay.
fn strays(node: &Node) -> BTreeSet<String> {
    let mut found = Vec::new();
    walk(&node.path("/run/weft"), &mut found);
    found.retain(|path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with('.') || name.ends_with(".new")
    });
    found.into_iter().collect()
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path().to_string_lossy().into_owned());
        }
    }
}

/// Whether the only attachment of the node has its last record: "done".
fn is_done(node: &Node) -> bool {
    let mut files = Vec::new();
    walk(&node.path("/run/weft"), &mut files);
    files.retain(|path| path.contains("/record/") && !path.ends_with(".new"));
    files.iter().any(|path| fs::read_to_string(path).unwrap().contains("\"phase\":\"done\""))
}

/// The addresses that the allocator holds as taken.
fn taken(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for folder in fs::read_dir(node.path("/run/weft")).unwrap().flatten() {
        for pool in fs::read_dir(folder.path().join("pool")).into_iter().flatten().flatten() {
            let files = fs::read_dir(pool.path()).unwrap().flatten();
            found.extend(files.map(|file| file.file_name().to_string_lossy().into_owned()));
        }
    }
    found.sort();
    found
}

/// Strikes at every system call, or at every third from a seeded start, until the run comes to its end before the strike.
/// Returns how many hit.
fn strike(kind: Kind, at: Thinned, mut once: impl FnMut(Strike) -> bool) -> u32 {
    for (hits, at) in (0..).zip((at.first..ENDLESS).step_by(at.step)) {
        if !once(kind(at)) {
            return hits;
        }
    }
    panic!("the run never came to its end");
}

/// Which system calls are struck.
#[derive(Clone, Copy, Debug)]
struct Thinned {
    first: u32,
    step: usize,
}

const EVERY: Thinned = Thinned { first: 1, step: 1 };

/// Every third, so that the suite stays short; over many runs all of them. `WEFT_KILL=all` strikes at each.
fn every_third() -> Thinned {
    if std::env::var_os("WEFT_KILL").is_some_and(|what| what == "all") {
        return EVERY;
    }
    let seed = seed();
    say(&format!("WEFT_SEED={seed}"));
    Thinned { first: u32::try_from(seed % 3).unwrap() + 1, step: 3 }
}

type Kind = fn(u32) -> Strike;
const CHILDREN: [(&str, Kind); 2] = [("the child", Strike::Child), ("both", Strike::Both)];

fn kill_add(world: &mut World, at: Thinned) -> u32 {
    strike(Strike::Parent, at, |strike| {
        let fate = world.step("ADD", &world.conf, strike);
        world.aftermath(strike, &fate);
        assert!(fate.struck || fate.status.success(), "ADD fails without being struck");
        fate.struck
    })
}

fn kill_add_then_add(world: &mut World, at: Thinned) -> u32 {
    strike(Strike::Parent, at, |strike| {
        let fate = world.step("ADD", &world.conf, strike);
        if !fate.struck {
            world.weft.del(&world.pod, &world.conf).ok_empty();
            return false;
        }
        let done = is_done(&world.node);
        let again = world.weft.add(&world.pod, &world.conf);
        let mut found = Vec::new();
        if again.status.success() {
            let mut wanted = addresses(&again.result());
            wanted.sort();
            if taken(&world.node) != wanted {
                found.push(format!("ADD answered {wanted:?}, but {:?} are taken", taken(&world.node)));
            }
            found.extend(done.then(|| "attached twice, though it was done".to_owned()));
        } else {
            // From "done" on nobody can tell whether the answer arrived: the attachment may live, and is kept (A10).
            let error = again.error();
            let right =
                done && error.code == ALREADY_ATTACHED && error.details.contains("run DEL before ADD");
            found.extend((!right).then(|| format!("ADD again: {again}")));
        }
        found.extend(silent(&world.weft.del(&world.pod, &world.conf)).map(|what| format!("DEL: {what}")));
        found.extend(world.left());
        world.complain(strike, &fate, &found);
        true
    })
}

fn kill_del(world: &mut World, kind: Kind, at: Thinned) -> u32 {
    strike(kind, at, |strike| {
        world.weft.add(&world.pod, &world.conf).result();
        let fate = world.step("DEL", &world.conf, strike);
        let spared = !matches!(strike, Strike::Parent(_) | Strike::Both(_)) || !fate.struck;
        assert!(
            !spared || fate.status.success() && fate.stdout.is_empty(),
            "DEL fails without being struck: {fate:?}"
        );
        world.aftermath(strike, &fate);
        fate.struck
    })
}

fn kill_gc(world: &mut World, kept: &Pod, kind: Kind, at: Thinned) -> u32 {
    let mut conf = world.conf.clone();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": kept.container_id(), "ifname": "eth0"}]);
    strike(kind, at, |strike| {
        world.weft.add(&world.pod, &world.conf).result();
        let fate = world.step("GC", &conf, strike);
        let spared = !matches!(strike, Strike::Parent(_) | Strike::Both(_)) || !fate.struck;
        assert!(
            !spared || fate.status.success() && fate.stdout.is_empty(),
            "GC fails without being struck: {fate:?}"
        );
        world.aftermath(strike, &fate);
        fate.struck
    })
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// A14: ADD, bridge mode.
#[test]
fn an_add_killed_at_any_system_call_leaves_nothing_after_del_on_a_bridge() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), conf("bridge"));
    say(&format!("A14 ADD bridge: killed at {} system calls", kill_add(&mut world, EVERY)));
    world.done();
}

/// A14: ADD, veth mode.
#[test]
fn an_add_killed_at_any_system_call_leaves_nothing_after_del_point_to_point() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), conf("veth"));
    say(&format!("A14 ADD veth: killed at {} system calls", kill_add(&mut world, every_third())));
    world.done();
}

/// A15: bridge and veth mode.
#[test]
fn an_add_after_a_killed_add_succeeds_without_del_and_takes_one_address_of_each_family() {
    if !require() {
        return;
    }
    for mode in ["bridge", "veth"] {
        let mut world = World::new(Lab::new(&format!("add_after_killed_add_{mode}")), conf(mode));
        let hits = kill_add_then_add(&mut world, every_third());
        say(&format!("A15 ADD {mode}: killed at {hits} system calls"));
        world.done();
    }
}

/// A14: DEL, bridge mode; parent, child, and both at once.
#[test]
fn a_del_killed_at_any_system_call_leaves_nothing_after_del_on_a_bridge() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), conf("bridge"));
    say(&format!("A14 DEL bridge: killed at {} system calls", kill_del(&mut world, Strike::Parent, EVERY)));
    for (who, kind) in CHILDREN {
        say(&format!("A14 DEL bridge: {who} killed at {} system calls", kill_del(&mut world, kind, EVERY)));
    }
    world.done();
}

/// A14: DEL, veth mode; parent, child, and both at once.
#[test]
fn a_del_killed_at_any_system_call_leaves_nothing_after_del_point_to_point() {
    if !require() {
        return;
    }
    let mut world = World::new(lab!(), conf("veth"));
    say(&format!(
        "A14 DEL veth: killed at {} system calls",
        kill_del(&mut world, Strike::Parent, every_third())
    ));
    for (who, kind) in CHILDREN {
        say(&format!("A14 DEL veth: {who} killed at {} system calls", kill_del(&mut world, kind, EVERY)));
    }
    world.done();
}

/// A14: GC, bridge and veth mode; parent, child, and both at once. A listed pod keeps all it has.
#[test]
fn a_gc_killed_at_any_system_call_leaves_nothing_after_del_and_spares_the_listed_pod() {
    if !require() {
        return;
    }
    for mode in ["bridge", "veth"] {
        let mut world = World::new(Lab::new(&format!("gc_killed_{mode}")), conf(mode));
        let kept = world.node.pod("kept");
        let result = world.weft.add(&kept, &world.conf).result();
        world.before = Residue::take(&world.node);
        let at = if mode == "bridge" { EVERY } else { every_third() };
        let hits = kill_gc(&mut world, &kept, Strike::Parent, at);
        say(&format!("A14 GC {mode}: killed at {hits} system calls"));
        for (who, kind) in CHILDREN {
            let hits = kill_gc(&mut world, &kept, kind, EVERY);
            say(&format!("A14 GC {mode}: {who} killed at {hits} system calls"));
        }
        let mut check = world.conf.clone();
        check["prevResult"] = result;
        world.weft.check(&kept, &check).ok_empty();
        world.done();
    }
}

/// A14, A27: the first DEL was killed, its address was given to somebody else, then the runtime tries DEL again.
#[test]
fn a_del_repeated_after_a_kill_touches_nothing_of_the_successor_to_its_address() {
    if !require() {
        return;
    }
    let ranges = json!([
        [{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.9"}],
        [{"subnet": "fd00:77::/64", "rangeStart": "fd00:77::9", "rangeEnd": "fd00:77::9"}]
    ]);
    for (name, mode, ipam) in [
        ("bridge", "bridge", "weft-ipam"),
        ("cluster bridge", "bridge", "cluster"),
        ("delegating bridge", "bridge", "host-local"),
    ] {
        let lab = Lab::new(&format!("del_successor_{}", name.replace(' ', "_")));
        let node = lab.node("n1");
        let mut conf = conf(mode);
        match ipam {
            "cluster" => {
                conf["ipMasq"] = json!(false);
                conf["ipam"]["ranges"] = Value::Null;
                grant(&node, &["10.77.0.9/32", "fd00:77::9/128"]);
            }
            kind => {
                // host-local of Debian knows no 1.1.0.
                conf["cniVersion"] = json!("1.0.0");
                conf["ipam"] = json!({"type": kind, "cooldown": 0, "ranges": ranges});
            }
        }
        let mut world = World::on(lab, node, conf);
        let mut successors = 0;
        // Before that, no address can be free.
        let late = Thinned { first: 70, step: 1 };
        let hits = strike(Strike::Parent, late, |strike| {
            world.weft.add(&world.pod, &world.conf).result();
            let fate = world.step("DEL", &world.conf, strike);
            let successor = world.weft.add(&world.other, &world.conf);
            let before = Residue::take(&world.node);
            let mut found = Vec::from_iter(silent(&world.weft.del(&world.pod, &world.conf)));
            let after = Residue::take(&world.node);
            if successor.status.success() {
                successors += 1;
                // Its own record may go with it.
                let own = Allow::nothing().processes().text("/record/").text("/owner/");
                found.extend(before.difference(&after, &own));
            } else if successor.error().code != TRY_AGAIN && ipam != "host-local" {
                found.push(format!("ADD of a successor: {successor}"));
            }
            found.extend(silent(&world.weft.del(&world.other, &world.conf)));
            found.extend(world.left());
            world.complain(strike, &fate, &found);
            fate.struck
        });
        say(&format!("A14 DEL {name}: killed at {hits} system calls, {successors} times with a successor"));
        assert!(successors > 1, "nobody ever got the address: nothing was tested");
        world.done();
    }
}

/// A14: the very first ADD of a node, which makes state folder, bridge, sysctls and nft table; a new node each time.
#[test]
fn the_first_add_of_a_node_can_be_killed_at_any_system_call() {
    if !require() {
        return;
    }
    let lab = lab!();
    for mode in ["bridge", "veth"] {
        let conf = conf(mode);
        let mut complaints = Vec::new();
        let hits = strike(Strike::Parent, every_third(), |strike| {
            let Strike::Parent(at) = strike else { return false };
            let node = lab.node(&format!("{mode}{at}"));
            let (pod, other) = (node.pod("struck"), node.pod("other"));
            let before = Residue::take(&node);
            let fate = Stepper::new(&node).run("ADD", Some(&pod), &conf, strike);
            let weft = node.cni(weft_bin_dir(), "weft");
            let mut found = Vec::from_iter(failed(&weft.add(&other, &conf)));
            for pod in [&pod, &other] {
                found.extend(silent(&weft.del(pod, &conf)));
            }
            let shared =
                Allow::nothing().link("cbr0").table("inet weft").forwarding().path("/var/lib/weft/attached/");
            // Which ranges are masqueraded belongs to the node, not to a pod.
            found.extend(before.settle(&node, &shared.text("inet weft masq").text("inet weft plain")));
            found.extend(strays(&node));
            if !found.is_empty() {
                complaints.push(format!("{strike:?}, call {:?}: {}", fate.call, found.join("\n    ")));
            }
            fate.struck
        });
        say(&format!("A14 first ADD {mode}: killed at {hits} system calls"));
        assert!(complaints.is_empty(), "{mode}: {} strikes:\n{}", complaints.len(), complaints.join("\n"));
    }
}
