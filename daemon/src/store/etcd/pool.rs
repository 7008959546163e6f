//! The connections, and one rule for all calls: which endpoint is asked, when the next one is, and when none may be.

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::conf::{Conf, Endpoint};
use super::connection::{Connection, FileStamp, Head, context, stamps};
use super::failure::{Failure, Kind, Step, combine, verdict};
use super::locked;
use super::rota::Rota;
use crate::store::{Resume, StoreError};

/// Whether a call may be done again when it may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or the same way again.
    Safe,
    /// Never.
    Once,
}

/// The endpoints of one cluster.
pub struct Pool {
    /// How to reach them.
    pub conf: Conf,
    start: Instant,
    state: Mutex<State>,
}

struct State {
    rota: Rota,
    live: Vec<Option<Live>>,
    /// Why the follower could not connect to each endpoint the last time, since it last was connected.
    said: Vec<Option<Failure>>,
    /// Certificates and password when they were last looked at for [`Pool::has_new_files`].
    files: Vec<FileStamp>,
    /// What the store was last seen to be; another one, or an older one, is not asked before the follower accepted it.
    seen: Option<Head>,
}

#[derive(Clone)]
struct Live {
    connection: Connection,
    /// When it last answered, if as the store that is known.
    answered: Option<Instant>,
}

/// What the endpoints said that were asked. The last one ended the attempt.
pub struct Failed {
    failures: Vec<Failure>,
    repeat: Repeat,
}

impl Failed {
    /// What the last one means.
    pub fn kind(&self) -> Option<Kind> {
        self.failures.last().map(|failure| failure.kind)
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        combine(&failed.failures, failed.repeat == Repeat::Safe)
    }
}

impl Pool {
    /// Connects to nothing yet.
    pub fn new(conf: Conf) -> Self {
        let count = conf.endpoints.len();
        let rota = Rota::new(count, conf.first, conf.timing.pause_first, conf.timing.pause_longest);
        let files = stamps(&conf);
        let state = State { rota, live: vec![None; count], said: vec![None; count], files, seen: None };
        Self { conf, start: Instant::now(), state: Mutex::new(state) }
    }

