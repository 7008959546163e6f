//! One plugin, driven as a runtime drives it: environment, standard input, exit status, output.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::inside::Inside;
use crate::node::Node;
use crate::outcome::Outcome;
use crate::pod::Pod;
use crate::sys;

/// Longer than any plugin's own deadline.
const LIMIT: Duration = Duration::from_secs(60);

/// A plugin on a node. Made by [`Node::cni`].
#[derive(Clone, Debug)]
pub struct Cni {
    node: Node,
    program: PathBuf,
    path: OsString,
}

impl Cni {
    pub(crate) fn new(node: &Node, dir: PathBuf, plugin: &str) -> Self {
        Self { node: node.clone(), program: dir.join(plugin), path: dir.into() }
    }

    /// Another `CNI_PATH` than the plugin's own folder.
    pub fn with_path<P: AsRef<Path>>(mut self, dirs: impl IntoIterator<Item = P>) -> Self {
        let dirs: Vec<_> = dirs.into_iter().map(|dir| dir.as_ref().as_os_str().to_owned()).collect();
        self.path = dirs.join(OsStr::new(":"));
        self
    }

    /// ADD for a pod.
    pub fn add(&self, pod: &Pod, conf: &Value) -> Outcome {
        self.call("ADD").pod(pod).conf(conf).run()
    }

    /// DEL for a pod, with its namespace's path.
    pub fn del(&self, pod: &Pod, conf: &Value) -> Outcome {
        self.call("DEL").pod(pod).conf(conf).run()
    }

    /// CHECK for a pod; `conf` has the `prevResult`.
    pub fn check(&self, pod: &Pod, conf: &Value) -> Outcome {
        self.call("CHECK").pod(pod).conf(conf).run()
    }

    /// GC; `conf` has the `cni.dev/valid-attachments`.
    pub fn gc(&self, conf: &Value) -> Outcome {
        self.call("GC").conf(conf).run()
    }

    /// STATUS.
    pub fn status(&self, conf: &Value) -> Outcome {
        self.call("STATUS").conf(conf).run()
    }

    /// VERSION, with the dummies that libcni sets.
    pub fn version(&self) -> Outcome {
        let call = self.call("VERSION").stdin(r#"{"cniVersion":"1.1.0"}"#);
        ["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
            .into_iter()
            .fold(call, |call, key| call.env(key, "dummy"))
            .run()
    }

    /// A call to be shaped before it runs. `CNI_COMMAND` and `CNI_PATH` are set, and nothing else of
    /// `CNI_*`; standard input is empty.
    pub fn call(&self, verb: &str) -> Call {
        let env = vec![("CNI_COMMAND".into(), verb.into()), ("CNI_PATH".into(), self.path.clone())];
        Call {
            node: self.node.clone(),
            program: self.program.clone(),
            env,
            wrap: Vec::new(),
            stdin: Vec::new(),
            stdin_open: false,
            stdout: StdoutTo::Capture,
            setup: Shape::default(),
            limit: LIMIT,
        }
    }
}

/// Where a call's standard output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdoutTo {
    /// Into the [`Outcome`].
    Capture,
    /// Into a pipe whose reader is gone: writing gives EPIPE.
    ReaderGone,
    /// Into `/dev/full`: writing gives ENOSPC.
    Full,
    /// Nowhere: the descriptor is closed.
    Closed,
}

#[derive(Clone, Debug, Default)]
struct Shape {
    close: Vec<RawFd>,
    umask: Option<libc::mode_t>,
    nofile: Option<u64>,
    cwd_deleted: bool,
}

/// A call of a plugin, still to be run. Made by [`Cni::call`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Call {
    node: Node,
    program: PathBuf,
    env: Vec<(OsString, OsString)>,
    wrap: Vec<OsString>,
    stdin: Vec<u8>,
    stdin_open: bool,
    stdout: StdoutTo,
    setup: Shape,
    limit: Duration,
}

impl Call {
    /// Sets `CNI_CONTAINERID`, `CNI_NETNS` and `CNI_IFNAME`.
    pub fn pod(self, pod: &Pod) -> Self {
        self.env("CNI_CONTAINERID", pod.container_id())
            .env("CNI_NETNS", pod.netns_path())
            .env("CNI_IFNAME", pod.ifname())
    }

    /// The configuration on standard input.
    pub fn conf(self, conf: &Value) -> Self {
        self.stdin(conf.to_string())
    }

    /// Raw bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Keeps standard input open after its bytes, as a careless runtime does.
    pub fn stdin_left_open(mut self) -> Self {
        self.stdin_open = true;
        self
    }

