//! The model's keys, leases and history.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::{Expect, KeyValue, Listing, StoreError, Txn, TxnOutcome, WatchEvent, Write, is_followed};

#[derive(Clone, Debug)]
pub(super) struct Data {
    pub cluster: u64,
    pub revision: i64,
    pub no_space: bool,
    keys: BTreeMap<String, KeyValue>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    /// The keys as they were at `compacted`, from which history goes on.
    base: BTreeMap<String, KeyValue>,
    compacted: i64,
    history: Vec<WatchEvent>,
}

#[derive(Clone, Debug)]
struct Lease {
    life: Duration,
    ends: Duration,
}

/// A store as it was.
#[derive(Clone, Debug)]
pub struct Backup(Data);

impl Backup {
    /// What stands in the place of `now`.
    pub(super) fn restore(&self, now: &Data) -> Data {
        // With its history, as etcd: a watch from a revision that the store reaches again later sees nothing wrong.
        // No lease has the identity of one that was granted and is forgotten.
        Data { next_lease: now.next_lease, ..self.0.clone() }
    }
}

impl Data {
    pub fn new(cluster: u64) -> Self {
        let (keys, base, leases) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        // etcd begins with revision 1.
        let (revision, compacted) = (1, 0);
        Self {
            cluster,
            revision,
            no_space: false,
            keys,
            leases,
            next_lease: 1,
            base,
            compacted,
            history: Vec::new(),
        }
    }

    pub fn backup(&self) -> Backup {
        Backup(self.clone())
    }

    pub fn read(&self, keys: Vec<String>) -> (i64, Vec<(String, Option<KeyValue>)>) {
        let items = keys.into_iter().map(|key| {
            let current = self.keys.get(&key).cloned();
            (key, current)
        });
        (self.revision, items.collect())
    }

    pub fn list(&self, prefix: &str) -> Listing {
        let from_there = self.keys.range(prefix.to_owned()..);
        let items = from_there.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, kv)| kv.clone());
        Listing { revision: self.revision, items: items.collect() }
    }

    pub fn list_followed(&self) -> Listing {
        let items = self.keys.values().filter(|kv| is_followed(&kv.key)).cloned().collect();
        Listing { revision: self.revision, items }
    }

    pub fn txn(&mut self, txn: &Txn, now: Duration) -> Result<TxnOutcome, StoreError> {
        let holds = txn.compares.iter().all(|compare| {
            let current = self.keys.get(&compare.key);
            match compare.expect {
                Expect::Absent => current.is_none(),
                Expect::Exists => current.is_some(),
                Expect::ModRevision(revision) => current.is_some_and(|kv| kv.mod_revision == revision),
            }
        });
        // etcd checks the alarm before the compares.
        if self.no_space && txn.writes.iter().any(|write| matches!(write, Write::Put { .. })) {
            return Err(StoreError::NoSpace { reason: "model: the store takes no more data".to_owned() });
        }
        if !holds {
            let (revision, current) = self.read(txn.on_conflict_read.clone());
            return Ok(TxnOutcome::Conflict { revision, current });
        }
        self.apply(&txn.writes, now);
        Ok(TxnOutcome::Committed { revision: self.revision })
    }

    /// Does the writes at one new revision, or at none if they change nothing.
    pub fn apply(&mut self, writes: &[Write], now: Duration) {
        let revision = self.revision + 1;
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    let lease = lease.map_or(0, |ttl| self.grant(Duration::from_secs(ttl.0.into()), now));
                    self.put(key, value, lease, revision);
                }
                Write::Delete { key } => self.delete(key, revision),
            }
        }
    }

    fn put(&mut self, key: &str, value: &[u8], lease: i64, revision: i64) {
        let create_revision = self.keys.get(key).map_or(revision, |before| before.create_revision);
        let (key, value) = (key.to_owned(), value.to_owned());
        let kv = KeyValue { key, value, mod_revision: revision, create_revision, lease };
        self.keys.insert(kv.key.clone(), kv.clone());
        self.history.push(WatchEvent::Put(kv));
        self.revision = revision;
    }

    fn delete(&mut self, key: &str, revision: i64) {
        if self.keys.remove(key).is_some() {
            self.history.push(WatchEvent::Delete { key: key.to_owned(), revision });
            self.revision = revision;
        }
    }

    fn grant(&mut self, life: Duration, now: Duration) -> i64 {
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(id, Lease { life, ends: now + life });
        id
    }

    pub fn lease_of(&self, key: &str) -> i64 {
        self.keys.get(key).map_or(0, |kv| kv.lease)
    }

    /// False when there is no such lease.
    pub fn renew(&mut self, id: i64, now: Duration) -> bool {
        let lease = self.leases.get_mut(&id);
        lease.map(|lease| lease.ends = now + lease.life).is_some()
    }

    /// Ends a lease; its keys vanish at one revision.
    pub fn revoke(&mut self, id: i64) {
        self.leases.remove(&id);
        let revision = self.revision + 1;
        let bound: Vec<_> = self.keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        for key in bound {
            self.delete(&key, revision);
        }
    }

    pub fn expire(&mut self, now: Duration) {
        let ended: Vec<_> =
            self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(&id, _)| id).collect();
        for id in ended {
            self.revoke(id);
        }
    }

    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    /// What happened from this revision on to keys that are followed: a watch hears of no others.
    pub fn events_from(&self, from: i64) -> Result<Vec<WatchEvent>, StoreError> {
        if from < self.compacted {
            return Err(StoreError::Compacted { oldest: self.compacted });
        }
        let first = self.history.partition_point(|event| revision_of(event) < from);
        Ok(self.history.iter().skip(first).filter(|event| is_of_a_followed_key(event)).cloned().collect())
    }

    pub fn compact(&mut self, revision: i64) {
        let revision = revision.clamp(self.compacted, self.revision);
        self.base = self.keys_at(revision);
        // Of the last revision itself etcd keeps what still stands.
        self.history.retain(|event| match event {
            WatchEvent::Put(kv) => kv.mod_revision >= revision,
            WatchEvent::Delete { revision: at, .. } | WatchEvent::Progress { revision: at } => *at > revision,
        });
        self.compacted = revision;
    }

    /// The store as it was at this revision.
    pub fn at(&self, revision: i64) -> Result<Self, StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { oldest: self.compacted });
        }
        let revision = revision.min(self.revision);
        Ok(Self { keys: self.keys_at(revision), revision, ..self.clone() })
    }

    fn keys_at(&self, revision: i64) -> BTreeMap<String, KeyValue> {
        let mut keys = self.base.clone();
        for event in self.history.iter().take_while(|event| revision_of(event) <= revision) {
            match event {
                WatchEvent::Put(kv) => keys.insert(kv.key.clone(), kv.clone()),
                WatchEvent::Delete { key, .. } => keys.remove(key),
                WatchEvent::Progress { .. } => None,
            };
        }
        keys
    }
}

fn revision_of(event: &WatchEvent) -> i64 {
    match event {
        WatchEvent::Put(kv) => kv.mod_revision,
        WatchEvent::Delete { revision, .. } | WatchEvent::Progress { revision } => *revision,
    }
}

fn is_of_a_followed_key(event: &WatchEvent) -> bool {
    match event {
        WatchEvent::Put(kv) => is_followed(&kv.key),
        WatchEvent::Delete { key, .. } => is_followed(key),
        WatchEvent::Progress { .. } => false,
    }
}
