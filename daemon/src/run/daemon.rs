//! The loop: what happened goes into the machine, what comes out is done in its order.

mod foreign;
mod link;
mod look;
mod mirror;
mod offer;
mod probes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use weft_cni::ip::IfAddr;
use weft_overlay::PlaneReport;
use weft_overlay::wanted::{Changed, Wanted};

use self::foreign::Foreign;
use self::look::ADDRESSES_WAY_OUT;
use self::mirror::Mirror;
use self::probes::Probes;
use super::document::Document;
use super::host;
use super::local::Local;
use super::needs::Needs;
use super::notices::Notices;
use super::places::{self, Places};
use super::plane::{self, Plane};
use super::start::{Started, broken, now};
use crate::cluster::{BlockUse, Input, Machine, Output};
use crate::command::{Failure, Verdict};
use crate::conf::Conf;
use crate::conflist::Conflist;
use crate::files;
use crate::mirror::Blocks;
use crate::notify::Notifier;
use crate::probe::Found;
use crate::socket::{Asked, Server};
use crate::store::{Store, StoreReply, WatchInput};

/// How often the plugin's folders are looked at.
const LOOK: Duration = Duration::from_secs(3);
/// How often garbage is collected and what others may have changed is put right.
const TIDY: Duration = Duration::from_secs(60);
/// How long a service manager is left in the dark about a node that waits for its store.
const READY_AT_LAST: Duration = Duration::from_secs(20);
/// How long the last words to the store may take.
const FAREWELL: Duration = Duration::from_secs(3);
/// Messages that may wait; whoever sends more waits too.
const ROOM: usize = 64;

/// What happened, besides what the store's watch says.
#[derive(Debug)]
enum Event {
    Store(StoreReply),
    Collected(Result<usize, String>),
    HostChanged(host::Changed),
    Mended(Result<usize, String>),
    ForeignMinded(Result<usize, String>),
    Probed(Result<Found, String>),
    UseMirrored(Result<Option<Blocks>, String>),
    HostUnknown(String),
}

/// A running daemon.
pub struct Daemon {
    conf: Arc<Conf>,
    places: Places,
    notifier: Notifier,
    store: Arc<dyn Store>,
    machine: Machine,
    local: Local,
    plane: Plane,
    notices: Notices,
    tasks: JoinSet<()>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    asked: (mpsc::Sender<Asked>, mpsc::Receiver<Asked>),
    watch: Option<(mpsc::Receiver<WatchInput>, AbortHandle)>,
    needs: Needs,
    /// When the store last answered, or was heard of.
    store_heard: Instant,
    /// What the cluster wants of this node, without the peers.
    wanted: Option<Wanted>,
    report: Option<PlaneReport>,
    usage: Vec<BlockUse>,
    published: Vec<IfAddr>,
    ready: bool,
    told_ready: bool,
    conflist: Option<Conflist>,
    foreign: Foreign,
    mirror: Mirror,
    probes: Probes,
    calls: usize,
}

impl Daemon {
    /// Starts everything that runs beside the loop.
    ///
    /// # Errors
    /// What could not be started.
    pub fn new(
        conf: Arc<Conf>,
        places: Places,
        notifier: Notifier,
        store: Arc<dyn Store>,
        started: Started,
    ) -> Result<Self, Failure> {
        let plane = Plane::start(&conf).map_err(broken)?;
        let mut daemon = Self {
            plane,
            machine: started.machine,
            local: started.local,
            notices: Notices::default(),
            tasks: JoinSet::new(),
            events: mpsc::channel(ROOM),
            asked: mpsc::channel(ROOM),
            watch: None,
            needs: Needs::default(),
            store_heard: Instant::now(),
            wanted: None,
            report: None,
            usage: Vec::new(),
            published: started.published.clone().unwrap_or_default(),
            ready: false,
            told_ready: false,
            conflist: None,
            foreign: Foreign::default(),
            mirror: Mirror::default(),
            probes: Probes::default(),
            calls: 0,
            conf,
            places,
            notifier,
            store,
        };
        daemon.notices.set("addresses", started.published.map(drop), ADDRESSES_WAY_OUT);
        daemon.install();
        let server = Server::bind(places::socket()).map_err(broken)?;
        daemon.tasks.spawn(server.serve(daemon.asked.0.clone()));
        daemon.follow_host();
        Ok(daemon)
    }

    /// Lets monitoring ask.
    pub fn serve_metrics(&mut self, listener: tokio::net::TcpListener) {
        self.tasks.spawn(crate::metrics::serve(listener, self.asked.0.clone()));
    }

