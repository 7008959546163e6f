//! Many at once: 200 pods amid a storm of other links, a pool that is too small, a wiped folder, and 1,000 operations
//! at random with kills thrown in. Nobody ever holds an address that somebody else has.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

#[path = "common_kill/ledger.rs"]
mod ledger;
#[path = "common_kill/seed.rs"]
mod seed;
#[path = "common_kill/stepper.rs"]
mod stepper;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ledger::{Ledger, addresses};
use netns_tests::{Allow, Cni, Inside, Lab, Node, Outcome, Pod, Residue, require, wait_until, weft_bin_dir};
use seed::{say, seed};
use serde_json::{Value, json};
use stepper::{Fate, Stepper, Strike};

/// "Try again later".
const TRY_AGAIN: u64 = 11;
/// "I/O failure".
const IO: u64 = 5;
/// How many ADDs are answered between two wipes.
const WIPE_EVERY: usize = 24;
const ALREADY_ATTACHED: u64 = 100;

/// A dual-stack network whose pools have exactly `size` addresses, from .10 on.
fn conf(mode: &str, size: u32) -> Value {
    let last = 9 + size;
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "weft", "mode": mode, "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"type": "weft-ipam", "cooldown": 0, "ranges": [
            [{"subnet": "10.77.0.0/23", "rangeStart": "10.77.0.10", "rangeEnd": format!("10.77.{}.{}", last / 256, last % 256)}],
            [{"subnet": "fd00:77::/64", "rangeStart": "fd00:77::10", "rangeEnd": format!("fd00:77::{:x}", 0xf + size)}]
        ]}
    })
}

/// What all pods of a node share, and the first of them makes.
fn shared() -> Allow {
    let allow = Allow::nothing().link("cbr0").table("inet weft").forwarding();
    allow.text("inet weft masq").text("inet weft plain").path("/var/lib/weft/attached/")
}

fn pods(node: &Node, count: usize) -> Vec<Pod> {
    (0..count).map(|index| node.pod(&format!("p{index}"))).collect()
}

/// One verb for many pods, all started before the first is waited for.
fn at_once(weft: &Cni, verb: &str, pods: &[Pod], conf: &Value) -> Vec<Outcome> {
    let running: Vec<_> = pods.iter().map(|pod| weft.call(verb).pod(pod).conf(conf).spawn()).collect();
    running.into_iter().map(netns_tests::Running::wait).collect()
}

#[track_caller]
fn assert_distinct(results: &[Value]) {
    let all: Vec<String> = results.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 2 * results.len());
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "an address was given twice: {all:?}");
}

/// Live pods whose seeded neighbour entries or host routes are not all there: the kernel's witness to them is lost.
fn unwitnessed(node: &Node, mode: &str, live: &[(&Pod, &Value)]) -> Vec<String> {
    let words: &[&str] = match mode {
        "bridge" => &["ip", "-j", "neigh", "show", "dev", "cbr0"],
        _ => &["ip", "-j", "route", "show"],
    };
    let mut shown = node.json(words).to_string();
    if mode == "veth" {
        shown += &node.json(["ip", "-6", "-j", "route", "show"]).to_string();
    }
    let missing = |address: &String| !shown.contains(&format!("\"dst\":\"{address}\""));
    let of = |(pod, result): &(&Pod, &Value)| {
        let lost: Vec<_> = addresses(result).into_iter().filter(missing).collect();
        (!lost.is_empty()).then(|| format!("{}: the kernel knows nothing of {lost:?}", pod.container_id()))
    };
    live.iter().filter_map(of).collect()
}