    /// Does `call` on the first endpoint that can, within `limit` on each.
    pub async fn attempt<T, F, R>(
        &self,
        what: &'static str,
        repeat: Repeat,
        limit: Duration,
        call: F,
    ) -> Result<T, Failed>
    where
        F: Fn(Connection) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut failures = Vec::new();
        for (index, endpoint) in self.order() {
            let failure = match self.ready(index, &endpoint, repeat).await {
                Err(failure) => failure,
                Ok(connection) => {
                    match self.limited(&endpoint, Step::Call(what), limit, call(connection)).await {
                        Ok(answer) => {
                            self.answered(index);
                            return Ok(answer);
                        }
                        Err(failure) => failure,
                    }
                }
            };
            self.note(index, &failure);
            let ends = is_final(failure.kind) || (failure.kind == Kind::Unknown && repeat == Repeat::Once);
            failures.push(failure);
            if ends {
                break;
            }
        }
        Err(Failed { failures, repeat })
    }

    /// A connection for the follower, and the store's head by a read just done; whatever store it is.
    pub async fn connect(&self) -> Result<(Connection, Endpoint, Head), StoreError> {
        for (index, endpoint) in self.order() {
            match self.open(index, &endpoint).await {
                Ok((connection, head)) => {
                    locked(&self.state).said.fill(None);
                    return Ok((connection, endpoint, head));
                }
                Err(failure) => {
                    self.note(index, &failure);
                    if let Some(said) = locked(&self.state).said.get_mut(index) {
                        *said = Some(in_view_of(said.take(), failure));
                    }
                }
            }
        }
        // By what all of them said last: one that pauses was not asked again.
        let state = locked(&self.state);
        let said: Vec<Failure> = state.said.iter().flatten().cloned().collect();
        Err(verdict(&said, state.said.len()))
    }

    /// Of the files that connections are made with.
    pub fn files(&self) -> Vec<FileStamp> {
        stamps(&self.conf)
    }

    /// Whether one of them changed since this was last asked.
    pub fn has_new_files(&self) -> bool {
        let files = self.files();
        let mut state = locked(&self.state);
        std::mem::replace(&mut state.files, files.clone()) != files
    }

    /// A connection that stands: of the endpoint that is asked first, if it has one.
    pub fn standing(&self) -> Option<Connection> {
        let state = locked(&self.state);
        let order = state.rota.order(self.start.elapsed());
        let live = |index: usize| state.live.get(index)?.as_ref().map(|live| live.connection.clone());
        order.into_iter().find_map(live)
    }

    /// The follower has told what store this is: it may be asked.
    pub fn accept(&self, head: Head) {
        locked(&self.state).seen = Some(head);
    }

    /// What an earlier run saw.
    pub fn expect(&self, resume: Option<Resume>) {
        if let Some(Resume { revision, cluster }) = resume {
            locked(&self.state).seen.get_or_insert(Head { cluster, revision });
        }
    }

    /// What the store was last seen to be: to be asked for before a call whose answer is to be compared.
    pub fn seen(&self) -> Option<Head> {
        locked(&self.state).seen
    }

    /// An answer came from a store at `head`. A connection mends itself unseen, so that even an answer of one that
    /// was probed may be of a store that was restored meanwhile: it is not to be believed.
    pub fn believe(&self, before: Option<Head>, head: Head) -> Result<(), StoreError> {
        match before {
            Some(seen) if is_rewritten(head, seen) => {
                self.doubt();
                Err(StoreError::Unavailable { reason: format!("store: {}", rewritten(head, seen)) })
            }
            _ => {
                self.saw(head);
                Ok(())
            }
        }
    }

    /// Whatever answered, it was not the store that is known: nothing is sent once by any connection before a probe.
    fn doubt(&self) {
        for live in locked(&self.state).live.iter_mut().flatten() {
            live.answered = None;
        }
    }

    /// The store was seen so far on.
    pub fn saw(&self, head: Head) {
        let mut state = locked(&self.state);
        let seen = state.seen.get_or_insert(head);
        if seen.cluster == head.cluster {
            seen.revision = seen.revision.max(head.revision);
        }
    }

    /// The endpoint failed: its connection is given up, and it pauses. It does not pause when the store itself refused.
    pub fn note(&self, index: usize, failure: &Failure) {
        let mut state = locked(&self.state);
        // A login that was refused is tried with another password the next time.
        if is_final(failure.kind) && failure.step != Step::LogIn {
            return;
        }
        if !is_final(failure.kind) {
            tracing::debug!(%failure, "an endpoint of the store failed");
            let now = self.start.elapsed();
            state.rota.failed(index, now, jitter());
        }
        if let Some(live) = state.live.get_mut(index) {
            *live = None;
        }
    }

    /// How long until an endpoint may be asked.
    pub fn pause(&self) -> Duration {
        locked(&self.state).rota.wait(self.start.elapsed())
    }

    /// Does `call` within `limit`.
    pub async fn limited<T>(
        &self,
        endpoint: &Endpoint,
        step: Step,
        limit: Duration,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failure> {
        let context = context(&self.conf, endpoint, step);
        match timeout(limit, call).await {
            Ok(result) => result.map_err(|error| context.explain(&error)),
            Err(_elapsed) => Err(context.timed_out(limit)),
        }
    }

    fn order(&self) -> Vec<(usize, Endpoint)> {
        let order = locked(&self.state).rota.order(self.start.elapsed());
        order.into_iter().filter_map(|index| Some((index, self.conf.endpoints.get(index)?.clone()))).collect()
    }

    fn answered(&self, index: usize) {
        let mut state = locked(&self.state);
        state.rota.succeeded(index);
        if let Some(Some(live)) = state.live.get_mut(index) {
            live.answered = Some(Instant::now());
        }
    }

    /// A connection that may be used for a call: probed, and to the store that is known.
    async fn ready(&self, index: usize, endpoint: &Endpoint, repeat: Repeat) -> Result<Connection, Failure> {
        let (live, seen) = {
            let state = locked(&self.state);
            (state.live.get(index).cloned().flatten(), state.seen)
        };
        let usable = live.filter(|live| live.connection.is_current(&self.conf));
        let fresh = |live: &Live| live.answered.is_some_and(|at| at.elapsed() < self.conf.timing.fresh);
        if let Some(live) = usable.filter(|live| repeat == Repeat::Safe || fresh(live)) {
            return Ok(live.connection);
        }
        let (connection, head) = self.open(index, endpoint).await?;
        match seen {
            Some(seen) if is_rewritten(head, seen) => {
                let check = context(&self.conf, endpoint, Step::Call("check its history"));
                Err(check.fail(Kind::NotApplied, rewritten(head, seen)))
            }
            _ => {
                self.saw(head);
                Ok(connection)
            }
        }
    }

    /// A connection, made anew unless a current one stands, and the store's head by a read just done.
    async fn open(&self, index: usize, endpoint: &Endpoint) -> Result<(Connection, Head), Failure> {
        let standing = locked(&self.state).live.get(index).cloned().flatten();
        let standing =
            standing.map(|live| live.connection).filter(|connection| connection.is_current(&self.conf));
        let (step, connection) = match standing {
            Some(connection) => (Step::Call("read"), connection),
            None => (Step::FirstCall, self.log_in(index, endpoint).await?),
        };
        let probe = self.limited(endpoint, step, self.conf.timing.call, connection.head(&self.conf));
        let head = probe.await.map_err(as_probe)?;
        let mut state = locked(&self.state);
        let known = state.seen.is_none_or(|seen| !is_rewritten(head, seen));
        let answered = known.then(Instant::now);
        if let Some(live) = state.live.get_mut(index) {
            *live = Some(Live { connection: connection.clone(), answered });
        }
        Ok((connection, head))
    }

    async fn log_in(&self, index: usize, endpoint: &Endpoint) -> Result<Connection, Failure> {
        let limit = self.conf.timing.call;
        match timeout(limit, Connection::open(&self.conf, index, endpoint)).await {
            Ok(opened) => opened.map_err(as_probe),
            Err(_elapsed) => Err(as_probe(context(&self.conf, endpoint, Step::LogIn).timed_out(limit))),
        }
    }
}

