//! What following the store brings: the others' records, the configuration, and signs that all is not as it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Link, Machine, Phase};
use crate::cluster::conf;
use crate::cluster::finding::Code;
use crate::cluster::memory::{Moment, seconds};
use crate::cluster::record::{Network, NodeRecord, node_key};
use crate::cluster::{RECOVERY_PAUSE, VANISHED_AFTER};
use crate::store::{CONFIG, KeyValue, Listing, NODES, Reason, StoreError, WatchEvent, WatchInput};

/// Within which time after a reconnection everything is listed again, each node at another moment.
const RELIST_WITHIN: Duration = Duration::from_secs(10);

/// And longer for each node, so that 5,000 of them do not ask at once: about eight lists a second.
const RELIST_PER_NODE: Duration = Duration::from_millis(120);

impl Machine {
    pub(super) fn reported(&mut self, report: WatchInput) {
        match report {
            WatchInput::Connected { cluster, revision, .. } => self.connected(cluster, revision),
            WatchInput::Snapshot(listing) => self.listed(listing),
            WatchInput::Events { revision, events } => self.happened(revision, events),
            WatchInput::Lost(error) => self.lost(&error),
            WatchInput::Full(reason) => self.is_full(reason),
            WatchInput::HistoryRewritten { header_revision, .. } => {
                self.revision = header_revision;
                self.note_rewrite(false);
            }
            WatchInput::SessionLost { .. } => {
                self.session_held = false;
                self.verify = true;
            }
        }
    }

    fn connected(&mut self, cluster: u64, revision: i64) {
        self.link = Link::Up;
        if self.complete {
            // A store restored and driven past what was seen may have nodes that no event will ever tell of.
            let nodes = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
            let window = RELIST_WITHIN.max(RELIST_PER_NODE.saturating_mul(nodes));
            self.relist_at = Some(self.now.boot + self.lane.jitter(window));
        }
        self.clear(Code::StoreAway, "");
        if !self.refused_write {
            self.clear(Code::StoreRefuses, "");
        }
        self.lane.relax();
        self.verify = true;
        if self.cluster != 0 && self.cluster != cluster {
            self.revision = revision;
            self.note_rewrite(true);
        }
        self.cluster = cluster;
        self.listing_floor = self.revision;
        if let Some(resumed) = &mut self.resumed {
            resumed.catch_up.get_or_insert(revision);
        }
    }

    /// Whether etcd says that it takes no data.
    fn is_full(&mut self, reason: Option<Reason>) {
        match reason {
            Some(reason) => self.find_full(&reason),
            None if self.has_found(Code::StoreFull) => {
                self.clear(Code::StoreFull, "");
                self.lane.relax();
            }
            None => {}
        }
    }

    /// Once found, it is not found again in the words of another request.
    pub(super) fn find_full(&mut self, reason: &str) {
        if !self.has_found(Code::StoreFull) {
            let way_out = "etcdctl compact REVISION; etcdctl defrag --cluster; etcdctl alarm disarm. Then enable etcd's \
                --auto-compaction-retention, or raise --quota-backend-bytes";
            self.find(Code::StoreFull, "", format!("the store takes no more data: {reason}"), way_out);
        }
    }

    fn has_found(&self, code: Code) -> bool {
        self.findings.contains_key(&(code, String::new()))
    }

    pub(super) fn find_refusal(&mut self, reason: &str) {
        let way_out = "Correct the password, the certificate or the permission that it names: new files are used \
            without a restart, and the store is asked again within a minute. Pods start and stop as long as this \
            node has free addresses";
        self.find(Code::StoreRefuses, "", format!("the store refuses this node: {reason}"), way_out);
    }

