//! The whole cluster: the store, the machines, and time. Each step is one thing happening to one of them, after which
//! everything is checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weft_cni::ip::Subnet;
use weftd::cluster::{Asked, BlockRecord, BlockState, Input, Removal, plan_removal, removal_reads};
use weftd::store::model::{Model, TxnFault};
use weftd::store::{Op, Reply, StoreReply, TxnOutcome, WatchInput};

use super::node::{Node, Performed};
use super::random::Random;
use super::store::{Backup, Server};

/// Blocks have 16 addresses.
pub const BLOCK_SIZE_V4: u8 = 28;
pub const BLOCK_SIZE_V6: u8 = 124;

/// How faulty the store's answers are, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub unknown: u64,
    pub unavailable: u64,
    pub stale: u64,
}

pub struct World {
    pub seed: u64,
    pub random: Random,
    pub now: Duration,
    pub store: Box<dyn Server>,
    pub nodes: Vec<Node>,
    pub weather: Weather,
    pub next_pod: u64,
    pub next_index: u64,
    pub backups: Vec<(Duration, Backup)>,
    pub steps: u64,
    /// Since when nothing is wrong any more.
    pub quiet_since: Option<Duration>,
    /// Blocks that two may have for a while, and why that cannot be prevented.
    pub excused: BTreeMap<Subnet, &'static str>,
    /// Every block that was ever claimed under a name.
    pub claimed: std::collections::BTreeSet<(Arc<str>, Subnet)>,
    /// Last steps, for whoever reads a failure.
    pub log: Vec<String>,
    pub asked: Asked,
    /// Nodes whose record somebody deleted: blocks of theirs may be left over.
    pub deleted: std::collections::BTreeSet<Arc<str>>,
    /// Nothing goes wrong with the store or on the way to it.
    pub gentle: bool,
    /// Every output is logged.
    pub loud: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with_networks(seed, &["10.1.0.0/24", "fd00::/120"])
    }

    /// Over this store, which is empty.
    pub fn over(store: Box<dyn Server>, seed: u64) -> Self {
        Self { store, ..Self::new(seed) }
    }

    pub fn with_networks(seed: u64, cidrs: &[&str]) -> Self {
        let asked = Asked {
            cidrs: Some(cidrs.iter().map(|cidr| cidr.parse().expect("a network")).collect()),
            block_size_v4: Some(BLOCK_SIZE_V4),
            block_size_v6: Some(BLOCK_SIZE_V6),
            reissue_after: Some(600),
            ..Asked::default()
        };
        Self {
            seed,
            random: Random::new(seed),
            now: Duration::from_secs(1000),
            store: Box::new(Model::new(77)),
            nodes: Vec::new(),
            weather: Weather::default(),
            next_pod: 1,
            next_index: 0,
            backups: Vec::new(),
            steps: 0,
            quiet_since: None,
            excused: BTreeMap::new(),
            claimed: std::collections::BTreeSet::new(),
            log: Vec::new(),
            asked,
            deleted: std::collections::BTreeSet::new(),
            gentle: false,
            loud: std::env::var_os("WEFT_SIM_LOUD").is_some(),
        }
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>9.1}s {}", self.now.as_secs_f64(), what());
        self.log.push(line);
    }

    /// A new machine joins, or one under a name that was used before.
    pub fn add_node(&mut self, name: &str) -> usize {
        let client = self.store.client();
        let mut node = Node::new(name, self.next_index, client);
        self.next_index += 1;
        node.booted_at = self.now;
        node.start(self.now, &mut self.random, self.asked.clone());
        self.nodes.push(node);
        self.say(|| format!("{name} joins"));
        self.nodes.len() - 1
    }

    pub fn start(&mut self, index: usize) {
        let asked = self.asked.clone();
        let node = &mut self.nodes[index];
        node.start(self.now, &mut self.random, asked);
    }

    pub fn crash(&mut self, index: usize) {
        self.nodes[index].crash(self.now);
        let client = self.nodes[index].client;
        self.store.crash(client);
    }

    pub fn power_off(&mut self, index: usize) {
        self.crash(index);
        self.nodes[index].power_off(self.now);
    }

    /// The node does one output. False: it had none.
    pub fn perform(&mut self, index: usize) -> bool {
        let before = self.nodes[index].folders.len();
        let Some(performed) = self.nodes[index].perform(self.now) else { return false };
        if let Performed::Follow(resume) = performed {
            self.store.follow(self.nodes[index].client, resume);
        }
        let after = self.nodes[index].folders.len();
        if before != after {
            let name = self.nodes[index].name.clone();
            let blocks: Vec<String> = self.nodes[index].folders.keys().map(Subnet::to_string).collect();
            self.say(|| format!("{name} has {blocks:?}"));
        }
        if let (Some(kind), true) = (self.nodes[index].did, self.loud) {
            let name = self.nodes[index].name.clone();
            self.say(|| format!("    {name}: {kind}"));
        }
        super::checks::grants_only_what_was_claimed(self, index);
        if self.nodes[index].exited.is_some() && self.nodes[index].daemon.is_none() {
            self.store.crash(self.nodes[index].client);
        }
        true
    }

    /// The store does one request of the node. False: there was none.
    pub fn serve(&mut self, index: usize) -> bool {
        let fault = match self.random.below(100) {
            n if n < self.weather.unknown / 2 => Some(TxnFault::Lost),
            n if n < self.weather.unknown => Some(TxnFault::AnswerLost),
            n if n < self.weather.unknown + self.weather.unavailable => Some(TxnFault::NotSent),
            _ => None,
        };
        self.serve_with(index, fault)
    }

    /// As [`World::serve`], with this fault.
    pub fn serve_with(&mut self, index: usize, fault: Option<TxnFault>) -> bool {
        let Some(request) = self.nodes[index].requests.pop_front() else { return false };
        if self.loud {
            let line =
                format!("    {} asks {:.300}", self.nodes[index].name, format!("{:?}", short(&request.op)));
            self.say(|| line);
        }
        let client = self.nodes[index].client;
        let stale = self.random.chance(self.weather.stale);
        let back = i64::try_from(self.random.below(4)).unwrap_or(0);
        let stale_at = stale.then(|| (self.store.revision() - back).max(1));
        let faults = self.store.faults(client);
        (faults.next_txn, faults.stale_at) = (fault, stale_at);
        let result = self.store.call(client, request.op.clone(), self.now);
        let faults = self.store.faults(client);
        (faults.next_txn, faults.stale_at) = (None, None);
        let applied = matches!(result, Ok(Reply::Txn(TxnOutcome::Committed { .. })))
            || fault == Some(TxnFault::AnswerLost);
        if let (Op::Txn(txn), true) = (&request.op, applied) {
            super::checks::claims_nothing_known_as_anothers(self, index, txn);
            super::checks::releases_only_what_is_withdrawn(self, index, txn);
            super::checks::remember_claims(self, txn);
            let keys: Vec<String> = txn.writes.iter().map(|write| write.key().to_owned()).collect();
            let name = self.nodes[index].name.clone();
            let revision = self.store.revision();
            self.say(|| format!("{name} writes {keys:?} at {revision}: {}", outcome(&result)));
        }
        self.nodes[index].reply(StoreReply { id: request.id, result });
        true
    }

    /// The node hears of one thing that is waiting for it. False: nothing was.
    pub fn hear(&mut self, index: usize) -> bool {
        let Some(input) = self.nodes[index].inputs.pop_front() else { return false };
        self.nodes[index].handle(input, self.now);
        true
    }

    /// The node's follower reports what there is.
    pub fn follow(&mut self, index: usize) -> bool {
        if self.nodes[index].daemon.is_none() {
            return false;
        }
        let client = self.nodes[index].client;
        let reports = self.store.poll(client);
        let some = !reports.is_empty();
        if self.loud && some {
            let line = format!(
                "    {} hears {:?}",
                self.nodes[index].name,
                reports.iter().map(heard).collect::<Vec<_>>()
            );
            self.say(|| line);
        }
        self.nodes[index].inputs.extend(reports.into_iter().map(Input::Watch));
        some
    }

    pub fn observe(&mut self, index: usize) {
        let used = self.nodes[index].used(self.now);
        self.nodes[index].handle(Input::LocalUse(used), self.now);
    }

    /// Time passes, at most to the next thing that is due.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.store.tick(self.now);
        for node in &mut self.nodes {
            node.handle(Input::Tick, self.now);
        }
    }

    /// Everything that can happen without time happens.
    pub fn drain(&mut self) {
        for _ in 0..20_000 {
            let mut busy = false;
            for index in 0..self.nodes.len() {
                busy |= self.perform(index);
                busy |= self.serve(index);
                busy |= self.hear(index);
                busy |= self.follow(index);
                super::checks::safety(self);
            }
            if !busy {
                return;
            }
        }
        self.fail("the cluster never comes to rest");
    }

    /// Time passes with nothing wrong.
    pub fn settle(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        self.drain();
        while self.now < end {
            for index in 0..self.nodes.len() {
                self.observe(index);
            }
            self.drain();
            self.advance(Duration::from_secs(1));
            self.drain();
        }
    }

    /// `weftd node rm`, by an operator who reaches the store.
    pub fn remove(&mut self, name: &str, removal: Removal) -> Result<(), String> {
        let read = |store: &dyn Server, keys: &[String]| -> Vec<(String, Option<weftd::store::KeyValue>)> {
            let all = store.list("");
            let find = |key: &String| all.items.iter().find(|item| item.key == *key).cloned();
            keys.iter().map(|key| (key.clone(), find(key))).collect()
        };
        let first = read(&*self.store, &removal_reads(name, None));
        let record = first.iter().find(|(key, _)| key.starts_with("n/")).and_then(|(_, item)| item.clone());
        let all = read(&*self.store, &removal_reads(name, record.as_ref()));
        let wall = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.now;
        let txn = plan_removal(name, &all, removal, wall).map_err(|refusal| refusal.to_string())?;
        let operator = self.store.client();
        let done = self.store.call(operator, Op::Txn(txn), self.now).map_err(|error| error.to_string())?;
        self.say(|| format!("node rm {name} {removal:?}"));
        let committed = matches!(done, Reply::Txn(TxnOutcome::Committed { .. }));
        if committed { Ok(()) } else { Err(format!("{done:?}")) }
    }

    /// The store is replaced by an old backup of itself; perhaps somebody writes until it is past the old revision.
    pub fn restore(&mut self, backup: &Backup, past: bool) {
        let before = self.held_blocks();
        let revision = self.store.revision();
        self.store.restore(backup);
        self.store.tick(self.now);
        if past {
            self.store.drive_to(revision + 5, self.now);
        }
        let after = self.held_blocks();
        for (block, owner) in &before {
            if after.get(block) != Some(owner) {
                self.excused.insert(*block, "its claim was lost by a restore");
            }
        }
        for (block, owner) in &after {
            if before.get(block) != Some(owner) {
                self.excused.insert(*block, "its release was lost by a restore");
            }
        }
        let to = self.store.revision();
        self.say(|| format!("the store is restored: revision {revision} → {to}"));
    }

    pub fn held_blocks(&self) -> BTreeMap<Subnet, (Arc<str>, String)> {
        let records = self.store.list("b/").items;
        let parse = |item: &weftd::store::KeyValue| {
            let record = BlockRecord::parse(&item.key, &item.value).ok()?;
            let held = record.state == BlockState::Held;
            held.then(|| (block_of(&item.key), (record.owner, record.instance)))
        };
        records.iter().filter_map(parse).collect()
    }

    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        let shown = |node: &Node| {
            let status = node.daemon.as_ref().map(|machine| machine.status());
            let codes: Vec<&(weftd::cluster::Code, String)> = node.findings.keys().collect();
            let status = status.map(|s| (s.phase, s.revision, s.complete, s.rewritten, s.store_away));
            format!(
                "{} ({}) powered {} {status:?} {codes:?} {:?}",
                node.name, node.machine_id, node.powered, node.exited
            )
        };
        let nodes: Vec<String> = self.nodes.iter().map(shown).collect();
        let what = format!("{what}\n{}", nodes.join("\n"));
        let tail: Vec<&String> = self.log.iter().rev().take(tail_len()).collect();
        let tail: Vec<&str> = tail.into_iter().rev().map(String::as_str).collect();
        panic!(
            "seed {}, step {}, {:.1} s: {what}\n{}",
            self.seed,
            self.steps,
            self.now.as_secs_f64(),
            tail.join("\n")
        );
    }
}

