//! The data plane's thread: wakes for a new order, for kernel events and for what may be tried again; never for nothing.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::pass::Reconciler;
use crate::report::{PlaneReport, Removal};
use crate::settings::SYSCTL_ROOT;
use crate::wanted::{Changed, Wanted};

/// Everything is read again this often, in case an event was never sent.
const RESYNC: Duration = Duration::from_secs(60);
/// The legacy iptables tell nobody when they change: a look at two files of /proc, mostly empty, this often.
const LEGACY: Duration = Duration::from_secs(10);
/// Events come in bursts: a pass waits until so long nothing came,
const QUIET: Duration = Duration::from_millis(10);
/// but no longer than this.
const BOUND: Duration = Duration::from_millis(100);
/// Passes that follow each other at once; more means that somebody works against us.
const FOLLOW_UPS: u32 = 3;
/// After so many it is tried again this much later.
const BREATH: Duration = Duration::from_secs(1);

/// What the data plane needs to know of where it runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the host's /proc/sys is.
    pub sysctl_root: PathBuf,
}

/// The running data plane. Dropping it stops the thread and leaves the kernel as it is.
///
/// ```no_run
/// # use std::sync::{Arc, mpsc};
/// # fn wanted() -> weft_overlay::wanted::Wanted { unimplemented!() }
/// let (report, reports) = mpsc::channel();
/// let plane = weft_overlay::DataPlane::start(Default::default(), move |new| drop(report.send(new)))?;
/// let order = plane.want(Arc::new(wanted()));
/// let done = reports.iter().find(|report| report.order >= order && report.in_sync);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct DataPlane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Inbox {
    wanted: Option<(Arc<Wanted>, Changed)>,
    orders: u64,
    resync: bool,
    stop: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { sysctl_root: SYSCTL_ROOT.into() }
    }
}

impl DataPlane {
    /// Opens the sockets in the calling thread's network namespace, reads what the kernel has and starts the thread.
    /// Nothing is changed before the first [`DataPlane::want`].
    ///
    /// `report` is called from that thread whenever the report is another one than before.
    ///
    /// # Errors
    /// When the kernel refuses: the sentence says what was attempted.
    pub fn start(setup: Setup, report: impl FnMut(PlaneReport) + Send + 'static) -> io::Result<Self> {
        let failed = |error: &dyn std::fmt::Display| {
            io::Error::other(format!(
                "start the data plane (netlink sockets for routes and nf_tables; needs CAP_NET_ADMIN): {error}"
            ))
        };
        let reconciler = Reconciler::new(setup.sysctl_root).map_err(|error| failed(&error))?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake });
        let thread = std::thread::Builder::new().name("data-plane".to_owned()).spawn({
            let shared = shared.clone();
            move || Loop { shared, reconciler, report, last: None }.run()
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What the kernel should have from now on. Only the newest order counts. Returns its number: a report of
    /// that number (see [`PlaneReport::order`]) follows, also if nothing had to be changed.
    pub fn want(&self, wanted: Arc<Wanted>) -> u64 {
        self.want_changed(wanted, Changed::All)
    }

    /// The same when it is known what is new since the last order: it then costs no more than that.
    pub fn want_changed(&self, wanted: Arc<Wanted>, changed: Changed) -> u64 {
        self.shared.tell(|inbox| {
            // What an order that was not looked at yet brought is new, too.
            let changed = match inbox.wanted.take() {
                Some((_, before)) => both(before, changed),
                None => changed,
            };
            inbox.wanted = Some((wanted, changed));
            inbox.orders += 1;
            inbox.orders
        })
    }

    /// Reads everything again, settings too, and mends it.
    pub fn resync(&self) {
        self.shared.tell(|inbox| inbox.resync = true);
    }

    /// Whether the thread still runs; it ends only by [`DataPlane::stop`], or by a fault of ours.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the thread after the pass it is in. The kernel stays as it is.
    pub fn stop(self) {
        drop(self);
    }

    /// Takes everything of ours away: routes of protocol 87 that refuse or lead to other nodes, links named `weft-…`,
    /// the nf_tables tables named `weft`. Not while a data plane runs: it would put all back.
    ///
    /// # Errors
    /// When the kernel does not even tell what there is.
    pub fn remove_everything() -> io::Result<Removal> {
        let mut reconciler = Reconciler::new(SYSCTL_ROOT.into()).map_err(io::Error::other)?;
        Ok(reconciler.remove_everything())
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.shared.tell(|inbox| inbox.stop = true);
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was printed by it.
            let _ = thread.join();
        }
    }
}

