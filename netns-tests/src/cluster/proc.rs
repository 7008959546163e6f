//! A program under test that runs for long: its log is kept, and signals reach it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sys;

/// A running (or ended) child whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says is appended to `log`. It is killed when the calling thread ends.
    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
        let err = file.try_clone().expect("a second descriptor");
        command.stdin(Stdio::null()).stdout(file).stderr(err);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ended = kill(Pid::from_raw(pid), signal);
        }
    }

    /// How it ended; `None` while it runs.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Waits for its end; panics with its log when that takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        if !sys::wait_exit(self.pid(), limit).unwrap_or(true) {
            panic!("it does not end within {limit:?}:\n{}", self.tail(30));
        }
        self.child.wait().expect("wait for a child")
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        // A stopped process takes no other signal.
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        self.wait(super::PATIENCE)
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }

    /// Everything it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of what it said.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Processor time used so far, of its threads and of children that it waited for.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // Fields 14 to 17 of proc(5), in ticks of 10 ms.
        let ticks =
            after_name.split_whitespace().skip(11).take(4).filter_map(|word| word.parse::<u64>().ok());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            // The reason why a test failed is usually here.
            eprint_tail(&self.log, self.tail(40));
        }
    }
}

#[expect(clippy::print_stderr, reason = "for the person who looks why a test failed")]
fn eprint_tail(log: &Path, tail: String) {
    eprintln!("--- {} ---\n{tail}", log.display());
}

/// How long `work` took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}
