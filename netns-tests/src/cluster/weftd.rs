//! A real `weftd` on a node, driven as an operator drives it: a file, signals, its commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::conf::WeftdConf;
use super::proc::Process;
use super::{PATIENCE, weftd_program};
use crate::inside::{Inside, text};
use crate::node::Node;
use crate::wait::wait_until;

/// Where the file is on each node: a folder of the node's own.
const CONF: &str = "/etc/weft/weftd.toml";
/// What `weftd` installs when pods can start.
const CONFLIST: &str = "/etc/cni/net.d/10-weft.conflist";

/// The daemon of a node. It may be stopped and started again.
#[derive(Debug)]
pub struct Weftd {
    node: Node,
    program: Mutex<PathBuf>,
    log: PathBuf,
    /// How long the log was at the last start.
    said_before: AtomicUsize,
    process: Mutex<Option<Process>>,
}

impl Weftd {
    /// A daemon that does not run yet; its log goes into `dir`.
    pub fn new(node: &Node, dir: &Path, conf: WeftdConf) -> Self {
        let program = weftd_program().unwrap_or_else(|missing| panic!("{missing}"));
        let weftd = Self {
            node: node.clone(),
            program: Mutex::new(program),
            log: dir.join(format!("{}.weftd.log", node.name())),
            said_before: AtomicUsize::new(0),
            process: Mutex::new(None),
        };
        weftd.configure(&conf);
        weftd
    }

    /// Writes another configuration; a running daemon reads it when it is started again.
    pub fn configure(&self, conf: &WeftdConf) {
        self.write_conf(&conf.text());
    }

    /// Writes this very text as configuration.
    pub fn write_conf(&self, text: &str) {
        fs::write(self.node.path(CONF), text).expect("write weftd.toml");
    }

    /// Another build from the next start on.
    pub fn upgrade(&self, program: &Path) {
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = program.to_owned();
    }

    /// Starts it with these further flags, and does not wait.
    pub fn start(&self, flags: &[&str]) {
        self.start_under(&[], flags);
    }

    /// The same behind another program: `["strace", "-f", …]`.
    pub fn start_under(&self, wrap: &[&str], flags: &[&str]) {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut words = wrap.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
        let mut command = self.node.command(words.next().unwrap_or_default());
        without_variables_of_tests(&mut command);
        command.args(words).args(["run", "--config", CONF]).args(flags);
        let mut process = self.process();
        assert!(process.is_none(), "weftd of {} runs already", self.node.name());
        self.said_before.store(self.log().len(), Ordering::Relaxed);
        *process = Some(Process::spawn(command, &self.log));
    }

    /// Runs it to its end, as for a configuration that it must refuse; returns the exit status and what it said.
    pub fn run_to_its_end(&self, flags: &[&str]) -> (ExitStatus, String) {
        self.start(flags);
        let status = self.wait_end();
        (status, self.log_of_this_run())
    }

    /// Waits until it has ended by itself.
    pub fn wait_end(&self) -> ExitStatus {
        let mut process =
            self.process().take().unwrap_or_else(|| panic!("weftd of {} does not run", self.node.name()));
        process.wait(PATIENCE)
    }

    /// SIGTERM, and its end.
    pub fn stop(&self) -> ExitStatus {
        let mut process =
            self.process().take().unwrap_or_else(|| panic!("weftd of {} does not run", self.node.name()));
        process.stop()
    }

