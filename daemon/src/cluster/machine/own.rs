//! This node's own record: whether it stands as this node left it, who else claims to be this node, joining, leaving.

use std::time::Duration;

use weft_cni::ip::IfAddr;

use super::lane::item;
use super::{Machine, Own, Phase};
use crate::cluster::SESSION_TTL;
use crate::cluster::finding::Code;
use crate::cluster::memory::Moment;
use crate::cluster::record::{NodeRecord, NodeState, SessionRecord, node_key, session_key};
use crate::store::{CONFIG, KeyValue, TxnOutcome};

/// How long after the end of a session's life it is surely gone from the store.
const SESSION_SLACK: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn verify_keys(&self) -> Vec<String> {
        let mut keys = vec![CONFIG.to_owned(), node_key(&self.facts.node), session_key(&self.facts.node)];
        keys.extend(self.witness().map(|(key, _)| key));
        keys
    }

    /// The newest thing in the cached snapshot: if it stands in the store as it was, so does all that is older.
    fn witness(&self) -> Option<(String, i64)> {
        self.resumed.filter(|resumed| !resumed.witnessed)?;
        let there = self.peers.iter().filter(|(_, entry)| !entry.gone);
        let newest = there.max_by_key(|(_, entry)| entry.mod_revision)?;
        Some((node_key(newest.0), newest.1.mod_revision))
    }

    /// The own keys were read.
    pub(super) fn verified(&mut self, revision: i64, asked_at: i64, items: Vec<(String, Option<KeyValue>)>) {
        if revision < asked_at {
            if std::mem::replace(&mut self.suspect, true) {
                self.suspect = false;
                self.revision = revision;
                self.note_rewrite(true);
            }
            return;
        }
        self.suspect = false;
        self.revision = self.revision.max(revision);
        self.hear_witness(&items);
        (self.verify, self.verified_at) = (false, self.now.boot);
        self.config_is(item(&items, CONFIG).cloned());
        if self.exited {
            return;
        }
        let own = item(&items, &node_key(&self.facts.node)).cloned();
        let session = item(&items, &session_key(&self.facts.node)).cloned();
        self.judge(own, session);
    }

    fn hear_witness(&mut self, items: &[(String, Option<KeyValue>)]) {
        let Some((key, revision)) = self.witness() else {
            // No other node was known: nothing can have been forgotten of them.
            if let Some(resumed) = &mut self.resumed {
                resumed.witnessed = true;
            }
            return;
        };
        if item(items, &key).is_some_and(|stands| stands.mod_revision == revision) {
            if let Some(resumed) = &mut self.resumed {
                resumed.witnessed = true;
            }
        } else {
            self.follow_anew();
        }
    }

    /// What the own key says, against what this node remembers that it said.
    fn judge(&mut self, own: Option<KeyValue>, session: Option<KeyValue>) {
        let key = node_key(&self.facts.node);
        let parsed = own.map(|stands| (stands.mod_revision, NodeRecord::parse(&key, &stands.value)));
        (self.foreign, self.unreadable) = (None, false);
        match parsed {
            None => self.not_there(),
            Some((_, Err(garbage))) => {
                self.raise_garbage(&key, &garbage);
                self.unreadable = true;
                return;
            }
            Some((mod_revision, Ok(record))) if record.instance != self.me.instance => {
                self.another(Own { record, mod_revision });
            }
            Some((mod_revision, Ok(record))) => self.ours(Own { record, mod_revision }),
        }
        self.clear(Code::BadRecord, &key);
        if matches!(self.phase, Phase::Starting | Phase::Waiting { .. }) || !self.session_held {
            self.judge_session(session);
        }
    }

    fn not_there(&mut self) {
        self.own = None;
        if self.memory.is_some() && !matches!(self.phase, Phase::Removed | Phase::Superseded) {
            self.note_rewrite(false);
        }
    }

    /// The record is of another instance of this name: older than this one, or its successor.
    fn another(&mut self, stands: Own) {
        self.own = None;
        match &self.memory {
            Some(memory) if stands.record.epoch >= memory.epoch => self.superseded(&stands.record.addresses),
            Some(_) => {
                self.foreign = Some(stands);
                self.note_rewrite(false);
            }
            None => self.foreign = Some(stands),
        }
    }

    fn ours(&mut self, stands: Own) {
        let record = &stands.record;
        if record.state == NodeState::Removed {
            self.removed(stands);
            return;
        }
        let remembered = self.memory.as_ref().map(|memory| (memory.epoch, memory.serial));
        let older = remembered.is_some_and(|known| (record.epoch, record.serial) < known);
        if self.phase == Phase::Member && !older && record.session != self.me.session {
            self.superseded(&record.addresses.clone());
            return;
        }
        if self.phase == Phase::Superseded || self.phase == Phase::Removed {
            // A restored store has forgotten it. This node has not, and leaves the record to people.
            self.own = None;
            return;
        }
        if older {
            self.own = Some(stands);
            self.note_rewrite(false);
        } else {
            let joined = record.session == self.me.session;
            self.own_is(stands);
            if joined && self.phase == Phase::Starting {
                self.member();
            }
        }
    }

    /// The own record stands like this in the store, by its own word.
    pub(super) fn own_stands(&mut self, record: NodeRecord, mod_revision: i64) {
        if record.state == NodeState::Removed {
            self.removed(Own { record, mod_revision });
            return;
        }
        self.clear(Code::StoreFull, "");
        self.reasserted(&record);
        self.own_is(Own { record, mod_revision });
        self.member();
    }

    fn own_is(&mut self, stands: Own) {
        self.contact = Some(Moment::new(&self.facts.stamp, self.asked));
        let before = self.own_blocks();
        let names = self.peers.set_own(&stands.record.blocks);
        self.touched.extend(names);
        self.foreign = None;
        let changed = self.memory.as_ref() != Some(&stands.record);
        self.memory = Some(stands.record.clone());
        self.own = Some(stands);
        if changed {
            self.write_memory();
        }
        let after = self.own_blocks();
        self.returned(&before, &after);
    }

    fn member(&mut self) {
        if matches!(self.phase, Phase::Starting | Phase::Waiting { .. }) {
            self.phase = Phase::Member;
            self.clear(Code::Clone, "");
        }
    }

    /// Who holds the session of this name. One of this very boot is our own, of a process that died.
    fn judge_session(&mut self, session: Option<KeyValue>) {
        let key = session_key(&self.facts.node);
        self.session_revision = session.as_ref().map_or(0, |session| session.mod_revision);
        let parsed = session.and_then(|session| SessionRecord::parse(&key, &session.value).ok());
        let ours = |session: &SessionRecord| {
            session.session == self.me.session
                || (session.stamp == self.facts.stamp && session.instance == self.me.instance)
        };
        match parsed {
            Some(other) if !ours(&other) => self.somebody_else(&other.addresses),
            Some(_) | None => {
                if let Phase::Waiting { .. } = self.phase {
                    self.phase = Phase::Starting;
                    self.clear(Code::Clone, "");
                }
            }
        }
    }

    fn somebody_else(&mut self, addresses: &[IfAddr]) {
        let sentence = format!(
            "another machine runs as node {}{}: this one does not take part",
            self.facts.node,
            place(addresses)
        );
        let way_out = "Give one of them another name; a copied disk needs a new /etc/machine-id, too";
        self.find(Code::Clone, "", sentence.clone(), way_out);
        match self.phase {
            Phase::Starting => {
                let until = self.now.boot + Duration::from_secs(SESSION_TTL.0.into()) + SESSION_SLACK;
                self.phase = Phase::Waiting { until, look_again: self.now.boot + SESSION_SLACK };
            }
            Phase::Waiting { until, .. } if self.now.boot >= until => {
                self.exit(format!("{sentence}. {way_out}"))
            }
            Phase::Waiting { .. } | Phase::Member | Phase::Removed | Phase::Superseded => {}
        }
    }

    /// Another machine joined under this name while this one's session was not alive.
    fn superseded(&mut self, addresses: &[IfAddr]) {
        self.phase = Phase::Superseded;
        let sentence = format!(
            "another machine has joined as node {}{}: this one gives no more addresses",
            self.facts.node,
            place(addresses)
        );
        let way_out =
            "Its pods keep running; drain it, then give it a name of its own, without its old /var/lib/weft";
        self.find(Code::Clone, "", sentence, way_out);
        self.forget_return();
    }

    fn removed(&mut self, stands: Own) {
        self.phase = Phase::Removed;
        self.rewritten = None;
        self.clear(Code::HistoryRewritten, "");
        self.forget_return();
        let names = self.peers.set_own(&[]);
        self.touched.extend(names);
        let sentence = format!(
            "node {} was removed: it gives no more addresses, its pods keep running",
            self.facts.node
        );
        let way_out = "To let it join again: drain it, stop weftd, remove /var/lib/weft and restart the node";
        self.find(Code::Removed, "", sentence, way_out);
        let changed = self.memory.as_ref() != Some(&stands.record);
        self.memory = Some(stands.record.clone());
        self.own = Some(stands);
        if changed {
            self.write_memory();
        }
    }

    /// The watch showed the own record. What this very request writes is no news.
    pub(super) fn own_reported(&mut self, record: &NodeRecord, mod_revision: i64) {
        let known = self.own.as_ref().or(self.foreign.as_ref()).map_or(0, |own| own.mod_revision);
        if mod_revision <= known || self.lane.writing() == Some(record) {
            return;
        }
        self.verify = true;
    }

    pub(super) fn session_answered(&mut self, outcome: &TxnOutcome) {
        match outcome {
            TxnOutcome::Committed { .. } => self.session_held = true,
            TxnOutcome::Conflict { .. } => self.verify = true,
        }
    }
}

fn place(addresses: &[IfAddr]) -> String {
    addresses.first().map(|address| format!(", at {}", address.addr())).unwrap_or_default()
}