    fn lost(&mut self, error: &StoreError) {
        let refused = matches!(error, StoreError::Refused { .. });
        self.link = Link::Down { reason: error.to_string(), refused };
        if refused {
            self.clear(Code::StoreAway, "");
            self.find_refusal(&error.to_string());
            return;
        }
        self.clear(Code::StoreRefuses, "");
        self.find(
            Code::StoreAway,
            "",
            format!("the store cannot be reached: {error}"),
            "Pods start and stop as long as this node has free addresses; blocks can be claimed again when it is back",
        );
    }

    fn listed(&mut self, listing: Listing) {
        if listing.revision < self.listing_floor.min(self.revision) && self.rewritten.is_none() {
            // An old answer, or an old store: the own keys, read again, will tell.
            self.verify = true;
            self.follow_anew();
            return;
        }
        self.revision = self.revision.max(listing.revision);
        let mut seen: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut config = None;
        for item in listing.items {
            if item.key == CONFIG {
                config = Some(item);
            } else if let Some(name) = item.key.strip_prefix(NODES) {
                seen.insert(name.into());
                self.node_put(item, true);
            }
        }
        self.config_is(config);
        let gone: Vec<Arc<str>> =
            self.peers.iter().map(|(name, _)| name.clone()).filter(|name| !seen.contains(name)).collect();
        for name in gone {
            self.vanish(&name);
        }
        if !seen.contains(&self.facts.node) && self.own.is_some() {
            self.verify = true;
        }
        self.resumed = None;
        self.completed();
    }

    fn happened(&mut self, revision: i64, events: Vec<WatchEvent>) {
        let news = revision > self.revision;
        for event in events {
            match event {
                WatchEvent::Put(item) if item.key == CONFIG => self.config_is(Some(item)),
                WatchEvent::Put(item) => self.node_put(item, false),
                WatchEvent::Delete { key, .. } if key == CONFIG => self.config_is(None),
                WatchEvent::Delete { key, .. } => self.node_deleted(&key),
                WatchEvent::Progress { revision } => self.revision = self.revision.max(revision),
            }
        }
        self.revision = self.revision.max(revision);
        // Events and listings come one after the other.
        self.listing_floor = self.listing_floor.max(revision);
        let caught_up = |resumed: &super::Resumed| {
            resumed.witnessed && resumed.catch_up.is_some_and(|catch_up| revision >= catch_up)
        };
        if self.resumed.as_ref().is_some_and(caught_up) {
            self.resumed = None;
            self.completed();
        }
        // A sign of life says nothing about what was missed; only what is new proves that the watch goes on.
        if news && self.phase == Phase::Member && !self.verify {
            self.contact = Some(Moment::new(&self.facts.stamp, self.now));
        }
    }

    fn completed(&mut self) {
        self.complete = true;
        self.snapshot_changed();
    }

    /// A node's record. In a listing, what it says about a recovery may be old.
    fn node_put(&mut self, item: KeyValue, listing: bool) {
        let record = match NodeRecord::parse(&item.key, &item.value) {
            Ok(record) => record,
            Err(garbage) => {
                self.raise_garbage(&item.key, &garbage);
                if item.key == node_key(&self.facts.node) {
                    self.verify = true;
                }
                return;
            }
        };
        self.clear(Code::BadRecord, &item.key);
        if record.name == self.facts.node {
            self.own_reported(&record, item.mod_revision);
            return;
        }
        let known = self.peers.get(&record.name).is_some();
        let recent =
            seconds(self.cautious_wall()).saturating_sub(record.recovered_at) < RECOVERY_PAUSE.as_secs();
        let name = record.name.clone();
        let held = |machine: &Self| machine.peers.held(true) + machine.peers.held(false);
        let before = held(self);
        let touched = self.peers.apply(record, item.mod_revision);
        if held(self) < before {
            self.claims.retry();
        }
        if touched.recovering && !listing && self.rewritten.is_none() {
            // It found the store rewritten, and this node did not: it may have missed what happened meanwhile.
            if self.pause_left().is_none() {
                self.relist_at = Some(self.now.boot + self.lane.jitter(RELIST_WITHIN));
            }
        }
        if touched.recovering || (!known && listing && recent) {
            self.claims.pause(self.now.boot + RECOVERY_PAUSE);
        }
        if touched.regressed {
            self.note_rewrite(!listing);
        }
        self.touched.extend(touched.names);
        self.unvanish(&name);
        self.snapshot_changed();
    }

