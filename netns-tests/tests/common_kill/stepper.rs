//! A program of a node, run from system call to system call, and killed at a chosen one.
//!
//! Exact where `strace --inject=all:signal=KILL:when=N` is not: parent and detached child are counted apart.

#![expect(unsafe_code, reason = "PTRACE_TRACEME has to be called between fork and exec")]

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use netns_tests::{Inside, Node, Pod, weft_bin_dir};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

/// Whom SIGKILL hits, and when: on entry to its Nth system call, which is not made any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The program itself; the child that it may have detached goes on.
    Parent(u32),
    /// The first child; the program goes on.
    Child(u32),
    /// The child at its Nth system call and the program with it, as when a control group is killed.
    Both(u32),
}

/// How a run ended.
#[derive(Debug)]
pub struct Fate {
    /// Whether the strike came before the end.
    pub struck: bool,
    /// The number of the system call that was not made.
    pub call: Option<u64>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it had answered until then.
    pub stdout: Vec<u8>,
}

/// Runs `weft` on a node under a tracer.
#[derive(Debug)]
pub struct Stepper<'a> {
    node: &'a Node,
    program: PathBuf,
    path: String,
}

impl<'a> Stepper<'a> {
    /// The plugin of this build.
    pub fn new(node: &'a Node) -> Self {
        let dir = weft_bin_dir();
        Self { node, program: dir.join("weft"), path: format!("{}:/usr/lib/cni", dir.display()) }
    }

    /// Runs one verb, and strikes.
    #[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
    pub fn run(&self, verb: &str, pod: Option<&Pod>, conf: &Value, strike: Strike) -> Fate {
        let mut child = self.start(verb, pod, conf);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (struck, call, status) = match strike {
            Strike::Parent(at) => step_parent(pid, at),
            Strike::Child(at) => step_child(pid, at, false),
            Strike::Both(at) => step_child(pid, at, true),
        };
        let mut stdout = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        Fate { struck, call, status, stdout }
    }

    fn start(&self, verb: &str, pod: Option<&Pod>, conf: &Value) -> Child {
        let mut command = self.node.command(&self.program);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.path);
        if let Some(pod) = pod {
            command.env("CNI_CONTAINERID", pod.container_id());
            command.env("CNI_NETNS", pod.netns_path()).env("CNI_IFNAME", pod.ifname());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: one plain system call between fork and exec.
        // JUSTIFICATION: only the child itself can ask to be traced from its first instruction on.
        unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
        let mut child = command.spawn().unwrap();
        // Less than a pipe holds, so nobody waits; dropped, so the plugin sees the end.
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child
    }
}

type Struck = (bool, Option<u64>, ExitStatus);

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else happens is the end")]
fn step_parent(pid: Pid, at: u32) -> Struck {
    expect_exec(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL);
    let mut count = 0;
    let mut call = None;
    resumed(ptrace::syscall(pid, None));
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                if let Some(number) = entered(pid) {
                    count += 1;
                    if count == at {
                        call = Some(number);
                        resumed(kill(pid, Signal::SIGKILL));
                        continue;
                    }
                }
                resumed(ptrace::syscall(pid, None));
            }
            WaitStatus::Stopped(_, signal) => resumed(ptrace::syscall(pid, signal)),
            ended => return (call.is_some(), call, ended_with(ended)),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else happens is a fault of this tracer")]
fn step_child(parent: Pid, at: u32, both: bool) -> Struck {
    let flags = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    expect_exec(parent, flags | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK);
    resumed(ptrace::cont(parent, None));
    let (mut count, mut call) = (0, None);
    let (mut child, mut status) = (None, None);
    let mut child_ended = false;
    while status.is_none() || (child.is_some() && !child_ended) {
        // Only this thread's own: other tests of this process have children as well.
        let event = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap();
        let pid = event.pid().unwrap();
        match event {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) if pid == parent => {
                status = Some(ended_with(event))
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => child_ended |= child == Some(pid),
            WaitStatus::PtraceEvent(..) => resumed(ptrace::cont(pid, None)),
            WaitStatus::PtraceSyscall(_) if child == Some(pid) => {
                if let Some(number) = entered(pid) {
                    count += 1;
                    if count == at {
                        call = Some(number);
                        if both {
                            resumed(kill(parent, Signal::SIGKILL));
                        }
                        resumed(kill(pid, Signal::SIGKILL));
                        continue;
                    }
                }
                resumed(ptrace::syscall(pid, None));
            }
            WaitStatus::Stopped(..) if pid != parent && child.is_none() => {
                child = Some(pid);
                resumed(ptrace::syscall(pid, None));
            }
            // A later child: it goes its own way.
            WaitStatus::Stopped(..) if pid != parent && child != Some(pid) => {
                resumed(ptrace::detach(pid, None))
            }
            WaitStatus::Stopped(_, signal) if pid == parent => resumed(ptrace::cont(pid, signal)),
            WaitStatus::Stopped(_, signal) => resumed(ptrace::syscall(pid, signal)),
            other => panic!("an unexpected stop: {other:?}"),
        }
    }
    (call.is_some(), call, status.unwrap())
}

/// The stop at the end of a successful execve.
fn expect_exec(pid: Pid, options: Options) {
    let stopped = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGTRAP));
    ptrace::setoptions(pid, options).unwrap();
}

/// A process that ended meanwhile cannot be resumed or killed, and need not be.
#[track_caller]
fn resumed(outcome: nix::Result<()>) {
    assert!(matches!(outcome, Ok(()) | Err(Errno::ESRCH)), "a traced process: {outcome:?}");
}

/// The number of the system call that is being entered; `None` on the way out of one.
fn entered(pid: Pid) -> Option<u64> {
    let info = ptrace::syscall_info(pid).ok()?;
    // SAFETY: the kernel says which member of the union it filled.
    // JUSTIFICATION: neither nix nor libc offers it as an enum.
    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY { Some(unsafe { info.u.entry.nr }) } else { None }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else happens is a fault of this tracer")]
fn ended_with(event: WaitStatus) -> ExitStatus {
    match event {
        WaitStatus::Exited(_, code) => ExitStatus::from_raw(code << 8),
        WaitStatus::Signaled(_, signal, _) => ExitStatus::from_raw(signal as i32),
        other => panic!("neither exited nor killed: {other:?}"),
    }
}
