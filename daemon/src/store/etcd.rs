//! The store in an etcd cluster: one client per endpoint with failover of our own, every call with a deadline, and
//! nothing sent twice that may have been applied.

mod alarms;
mod calls;
mod conf;
mod connection;
mod failure;
mod follow;
mod pool;
mod rota;
mod session;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

pub use conf::{Conf, Credentials, Endpoint, InvalidConf, PasswordFile, Timing, TlsFiles};

use super::check::check_op;
use super::{Op, Pending, Reply, Resume, Store, StoreError, WatchInput};
use pool::Pool;
use session::Sessions;

/// The store in an etcd cluster. Calls must be made from within a tokio runtime that has time and IO.
pub struct Etcd {
    pool: Arc<Pool>,
    sessions: Sessions,
    notices: Arc<Notices>,
}

/// What a follower is to be told that does not come from the watch.
#[derive(Default)]
struct Notices {
    waiting: Mutex<Vec<Notice>>,
    arrived: Notify,
}

enum Notice {
    Relist,
    Tell(WatchInput),
}

impl Etcd {
    /// Connects to nothing yet: the first call does, and tells what is wrong with `conf`'s files or endpoints.
    pub fn new(conf: Conf) -> Self {
        let pool = Arc::new(Pool::new(conf));
        let notices = Arc::new(Notices::default());
        Self { sessions: Sessions::new(pool.clone(), notices.clone()), pool, notices }
    }

    async fn perform(&self, op: Op) -> Result<Reply, StoreError> {
        check_op(&op)?;
        match op {
            Op::Read(keys) => self.pool.read(keys).await,
            Op::List { prefix } => self.pool.list(prefix).await.map(Reply::Listing),
            Op::Txn(txn) => self.pool.txn(txn).await.map(Reply::Txn),
            Op::KeepSession(session) => self.sessions.keep(session).await.map(Reply::Txn),
            Op::EndSession => self.sessions.end().await.map(|()| Reply::Done),
            Op::Relist => {
                self.notices.add(Notice::Relist);
                Ok(Reply::Done)
            }
        }
    }
}

impl Store for Etcd {
    fn call(&self, op: Op) -> Pending<'_, Result<Reply, StoreError>> {
        Box::pin(self.perform(op))
    }

    fn follow(&self, resume: Option<Resume>, events: mpsc::Sender<WatchInput>) -> Pending<'_, ()> {
        Box::pin(follow::run(self.pool.clone(), self.notices.clone(), resume, events))
    }

    fn has_new_login(&self) -> bool {
        self.pool.has_new_files()
    }
}

impl Notices {
    fn add(&self, notice: Notice) {
        locked(&self.waiting).push(notice);
        self.arrived.notify_one();
    }

    /// Waits until there is something. Nothing is lost when the wait is given up.
    async fn next(&self) -> Vec<Notice> {
        loop {
            let waiting = std::mem::take(&mut *locked(&self.waiting));
            if !waiting.is_empty() {
                return waiting;
            }
            self.arrived.notified().await;
        }
    }
}

/// What is guarded is replaced whole, so that a panic leaves nothing half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
