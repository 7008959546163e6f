//! A store in memory, for the simulator and for tests: synchronous, deterministic, no clock (time is an argument),
//! with the semantics that `daemon/tests/store_contract.rs` holds a real etcd to, and with faults to order.

mod clients;
mod data;

use std::collections::BTreeMap;
use std::time::Duration;

pub use clients::{Client, Faults, TxnFault};
pub use data::Backup;
use data::Data;

use super::check::check_op;
use super::position::{Position, Start};
use super::{Listing, Op, Reply, Resume, Session, StoreError, Txn, TxnOutcome, WatchInput, Write};
use clients::{Following, Held, Watch};

/// The store and all that speak with it.
#[derive(Clone, Debug)]
pub struct Model {
    data: Data,
    clients: BTreeMap<Client, clients::State>,
}

impl Model {
    /// An empty store. `cluster` is its identity, which no restore from a backup changes.
    pub fn new(cluster: u64) -> Self {
        Self { data: Data::new(cluster), clients: BTreeMap::new() }
    }

    /// Somebody who speaks with the store over a connection of their own.
    pub fn client(&mut self) -> Client {
        let client = Client(self.clients.len());
        self.clients.insert(client, clients::State::default());
        client
    }

    /// What is wrong between this client and the store, to be changed at will.
    pub fn faults(&mut self, client: Client) -> &mut Faults {
        &mut self.clients.entry(client).or_default().faults
    }

    /// The client's process ends: nobody renews its session any more, nobody follows.
    pub fn crash(&mut self, client: Client) {
        let state = self.clients.entry(client).or_default();
        *state = clients::State { faults: state.faults.clone(), ..clients::State::default() };
    }

    /// Does one operation, as [`super::Store::call`].
    pub fn call(&mut self, client: Client, op: Op, now: Duration) -> Result<Reply, StoreError> {
        check_op(&op)?;
        if self.faults(client).partitioned || self.is_rewritten_for(client) {
            return Err(unavailable());
        }
        let reply = self.answer(client, op, now)?;
        if let Some(revision) = revision_of(&reply) {
            let state = self.clients.entry(client).or_default();
            state.seen = state.seen.max(revision);
        }
        Ok(reply)
    }

    /// Begins to follow, as [`super::Store::follow`]; [`Model::poll`] gives what it reports.
    pub fn follow(&mut self, client: Client, resume: Option<Resume>) {
        let following = Following { position: Position::new(resume), watch: None };
        self.clients.entry(client).or_default().following = Some(following);
    }

    /// What the follower reports now, and the loss of the session.
    pub fn poll(&mut self, client: Client) -> Vec<WatchInput> {
        let Some(state) = self.clients.get_mut(&client) else { return Vec::new() };
        let mut inputs: Vec<_> = state.lost_session.take().into_iter().collect();
        let Some(following) = &mut state.following else { return inputs };
        if state.faults.partitioned {
            following.watch = None;
            inputs.extend(following.position.failed(unavailable()));
        } else if !state.faults.silent_watch {
            report(&self.data, following, &mut state.seen, &mut inputs);
        }
        inputs
    }

    /// Breaks the connection of a follower, as its idle limit does; it makes a new one at the next [`Model::poll`].
    pub fn break_watch(&mut self, client: Client) {
        if let Some(following) = &mut self.clients.entry(client).or_default().following {
            following.watch = None;
        }
    }

    /// Time has passed: sessions of clients that reach the store are renewed, others end; leases end.
    pub fn tick(&mut self, now: Duration) {
        for state in self.clients.values_mut() {
            state.renew(&mut self.data, now);
        }
        self.data.expire(now);
    }

    /// When [`Model::tick`] has something to do next.
    pub fn next_timeout(&self) -> Option<Duration> {
        let sessions = self.clients.values().filter_map(|state| state.session.as_ref());
        sessions.map(Held::next).chain(self.data.next_expiry()).min()
    }

    /// The store's revision.
    pub fn revision(&self) -> i64 {
        self.data.revision
    }

    /// The store's identity.
    pub fn cluster(&self) -> u64 {
        self.data.cluster
    }

    /// All that is there, without any client: for a test to look at.
    pub fn list(&self, prefix: &str) -> Listing {
        self.data.list(prefix)
    }

    /// Writes without any client, as an operator does with `etcdctl`. Returns the revision.
    pub fn write(&mut self, writes: Vec<Write>, now: Duration) -> i64 {
        self.data.apply(&writes, now);
        self.data.revision
    }

    /// Ends all leases, as if nobody had renewed them: their keys vanish.
    pub fn end_leases(&mut self) {
        self.data.expire(Duration::MAX);
    }

    /// Forgets all history up to this revision.
    pub fn compact(&mut self, revision: i64) {
        for following in self.clients.values_mut().filter_map(|state| state.following.as_mut()) {
            // What was sent before is on its way, whatever the store forgets now.
            let _noticed_when_it_reports = following.send(&self.data);
        }
        self.data.compact(revision);
    }

    /// Whether the store takes no more data.
    pub fn set_no_space(&mut self, no_space: bool) {
        self.data.no_space = no_space;
    }