/// Makes and removes links, addresses and routes of its own in a node, until it is dropped.
fn amid_a_storm<T>(node: &Node, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let mut script = String::new();
    for round in 0..8 {
        script +=
            &format!("link add storm{round} type veth peer name stormy{round}\nlink set storm{round} up\n");
        for host in 1..40 {
            script += &format!("address add 198.18.{round}.{host}/24 dev storm{round}\n");
            script += &format!("route add 198.51.100.{host} dev storm{round}\n");
        }
        script += &format!("link del storm{round}\n");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let mut command = node.command("ip");
                let command = command.args(["-force", "-batch", "-"]).stdin(Stdio::piped());
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                child.wait().unwrap();
            }
        });
        // Also when `work` panics, or the scope would wait for ever.
        let _over = Over(&over);
        work()
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A18: 200 ADDs and 200 DELs at once, no bridge at the start, other links coming and going.
#[test]
fn two_hundred_pods_come_and_go_at_once_amid_a_storm_of_other_links() {
    if !require() {
        return;
    }
    for mode in ["bridge", "veth"] {
        let lab = Lab::new(&format!("two_hundred_{mode}"));
        let node = lab.node("n1");
        let pods = pods(&node, 200);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf(mode, 200);
        let before = Residue::take(&node);
        let start = Instant::now();
        let (added, deleted) = amid_a_storm(&node, || {
            let added = at_once(&weft, "ADD", &pods, &conf);
            let answered = start.elapsed();
            let results: Vec<Value> = added.iter().map(Outcome::result).collect();
            assert_distinct(&results);
            let live: Vec<_> = pods.iter().zip(&results).collect();
            assert_eq!(unwitnessed(&node, mode, &live), Vec::<String>::new());
            let bridges = node.json(["ip", "-j", "link", "show", "type", "bridge"]);
            assert_eq!(bridges.as_array().unwrap().len(), usize::from(mode == "bridge"));
            let start = Instant::now();
            at_once(&weft, "DEL", &pods, &conf).iter().for_each(Outcome::ok_empty);
            (answered, start.elapsed())
        });
        say(&format!(
            "A18 {mode}: 200 ADDs at once in {added:?}, 200 DELs in {deleted:?}, amid a storm (limit 10 s in all)"
        ));
        // Alone on its machine it takes two; this is for a hang, not for a busy neighbour.
        assert!(added + deleted < Duration::from_secs(60));
        let log = fs::read_to_string(node.path("/var/log/weft/weft.log")).unwrap();
        assert!(!log.contains("kept changing") && !log.contains("Interrupted"), "{log}");
        before.assert_settles(&node, &shared());
    }
}

/// A11: DEL before ADD, three times over, and eight at once; somebody else's pod stays as it is.
#[test]
fn eight_dels_at_once_end_one_pod_and_touch_nobody_else() {
    if !require() {
        return;
    }
    for mode in ["bridge", "veth"] {
        let lab = Lab::new(&format!("eight_dels_{mode}"));
        let node = lab.node("n1");
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf(mode, 2);
        let (pod, neighbour) = (node.pod("a"), node.pod("b"));
        weft.add(&neighbour, &conf).result();
        let before = Residue::take(&node);
        let eight = vec![pod.clone(); 8];
        for round in 0..6 {
            weft.del(&pod, &conf).ok_empty();
            // The last free address: had a DEL freed it twice, or not at all, this would show.
            weft.add(&pod, &conf).result();
            let outcomes = at_once(&weft, "DEL", &eight, &conf);
            outcomes.iter().for_each(Outcome::ok_empty);
            let slowest = outcomes.iter().map(|outcome| outcome.elapsed).max().unwrap();
            assert!(slowest < Duration::from_secs(1), "a DEL that found nothing to do took {slowest:?}");
            let left = before.settle(&node, &Allow::nothing());
            assert!(left.is_empty(), "{mode}, round {round}: {left:#?}");
        }
        for _ in 0..3 {
            weft.del(&pod, &conf).ok_empty();
        }
    }
}

