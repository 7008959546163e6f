//! One pass: from what is wanted and observed to a kernel that has it, and a report. Reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use weft_netlink::Result;
use weft_netlink::rules::{self, ForwardChain, Tool};

use crate::backoff::{Backoff, Name};
use crate::desired::{Change, Desired, desired};
use crate::dirty::Dirty;
use crate::execute::Failure;
use crate::finding::Finding;
use crate::kernel::{Culprit, Kernel, News};
use crate::objects::{Key, Objects};
use crate::observed::{self, Observed};
use crate::plan::{Op, plan, plan_of};
use crate::report::{self, PlaneReport};
use crate::settings;
use crate::underlay::{Underlay, detect};
use crate::wanted::{Changed, Wanted};

/// What a pass starts from and leaves behind. Nothing of it outlives the process: all can be read from the kernel.
#[derive(Debug)]
pub struct Reconciler {
    kernel: Kernel,
    sysctl_root: PathBuf,
    /// A copy of its own: whoever makes the next order need not copy the map of peers, which nobody else holds.
    wanted: Option<Wanted>,
    observed: Observed,
    underlay: Underlay,
    desired: Desired,
    /// The inputs of `desired` changed, in another way than peer by peer.
    stale: bool,
    /// What may differ between `desired` and `observed`.
    dirty: Dirty,
    news: News,
    backoff: Backoff,
    /// Desired objects that were there and are not.
    lost: BTreeSet<Key>,
    failures: BTreeMap<Key, String>,
    foreign: Vec<ForwardChain>,
    /// Packet rules and settings must be looked at.
    check_rules: bool,
    check_settings: bool,
    healed: u64,
    last_change_ms: u64,
    order: u64,
    /// Whether the last pass found nothing to do, not even something that has to wait.
    rests: bool,
    /// Something vanished under the hands of the last pass.
    overtaken: bool,
}