fn short(op: &Op) -> (&'static str, Vec<String>) {
    match op {
        Op::Read(keys) => ("read", keys.clone()),
        Op::List { prefix } => ("list", vec![prefix.clone()]),
        Op::Txn(txn) => ("txn", txn.writes.iter().map(|write| write.key().to_owned()).collect()),
        Op::KeepSession(session) => ("session", vec![session.key.clone()]),
        Op::EndSession => ("end session", Vec::new()),
        Op::Relist => ("relist", Vec::new()),
    }
}

fn heard(input: &WatchInput) -> String {
    match input {
        WatchInput::Connected { revision, .. } => format!("connected at {revision}"),
        WatchInput::Snapshot(listing) => format!("all of {}", listing.revision),
        WatchInput::Events { revision, events } => format!("{} events up to {revision}", events.len()),
        WatchInput::Lost(_) => "lost".to_owned(),
        WatchInput::Full(_) => "full, or not any more".to_owned(),
        WatchInput::HistoryRewritten { .. } => "rewritten".to_owned(),
        WatchInput::SessionLost { .. } => "session lost".to_owned(),
    }
}

fn outcome(result: &Result<Reply, weftd::store::StoreError>) -> &'static str {
    if result.is_ok() { "done" } else { "done, answer lost" }
}

/// The block of a key such as `b/10.1.0.0-28`.
pub fn block_of(key: &str) -> Subnet {
    let (addr, prefix) = key.trim_start_matches("b/").rsplit_once('-').expect("a block's key");
    format!("{addr}/{prefix}").parse().expect("a block")
}

/// How much of the past a failure shows.
fn tail_len() -> usize {
    std::env::var("WEFT_SIM_TAIL").ok().and_then(|tail| tail.parse().ok()).unwrap_or(60)
}