/// A11 and A18 with a pool one smaller than the pods, no cool-down, pods that the runtime forgot, and a GC loop.
#[test]
fn a_pool_one_too_small_serves_all_but_one_while_gc_collects_the_forgotten() {
    if !require() {
        return;
    }
    const PODS: u32 = 24;
    for mode in ["bridge", "veth"] {
        let lab = Lab::new(&format!("too_small_{mode}"));
        let node = lab.node("n1");
        let pods = pods(&node, PODS as usize);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf(mode, PODS - 1);
        let before = Residue::take(&node);
        for round in 0..4 {
            let added = at_once(&weft, "ADD", &pods, &conf);
            let refused: Vec<_> = added.iter().filter(|outcome| !outcome.status.success()).collect();
            assert_eq!(refused.len(), 1, "{mode}, round {round}: {refused:#?}");
            let error = refused[0].error();
            assert!(error.code == TRY_AGAIN && error.msg.contains("no IP addresses available"), "{error:?}");
            assert!(error.details.contains("23 of 23"), "{error:?}");
            let live: Vec<_> =
                pods.iter().zip(&added).filter(|(_, outcome)| outcome.status.success()).collect();
            let results: Vec<Value> = live.iter().map(|(_, outcome)| outcome.result()).collect();
            assert_distinct(&results);
            let live: Vec<_> = live.iter().map(|(pod, _)| *pod).zip(&results).collect();
            assert_eq!(unwitnessed(&node, mode, &live), Vec::<String>::new(), "{mode}, round {round}");
            // A third is deleted, eight times each at once; a third is forgotten; a third stays.
            let (deleted, rest) = pods.split_at(pods.len() / 3);
            let kept = &rest[pods.len() / 3..];
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let gc = || {
                    while !over.load(Ordering::Relaxed) {
                        weft.gc(&with_valid(&conf, kept)).ok_empty();
                    }
                };
                scope.spawn(gc);
                let _over = Over(&over);
                let eight: Vec<Pod> = deleted.iter().flat_map(|pod| vec![pod.clone(); 8]).collect();
                at_once(&weft, "DEL", &eight, &conf).iter().for_each(Outcome::ok_empty);
            });
            weft.gc(&with_valid(&conf, kept)).ok_empty();
            let live: Vec<_> =
                live.into_iter().filter(|(pod, _)| kept.iter().any(|kept| same(pod, kept))).collect();
            assert_eq!(
                unwitnessed(&node, mode, &live),
                Vec::<String>::new(),
                "{mode}, round {round}, after GC"
            );
            for (pod, result) in live {
                weft.check(pod, &with_result(&conf, result)).ok_empty();
            }
            at_once(&weft, "DEL", &pods, &conf).iter().for_each(Outcome::ok_empty);
        }
        before.assert_settles(&node, &shared());
    }
}