/// Asking another endpoint changes nothing.
fn is_final(kind: Kind) -> bool {
    matches!(kind, Kind::Refused | Kind::NoSpace | Kind::Compacted | Kind::NoLease)
}

/// A probe applies nothing, however it fails.
fn as_probe(failure: Failure) -> Failure {
    let kind = if failure.kind == Kind::Unknown { Kind::NotApplied } else { failure.kind };
    Failure { kind, ..failure }
}

fn is_rewritten(head: Head, seen: Head) -> bool {
    head.cluster != seen.cluster || head.revision < seen.revision
}

fn rewritten(head: Head, seen: Head) -> String {
    if head.cluster == seen.cluster {
        format!(
            "the store is at revision {}, and this node has seen {}: it was restored from a backup. \
             Nothing is asked of it before the node has dealt with that",
            head.revision, seen.revision
        )
    } else {
        "it is another etcd cluster than this node has spoken with. Check the endpoints".to_owned()
    }
}

/// One who breaks off twice, or after having refused, refuses: a member that stops is not there the second time.
fn in_view_of(before: Option<Failure>, failure: Failure) -> Failure {
    let refused = |before: &Failure| matches!(before.kind, Kind::BrokeOff | Kind::EndpointRefused);
    match before.filter(|before| failure.kind == Kind::BrokeOff && refused(before)) {
        Some(before) => Failure { kind: Kind::EndpointRefused, ..before },
        None => failure,
    }
}

/// In 0..=1.
pub fn jitter() -> f64 {
    // Without randomness the longest pause is as good as any.
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_breaks_off_again_refuses_in_the_words_of_the_first_time() {
        let failure = |kind, why: &str| Failure {
            endpoint: "https://a:1".to_owned(),
            step: Step::Tls,
            kind,
            why: why.to_owned(),
        };
        let second = |first: Kind| in_view_of(Some(failure(first, "1")), failure(Kind::BrokeOff, "2"));
        assert_eq!(second(Kind::BrokeOff), failure(Kind::EndpointRefused, "1"));
        assert_eq!(second(Kind::EndpointRefused), failure(Kind::EndpointRefused, "1"));
        assert_eq!(second(Kind::NotApplied), failure(Kind::BrokeOff, "2"), "it was away in between");
        assert_eq!(in_view_of(None, failure(Kind::BrokeOff, "2")).kind, Kind::BrokeOff);
    }
}
