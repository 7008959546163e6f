//! The follower: lists, watches, notices when a watch is dead, and goes on elsewhere from where it was.

mod idle;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::calls::key_value;
use super::conf::Endpoint;
use super::connection::{Connection, FileStamp, Head, MAX_MESSAGE, context};
use super::failure::{Failure, Kind, Step, combine};
use super::pool::{Pool, jitter};
use super::{Notice, Notices};
use crate::store::position::{Position, Start};
use crate::store::{Resume, StoreError, WatchEvent, WatchInput};
use idle::{Due, Idle};

/// How often a store that refuses is given twice the pause: 5 s to 40 s.
const MOST_DOUBLINGS: u32 = 3;

/// How often certificates and password are looked at while the store refuses this node.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);

struct Follower {
    pool: Arc<Pool>,
    position: Position,
    relist: Arc<Notify>,
    events: mpsc::Sender<WatchInput>,
    /// How often in a row the store refused this node.
    refusals: u32,
}

/// The receiver is gone.
struct Closed;

/// Why a watch ended.
enum End {
    Closed,
    /// List again, on the same connection.
    Relist,
    Failed(Failure),
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Reports until the receiver is gone.
pub async fn run(
    pool: Arc<Pool>,
    notices: Arc<Notices>,
    resume: Option<Resume>,
    events: mpsc::Sender<WatchInput>,
) {
    pool.expect(resume);
    let relist = Arc::new(Notify::new());
    let passing_on = pass_on(notices, relist.clone(), events.clone());
    let alarms = super::alarms::watch(pool.clone(), events.clone());
    let mut follower =
        Follower { pool, position: Position::new(resume), relist, events: events.clone(), refusals: 0 };
    tokio::select! {
        Closed = follower.follow() => {}
        () = alarms => {}
        Closed = passing_on => {}
        () = events.closed() => {}
    }
}

async fn pass_on(notices: Arc<Notices>, relist: Arc<Notify>, events: mpsc::Sender<WatchInput>) -> Closed {
    loop {
        for notice in notices.next().await {
            match notice {
                Notice::Relist => relist.notify_one(),
                Notice::Tell(input) => {
                    if events.send(input).await.is_err() {
                        return Closed;
                    }
                }
            }
        }
    }
}

impl Follower {
    async fn follow(&mut self) -> Closed {
        loop {
            // Asked for before the connection's own read: what calls see meanwhile must not be held against it.
            if let Some(seen) = self.pool.seen() {
                self.position.saw(seen.cluster, seen.revision);
            }
            let files = self.pool.files();
            let error = match self.pool.connect().await {
                Err(error) => error,
                Ok((connection, endpoint, head)) => {
                    self.refusals = 0;
                    match self.stay(&connection, &endpoint, head).await {
                        End::Closed => return Closed,
                        End::Relist => continue,
                        End::Failed(failure) => {
                            self.pool.note(connection.index, &failure);
                            combine(&[failure], true)
                        }
                    }
                }
            };
            let lost = self.position.failed(error.clone());
            if self.report(lost).await.is_err() {
                return Closed;
            }
            self.pause_after(&error, &files).await;
        }
    }