impl Reconciler {
    /// Opens the sockets, subscribes and reads what the kernel has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(sysctl_root: PathBuf) -> Result<Self> {
        let mut kernel = Kernel::open()?;
        let observed = kernel.read()?;
        Ok(Self {
            kernel,
            sysctl_root,
            wanted: None,
            observed,
            underlay: Underlay::default(),
            desired: Desired::default(),
            stale: true,
            dirty: Dirty::All,
            news: News::default(),
            backoff: Backoff::default(),
            lost: BTreeSet::new(),
            failures: BTreeMap::new(),
            foreign: Vec::new(),
            check_rules: true,
            check_settings: true,
            healed: 0,
            last_change_ms: 0,
            order: 0,
            rests: false,
            overtaken: false,
        })
    }

    /// The sockets.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// A new order replaces the one before, of which it differs as `changed` says.
    pub fn want(&mut self, wanted: &Wanted, changed: &Changed, order: u64) {
        self.order = order;
        self.check_settings |= self.wanted.is_none();
        match (changed, &mut self.wanted) {
            (Changed::Peers(names), Some(before)) => {
                debug_assert_eq!(before.without_peers(), wanted.without_peers(), "only peers changed");
                for name in names {
                    let peer = wanted.peers.get(name);
                    let former = match peer {
                        Some(peer) => before.peers.insert(name.clone(), peer.clone()),
                        None => before.peers.remove(name),
                    };
                    if !self.stale {
                        let change = [former.as_deref(), peer.map(|peer| &**peer)];
                        match self.desired.change(before, &self.underlay, name, change) {
                            Change::Done { keys, rules } => {
                                keys.iter().for_each(|key| self.dirty.add(key));
                                self.check_rules |= rules;
                            }
                            Change::Entangled => self.stale = true,
                        }
                    }
                }
                debug_assert_eq!(before.peers, wanted.peers, "no other peers changed");
                self.forget_unwanted();
            }
            (Changed::All, _) | (Changed::Peers(_), None) => {
                self.wanted = Some(wanted.clone());
                self.stale = true;
            }
        }
    }

    /// Everything is to be read again, settings too.
    pub fn resync(&mut self) {
        self.news.resync = true;
        self.check_rules = true;
        self.check_settings = true;
    }

    /// Brings events in. Says whether a pass is due.
    pub fn hear(&mut self, now: Instant) -> bool {
        self.kernel.drain(&mut self.observed, &mut self.news);
        self.count_losses(now);
        self.check_rules |= self.news.commit.is_some();
        if std::mem::take(&mut self.news.facts)
            && let Some(wanted) = &self.wanted
        {
            self.stale |= detect(&self.observed.facts, &wanted.this) != self.underlay;
        }
        let touched = std::mem::take(&mut self.news.touched);
        let objects = !touched.is_empty();
        self.dirty.merge(touched);
        objects || self.stale || self.news.resync || self.news.commit.is_some()
    }

    /// When something that is waiting may be tried again.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.backoff.next(now)
    }

    /// Makes the kernel have what is wanted, as far as it and the pauses allow. Says whether another pass should follow at
    /// once: what was done is looked at again, and an empty plan is the proof.
    pub fn pass(&mut self, now: Instant) -> bool {
        self.backoff.forget(now);
        self.read_again();
        let Some(may_remove) = self.wanted.as_ref().map(|wanted| wanted.may_remove) else { return false };
        self.decide();
        if std::mem::take(&mut self.check_settings) {
            self.settings();
        }
        let started = Instant::now();
        let ops = self.plan(may_remove);
        self.rests = ops.is_empty();
        let ops = self.allowed(ops, now);
        // Refusals before anything else, then the rules, then what makes packets flow, then the rules without what is
        // not wanted any more.
        let first = ops.iter().take_while(|op| is_refusal(op)).count();
        let (refusals, others) = ops.split_at(first);
        self.run(refusals, now);
        // A next hop that is not wanted any more still has its route until the others are done.
        let keep = may_remove && !others.is_empty();
        let keep = keep && self.check_rules;
        let mut rules_changed = self.rules(may_remove && !keep, now);
        self.run(others, now);
        if keep {
            self.check_rules = true;
            rules_changed |= self.rules(true, now);
        }
        if !ops.is_empty() || rules_changed {
            self.last_change_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        !ops.is_empty() && (self.failures.is_empty() || std::mem::take(&mut self.overtaken))
    }

    /// What differs is looked at again until it does not: what was done, what failed and what has to wait.
    fn plan(&mut self, may_remove: bool) -> Vec<Op> {
        let (desired, observed) = (&self.desired.objects, &self.observed.objects);
        let ops = match std::mem::take(&mut self.dirty) {
            Dirty::All => plan(desired, observed, may_remove),
            Dirty::Keys(keys) => plan_of(&keys, desired, observed, may_remove),
        };
        ops.iter().for_each(|op| self.dirty.add(op.key()));
        ops
    }

    /// How things are.
    pub fn report(&self) -> PlaneReport {
        let may_remove = self.wanted.as_ref().is_some_and(|wanted| wanted.may_remove);
        let mut findings = self.desired.findings.clone();
        findings.extend(self.foreign.iter().filter(|chain| chain.is_closed()).map(foreign_drop));
        findings.extend(self.backoff.wars().map(|(key, by)| war(key, by)));
        PlaneReport {
            in_sync: self.rests && self.failures.is_empty() && !self.check_rules,
            objects: self.desired.objects.len(),
            failures: self.failures.values().cloned().collect(),
            findings,
            foreign_forward: self.foreign.clone(),
            healed: self.healed,
            requests: self.kernel.requests(),
            received: self.kernel.received(),
            underlay: report::underlay(&self.underlay),
            pod_mtu: self.desired.pod_mtu,
            may_remove,
            last_change_ms: self.last_change_ms,
            order: self.order,
        }
    }

    fn count_losses(&mut self, now: Instant) {
        for (key, culprit) in std::mem::take(&mut self.news.lost) {
            if !self.desired.objects.contains_key(&key) {
                continue;
            }
            // One loss may be several events: down, then gone. Until it is put back it is the same one.
            if self.lost.contains(&key) {
                continue;
            }
            // What the kernel drops by itself, as when a link goes down, is nobody's war.
            match culprit {
                Culprit::Process(name) => self.backoff.lost(&key, Some(name), now),
                Culprit::Unknown if matches!(key, Key::Forward(..) | Key::Link(_)) => {
                    self.backoff.lost(&key, None, now);
                }
                Culprit::Unknown => {}
            }
            self.lost.insert(key);
        }
    }

    fn read_again(&mut self) {
        if !std::mem::take(&mut self.news.resync) {
            return;
        }
        match self.kernel.read() {
            Ok(observed) => {
                let before = std::mem::replace(&mut self.observed, observed);
                let missing = observed::missing(&before.objects, &self.observed.objects);
                let desired = &self.desired.objects;
                self.lost.extend(missing.filter(|key| desired.contains_key(*key)).cloned());
                self.failures.remove(&Key::Setting("read".to_owned()));
            }
            Err(error) => {
                self.news.resync = true;
                let text = format!("read the node's links, addresses and routes: {error}");
                self.failures.insert(Key::Setting("read".to_owned()), text);
            }
        }
        self.stale = true;
    }

    fn decide(&mut self) {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.stale) else { return };
        self.stale = false;
        self.underlay = detect(&self.observed.facts, &wanted.this);
        let before = std::mem::replace(&mut self.desired, desired(wanted, &self.underlay));
        self.dirty = Dirty::All;
        self.check_rules |= before.rules != self.desired.rules;
        self.forget_unwanted();
    }

    /// What is not wanted any more is neither lost nor failed.
    fn forget_unwanted(&mut self) {
        let desired = &self.desired.objects;
        self.lost.retain(|key| desired.contains_key(key));
        self.failures
            .retain(|key, _| matches!(key, Key::Setting(_) | Key::Rules) || desired.contains_key(key));
    }

    fn settings(&mut self) {
        let Some(wanted) = &self.wanted else { return };
        let (ipv4, ipv6) = (wanted.has_family(true), wanted.has_family(false));
        let indexes = if ipv6 { self.kernel.advertised().unwrap_or_default() } else { Vec::new() };
        let links = &self.observed.facts.links;
        let names = indexes.iter().filter_map(|index| links.get(index)).map(|link| &*link.name).collect();
        let failures = settings::forward(&self.sysctl_root, ipv4, ipv6, &names);
        self.failures.retain(|key, _| !matches!(key, Key::Setting(name) if name != "read"));
        self.failures.extend(failures.into_iter().map(|failure| (failure.key, failure.text)));
    }

    /// Leaves out what has to wait, and what stands on a device that has to.
    fn allowed(&self, ops: Vec<Op>, now: Instant) -> Vec<Op> {
        let waits = |key: &Key| !self.backoff.allows(key, now);
        let on_waiting = |key: &Key| {
            key.device()
                .is_some_and(|device| self.observed.index(device).is_none() && waits(&Key::Link(device)))
        };
        ops.into_iter()
            .filter(|op| !waits(op.key()) && !on_waiting(op.key()) && !self.over_waiting(op, now))
            .collect()
    }

    /// Whether it is a route over a device of ours that is gone and has to wait.
    fn over_waiting(&self, op: &Op, now: Instant) -> bool {
        let Op::Put { object: crate::objects::Object::Hop(hop), .. } = op else { return false };
        crate::objects::Device::by_name(&hop.link).is_some_and(|device| {
            self.observed.index(device).is_none() && !self.backoff.allows(&Key::Link(device), now)
        })
    }

    fn run(&mut self, ops: &[Op], now: Instant) {
        if ops.is_empty() {
            return;
        }
        let outcome = self.kernel.execute(ops, &mut self.observed, &mut self.news);
        for key in &outcome.done {
            self.failures.remove(key);
            self.healed += u64::from(self.lost.remove(key));
        }
        for Failure { key, text, overtaken } in outcome.failed {
            tracing::warn!(object = %key, "{text}");
            self.overtaken |= overtaken;
            if !overtaken {
                self.backoff.refused(&key, now);
            }
            self.failures.insert(key, text);
            // What we believe of the kernel may be wrong.
            self.news.resync = true;
        }
        self.count_losses(now);
    }

    /// Says whether rules were changed.
    fn rules(&mut self, may_remove: bool, now: Instant) -> bool {
        if !self.check_rules || !self.backoff.allows(&Key::Rules, now) {
            return false;
        }
        let by = self.news.commit.take();
        let outcome = self.kernel.ensure_rules(&self.desired.rules, may_remove);
        self.look_at_foreign();
        match outcome {
            Ok(changed) => {
                self.check_rules = false;
                self.failures.remove(&Key::Rules);
                if changed && by.is_some() {
                    self.healed += 1;
                    self.backoff.lost(&Key::Rules, by, now);
                }
                changed
            }
            Err(error) => {
                let text = format!("write the packet rules (nf_tables, table inet weft): {error}");
                tracing::warn!("{text}");
                self.failures.insert(Key::Rules, text);
                self.backoff.refused(&Key::Rules, now);
                false
            }
        }
    }

    /// What others do to forwarded packets: with our own rules, hence after each commit of others.
    fn look_at_foreign(&mut self) {
        match self.kernel.forward_chains() {
            Ok(chains) => self.foreign = chains,
            Err(error) => tracing::debug!("read foreign forward chains: {error}"),
        }
    }

    /// The legacy iptables tell nobody when they change: this must be called now and then. It sends no request.
    pub fn look_at_legacy(&mut self) {
        match rules::legacy_forward_chains() {
            Ok(chains) => {
                self.foreign.retain(|chain| chain.tool != Tool::IptablesLegacy);
                self.foreign.extend(chains);
            }
            Err(error) => tracing::debug!("read the legacy iptables' FORWARD chain: {error}"),
        }
    }

    /// Takes everything of ours away.
    pub fn remove_everything(&mut self) -> report::Removal {
        let mut removal = report::Removal::default();
        let ops = plan(&Objects::new(), &self.observed.objects, true);
        let outcome = self.kernel.execute(&ops, &mut self.observed, &mut News::default());
        removal.removed.extend(outcome.done.iter().map(ToString::to_string));
        removal.failures.extend(outcome.failed.into_iter().map(|failure| failure.text));
        let links = self.observed.facts.links.iter();
        let own = links.filter(|(_, link)| link.name.starts_with(crate::underlay::OWN_PREFIX));
        let own: Vec<_> = own.map(|(index, link)| (*index, link.name.clone())).collect();
        for (index, name) in own {
            match self.kernel.remove_link(index) {
                Ok(()) => removal.removed.push(format!("link {name}")),
                Err(error) => removal.failures.push(format!("remove link {name}: {error}")),
            }
        }
        match self.kernel.remove_rules() {
            Ok(true) => removal.removed.push(Key::Rules.to_string()),
            Ok(false) => {}
            Err(error) => removal.failures.push(format!("remove {}: {error}", Key::Rules)),
        }
        removal
    }
}

fn is_refusal(op: &Op) -> bool {
    matches!(op, Op::Put { key: Key::Unreachable { .. }, .. })
}

fn foreign_drop(chain: &ForwardChain) -> Finding {
    let name = chain.describe();
    let text = format!(
        "the chain {name} drops forwarded packets by policy: pods of this node are cut off unless it accepts theirs; \
         no rule of Weft elsewhere can override it. {}",
        way_out(chain.tool)
    );
    Finding { code: "foreign-forward-drop", subject: name, text }
}

fn way_out(tool: Tool) -> &'static str {
    match tool {
        Tool::Nft => "Accept the pods' networks there, in a rule whose comment names weft",
        Tool::IptablesNft | Tool::IptablesLegacy => {
            "Accept the pods' networks there, in a rule whose comment names weft; or set foreign_forward = \"iptables\", and \
             weftd does"
        }
    }
}

fn war(key: &Key, by: Option<&Name>) -> Finding {
    let by = by.map_or("somebody", Name::text);
    let text = format!("{by} keeps removing or changing the {key}: it is put back ever more seldom");
    Finding { code: "taken-away", subject: key.to_string(), text }
}
