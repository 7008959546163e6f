//! The plugin's folders: which block it may give addresses of. A grant is the only thing that lets it, so that what is
//! granted is what has to be right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_cni::ip::Subnet;

use super::{Link, Machine, Phase};
use crate::cluster::blocks::is_block;
use crate::cluster::finding::Code;
use crate::cluster::memory::Moment;
use crate::cluster::{BlockUse, OFFLINE_AFTER, Output, Withdrawn};

/// How long a change of a folder that failed rests.
const RETRY: Duration = Duration::from_secs(2);

/// How a block's folder is, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    Absent,
    Granted,
    Quarantined,
}

/// What should become of a block's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Not decided yet: as it is.
    Keep,
    Give,
    /// Give no more; keep what is in use.
    Stop,
    /// Give no more, and go when empty.
    Leave,
    /// Go, if it is empty right now.
    Withdraw,
}

#[derive(Clone, Debug)]
struct Slot {
    folder: Folder,
    /// Something is being done to it.
    busy: bool,
    used: Option<BlockUse>,
    not_before: Duration,
}

impl Default for Slot {
    fn default() -> Self {
        Self { folder: Folder::Absent, busy: false, used: None, not_before: Duration::ZERO }
    }
}

/// All folders.
#[derive(Debug, Default)]
pub(super) struct Local {
    slots: BTreeMap<Subnet, Slot>,
}

impl Local {
    pub(super) fn start(&mut self, blocks: &[BlockUse]) {
        self.observe(blocks);
    }

    /// All blocks that have a folder. What is being changed right now is known when that is done.
    pub(super) fn observe(&mut self, blocks: &[BlockUse]) {
        let listed: BTreeSet<Subnet> = blocks.iter().map(|used| used.block).collect();
        for used in blocks {
            let slot = self.slots.entry(used.block).or_default();
            if !slot.busy {
                slot.folder = if used.granted { Folder::Granted } else { Folder::Quarantined };
                slot.used = Some(*used);
            }
        }
        for (block, slot) in &mut self.slots {
            if !slot.busy && !listed.contains(block) {
                (slot.folder, slot.used) = (Folder::Absent, None);
            }
        }
        self.slots.retain(|_, slot| slot.busy || slot.folder != Folder::Absent);
    }

    /// Blocks with a folder.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Subnet> + '_ {
        self.slots
            .iter()
            .filter(|(_, slot)| slot.folder != Folder::Absent || slot.busy)
            .map(|(block, _)| *block)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks().next().is_none()
    }

    pub(super) fn usage(&self, block: &Subnet) -> Option<&BlockUse> {
        self.slots.get(block)?.used.as_ref()
    }

    pub(super) fn is_granted(&self, block: &Subnet) -> bool {
        self.slots.get(block).is_some_and(|slot| slot.folder == Folder::Granted)
    }

    /// No address of it can be given, and nothing is under way that would change this.
    pub(super) fn is_gone(&self, block: &Subnet) -> bool {
        self.slots.get(block).is_none_or(|slot| slot.folder == Folder::Absent && !slot.busy)
    }

    /// When something is due: an end of resting, a second try.
    pub(super) fn timers(&self) -> Vec<Option<Duration>> {
        let rested = |slot: &Slot| slot.used?.empty_since.map(|since| since + crate::cluster::COOLDOWN);
        self.slots.values().flat_map(|slot| [rested(slot), Some(slot.not_before)]).collect()
    }

    fn used(&self, block: &Subnet) -> u32 {
        self.usage(block).map_or(0, |used| used.used)
    }
}

impl Machine {
    /// Brings the folders to what they should be, one change of each at a time.
    pub(super) fn reconcile(&mut self) {
        let mut blocks: BTreeSet<Subnet> = self.own_blocks().into_iter().collect();
        blocks.extend(self.local.blocks());
        for block in blocks {
            let want = self.want(&block);
            let slot = self.local.slots.get(&block).cloned().unwrap_or_default();
            if slot.busy || self.now.boot < slot.not_before {
                continue;
            }
            if let Some(output) = self.step(&block, want, slot.folder) {
                self.local.slots.entry(block).or_default().busy = true;
                self.out.push_back(output);
            }
        }
        self.name_lost();
    }