    /// Runs until told to stop, or until there is a reason to end.
    ///
    /// # Errors
    /// That reason.
    pub async fn run(mut self) -> Result<Verdict, Failure> {
        let failed = |error: std::io::Error| broken(format!("wait for signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let mut look = every(LOOK);
        let mut tidy = every(TIDY);
        let mut pulse = every(self.notifier.watchdog_period().unwrap_or(TIDY));
        let ready_at_last = sleep(READY_AT_LAST);
        tokio::pin!(ready_at_last);
        let mut questions = Vec::new();
        loop {
            if let Some(end) = self.work()? {
                return end;
            }
            let due = self.machine.next_timeout().map(|at| at.boot.saturating_sub(now().boot));
            let due = Instant::now() + due.unwrap_or(TIDY);
            tokio::select! {
                biased;
                _ = terminate.recv() => return self.stop().await,
                _ = interrupt.recv() => return self.stop().await,
                _ = hangup.recv() => self.tidy(),
                // Rare, so that they cannot starve what comes after them.
                _ = pulse.tick() => self.notifier.alive(),
                _ = look.tick() => self.look()?,
                Some(event) = self.events.1.recv() => self.happened(event),
                Some(input) = next(&mut self.watch) => self.heard(input),
                _ = self.asked.1.recv_many(&mut questions, ROOM) => self.were_asked(std::mem::take(&mut questions)),
                Some(report) = self.plane.next_report() => self.reported(report),
                Some(ended) = self.tasks.join_next() => ended_well(ended)?,
                () = sleep_until(due) => self.tell(Input::Tick),
                _ = tidy.tick() => self.tidy(),
                () = sleep_until(self.needs.due().unwrap_or(due)), if self.needs.due().is_some() => self.ask_again(),
                () = &mut ready_at_last, if !self.told_ready => self.tell_ready("waits for the cluster's store"),
            }
        }
    }

    fn tell(&mut self, input: Input) {
        self.machine.handle(input, now());
    }

    /// Does everything that the machine wants done; `Some` when it wants to end.
    fn work(&mut self) -> Result<Option<Result<Verdict, Failure>>, Failure> {
        while let Some(output) = self.machine.poll() {
            if let Output::Exit { code, sentence } = output {
                tracing::error!("{sentence}");
                let verdict = if code == 1 { Verdict::FoundSomething } else { Verdict::CouldNotTell };
                return Ok(Some(Err(Failure::all(verdict, vec![sentence]))));
            }
            self.perform(output)?;
        }
        Ok(None)
    }

    fn perform(&mut self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Store(request) => self.call(request),
            Output::Follow(resume) => self.follow(resume),
            Output::PersistIdentity { file, run } => {
                persist(&self.places.identity(), &file)?;
                Local::note_identity(&run).map_err(broken)?;
            }
            Output::PersistMemory(bytes) => persist(&self.places.memory(), &bytes)?,
            Output::PersistSnapshot(bytes) => persist(&self.places.snapshot(), &bytes)?,
            Output::Grant(block) => {
                let result = self.local.grant(&block);
                if result.is_ok() {
                    tracing::info!(%block, "block granted");
                }
                self.tell(Input::GrantDone { block, result });
            }
            Output::Quarantine(block) => {
                let result = Local::quarantine(&block);
                tracing::info!(%block, "block set aside: no more addresses of it are given");
                self.tell(Input::QuarantineDone { block, result });
            }
            Output::Withdraw(block) => {
                let result = self.local.withdraw(&block);
                tracing::info!(%block, ?result, "block withdrawn");
                self.tell(Input::WithdrawDone { block, result });
            }
            Output::Wanted { wanted, changed } => self.want(wanted, changed),
            Output::Finding(change) => self.notices.change(change),
            Output::Ready(ready) => {
                self.ready = ready;
                self.offer();
            }
            Output::NeedAnswer { id, result } => {
                let may_pass = self.may_pass();
                self.needs.settle(id, result, may_pass, Instant::now());
            }
            Output::Exit { .. } => {}
        }
        Ok(())
    }

    fn want(&mut self, wanted: Arc<Wanted>, changed: Changed) {
        if changed == Changed::All || self.wanted.is_none() {
            self.obey(wanted.without_peers());
        }
        self.probes.follow(&wanted);
        // Nobody here keeps it: the machine changes it in place.
        self.plane.want(wanted, changed);
    }

    /// What concerns more than the data plane.
    fn obey(&mut self, wanted: Wanted) {
        let before = self.wanted.as_ref();
        if before.is_none_or(|before| before.this != wanted.this || before.cidrs != wanted.cidrs) {
            let followed = self.local.follow(&wanted);
            self.notices.set("local", followed, "Look at /run/weft: its owner, its space, its label");
        }
        if self.wanted.as_ref().is_none_or(|before| before.cidrs != wanted.cidrs) {
            self.look_for_overlaps(&wanted);
        }
        self.wanted = Some(wanted);
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Store(reply) => {
                if reply.result.is_ok() {
                    self.store_heard = Instant::now();
                }
                self.calls = self.calls.saturating_sub(1);
                self.tell(Input::Store(reply));
            }
            Event::Collected(result) => {
                self.notices.set("collector", result.map(drop), "It is tried again each minute");
            }
            Event::HostChanged(changed) => {
                if changed.pod_route_lost {
                    self.mend();
                }
                if changed.addresses {
                    self.look_at_addresses();
                }
            }
            Event::Mended(result) => {
                if let Ok(routes @ 1..) = result {
                    tracing::info!(routes, "put back routes to pods that somebody had removed");
                }
                self.notices.set("pod-routes", result.map(drop), "It is tried again each minute");
            }
            Event::ForeignMinded(result) => self.foreign_minded(result),
            Event::Probed(found) => self.probed(found),
            Event::UseMirrored(result) => self.use_mirrored(result),
            Event::HostUnknown(sentence) => {
                self.notices.set(
                    "addresses",
                    Err(sentence),
                    "Addresses are looked at each minute all the same",
                );
            }
        }
    }