    fn node_deleted(&mut self, key: &str) {
        let Some(name) = key.strip_prefix(NODES) else { return };
        self.clear(Code::BadRecord, key);
        if *name == *self.facts.node {
            self.verify = true;
        } else {
            self.vanish(name);
        }
    }

    /// Its key is gone, and there was no tombstone: somebody deleted it by hand, or the store forgot it.
    fn vanish(&mut self, name: &str) {
        if !self.peers.vanish(name) {
            return;
        }
        let name: Arc<str> = name.into();
        let at = self.rewritten.is_none().then_some(self.now.boot + VANISHED_AFTER);
        self.vanished.insert(name.clone(), at);
        self.vanishing.extend(at.map(|at| (at, name.clone())));
        let (when, way_out) = match at {
            Some(_) => ("in ten minutes", "Next time use `weftd node rm`".to_owned()),
            None => ("when a person says so", "See `weftd repair --accept`".to_owned()),
        };
        let sentence = format!("the record of {name} is gone without `weftd node rm`; its routes go {when}");
        self.find(Code::Vanished, &name, sentence, way_out);
        self.snapshot_changed();
    }

    fn unvanish(&mut self, name: &Arc<str>) {
        if let Some(at) = self.vanished.remove(name) {
            if let Some(at) = at {
                self.vanishing.remove(&(at, name.clone()));
            }
            self.clear(Code::Vanished, name);
        }
    }

    /// A vanished peer's time is over.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.unvanish(name);
        let names = self.peers.forget(name);
        self.touched.extend(names);
        self.snapshot_changed();
    }

    /// What stands under `config`.
    pub(super) fn config_is(&mut self, config: Option<KeyValue>) {
        let Some(item) = config else {
            self.network_revision = 0;
            self.no_config();
            return;
        };
        if item.mod_revision == self.network_revision && self.network.is_some() {
            return;
        }
        self.network_revision = item.mod_revision;
        match Network::parse(&item.value) {
            Ok(network) => self.obey(network),
            Err(garbage) => {
                self.network_revision = 0;
                self.find(Code::BadConfig, "", garbage.to_string(), garbage.way_out());
            }
        }
    }

    fn no_config(&mut self) {
        if self.facts.init && self.phase == Phase::Starting {
            return;
        }
        let sentence = match self.network {
            Some(_) => {
                "the configuration of the cluster is gone from the store; this node keeps the one it knows"
            }
            None => "the store has no configuration of a cluster",
        };
        let way_out = "Create it with `weftd config init`, or start one node with `weftd run --init`";
        self.find(Code::NoConfig, "", sentence, way_out);
    }

    fn obey(&mut self, network: Network) {
        self.clear(Code::NoConfig, "");
        self.clear(Code::BadConfig, "");
        let differences = self.facts.asked.as_ref().map(|asked| conf::differences(asked, &network));
        let words: Vec<String> = differences.iter().flatten().map(ToString::to_string).collect();
        if words.is_empty() {
            self.clear(Code::ConfigDiffers, "");
        } else {
            let sentence = format!("this node's file does not agree with the cluster: {}", words.join("; "));
            let way_out = "Change the file, or take [network] out of it to obey; `weftd config set` changes the cluster";
            if self.phase == Phase::Starting {
                self.exit(format!("{sentence}. {way_out}"));
                return;
            }
            self.find(Code::ConfigDiffers, "", sentence, way_out);
        }
        let network = Arc::new(network);
        self.peers.set_network(network.clone());
        self.network = Some(network);
        self.all_touched = true;
        self.claims.retry();
        self.snapshot_changed();
    }
}