    fn step(&self, block: &Subnet, want: Want, folder: Folder) -> Option<Output> {
        let empty = self.local.used(block) == 0;
        match (want, folder) {
            (Want::Give, Folder::Absent | Folder::Quarantined) => Some(Output::Grant(*block)),
            (Want::Stop | Want::Leave, Folder::Granted) => Some(Output::Quarantine(*block)),
            (Want::Withdraw, Folder::Granted | Folder::Quarantined) => Some(Output::Withdraw(*block)),
            (Want::Leave, Folder::Quarantined) if empty => Some(Output::Withdraw(*block)),
            (Want::Keep, _)
            | (Want::Give, Folder::Granted)
            | (Want::Stop | Want::Leave | Want::Withdraw, Folder::Absent)
            | (Want::Stop | Want::Leave, Folder::Quarantined) => None,
        }
    }

    /// What should become of a block's folder.
    fn want(&self, block: &Subnet) -> Want {
        match self.phase {
            Phase::Removed | Phase::Superseded => Want::Leave,
            // Somebody else is this node, as far as is known: this process may end, and the plugin would go on giving.
            Phase::Waiting { .. } => Want::Stop,
            Phase::Starting if self.stale() => Want::Stop,
            Phase::Starting if self.offline() && self.own_blocks().contains(block) => Want::Give,
            Phase::Starting => Want::Keep,
            Phase::Member => self.want_as_member(block),
        }
    }

    fn want_as_member(&self, block: &Subnet) -> Want {
        if self.stale() {
            return Want::Stop;
        }
        // What stands in the store is being read again: nothing new is granted on what stood there before.
        let sure = !self.verify && !self.must_reassert();
        let holds = self.own.as_ref().is_some_and(|own| own.record.holds(block));
        match holds {
            true if self.claims.is_returning(block) => Want::Withdraw,
            true if self.is_lost(block) => Want::Leave,
            true if !self.gives(block) => Want::Stop,
            true if sure => Want::Give,
            false if sure => Want::Leave,
            true | false => Want::Keep,
        }
    }

    /// Whether addresses of an own block may be given: nobody else lists it, and it is on its way nowhere.
    pub(super) fn gives(&self, block: &Subnet) -> bool {
        let valid = self.network.as_ref().is_none_or(|network| is_block(network, block));
        valid && self.peers.rivals(block).is_empty() && !self.claims.is_returning(block)
    }

    /// Whether another node has this block by a higher epoch.
    pub(super) fn is_lost(&self, block: &Subnet) -> bool {
        self.peers.owner(block).is_some_and(|owner| *owner != self.facts.node)
    }

    /// Names blocks that two nodes hold, and those that only pods are left of.
    fn name_lost(&mut self) {
        let contested = self.contested();
        let mut named: BTreeSet<(Code, String)> = BTreeSet::new();
        for block in contested {
            let subject = block.to_string();
            let rival = self.peers.rivals(&block).first().map(|(_, name)| name.clone()).unwrap_or_default();
            let me = self.facts.node.clone();
            let (code, sentence) = if self.is_lost(&block) {
                (
                    Code::LostBlock,
                    format!(
                        "{rival} holds {block} by an earlier claim than {me}: pods here that have addresses of it are not reached from other nodes"
                    ),
                )
            } else {
                (
                    Code::DoublyOwned,
                    format!(
                        "{me} and {rival} both hold {block}: neither gives addresses of it, and {me} keeps the route"
                    ),
                )
            };
            let way_out = format!(
                "Restart the pods that {} has in {block}; the block is free again when they are gone",
                if code == Code::LostBlock { &me } else { &rival }
            );
            self.find(code, &subject, sentence, way_out);
            named.insert((code, subject));
        }
        let over: Vec<(Code, String)> = self
            .findings
            .keys()
            .filter(|key| matches!(key.0, Code::LostBlock | Code::DoublyOwned) && !named.contains(key))
            .cloned()
            .collect();
        for (code, subject) in over {
            self.clear(code, &subject);
        }
    }

