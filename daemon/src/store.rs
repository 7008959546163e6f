//! The cluster store: list, watch, compare-and-write, sessions. Decides nothing about the cluster.
//!
//! The state machine never awaits: it emits [`StoreRequest`]s and is handed [`StoreReply`]s and, from
//! [`Store::follow`], a stream of [`WatchInput`]s. Keys are without the store's prefix, as `n/a`.

mod check;
mod error;
pub mod etcd;
pub mod file;
mod key;
pub mod model;
mod position;

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

pub use error::{Reason, StoreError};
pub use key::{CONFIG, FOLLOWED_END, InvalidKey, NODES, Prefix, check_key, is_followed};

/// Life of a leased key, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(pub u32);

/// One key as it was at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Without the store's prefix: `config`, `n/a`, `b/10.1.2.0-26`, `alive/a`.
    pub key: String,
    /// The value as it was written.
    pub value: Vec<u8>,
    /// The revision of the last write.
    pub mod_revision: i64,
    /// The revision of the first write since the key was last absent.
    pub create_revision: i64,
    /// The lease that the key goes with, or 0.
    pub lease: i64,
}

/// Writes that happen together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Each key at most once.
    pub writes: Vec<Write>,
    /// Read back, at one revision, when a compare does not hold.
    pub on_conflict_read: Vec<String>,
}

/// What a key must be like for a transaction to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key that is looked at.
    pub key: String,
    /// What it must be like.
    pub expect: Expect,
}

/// See [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last written at this revision.
    ModRevision(i64),
    /// There is such a key.
    Exists,
}

/// One write of a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The key vanishes after this time: a lease of its own, which nobody renews. See [`Op::KeepSession`] for one that is.
        lease: Option<Ttl>,
    },
    /// Removes a key; no failure when it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What became of a [`Txn`] that the store decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All writes were done.
    Committed {
        /// Their revision: the new `mod_revision` of each key put.
        revision: i64,
    },
    /// A compare did not hold; nothing was written.
    Conflict {
        /// The revision of what was read back.
        revision: i64,
        /// The keys of [`Txn::on_conflict_read`], in their order.
        current: Vec<(String, Option<KeyValue>)>,
    },
}

/// Keys at one revision, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The revision that all items were read at.
    pub revision: i64,
    /// The keys.
    pub items: Vec<KeyValue>,
}

/// One thing that happened to a followed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Created or replaced.
    Put(KeyValue),
    /// Deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: i64,
    },
    /// Nothing happened up to this revision: proof of life.
    Progress {
        /// The store's revision.
        revision: i64,
    },
}

/// What [`Store::follow`] reports about `config` and `n/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchInput {
    /// A connection stands, and its store is at this revision. Comes before anything else of that connection: the
    /// moment to read back one's own record, as a store restored and driven past the old revision shows only there.
    Connected {
        /// Where.
        endpoint: String,
        /// The store's own identity; another one is another store.
        cluster: u64,
        /// The revision by a linearizable read.
        revision: i64,
    },
    /// Everything, at one revision. Replaces what was known.
    Snapshot(Listing),
    /// In the order they happened; an event is never reported twice by one `follow`.
    Events {
        /// The last revision among them: where to [`Resume`].
        revision: i64,
        /// At least one.
        events: Vec<WatchEvent>,
    },
    /// No connection at the moment; what was reported stays the last that is known. Said once an outage, not once an
    /// attempt; and again when the store refuses this node instead of being away, or the other way round.
    Lost(StoreError),
    /// Whether the store takes data, by its own word: the reason when it does not. Said now and then.
    Full(Option<Reason>),
    /// The store is at a lower revision than this node has seen, or is another store: restored from a backup.
    /// A [`WatchInput::Snapshot`] of the rewritten store follows.
    HistoryRewritten {
        /// The revision that the store now has.
        header_revision: i64,
        /// The highest that was seen before.
        last_seen: i64,
    },
    /// The session's lease ended, or could not be renewed for its whole life by this node's monotonic clock. Ask for another.
    SessionLost {
        /// The session's key.
        key: String,
        /// Why.
        reason: StoreError,
    },
}

/// One request to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Keys at one revision. Answer: [`Reply::Read`].
    Read(Vec<String>),
    /// All keys that begin with this, at one revision. Answer: [`Reply::Listing`].
    List {
        /// As `b/`; may be empty.
        prefix: String,
    },
    /// Answer: [`Reply::Txn`]. Sent at most once.
    Txn(Txn),
    /// Puts a key under a lease that the store keeps renewing, until [`Op::EndSession`] or until it is lost
    /// ([`WatchInput::SessionLost`]). One at a time: another one replaces the former. Answer: [`Reply::Txn`].
    KeepSession(Session),
    /// Ends the session and deletes its key. Answer: [`Reply::Done`], also when there is none.
    EndSession,
    /// The follower forgets how far it has come: the next of its reports is a [`WatchInput::Snapshot`]. For one who found
    /// a rewritten store that the revision did not show. Answer: [`Reply::Done`], before the snapshot.
    Relist,
}

/// See [`Op::KeepSession`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// As `alive/a`.
    pub key: String,
    /// What is to stand there.
    pub value: Vec<u8>,
    /// Renewed each third of it.
    pub ttl: Ttl,
    /// All must hold; [`Session::key`] is read back when one does not.
    pub compares: Vec<Compare>,
}

/// The answer to an [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Op::Read`], in the order asked.
    Read {
        /// The revision of all of them.
        revision: i64,
        /// Each key and what is there.
        items: Vec<(String, Option<KeyValue>)>,
    },
    /// To [`Op::List`].
    Listing(Listing),
    /// To [`Op::Txn`] and [`Op::KeepSession`].
    Txn(TxnOutcome),
    /// To [`Op::EndSession`] and [`Op::Relist`].
    Done,
}

/// A request of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRequest {
    /// Chosen by the asker; comes back with the answer.
    pub id: u64,
    /// What is asked.
    pub op: Op,
}

/// The answer to a [`StoreRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreReply {
    /// The request's.
    pub id: u64,
    /// What came of it.
    pub result: Result<Reply, StoreError>,
}

/// Where a snapshot of an earlier run ended, so that only what came after it is fetched: the `revision` of the last
/// [`WatchInput::Snapshot`] or [`WatchInput::Events`]. Events of that revision itself may be reported once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The snapshot's revision.
    pub revision: i64,
    /// The identity of the store it came from.
    pub cluster: u64,
}

/// A future that may move between threads.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store. Every call has a deadline; none is retried once it may have been applied.
pub trait Store: Send + Sync {
    /// Does one operation.
    fn call(&self, op: Op) -> Pending<'_, Result<Reply, StoreError>>;

    /// Follows `config` and `n/`: reports until the receiver is gone. With `resume`, events after it come without a
    /// snapshot, as far as the store still has them.
    fn follow(&self, resume: Option<Resume>, events: mpsc::Sender<WatchInput>) -> Pending<'_, ()>;

    /// Whether a password or certificate was changed since this was last asked: one who was refused may try again.
    fn has_new_login(&self) -> bool {
        false
    }
}