    /// Sets a variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self = self.without(&key);
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.retain(|(name, _)| name != key.as_ref());
        self
    }

    /// Puts the program behind another: `["strace", "-f", …]`.
    pub fn wrap<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.wrap = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Closes these descriptors before the program starts.
    pub fn close_fds(mut self, fds: impl IntoIterator<Item = RawFd>) -> Self {
        self.setup.close.extend(fds);
        self
    }

    /// Sends standard output elsewhere.
    pub fn stdout(mut self, to: StdoutTo) -> Self {
        self.stdout = to;
        self
    }

    /// The program's file mode mask.
    pub fn umask(mut self, mask: u32) -> Self {
        self.setup.umask = Some(mask);
        self
    }

    /// The program's limit of open descriptors.
    pub fn nofile(mut self, limit: u64) -> Self {
        self.setup.nofile = Some(limit);
        self
    }

    /// Starts the program in a folder that does not exist any more.
    pub fn cwd_deleted(mut self) -> Self {
        self.setup.cwd_deleted = true;
        self
    }

    /// How long the call may take; longer is a panic. 60 s by default.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the call to its end.
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Starts the call. It is killed when the calling thread ends.
    pub fn spawn(self) -> Running {
        let mut command = self.command();
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        drop(command);
        let stdin = child.stdin.take().map(|pipe| feed(pipe, self.stdin, self.stdin_open));
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        Running { child, program: self.program, started, limit: self.limit, stdin, stdout, stderr }
    }

    fn command(&self) -> Command {
        let mut words = self.wrap.iter().map(OsString::as_os_str).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"CNI_")) {
            command.env_remove(key);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(self.stdout.stdio());
        let mut setup = self.node.place().setup();
        setup.close.extend(&self.setup.close);
        if self.stdout == StdoutTo::Closed {
            setup.close.push(1);
        }
        setup.umask = self.setup.umask;
        setup.nofile = self.setup.nofile;
        setup.cwd = self.setup.cwd_deleted.then(deleted_dir);
        sys::prepare(&mut command, setup);
        command
    }
}

impl StdoutTo {
    fn stdio(self) -> Stdio {
        match self {
            Self::Capture => Stdio::piped(),
            Self::Closed => Stdio::null(),
            Self::Full => File::options().write(true).open("/dev/full").expect("open /dev/full").into(),
            Self::ReaderGone => std::io::pipe().expect("a pipe").1.into(),
        }
    }
}

/// A call that runs. Made by [`Call::spawn`].
#[derive(Debug)]
pub struct Running {
    child: Child,
    program: PathBuf,
    started: Instant,
    limit: Duration,
    stdin: Option<JoinHandle<Option<std::process::ChildStdin>>>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn is_done(&mut self) -> bool {
        self.child.try_wait().expect("wait for the plugin").is_some()
    }

    /// Sends it SIGKILL, as a runtime does when its patience ends.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end and for the end of its output, as Go's `exec.Cmd` does.
    pub fn wait(mut self) -> Outcome {
        let left = self.limit.saturating_sub(self.started.elapsed());
        if !sys::wait_exit(self.pid(), left).unwrap_or(true) {
            self.kill();
            panic!("{} did not end within {:?}", self.program.display(), self.limit);
        }
        let status = self.child.wait().expect("wait for the plugin");
        let exited = self.started.elapsed();
        let stdout = self.stdout.take().map(joined).unwrap_or_default();
        let stderr = self.stderr.take().map(joined).unwrap_or_default();
        let elapsed = self.started.elapsed();
        drop(self.stdin.take().map(JoinHandle::join));
        Outcome { status, stdout, stderr, exited, elapsed }
    }
}

fn feed(
    mut pipe: std::process::ChildStdin,
    bytes: Vec<u8>,
    keep: bool,
) -> JoinHandle<Option<std::process::ChildStdin>> {
    std::thread::spawn(move || {
        // A plugin need not read all of it; libcni ignores the broken pipe, too.
        let _ = pipe.write_all(&bytes);
        keep.then_some(pipe)
    })
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn joined(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A descriptor of a folder that has no name any more.
fn deleted_dir() -> OwnedFd {
    let path = std::env::temp_dir().join(format!("weft-gone-{}-{:?}", std::process::id(), Instant::now()));
    fs::create_dir(&path).expect("make a folder");
    let dir = File::open(&path).expect("open the folder");
    fs::remove_dir(&path).expect("remove the folder");
    dir.into()
}