    pub(super) fn granted(&mut self, block: Subnet, result: Result<(), String>) {
        self.done(block, result, Folder::Granted, "let the plugin give addresses of");
    }

    pub(super) fn quarantined(&mut self, block: Subnet, result: Result<(), String>) {
        self.done(block, result, Folder::Quarantined, "stop the plugin from giving addresses of");
    }

    fn done(&mut self, block: Subnet, result: Result<(), String>, folder: Folder, what: &str) {
        let subject = block.to_string();
        let slot = self.local.slots.entry(block).or_default();
        slot.busy = false;
        match result {
            Ok(()) => {
                if folder == Folder::Granted {
                    slot.used = slot.used.filter(|used| used.granted);
                }
                slot.folder = folder;
                self.clear(Code::Local, &subject);
            }
            Err(reason) => {
                slot.not_before = self.now.boot + RETRY;
                let way_out =
                    "Look at /run/weft: its owner, its space, its label. It is tried again every two seconds";
                self.find(Code::Local, &subject, format!("{what} {block}: {reason}"), way_out);
            }
        }
    }

    pub(super) fn withdrawn(&mut self, block: Subnet, result: &Withdrawn) {
        let now = self.now.boot;
        let slot = self.local.slots.entry(block).or_default();
        slot.busy = false;
        match result {
            Withdrawn::Gone => {
                self.local.slots.remove(&block);
                self.clear(Code::Local, &block.to_string());
            }
            Withdrawn::InUse => {
                slot.not_before = now + RETRY;
                // What was withdrawn with it is given again.
                self.forget_return();
            }
            Withdrawn::Failed(reason) => {
                slot.not_before = now + RETRY;
                let sentence = format!("withdraw {block}: {reason}");
                self.find(Code::Local, &block.to_string(), sentence, "Look at /run/weft; it is tried again");
                self.forget_return();
            }
        }
    }

    /// Whether this node gives addresses without the store: after a boot, and only from what is young enough.
    pub(super) fn offline(&self) -> bool {
        let waited = self.now.boot >= self.started.boot + OFFLINE_AFTER;
        let away = matches!(self.link, Link::Down { .. });
        let active = self.memory.as_ref().is_some_and(|memory| memory.removed.is_none());
        self.facts.offline_boot && waited && away && active && self.network.is_some() && !self.stale()
    }

    /// How long what is known may be relied on: a node removed behind its back has given its last address before its
    /// blocks are given to others, with a tenth of the time to spare for clocks that do not agree.
    fn age_limit(&self) -> Option<Duration> {
        let network = self.network.as_ref()?;
        Some(Duration::from_secs(network.reissue_after).mul_f64(0.9))
    }

    /// Whether what is known is too old to give addresses from, or of an age that cannot be told.
    pub(super) fn stale(&self) -> bool {
        if self.now.boot < self.started.boot + OFFLINE_AFTER && self.own.is_none() {
            return false;
        }
        let Some(limit) = self.age_limit() else { return false };
        let age = |contact: &Moment| contact.age(&self.facts.stamp, self.now);
        match &self.contact {
            None => self.own.is_none() && self.memory.is_some(),
            Some(contact) => age(contact).is_none_or(|age| age > limit),
        }
    }

    pub(super) fn age_limit_at(&self) -> Option<Duration> {
        let limit = self.age_limit()?;
        let age = self.contact.as_ref()?.age(&self.facts.stamp, self.now)?;
        Some(self.now.boot + limit.checked_sub(age)? + Duration::from_millis(1))
    }

    pub(super) fn check_age(&mut self) {
        if self.stale() {
            self.find(
                Code::StaleSnapshot,
                "",
                "this node has not reached the store for so long that its blocks may be another's: it gives no more addresses",
                "Let it reach the store; pods that run keep running",
            );
        } else {
            self.clear(Code::StaleSnapshot, "");
        }
    }
}