    /// What is in use is counted once for all who ask at a time: in a burst of pods that is many.
    fn were_asked(&mut self, questions: Vec<Asked>) {
        if questions.iter().any(|asked| matches!(asked, Asked::NeedBlock { .. })) {
            self.count();
        }
        questions.into_iter().for_each(|asked| self.was_asked(asked));
    }

    fn was_asked(&mut self, asked: Asked) {
        match asked {
            Asked::Status { answer } => {
                // Whoever asked may be gone.
                let _gone = answer.send(self.document().to_json());
            }
            Asked::AcceptHistory { answer } => {
                tracing::info!(
                    "the store was accepted as it is: nodes that it does not know are gone for good"
                );
                self.tell(Input::AcceptHistory);
                let _gone = answer.send(self.document().to_json());
            }
            Asked::NeedBlock { network, families, answer } => {
                tracing::debug!(network, ?families, "a pod found no free address");
                let id = self.needs.add(answer, Instant::now());
                self.tell(Input::NeedBlock { id });
            }
        }
    }

    fn reported(&mut self, report: PlaneReport) {
        self.notices.replace("plane-", plane::notices(&report));
        let before = self.report.as_ref();
        let healed = report.healed.saturating_sub(before.map_or(0, |before| before.healed));
        if healed > 0 || before.is_none_or(|before| before.underlay != report.underlay) {
            self.probes.hurry();
        }
        if healed > 0 {
            tracing::info!(objects = healed, "put back what somebody else had changed");
        }
        if before.is_none_or(|before| before.underlay != report.underlay) {
            let links: Vec<&str> = report.underlay.iter().map(|way| way.link.as_str()).collect();
            tracing::info!(?links, pod_mtu = report.pod_mtu, "other nodes are reached by");
        }
        self.report = Some(report);
        self.mind_foreign();
        self.offer();
    }

    fn document(&self) -> Document {
        Document::of_daemon(super::document::Known {
            conf: &self.conf,
            status: self.machine.status(),
            usage: &self.usage,
            wanted: self.wanted.as_ref(),
            report: self.report.as_ref(),
            notices: self.notices.all().cloned().collect(),
            ready: self.ready && self.conflist.is_some(),
        })
    }

    /// Says farewell to the store; the network stays as it is.
    async fn stop(mut self) -> Result<Verdict, Failure> {
        self.notifier.stopping();
        self.tell(Input::Stop);
        let deadline = Instant::now() + FAREWELL;
        loop {
            if let Some(end) = self.work()? {
                return end;
            }
            if self.calls == 0 {
                break;
            }
            tokio::select! {
                Some(event) = self.events.1.recv() => self.happened(event),
                () = sleep_until(deadline) => break,
            }
        }
        tracing::info!("weftd ends; the network stays");
        Ok(Verdict::Fine)
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn next(watch: &mut Option<(mpsc::Receiver<WatchInput>, AbortHandle)>) -> Option<WatchInput> {
    match watch {
        Some((receiver, _)) => match receiver.recv().await {
            Some(input) => Some(input),
            // Its task has ended; the next one comes with the machine's next wish.
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// A task that panicked takes the daemon with it: whoever supervises it starts a whole one.
fn ended_well(ended: Result<(), tokio::task::JoinError>) -> Result<(), Failure> {
    match ended {
        Err(error) if error.is_panic() => Err(broken(format!("a part of weftd failed: {error}"))),
        _ => Ok(()),
    }
}

/// What must be on the disk before anything that relies on it. When it cannot be, nothing further is done.
fn persist(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let written = files::replace(path, content, files::PRIVATE);
    written.map(drop).map_err(|error| {
        broken(format!(
            "write {}: {error}; weftd ends, since it must not forget what it does",
            path.display()
        ))
    })
}