/// A17, A18: the state folder is wiped again and again under ADDs, DELs and a GC loop, the pool one too small.
#[test]
fn a_folder_wiped_in_between_never_makes_two_pods_share_an_address() {
    if !require() {
        return;
    }
    const PODS: u32 = 24;
    for mode in ["bridge", "veth"] {
        let lab = Lab::new(&format!("wiped_{mode}"));
        let node = lab.node("n1");
        let pods = pods(&node, PODS as usize);
        let weft = node.cni(weft_bin_dir(), "weft");
        let conf = conf(mode, PODS - 1);
        let before = Residue::take(&node);
        let (ledger, answered) = (Ledger::default(), AtomicUsize::new(0));
        let (refusals, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // By the number of operations, so that on a slow machine some ADDs get through as well.
                for next in (WIPE_EVERY..).step_by(WIPE_EVERY) {
                    let due = || over.load(Ordering::Relaxed) || answered.load(Ordering::Relaxed) >= next;
                    wait_until("the next wipe is due", Duration::from_secs(60), due);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    node.try_run(["sh", "-c", "rm -rf /run/weft/*"]);
                }
            });
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // All are live or about to be. What it says of a folder that is wiped under it does not matter.
                    weft.gc(&with_valid(&conf, &pods));
                }
            });
            let _over = Over(&over);
            std::thread::scope(|workers| {
                for pod in &pods {
                    workers.spawn(|| {
                        for _ in 0..8 {
                            let added = weft.add(pod, &conf);
                            if added.status.success() {
                                ledger.begins(pod.container_id(), &added.result());
                            } else {
                                refusals.lock().unwrap().push(added.error());
                            }
                            answered.fetch_add(1, Ordering::Relaxed);
                            ledger.ends(pod.container_id());
                            let deleted = weft.del(pod, &conf);
                            if !deleted.status.success() {
                                failures.lock().unwrap().push(deleted.error());
                            }
                        }
                    });
                }
            });
        });
        let (refusals, failures) = (refusals.into_inner().unwrap(), failures.into_inner().unwrap());
        let (held, refused, failed) = (ledger.len(), refusals.len(), failures.len());
        say(&format!("wiped, {mode}: {held} addresses held, {refused} ADDs refused, {failed} DELs failed"));
        assert_eq!(ledger.overlaps(), Vec::<String>::new());
        assert!(held > 20, "hardly any ADD went through: nothing was tested");
        // A runtime tries again after both; and a folder that vanished under an operation is what both say.
        let of_the_wipe = |error: &&netns_tests::CniError| {
            error.code == TRY_AGAIN || error.code == IO && error.msg.contains("No such file or directory")
        };
        let wrong: Vec<_> = refusals.iter().filter(|error| !of_the_wipe(error)).collect();
        assert!(wrong.is_empty(), "{} refusals that do not come from the wipe: {wrong:#?}", wrong.len());
        // Runtimes ignore a failed DEL, or try it for ever: it has to find its way around a wipe.
        assert!(failures.is_empty(), "{failed} DELs failed: {failures:#?}");
        // In peace a DEL of each takes all that is left, whatever became of its records.
        at_once(&weft, "DEL", &pods, &conf).iter().for_each(Outcome::ok_empty);
        before.assert_settles(&node, &shared());
        at_once(&weft, "ADD", &pods[1..], &conf).iter().for_each(|outcome| drop(outcome.result()));
        at_once(&weft, "DEL", &pods, &conf).iter().for_each(Outcome::ok_empty);
        before.assert_settles(&node, &shared());
    }
}

fn same(a: &Pod, b: &Pod) -> bool {
    a.container_id() == b.container_id()
}

fn with_valid(conf: &Value, pods: &[Pod]) -> Value {
    let mut conf = conf.clone();
    let list = pods.iter().map(|pod| json!({"containerID": pod.container_id(), "ifname": pod.ifname()}));
    conf["cni.dev/valid-attachments"] = list.collect();
    conf
}

fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// Marsaglia's xorshift64*: all that a reproducible test needs.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Add,
    Del,
    Check,
    Gc,
}

/// One operation of the plan: fixed by the seed.
#[derive(Clone, Copy, Debug)]
struct Step {
    verb: Verb,
    pod: usize,
    kill_at: Option<u32>,
}

/// What the runtime knows of a pod.
#[derive(Debug)]
enum Known {
    /// No attachment.
    Idle,
    /// Answered with this.
    Held(Value),
    /// An operation was killed or refused: DEL is due, but ADD comes first at times.
    Unsure,
}

struct Chaos<'a> {
    node: &'a Node,
    weft: Cni,
    conf: Value,
    pods: Vec<(Pod, Mutex<Known>)>,
    ledger: Ledger,
    complaints: Mutex<Vec<String>>,
    killed: Mutex<Vec<u64>>,
    exhausted: AtomicUsize,
}

