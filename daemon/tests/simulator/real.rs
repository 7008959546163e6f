//! A real etcd under a simulated cluster: each node speaks with it by the production client. What goes wrong between
//! a node and the store is done here, in front of that client; what happens to the store happens to etcd itself.
//! Leases are etcd's, but far longer than a trace: the simulator's time says when they end, and then they are revoked.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{CompactionOptions, GetOptions};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weftd::store::etcd::{Conf, Etcd, Timing};
use weftd::store::model::{Client, Faults, Model, TxnFault};
use weftd::store::{
    KeyValue, Listing, Op, Prefix, Reply, Resume, Session, Store as _, StoreError, Ttl, Txn, TxnOutcome,
    WatchEvent, WatchInput, Write, is_followed,
};

use super::etcd_lab::{Cluster, PATIENCE, runtime};
use super::store::{Backup, Files, Lease, Server};

/// Of every real lease: longer than any trace.
const LONG: Ttl = Ttl(24 * 3600);

pub struct Live {
    clients: Vec<State>,
    operator: Etcd,
    admin: etcd_client::Client,
    /// By the order in which they were granted.
    leases: BTreeMap<u64, Lease>,
    next_lease: u64,
    revision: i64,
    /// When something that is followed was last changed.
    followed: i64,
    /// It was a deletion.
    deleted: bool,
    compacted: i64,
    backups: u64,
    runtime: Runtime,
    cluster: Cluster,
}

struct State {
    faults: Faults,
    etcd: Arc<Etcd>,
    session: Option<Held>,
    lost_session: Option<WatchInput>,
    following: Option<Following>,
    /// The highest revision that the client was told of.
    seen: i64,
    /// Etcd was restarted since its connection was last used.
    torn: bool,
}

/// A session as its holder knows it.
struct Held {
    key: String,
    lease: u64,
    life: Duration,
    renew_at: Duration,
    lost_at: Duration,
}

struct Following {
    /// The production follower, while it is connected.
    stream: Option<Stream>,
    /// It was said that there is no connection.
    lost: bool,
    /// The store's identity.
    cluster: u64,
    /// Where the next connection goes on; `None`: with a listing.
    from: Option<i64>,
    /// The last revision that was reported.
    reported: i64,
    /// The last revision that the store was seen at.
    seen: i64,
}