    /// A backup of the store.
    pub fn backup(&self) -> Backup {
        self.data.backup()
    }

    /// Puts an old backup in the store's place: the revision falls, all connections break, the identity stays.
    pub fn restore(&mut self, backup: &Backup) {
        self.data = backup.restore(&self.data);
        for state in self.clients.values_mut() {
            if let Some(following) = &mut state.following {
                following.watch = None;
            }
        }
    }

    /// Somebody else writes (to `use/filler`) until the store is at this revision: hides a restore.
    pub fn drive_to(&mut self, revision: i64, now: Duration) {
        while self.data.revision < revision {
            let filler = Write::Put { key: "use/filler".to_owned(), value: Vec::new(), lease: None };
            self.data.apply(&[filler], now);
        }
    }

    fn answer(&mut self, client: Client, op: Op, now: Duration) -> Result<Reply, StoreError> {
        match op {
            Op::Read(keys) => {
                let (revision, items) = self.seen_by(client)?.read(keys);
                Ok(Reply::Read { revision, items })
            }
            Op::List { prefix } => Ok(Reply::Listing(self.seen_by(client)?.list(&prefix))),
            Op::Txn(txn) => self.txn(client, &txn, now).map(Reply::Txn),
            Op::KeepSession(session) => self.keep_session(client, session, now).map(Reply::Txn),
            Op::EndSession => {
                if let Some(held) = self.clients.entry(client).or_default().session.take() {
                    self.data.revoke(held.lease);
                }
                Ok(Reply::Done)
            }
            Op::Relist => {
                if let Some(following) = &mut self.clients.entry(client).or_default().following {
                    following.position.relist();
                }
                Ok(Reply::Done)
            }
        }
    }

    /// Nothing is asked of a restored store before the follower has reported it.
    fn is_rewritten_for(&self, client: Client) -> bool {
        let Some(state) = self.clients.get(&client) else { return false };
        let (cluster, revision) = (self.data.cluster, self.data.revision);
        let following = state.following.as_ref();
        following.is_some_and(|following| {
            revision < state.seen || following.position.is_rewritten(cluster, revision)
        })
    }

    fn seen_by(&self, client: Client) -> Result<std::borrow::Cow<'_, Data>, StoreError> {
        match self.clients.get(&client).and_then(|state| state.faults.stale_at) {
            None => Ok(std::borrow::Cow::Borrowed(&self.data)),
            Some(revision) => self.data.at(revision).map(std::borrow::Cow::Owned),
        }
    }

    fn txn(&mut self, client: Client, txn: &Txn, now: Duration) -> Result<TxnOutcome, StoreError> {
        match self.faults(client).next_txn.take() {
            None => self.data.txn(txn, now),
            Some(TxnFault::NotSent) => Err(unavailable()),
            Some(TxnFault::Refused) => Err(StoreError::Refused { reason: "no permission".to_owned() }),
            Some(TxnFault::Lost) => Err(unknown_outcome()),
            Some(TxnFault::AnswerLost) => self.data.txn(txn, now).and_then(|_| Err(unknown_outcome())),
        }
    }

    fn keep_session(
        &mut self,
        client: Client,
        wanted: Session,
        now: Duration,
    ) -> Result<TxnOutcome, StoreError> {
        let Session { key, value, ttl, compares } = wanted;
        let put = Write::Put { key: key.clone(), value, lease: Some(ttl) };
        let txn = Txn { compares, writes: vec![put], on_conflict_read: vec![key.clone()] };
        let outcome = self.txn(client, &txn, now)?;
        if matches!(outcome, TxnOutcome::Committed { .. }) {
            let lease = self.data.lease_of(&key);
            let former =
                self.clients.entry(client).or_default().session.replace(Held::new(key, lease, ttl, now));
            if let Some(former) = former {
                self.data.revoke(former.lease);
            }
        }
        Ok(outcome)
    }
}

fn report(data: &Data, following: &mut Following, seen: &mut i64, inputs: &mut Vec<WatchInput>) {
    if following.watch.is_none() {
        following.watch = Some(Watch::default());
        following.position.saw(data.cluster, *seen);
        if following.position.is_rewritten(data.cluster, data.revision) {
            *seen = data.revision;
        }
        let connected = following.position.connected("model".to_owned(), data.cluster, data.revision);
        inputs.extend(connected);
    }
    if !following.send(data) {
        following.position.relist();
    }
    if following.position.start() == Start::List {
        inputs.push(following.list(data));
    } else {
        inputs.extend(following.receive());
    }
}

fn revision_of(reply: &Reply) -> Option<i64> {
    match reply {
        Reply::Read { revision, .. }
        | Reply::Txn(TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. }) => {
            Some(*revision)
        }
        Reply::Listing(listing) => Some(listing.revision),
        Reply::Done => None,
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { reason: "model: the store is out of reach".to_owned() }
}

fn unknown_outcome() -> StoreError {
    StoreError::UnknownOutcome { reason: "model: the answer was lost".to_owned() }
}

#[cfg(test)]
mod tests;