impl Chaos<'_> {
    fn run(&self, step: Step) {
        // Runtimes run one operation for a container at a time.
        let (pod, known) = &self.pods[step.pod];
        let mut known = known.lock().unwrap();
        match step.verb {
            Verb::Add => self.add(step, pod, &mut known),
            Verb::Del => self.del(step, pod, &mut known),
            Verb::Check => self.check(step, pod, &known),
            Verb::Gc => self.gc(step, pod, &mut known),
        }
    }

    fn add(&self, step: Step, pod: &Pod, known: &mut Known) {
        if let (Some(at), Known::Idle | Known::Unsure) = (step.kill_at, &*known) {
            let fate = self.kill("ADD", Some(pod), &self.conf, Strike::Parent(at));
            *known = Known::Unsure;
            if !fate.struck && fate.status.success() {
                let result = serde_json::from_slice(&fate.stdout).unwrap();
                self.ledger.begins(pod.container_id(), &result);
                *known = Known::Held(result);
            }
            return;
        }
        let outcome = self.weft.add(pod, &self.conf);
        if outcome.status.success() {
            let result = outcome.result();
            self.expect(!matches!(known, Known::Held(_)), step, "attached a pod twice", &outcome);
            self.ledger.begins(pod.container_id(), &result);
            *known = Known::Held(result);
            return;
        }
        let error = outcome.error();
        let exhausted = error.code == TRY_AGAIN && error.msg.contains("no IP addresses available");
        self.exhausted.fetch_add(usize::from(exhausted), Ordering::Relaxed);
        let right = match known {
            Known::Held(_) => error.code == ALREADY_ATTACHED,
            Known::Unsure => exhausted || error.code == ALREADY_ATTACHED,
            Known::Idle => exhausted,
        };
        self.expect(right, step, "ADD was refused", &outcome);
    }

    fn del(&self, step: Step, pod: &Pod, known: &mut Known) {
        self.ledger.ends(pod.container_id());
        let strike = step.kill_at.filter(|_| !matches!(known, Known::Idle));
        *known = Known::Unsure;
        if let Some(at) = strike {
            let strike = match at % 8 {
                0..2 => Strike::Child(at / 8 % 9 + 1),
                2 => Strike::Both(at / 8 % 9 + 1),
                _ => Strike::Parent(at * 2 / 3 + 1),
            };
            let fate = self.kill("DEL", Some(pod), &self.conf, strike);
            if fate.status.success() {
                *known = Known::Idle;
            }
            return;
        }
        let outcome = self.weft.del(pod, &self.conf);
        let silent = outcome.status.success() && outcome.stdout.is_empty();
        self.expect(silent, step, "DEL failed", &outcome);
        if silent {
            *known = Known::Idle;
        }
    }

    fn check(&self, step: Step, pod: &Pod, known: &Known) {
        match known {
            Known::Held(result) => {
                let outcome = self.weft.check(pod, &with_result(&self.conf, result));
                self.expect(outcome.status.success(), step, "CHECK of a live pod failed", &outcome);
            }
            Known::Idle | Known::Unsure => {
                let outcome = self.weft.check(pod, &self.conf);
                self.expect(!outcome.status.success(), step, "CHECK without a result succeeded", &outcome);
            }
        }
    }

    /// Every other pod is live or may be at once; the runtime knows of this one that it is not.
    fn gc(&self, step: Step, pod: &Pod, known: &mut Known) {
        self.ledger.ends(pod.container_id());
        let others: Vec<Pod> =
            self.pods.iter().map(|(pod, _)| pod.clone()).filter(|other| !same(other, pod)).collect();
        let conf = with_valid(&self.conf, &others);
        if let Some(at) = step.kill_at {
            let fate = self.kill("GC", None, &conf, Strike::Parent(at));
            *known = if fate.status.success() { Known::Idle } else { Known::Unsure };
            return;
        }
        let outcome = self.weft.gc(&conf);
        self.expect(outcome.status.success() && outcome.stdout.is_empty(), step, "GC failed", &outcome);
        *known = if outcome.status.success() { Known::Idle } else { Known::Unsure };
    }

    fn kill(&self, verb: &str, pod: Option<&Pod>, conf: &Value, strike: Strike) -> Fate {
        let fate = Stepper::new(self.node).run(verb, pod, conf, strike);
        self.killed.lock().unwrap().extend(fate.call);
        fate
    }

    fn expect(&self, right: bool, step: Step, what: &str, outcome: &Outcome) {
        if !right {
            self.complaints.lock().unwrap().push(format!("{step:?}: {what}: {outcome}"));
        }
    }
}