fn both(before: Changed, after: Changed) -> Changed {
    match (before, after) {
        (Changed::Peers(mut names), Changed::Peers(more)) => {
            names.extend(more);
            Changed::Peers(names)
        }
        (Changed::All, _) | (_, Changed::All) => Changed::All,
    }
}

impl Shared {
    fn tell<T>(&self, change: impl FnOnce(&mut Inbox) -> T) -> T {
        let told = change(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        // Full is as good as written: the thread wakes.
        let _ = self.wake.write(1);
        told
    }

    fn take(&self) -> Inbox {
        let _ = self.wake.read();
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = inbox.orders;
        let taken = std::mem::take(&mut *inbox);
        inbox.orders = orders;
        taken
    }
}

struct Loop<R> {
    shared: Arc<Shared>,
    reconciler: Reconciler,
    report: R,
    last: Option<PlaneReport>,
}

/// When the next pass is due: after a quiet moment, but within a bound of the first event.
#[derive(Clone, Copy, Debug, Default)]
struct Debounce {
    first: Option<Instant>,
    due: Option<Instant>,
}

impl Debounce {
    fn note(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        self.due = Some((now + QUIET).min(first + BOUND));
    }
}

impl<R: FnMut(PlaneReport)> Loop<R> {
    fn run(mut self) {
        let mut resync_at = Instant::now() + RESYNC;
        let mut legacy_at = Instant::now() + LEGACY;
        let mut debounce = Debounce::default();
        loop {
            let now = Instant::now();
            let retry = self.reconciler.next(now);
            let until = [debounce.due, retry, Some(resync_at), Some(legacy_at)]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(resync_at);
            self.wait(until.saturating_duration_since(now));
            let inbox = self.shared.take();
            if inbox.stop {
                return;
            }
            let now = Instant::now();
            if now >= resync_at || inbox.resync {
                self.reconciler.resync();
                resync_at = now + RESYNC;
                debounce.due = Some(now);
            }
            if now >= legacy_at {
                legacy_at = now + LEGACY;
                self.reconciler.look_at_legacy();
                self.tell();
            }
            if self.reconciler.hear(now) {
                debounce.note(now);
            }
            if let Some((wanted, changed)) = inbox.wanted {
                self.reconciler.want(&wanted, &changed, inbox.orders);
                debounce.due = Some(now);
            }
            let retry_is_due = retry.is_some_and(|at| now >= at);
            if retry_is_due || debounce.due.is_some_and(|due| now >= due) {
                debounce = Debounce::default();
                if !self.passes() {
                    debounce.due = Some(Instant::now() + BREATH);
                }
            }
        }
    }

    /// Says whether it came to an end.
    fn passes(&mut self) -> bool {
        let mut more = true;
        for _ in 0..FOLLOW_UPS {
            more = self.reconciler.pass(Instant::now());
            if !more {
                break;
            }
            self.reconciler.hear(Instant::now());
        }
        self.tell();
        !more
    }

    fn tell(&mut self) {
        let report = self.reconciler.report();
        if self.last.as_ref() != Some(&report) {
            self.last = Some(report.clone());
            (self.report)(report);
        }
    }

    /// Until an event comes or the time is over.
    fn wait(&self, limit: Duration) {
        let [events, commits] = self.reconciler.kernel().descriptors();
        let mut fds =
            [events, commits, self.shared.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Rounded up: waking a moment early would only mean to wait again.
        let limit = limit + Duration::from_micros(999);
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, limit);
    }
}
