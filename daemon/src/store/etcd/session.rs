//! The session: a key under a lease that is renewed until it is ended, or lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::failure::Kind;
use super::pool::Pool;
use super::{Notice, Notices};
use crate::store::{Session, StoreError, Ttl, Txn, TxnOutcome, WatchInput, Write};

/// The session that is kept, if any.
pub struct Sessions {
    pool: Arc<Pool>,
    notices: Arc<Notices>,
    held: Mutex<Option<Held>>,
}

struct Held {
    lease: i64,
    keeper: JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Sessions {
    /// None is kept yet.
    pub fn new(pool: Arc<Pool>, notices: Arc<Notices>) -> Self {
        Self { pool, notices, held: Mutex::new(None) }
    }

    /// [`crate::store::Op::KeepSession`].
    pub async fn keep(&self, session: Session) -> Result<TxnOutcome, StoreError> {
        let Session { key, value, ttl, compares } = session;
        let mut held = self.held.lock().await;
        let granted = Instant::now();
        let lease = self.pool.grant(ttl).await?;
        let put = Write::Put { key: key.clone(), value, lease: Some(ttl) };
        let txn = Txn { compares, writes: vec![put], on_conflict_read: vec![key.clone()] };
        let outcome = self.pool.txn_leased(&txn, &[lease]).await;
        if !matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
            return self.give_up(lease, outcome).await;
        }
        let keeper = tokio::spawn(keep(self.pool.clone(), self.notices.clone(), key, lease, ttl, granted));
        if let Some(former) = held.replace(Held { lease, keeper }) {
            // Its key is under the new lease now, unless it is another key, which ends with its lease at the latest.
            let _ends_later = self.pool.revoke(former.lease).await;
        }
        outcome
    }

    /// [`crate::store::Op::EndSession`].
    pub async fn end(&self) -> Result<(), StoreError> {
        let Some(held) = self.held.lock().await.take() else { return Ok(()) };
        held.keeper.abort();
        self.pool.revoke(held.lease).await
    }

    /// Without its lease, a key that may have been written is gone: the outcome is then known.
    async fn give_up(
        &self,
        lease: i64,
        outcome: Result<TxnOutcome, StoreError>,
    ) -> Result<TxnOutcome, StoreError> {
        let revoked = self.pool.revoke(lease).await;
        match outcome {
            Err(StoreError::UnknownOutcome { reason }) if revoked.is_ok() => {
                Err(StoreError::Unavailable { reason })
            }
            other => other,
        }
    }
}

async fn keep(pool: Arc<Pool>, notices: Arc<Notices>, key: String, lease: i64, ttl: Ttl, granted: Instant) {
    let reason = renew_until_lost(&pool, lease, Duration::from_secs(ttl.0.into()), granted).await;
    notices.add(Notice::Tell(WatchInput::SessionLost { key, reason }));
}

/// Returns when the lease has ended, or may have by now: when no renewal was answered that was sent within its life;
/// and when the store refuses to renew it.
async fn renew_until_lost(pool: &Pool, lease: i64, life: Duration, granted: Instant) -> StoreError {
    let mut lost_at = granted + life;
    let mut next = granted + life / 3;
    let mut last = None;
    loop {
        sleep_until(next.min(lost_at)).await;
        let sent = Instant::now();
        if sent >= lost_at {
            return lost(life, last);
        }
        match timeout_at(lost_at, pool.renew(lease)).await {
            Ok(Ok(())) => (lost_at, next) = (sent + life, sent + life / 3),
            Ok(Err(failed)) => {
                let ended = failed.kind() == Some(Kind::NoLease);
                let error = StoreError::from(failed);
                // Whoever is refused needs a person, who is to be told now.
                if ended || matches!(error, StoreError::Refused { .. }) {
                    return error;
                }
                last = Some(error);
                next = Instant::now() + (life / 10).min(Duration::from_secs(1));
            }
            Err(_elapsed) => return lost(life, last),
        }
    }
}

fn lost(life: Duration, last: Option<StoreError>) -> StoreError {
    let detail = last.map(|error| format!(" ({error})")).unwrap_or_default();
    let reason = format!("the session was not renewed for {} s and may have ended{detail}", life.as_secs());
    StoreError::Unavailable { reason }
}
