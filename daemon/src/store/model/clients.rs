//! Those who speak with the model: their faults, sessions and watches.

use std::time::Duration;

use super::data::Data;
use super::unavailable;
use crate::store::position::{Position, Start};
use crate::store::{StoreError, Ttl, WatchEvent, WatchInput};

/// Somebody who speaks with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(pub usize);

/// What is wrong between one client and the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Nothing passes: calls are unavailable, the session is not renewed, the follower is lost.
    pub partitioned: bool,
    /// What happens to the next transaction; then it is over.
    pub next_txn: Option<TxnFault>,
    /// Reads and lists answer as of this revision.
    pub stale_at: Option<i64>,
    /// The follower is told nothing, not even that it is not.
    pub silent_watch: bool,
}

/// What happens to one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnFault {
    /// It never leaves, and the client knows: unavailable.
    NotSent,
    /// The store refuses it: the user may read and not write.
    Refused,
    /// It never arrives, and the client does not know: unknown outcome.
    Lost,
    /// It is decided on and perhaps applied, and the answer is lost: unknown outcome.
    AnswerLost,
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub faults: Faults,
    pub session: Option<Held>,
    pub lost_session: Option<WatchInput>,
    pub following: Option<Following>,
    /// The highest revision that an answer was of: the follower is told before it connects.
    pub seen: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Following {
    pub position: Position,
    /// The connection, if one stands.
    pub watch: Option<Watch>,
}

/// What the store sends on one connection: each event once, when it happens, however long the follower takes to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// The first revision that was not sent yet; `None`: it did not begin.
    next: Option<i64>,
    sent: Vec<WatchEvent>,
}

impl Following {
    /// The store sends what happened up to now. False: it no longer has all of that.
    pub fn send(&mut self, data: &Data) -> bool {
        let (Some(watch), Start::Watch { from }) = (&mut self.watch, self.position.start()) else {
            return true;
        };
        let Ok(events) = data.events_from(watch.next.unwrap_or(from)) else { return false };
        watch.sent.extend(events);
        watch.next = Some(data.revision + 1);
        true
    }

    /// What arrived.
    pub fn receive(&mut self) -> Option<WatchInput> {
        let sent = std::mem::take(&mut self.watch.as_mut()?.sent);
        self.position.events(sent)
    }

    /// Everything is listed, and the watch goes on from there.
    pub fn list(&mut self, data: &Data) -> WatchInput {
        self.watch = Some(Watch { next: Some(data.revision + 1), sent: Vec::new() });
        self.position.listed(data.list_followed())
    }
}

/// A session, as its holder knows it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    key: String,
    pub lease: i64,
    life: Duration,
    renew_at: Duration,
    lost_at: Duration,
}

impl Held {
    pub fn new(key: String, lease: i64, ttl: Ttl, now: Duration) -> Self {
        let life = Duration::from_secs(ttl.0.into());
        Self { key, lease, life, renew_at: now + life / 3, lost_at: now + life }
    }

    pub fn next(&self) -> Duration {
        self.renew_at.min(self.lost_at)
    }
}

impl State {
    pub fn renew(&mut self, data: &mut Data, now: Duration) {
        let Some(held) = &mut self.session else { return };
        if now < held.next() {
            return;
        }
        let gone = !self.faults.partitioned && !data.renew(held.lease, now);
        if gone || (self.faults.partitioned && held.lost_at <= now) {
            let reason = if gone { lease_gone() } else { unavailable() };
            self.lost_session = Some(WatchInput::SessionLost { key: held.key.clone(), reason });
            self.session = None;
            return;
        }
        held.renew_at = now + held.life / 3;
        if !self.faults.partitioned {
            held.lost_at = now + held.life;
        }
    }
}

fn lease_gone() -> StoreError {
    StoreError::Unavailable { reason: "model: the store no longer has the session's lease".to_owned() }
}