    /// A refusal is not asked for again and again: etcd works a tenth of a second on each password. New files end the
    /// pause, as they may be what was missing.
    async fn pause_after(&mut self, error: &StoreError, files: &[FileStamp]) {
        let pause = self.pool.pause();
        if !matches!(error, StoreError::Refused { .. }) {
            self.refusals = 0;
            return sleep(pause).await;
        }
        let least = self.pool.conf.timing.pause_longest / 2;
        let doubled = least.saturating_mul(1 << self.refusals.min(MOST_DOUBLINGS));
        self.refusals = self.refusals.saturating_add(1);
        let until = Instant::now() + pause.max(doubled.mul_f64(0.75 + jitter() / 4.0));
        while Instant::now() < until && self.pool.files() == files {
            sleep(LOOK_AT_FILES.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Follows by this connection as long as it lives.
    async fn stay(&mut self, connection: &Connection, endpoint: &Endpoint, head: Head) -> End {
        let rewritten = self.position.is_rewritten(head.cluster, head.revision);
        let inputs = self.position.connected(endpoint.to_string(), head.cluster, head.revision);
        if self.report(inputs).await.is_err() {
            return End::Closed;
        }
        if rewritten {
            // Only now: whoever asks the store is told first.
            self.pool.accept(head);
        } else {
            self.pool.saw(head);
        }
        loop {
            let step = match self.position.start() {
                Start::List => self.list(connection, endpoint).await,
                Start::Watch { from } => self.watch(connection, endpoint, from).await,
            };
            match step {
                Ok(()) => {}
                Err(End::Relist) => self.position.relist(),
                Err(end) => return end,
            }
        }
    }

    async fn list(&mut self, connection: &Connection, endpoint: &Endpoint) -> Result<(), End> {
        let list = self.pool.list_followed(connection.client.clone());
        match self.pool.limited(endpoint, Step::Call("list"), self.pool.list_limit(), list).await {
            Ok(listing) => {
                self.pool.saw(Head { cluster: self.position.cluster(), revision: listing.revision });
                let snapshot = self.position.listed(listing);
                Ok(self.report([snapshot]).await?)
            }
            Err(failure) if failure.kind == Kind::Compacted => Err(End::Relist),
            Err(failure) => Err(End::Failed(failure)),
        }
    }

    async fn watch(&mut self, connection: &Connection, endpoint: &Endpoint, from: i64) -> Result<(), End> {
        let stream = self.begin(connection, endpoint, from).await.map_err(End::Failed)?;
        let (mut asker, mut answers) = stream.split();
        let timing = self.pool.conf.timing;
        let mut idle = Idle::new(Instant::now(), timing.idle, timing.sign_of_life);
        let pool = self.pool.clone();
        let here = context(&pool.conf, endpoint, Step::Call("watch"));
        loop {
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer.map_err(|error| End::Failed(here.explain(&error)))?;
                    let ended = || End::Failed(here.fail(Kind::Unknown, "etcd ended the watch without a reason"));
                    idle.heard(Instant::now());
                    self.take(&answer.ok_or_else(ended)?, &here).await?;
                }
                () = self.relist.notified() => return Err(End::Relist),
                () = sleep_until(idle.due()) => match idle.check(Instant::now()) {
                    Due::Nothing => {}
                    // A queue that is full is as silent as a store that is dead.
                    Due::Ask => drop(tokio::time::timeout(timing.sign_of_life, asker.request_progress()).await),
                    Due::GiveUp => return Err(End::Failed(here.timed_out(timing.idle + timing.sign_of_life))),
                },
            }
        }
    }

    async fn begin(
        &self,
        connection: &Connection,
        endpoint: &Endpoint,
        from: i64,
    ) -> Result<WatchStream, Failure> {
        let (first, end) = self.pool.followed_range();
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(from)
            .with_progress_notify()
            .with_fragment();
        let mut client = connection.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let watch = client.watch(first, Some(options));
        self.pool.limited(endpoint, Step::Call("watch"), self.pool.conf.timing.call, watch).await
    }

    async fn take(&mut self, answer: &WatchResponse, here: &super::failure::Context<'_>) -> Result<(), End> {
        if answer.canceled() {
            let compacted = answer.compact_revision() > 0;
            return Err(if compacted {
                End::Relist
            } else {
                End::Failed(here.answered(answer.cancel_reason()))
            });
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let events: Vec<_> = answer.events().iter().filter_map(|event| self.event(event)).collect();
        let input = if !answer.events().is_empty() {
            self.position.events(events)
        } else if answer.created() {
            None
        } else if answer.watch_id() < 0 {
            // Asked for. Some versions of etcd send it before events that came earlier (etcd#15220).
            self.position.alive()
        } else {
            self.position.progress(revision)
        };
        if let Some(WatchInput::Events { revision, .. }) = &input {
            self.pool.saw(Head { cluster: self.position.cluster(), revision: *revision });
        }
        Ok(self.report(input).await?)
    }

    fn event(&self, event: &etcd_client::Event) -> Option<WatchEvent> {
        let kv = key_value(&self.pool.conf.prefix, event.kv()?)?;
        Some(match event.event_type() {
            EventType::Put => WatchEvent::Put(kv),
            EventType::Delete => WatchEvent::Delete { key: kv.key, revision: kv.mod_revision },
        })
    }

    async fn report(&self, inputs: impl IntoIterator<Item = WatchInput>) -> Result<(), Closed> {
        for input in inputs {
            self.events.send(input).await.map_err(|_| Closed)?;
        }
        Ok(())
    }
}