    /// SIGKILL, and its end.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// SIGSTOP (`true`) or SIGCONT.
    pub fn freeze(&self, frozen: bool) {
        if let Some(process) = &*self.process() {
            process.signal(if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(|process| process.try_wait().is_none())
    }

    /// A look at the running process.
    pub fn inspect<T>(&self, look: impl FnOnce(&Process) -> T) -> T {
        look(self.process().as_ref().unwrap_or_else(|| panic!("weftd of {} does not run", self.node.name())))
    }

    /// Everything it has said since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has said since its last start.
    pub fn log_of_this_run(&self) -> String {
        self.log().split_off(self.said_before.load(Ordering::Relaxed))
    }

    /// The network that the runtime sees; `None` before pods can start.
    pub fn conflist(&self) -> Option<Value> {
        let text = fs::read_to_string(self.node.path(CONFLIST)).ok()?;
        Some(
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("the conflist is no JSON ({error}): {text}")),
        )
    }

    /// Waits until pods can start: the conflist is there, and `weftd status` says ready.
    pub fn wait_ready(&self) {
        let what = format!("weftd of {} is ready:\n{}", self.node.name(), self.log_tail());
        let ready = || {
            if !self.is_running() {
                panic!("weftd of {} has ended:\n{}", self.node.name(), self.log_tail());
            }
            self.conflist().is_some() && self.try_status().is_some_and(|status| is_ready(&status))
        };
        match crate::wait::poll(PATIENCE, || ready().then_some(())) {
            Some(()) => {}
            None => panic!(
                "waited in vain until {what}\n{}\nstatus: {:#}",
                self.log_tail(),
                self.try_status().unwrap_or_default()
            ),
        }
    }

    /// Waits until its status has `code` among the findings (`true`), or no more.
    pub fn wait_finding(&self, code: &str, there: bool) -> Value {
        let what = format!("{} finds {code}: {there}", self.node.name());
        crate::wait::wait_for(&what, PATIENCE, || {
            let status = self.try_status()?;
            let findings = status["findings"].as_array()?;
            let found = findings.iter().find(|finding| finding["code"] == code).cloned();
            (found.is_some() == there).then(|| found.unwrap_or_default())
        })
    }

    /// Waits until it knows of so many other nodes, and the kernel is as it should be.
    pub fn wait_peers(&self, count: usize) {
        wait_until(&format!("{} peers on {}", count, self.node.name()), PATIENCE, || {
            self.try_status().is_some_and(|status| status["peers"] == count && status["in_sync"] == true)
        });
    }

    /// `weftd status -o json`; `None` when nobody answers.
    pub fn try_status(&self) -> Option<Value> {
        let output = self.command(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `weftd status -o json`.
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("weftd of {} gives no status", self.node.name()))
    }

    /// One of its other commands, with its own configuration.
    pub fn command(&self, words: &[&str]) -> Output {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = self.node.command(program);
        without_variables_of_tests(&mut command);
        command.args(words);
        if words.first() != Some(&"ipam") {
            command.args(["--config", CONF]);
        }
        command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
    }

    /// The same, which must succeed; its standard output.
    #[track_caller]
    pub fn command_ok(&self, words: &[&str]) -> String {
        let output = self.command(words);
        assert!(output.status.success(), "weftd {}: {}\n{}", words.join(" "), output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// weftd refuses `WEFT_…` variables that it does not know, and these tests have some of their own.
fn without_variables_of_tests(command: &mut Command) {
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with("WEFT_") && name != "WEFT_LOG") {
        command.env_remove(name);
    }
}

/// A daemon that runs, whose node can start pods, and whose kernel is as it should be.
fn is_ready(status: &Value) -> bool {
    status["daemon"] == "running" && status["ready"] == true && status["in_sync"] == true
}

/// Waits until it has ended or has findings; what it says: the serious lines of its log, and the findings.
pub fn complaint(weftd: &Weftd) -> String {
    let said = crate::wait::wait_for("weftd complains", PATIENCE, || {
        if !weftd.is_running() {
            return Some(String::new());
        }
        let findings = weftd.try_status().filter(|status| status["daemon"] == "running")?["findings"].clone();
        findings.as_array().is_some_and(|all| !all.is_empty()).then(|| findings.to_string())
    });
    let log = weftd.log_of_this_run();
    let serious = log.lines().filter(|line| !line.contains(" INFO "));
    format!("{}\n{said}", serious.collect::<Vec<_>>().join("\n"))
}

/// Whether it ends by itself within this time.
pub fn ended_within(weftd: &Weftd, limit: std::time::Duration) -> bool {
    crate::wait::poll(limit, || (!weftd.is_running()).then_some(())).is_some()
}