/// Point 6 of the issue: 1,000 operations at random, 16 at once, 32 pods on a pool of 20, every fifth ADD, DEL
/// and GC killed.
fn thousand_operations(mode: &str) {
    const WORKERS: u64 = 16;
    const STEPS: u64 = 1000;
    let seed = seed();
    say(&format!("{mode}: WEFT_SEED={seed}"));
    let lab = Lab::new(&format!("thousand_{mode}"));
    let node = lab.node("n1");
    let before = Residue::take(&node);
    let chaos = Chaos {
        weft: node.cni(weft_bin_dir(), "weft"),
        conf: conf(mode, 20),
        pods: pods(&node, 32).into_iter().map(|pod| (pod, Mutex::new(Known::Idle))).collect(),
        ledger: Ledger::default(),
        complaints: Mutex::default(),
        killed: Mutex::default(),
        exhausted: AtomicUsize::new(0),
        node: &node,
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let chaos = &chaos;
            scope.spawn(move || {
                let mut random =
                    Xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(worker + 1) | 1);
                for _ in (0..STEPS).filter(|step| step % WORKERS == worker) {
                    let verb = match random.next(20) {
                        0..10 => Verb::Add,
                        10..15 => Verb::Del,
                        15..18 => Verb::Check,
                        _ => Verb::Gc,
                    };
                    let pod = usize::try_from(random.next(chaos.pods.len() as u64)).unwrap();
                    let at = u32::try_from(random.next(230)).unwrap() + 1;
                    chaos.run(Step { verb, pod, kill_at: (random.next(5) == 0).then_some(at) });
                }
            });
        }
    });
    let took = start.elapsed();
    let exhausted = chaos.exhausted.load(Ordering::Relaxed);
    let complaints = chaos.complaints.into_inner().unwrap();
    assert!(
        complaints.is_empty(),
        "WEFT_SEED={seed}: {} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    assert_eq!(chaos.ledger.overlaps(), Vec::<String>::new(), "WEFT_SEED={seed}");
    let known: Vec<(Pod, Known)> =
        chaos.pods.into_iter().map(|(pod, known)| (pod, known.into_inner().unwrap())).collect();
    let live: Vec<(&Pod, &Value)> = known
        .iter()
        .filter_map(|(pod, known)| if let Known::Held(result) = known { Some((pod, result)) } else { None })
        .collect();
    assert_eq!(unwitnessed(&node, mode, &live), Vec::<String>::new(), "WEFT_SEED={seed}");
    for (pod, result) in &live {
        chaos.weft.check(pod, &with_result(&chaos.conf, result)).ok_empty();
    }
    say(&format!(
        "{mode}: {STEPS} operations in {took:?}, {} killed, {exhausted} times no address was free, {} addresses held, {} pods live at the end",
        chaos.killed.into_inner().unwrap().len(),
        chaos.ledger.len(),
        live.len()
    ));
    let pods: Vec<Pod> = known.iter().map(|(pod, _)| pod.clone()).collect();
    at_once(&chaos.weft, "DEL", &pods, &chaos.conf).iter().for_each(Outcome::ok_empty);
    before.assert_settles(&node, &shared());
}

/// A18, point 6 of the issue: bridge mode.
#[test]
fn a_thousand_operations_at_random_with_kills_never_share_an_address_on_a_bridge() {
    if require() {
        thousand_operations("bridge");
    }
}

/// A18, point 6 of the issue: veth mode.
#[test]
fn a_thousand_operations_at_random_with_kills_never_share_an_address_point_to_point() {
    if require() {
        thousand_operations("veth");
    }
}