struct Stream {
    inputs: mpsc::Receiver<WatchInput>,
    task: JoinHandle<()>,
    connected: bool,
    /// A listing is to be asked for at the next look, as with the model.
    relist: bool,
    /// A listing is on its way.
    listing: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Live {
    /// `None`, loudly, where there is no etcd.
    pub fn start() -> Option<Self> {
        // A member alone has nobody to wait for.
        let quick = ["--election-timeout=100", "--heartbeat-interval=10"].map(str::to_owned);
        let cluster = Cluster::with(1, "http", &quick)?;
        cluster.wait_until_it_answers();
        let runtime = runtime();
        let admin = runtime.block_on(cluster.admin(0));
        let operator = Etcd::new(conf(&cluster));
        let (revision, followed, compacted) = (1, 0, 0);
        Some(Self {
            clients: Vec::new(),
            operator,
            admin,
            leases: BTreeMap::new(),
            next_lease: 1,
            revision,
            followed,
            deleted: false,
            compacted,
            backups: 0,
            runtime,
            cluster,
        })
    }

    fn state(&mut self, client: Client) -> &mut State {
        self.clients.get_mut(client.0).expect("a client")
    }

    /// Where the store is now.
    fn look(&mut self) {
        let read = self.runtime.block_on(self.operator.call(Op::Read(Vec::new())));
        let Ok(Reply::Read { revision, .. }) = read else { panic!("etcd does not answer: {read:?}") };
        self.revision = revision;
    }

    fn find(&self, key: &str) -> Option<KeyValue> {
        let read = self.runtime.block_on(self.operator.call(Op::Read(vec![key.to_owned()])));
        let Ok(Reply::Read { items, .. }) = read else { panic!("etcd does not answer: {read:?}") };
        items.into_iter().next().and_then(|(_, item)| item)
    }

    /// Whether these writes are an event for those who follow.
    fn is_news(&self, writes: &[Write]) -> bool {
        let news = |write: &Write| match write {
            Write::Put { key, .. } => is_followed(key),
            Write::Delete { key } => is_followed(key) && self.find(key).is_some(),
        };
        writes.iter().any(news)
    }

    fn ask(&self, client: Client, op: Op) -> Result<Reply, StoreError> {
        let etcd = self.clients.get(client.0).expect("a client").etcd.clone();
        self.runtime.block_on(etcd.call(op))
    }

    fn txn(
        &mut self,
        client: Client,
        txn: Txn,
        fault: Option<TxnFault>,
        now: Duration,
    ) -> Result<Reply, StoreError> {
        let leased = |write: &Write| matches!(write, Write::Put { lease: Some(_), .. });
        assert!(!txn.writes.iter().any(leased), "a lease without a session, at {now:?}");
        let news = self.is_news(&txn.writes);
        let result = self.applied(client, Op::Txn(txn), fault);
        self.look();
        if let (Ok(Reply::Txn(TxnOutcome::Committed { revision })), true) = (&result, news) {
            (self.followed, self.deleted) = (*revision, false);
        }
        lose_answer(result, fault)
    }

    /// What the client asks, done unless the fault keeps it from arriving.
    fn applied(&self, client: Client, op: Op, fault: Option<TxnFault>) -> Result<Reply, StoreError> {
        match fault {
            Some(TxnFault::NotSent) => Err(unavailable()),
            Some(TxnFault::Refused) => Err(refused()),
            Some(TxnFault::Lost) => Err(unknown_outcome()),
            None => self.ask(client, op),
            // By a connection that is never heard of again: the client must not learn from the answer.
            Some(TxnFault::AnswerLost) => self.runtime.block_on(Etcd::new(conf(&self.cluster)).call(op)),
        }
    }

    fn keep_session(
        &mut self,
        client: Client,
        wanted: Session,
        fault: Option<TxnFault>,
        now: Duration,
    ) -> Result<Reply, StoreError> {
        let (key, life) = (wanted.key.clone(), Duration::from_secs(wanted.ttl.0.into()));
        let op = Op::KeepSession(Session { ttl: LONG, ..wanted });
        // With a lost answer the client would revoke what it is not sure of; here that does not arrive either.
        let result = self.applied(client, op, fault);
        self.look();
        if let Ok(Reply::Txn(TxnOutcome::Committed { .. })) = &result {
            let id = self.find(&key).map_or(0, |item| item.lease);
            let lease = self.next_lease;
            self.next_lease += 1;
            self.leases.insert(lease, Lease { id, life, ends: now + life });
            if fault.is_none() {
                let held = Held { key, lease, life, renew_at: now + life / 3, lost_at: now + life };
                if let Some(former) = self.state(client).session.replace(held) {
                    self.revoke(former.lease);
                }
            }
        }
        lose_answer(result, fault)
    }

    fn end_session(&mut self, client: Client) -> Result<Reply, StoreError> {
        let Some(held) = self.state(client).session.take() else { return Ok(Reply::Done) };
        self.leases.remove(&held.lease);
        let ended = self.ask(client, Op::EndSession);
        self.look();
        ended
    }

    /// Ends a lease in etcd, unless the client has done so.
    fn revoke(&mut self, lease: u64) {
        let Some(lease) = self.leases.remove(&lease) else { return };
        let mut admin = self.admin.clone();
        // The client has ended the lease of a session that it replaced.
        let _gone_already = self.runtime.block_on(admin.lease_revoke(lease.id));
        self.look();
    }

    /// The answer of a time that is over, which etcd still has.
    fn as_of(&self, op: &Op, at: i64) -> Result<Reply, StoreError> {
        let revision = at.min(self.revision);
        if revision < self.compacted {
            return Err(StoreError::Compacted { oldest: self.compacted });
        }
        Ok(match op {
            Op::Read(keys) => {
                let item = |key: &String| (key.clone(), self.range(key, revision, false).pop());
                Reply::Read { revision, items: keys.iter().map(item).collect() }
            }
            Op::List { prefix } => {
                Reply::Listing(Listing { revision, items: self.range(prefix, revision, true) })
            }
            Op::Txn(_) | Op::KeepSession(_) | Op::EndSession | Op::Relist => panic!("{op:?} reads nothing"),
        })
    }

    fn range(&self, key: &str, revision: i64, prefix: bool) -> Vec<KeyValue> {
        let before = Prefix::default();
        let options = GetOptions::new().with_revision(revision);
        let options = if prefix { options.with_prefix() } else { options };
        let mut admin = self.admin.clone();
        let answer = self.runtime.block_on(admin.get(before.join(key), Some(options)));
        let item = |kv: &etcd_client::KeyValue| KeyValue {
            key: before.strip(kv.key()).expect("a key of the cluster").to_owned(),
            value: kv.value().to_vec(),
            mod_revision: kv.mod_revision(),
            create_revision: kv.create_revision(),
            lease: kv.lease(),
        };
        answer.expect("etcd has this revision").kvs().iter().map(item).collect()
    }

    /// Every watch stands and is up to date, so that what is compacted now is taken from none of them.
    fn wait_for_watches(&self) {
        let streams = self.clients.iter().filter_map(|state| state.following.as_ref()?.stream.as_ref());
        let (all, end) = (streams.count().to_string(), Instant::now() + PATIENCE);
        loop {
            // The clients get on with it meanwhile.
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
            let metrics = self.metrics();
            let value = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
            let stand = value("etcd_debugging_mvcc_watcher_total ");
            let late = value("etcd_debugging_mvcc_slow_watcher_total ");
            if (stand, late) == (Some(&all), Some("0")) {
                return;
            }
            assert!(Instant::now() < end, "of {all} watches {stand:?} stand, {late:?} of them late");
        }
    }

    fn metrics(&self) -> String {
        let url = self.cluster.url(0);
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("etcd listens");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("etcd takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("etcd answers");
        answer
    }

    /// Nothing more arrives where nothing passes.
    fn cut(&mut self) {
        let cut = |state: &&mut State| state.faults.partitioned || state.faults.silent_watch;
        for following in self.clients.iter_mut().filter(cut).filter_map(|state| state.following.as_mut()) {
            following.stream = None;
        }
    }

    /// The client's connection notices a restart before it is used, so that a trace depends on its seed alone.
    fn mend(&mut self, client: Client) {
        if !std::mem::take(&mut self.state(client).torn) {
            return;
        }
        let end = Instant::now() + PATIENCE;
        while let Err(StoreError::Unavailable { reason }) = self.ask(client, Op::Read(Vec::new())) {
            if reason.contains("restored from a backup") {
                return;
            }
            assert!(Instant::now() < end, "etcd is not back: {reason}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Server for Live {
    fn client(&mut self) -> Client {
        let etcd = Etcd::new(conf(&self.cluster)).into();
        let faults = Faults::default();
        self.clients.push(State {
            faults,
            etcd,
            session: None,
            lost_session: None,
            following: None,
            seen: 0,
            torn: false,
        });
        Client(self.clients.len() - 1)
    }

    fn faults(&mut self, client: Client) -> &mut Faults {
        &mut self.state(client).faults
    }

    fn crash(&mut self, client: Client) {
        let etcd = Etcd::new(conf(&self.cluster)).into();
        let state = self.clients.get_mut(client.0).expect("a client");
        let faults = state.faults.clone();
        *state =
            State { faults, etcd, session: None, lost_session: None, following: None, seen: 0, torn: false };
    }

    fn call(&mut self, client: Client, op: Op, now: Duration) -> Result<Reply, StoreError> {
        self.cut();
        let revision = self.revision;
        let state = self.state(client);
        if state.faults.partitioned {
            return Err(unavailable());
        }
        let rewritten = state.following.is_some() && revision < state.seen;
        self.mend(client);
        let state = self.state(client);
        let (stale_at, fault) = match rewritten {
            // The client itself refuses.
            true => (None, None),
            false => (state.faults.stale_at, state.faults.next_txn.take()),
        };
        let result = match (op, stale_at) {
            (op @ (Op::Read(_) | Op::List { .. }), Some(at)) => self.as_of(&op, at),
            (Op::Txn(txn), _) => self.txn(client, txn, fault, now),
            (Op::KeepSession(session), _) => self.keep_session(client, session, fault, now),
            (Op::EndSession, _) => self.end_session(client),
            (Op::Relist, _) => self.relist(client),
            (op, None) => self.ask(client, op),
        };
        let told = match &result {
            Ok(Reply::Read { revision, .. } | Reply::Listing(Listing { revision, .. })) => *revision,
            Ok(Reply::Txn(TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. })) => {
                *revision
            }
            Ok(Reply::Done) | Err(_) => 0,
        };
        let state = self.state(client);
        state.seen = state.seen.max(told);
        let answered = matches!(result, Ok(Reply::Read { .. } | Reply::Listing(_) | Reply::Txn(_)));
        assert!(!rewritten || !answered, "asked of a store that was restored: {result:?}");
        result
    }

    fn follow(&mut self, client: Client, resume: Option<Resume>) {
        let cluster = resume.map_or(0, |resume| resume.cluster);
        let from = resume.map(|resume| resume.revision);
        // The events of that revision itself come once more.
        let reported = from.map_or(0, |from| from - 1);
        let seen = from.unwrap_or_default();
        let following = Following { stream: None, lost: false, cluster, from, reported, seen };
        self.state(client).following = Some(following);
    }

    fn poll(&mut self, client: Client) -> Vec<WatchInput> {
        if !self.state(client).faults.partitioned {
            self.mend(client);
        }
        let (followed, compacted, revision) = (self.followed, self.compacted, self.revision);
        let state = self.clients.get_mut(client.0).expect("a client");
        let mut inputs: Vec<_> = state.lost_session.take().into_iter().collect();
        let Some(following) = &mut state.following else { return inputs };
        if state.faults.partitioned || state.faults.silent_watch {
            following.stream = None;
            if state.faults.partitioned && !std::mem::replace(&mut following.lost, true) {
                inputs.push(WatchInput::Lost(unavailable()));
            }
            return inputs;
        }
        if following.stream.is_none() {
            following.connect(&self.runtime, &state.etcd, compacted, revision);
            if self.deleted && following.from == Some(followed) && followed == compacted {
                // Of a deletion a compaction at its revision leaves nothing.
                following.reported = followed;
            }
        }
        following.relist(&self.runtime, &state.etcd);
        while !following.is_up_to_date(followed) {
            following.take(&self.runtime, &mut inputs);
        }
        let rewritten = |input: &WatchInput| matches!(input, WatchInput::HistoryRewritten { .. });
        let before = if inputs.iter().any(rewritten) { 0 } else { state.seen };
        state.seen = before.max(following.reported);
        inputs
    }

    fn break_watch(&mut self, client: Client) {
        if let Some(following) = &mut self.state(client).following {
            following.stream = None;
        }
    }

    fn tick(&mut self, now: Duration) {
        self.cut();
        for state in &mut self.clients {
            state.renew(&mut self.leases, now);
        }
        let ended: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(lease, _)| *lease).collect();
        for lease in ended {
            self.revoke(lease);
        }
    }

    fn revision(&self) -> i64 {
        self.revision
    }

    fn list(&self, prefix: &str) -> Listing {
        let listed = self.runtime.block_on(self.operator.call(Op::List { prefix: prefix.to_owned() }));
        let Ok(Reply::Listing(listing)) = listed else { panic!("etcd does not answer: {listed:?}") };
        listing
    }

    fn write(&mut self, writes: Vec<Write>, _now: Duration) {
        let news = self.is_news(&writes);
        let deletes = matches!(writes[..], [Write::Delete { .. }]);
        let done = self.runtime.block_on(self.operator.call(Op::Txn(Txn { writes, ..Txn::default() })));
        assert!(matches!(done, Ok(Reply::Txn(TxnOutcome::Committed { .. }))), "{done:?}");
        self.look();
        if news {
            (self.followed, self.deleted) = (self.revision, deletes);
        }
    }

    fn compact(&mut self, revision: i64) {
        if revision <= self.compacted {
            return;
        }
        self.wait_for_watches();
        let mut admin = self.admin.clone();
        let options = CompactionOptions::new().with_physical();
        self.runtime.block_on(admin.compact(revision, Some(options))).expect("etcd compacts");
        self.compacted = revision;
    }

    fn backup(&mut self) -> Backup {
        self.backups += 1;
        let folder = self.cluster.copy_running(0, &format!("backup-{}", self.backups));
        let (followed, deleted, compacted) = (self.followed, self.deleted, self.compacted);
        Backup::Etcd(Files { folder, leases: self.leases.clone(), followed, deleted, compacted })
    }

    fn restore(&mut self, backup: &Backup) {
        let Backup::Etcd(files) = backup else { panic!("a backup of another store") };
        for state in &mut self.clients {
            if let Some(following) = &mut state.following {
                following.stream = None;
            }
            state.torn = true;
        }
        self.cluster.restore(0, &files.folder);
        self.cluster.wait_until_it_answers();
        self.operator = Etcd::new(conf(&self.cluster));
        self.admin = self.runtime.block_on(self.cluster.admin(0));
        self.leases.clone_from(&files.leases);
        (self.followed, self.deleted, self.compacted) = (files.followed, files.deleted, files.compacted);
        self.look();
    }

    fn drive_to(&mut self, revision: i64, now: Duration) {
        while self.revision < revision {
            let (key, value) = ("use/filler".to_owned(), Vec::new());
            self.write(vec![Write::Put { key, value, lease: None }], now);
        }
    }

    fn as_model(&mut self) -> Option<&mut Model> {
        None
    }
}

impl Live {
    fn relist(&mut self, client: Client) -> Result<Reply, StoreError> {
        let Some(following) = &mut self.state(client).following else { return Ok(Reply::Done) };
        following.from = None;
        // Without a connection the next one begins with a listing.
        let Some(stream) = &mut following.stream else { return Ok(Reply::Done) };
        stream.relist = true;
        Ok(Reply::Done)
    }
}

impl State {
    /// As the production session does it, in the simulator's time.
    fn renew(&mut self, leases: &mut BTreeMap<u64, Lease>, now: Duration) {
        let cut = self.faults.partitioned;
        let Some(held) = self.session.as_mut().filter(|held| now >= held.renew_at.min(held.lost_at)) else {
            return;
        };
        let lease = leases.get_mut(&held.lease);
        let gone = !cut && lease.is_none();
        if gone || (cut && held.lost_at <= now) {
            let key = held.key.clone();
            self.lost_session = Some(WatchInput::SessionLost { key, reason: unavailable() });
            self.session = None;
            return;
        }
        held.renew_at = now + held.life / 3;
        if let (false, Some(lease)) = (cut, lease) {
            (held.lost_at, lease.ends) = (now + held.life, now + lease.life);
        }
    }
}

impl Following {
    /// A production follower begins where the last one was, and lists anew when that one would.
    fn connect(&mut self, runtime: &Runtime, etcd: &Arc<Etcd>, compacted: i64, revision: i64) {
        // From beyond the store's last revision would look like a restore; what comes once more is left out.
        let from = self.from.filter(|from| *from >= compacted);
        let from = from.map(|from| if from <= revision { from } else { from.min(self.seen) });
        let resume = from.map(|revision| Resume { revision, cluster: self.cluster });
        let (sender, inputs) = mpsc::channel(1024);
        let etcd = etcd.clone();
        let task = runtime.spawn(async move { etcd.follow(resume, sender).await });
        let listing = resume.is_none();
        self.stream = Some(Stream { inputs, task, connected: false, relist: false, listing });
        self.lost = false;
    }

    /// Passes on that all is to be listed.
    fn relist(&mut self, runtime: &Runtime, etcd: &Etcd) {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.relist) else { return };
        (stream.relist, stream.listing) = (false, true);
        let done = runtime.block_on(etcd.call(Op::Relist));
        assert_eq!(done, Ok(Reply::Done));
    }

    /// Whether all was reported that there is.
    fn is_up_to_date(&self, followed: i64) -> bool {
        let Some(stream) = &self.stream else { return true };
        stream.connected && !stream.listing && self.reported >= followed && stream.inputs.is_empty()
    }

    fn take(&mut self, runtime: &Runtime, inputs: &mut Vec<WatchInput>) {
        let Some(stream) = &mut self.stream else { return };
        let next = runtime.block_on(async { timeout(PATIENCE, stream.inputs.recv()).await });
        let Ok(Some(input)) = next else { panic!("the follower is silent after {inputs:?}") };
        match &input {
            WatchInput::Connected { cluster, .. } => (stream.connected, self.cluster) = (true, *cluster),
            WatchInput::HistoryRewritten { .. } => {
                stream.listing = true;
                (self.from, self.reported, self.seen) = (None, 0, 0);
            }
            WatchInput::Snapshot(listing) => {
                stream.listing = false;
                let at = listing.revision;
                (self.from, self.reported, self.seen) = (Some(at + 1), at, at);
            }
            // What comes before a listing is in it.
            WatchInput::Events { .. } if stream.listing => return,
            WatchInput::Events { events, .. } => {
                // How a stream is cut into messages is no matter of the trace; signs of life come by the real clock;
                // and what one follower has reported the next one would not.
                let reported = self.reported;
                let fresh = |event: &&WatchEvent| revision_of(event).is_some_and(|at| at > reported);
                let events: Vec<_> = events.iter().filter(fresh).cloned().collect();
                for revision in events.iter().filter_map(revision_of) {
                    if revision > self.reported {
                        // More events of this very revision may come, none of the one before.
                        self.from = self.from.max(Some(self.reported + 1));
                        self.reported = revision;
                    }
                }
                self.seen = self.seen.max(self.reported);
                merge(inputs, self.reported, events);
                return;
            }
            // The simulator tells of sessions and outages; a real outage of a moment is over when this returns.
            WatchInput::SessionLost { .. } | WatchInput::Lost(_) | WatchInput::Full(_) => return,
        }
        inputs.push(input);
    }
}

fn merge(inputs: &mut Vec<WatchInput>, up_to: i64, more: Vec<WatchEvent>) {
    match inputs.last_mut() {
        Some(WatchInput::Events { revision, events }) => {
            *revision = up_to;
            events.extend(more);
        }
        _ if more.is_empty() => {}
        _ => inputs.push(WatchInput::Events { revision: up_to, events: more }),
    }
}

fn revision_of(event: &WatchEvent) -> Option<i64> {
    match event {
        WatchEvent::Put(kv) => Some(kv.mod_revision),
        WatchEvent::Delete { revision, .. } => Some(*revision),
        WatchEvent::Progress { .. } => None,
    }
}

/// Nothing real is to run into a deadline: what is late is late by the simulator's time.
fn conf(cluster: &Cluster) -> Conf {
    let moment = Duration::from_millis(2);
    let timing = Timing {
        connect: PATIENCE,
        call: PATIENCE,
        idle: PATIENCE,
        sign_of_life: PATIENCE,
        ping: PATIENCE,
        pong: PATIENCE,
        fresh: PATIENCE,
        pause_first: moment,
        pause_longest: moment,
        // Of a full store the simulator tells.
        alarms: Duration::from_secs(24 * 3600),
    };
    Conf { timing, ..cluster.conf() }
}

fn lose_answer(result: Result<Reply, StoreError>, fault: Option<TxnFault>) -> Result<Reply, StoreError> {
    if fault == Some(TxnFault::AnswerLost) { result.and_then(|_| Err(unknown_outcome())) } else { result }
}

fn refused() -> StoreError {
    StoreError::Refused { reason: "simulator: the user may not write".to_owned() }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { reason: "simulator: the store is out of reach".to_owned() }
}

fn unknown_outcome() -> StoreError {
    StoreError::UnknownOutcome { reason: "simulator: the answer was lost".to_owned() }
}
