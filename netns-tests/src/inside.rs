//! Running things inside a namespace: the same few verbs for nodes, pods and servers.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::netns::Netns;
use crate::seen::{self, Listener};
use crate::sys::{self, ChildSetup};

/// The namespaces that a command enters.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) name: String,
    pub(crate) net: PathBuf,
    pub(crate) mnt: Option<Arc<OwnedFd>>,
}

impl Place {
    pub(crate) fn setup(&self) -> ChildSetup {
        let net = File::open(&self.net)
            .unwrap_or_else(|error| panic!("{} has no namespace any more: {error}", self.name));
        ChildSetup { net: Some(net.into()), mnt: self.mnt.clone(), ..ChildSetup::default() }
    }
}

/// Something with namespaces of its own: a node, a pod, a server.
pub trait Inside {
    /// The namespaces that a command enters.
    fn place(&self) -> &Place;

    /// A command that runs inside, in `/`. It is killed when the thread that spawns it ends.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        sys::prepare(&mut command, self.place().setup());
        command
    }

    /// Runs a command to its end, whatever its exit status.
    fn try_run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        let mut words = words.into_iter();
        let program = words.next().expect("a program to run");
        let mut command = self.command(program);
        command.args(words);
        command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
    }

    /// Runs a command to its end; panics with its output when it fails.
    fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        let words: Vec<_> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let output = self.try_run(&words);
        if !output.status.success() {
            let line = words.join(OsStr::new(" "));
            let place = &self.place().name;
            panic!("in {place}: {}: {}\n{}", line.display(), output.status, text(&output));
        }
        output
    }

    /// Runs a command and reads its standard output as JSON; no output at all is an empty array, as
    /// `ip -j` means it.
    fn json<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Value {
        let output = self.run(words);
        if output.stdout.trim_ascii().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("in {}: no JSON: {error}\n{}", self.place().name, text(&output)))
    }

    /// Runs `work` inside, on a thread of its own: fast, for a look at files, sysctls or sockets.
    /// A socket opened in it keeps working outside.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let place = self.place();
        Netns::enter(&place.net, place.mnt.as_deref(), work)
            .unwrap_or_else(|error| panic!("enter {}: {error}", place.name))
    }

    /// Whether at least one of `count` echo requests to `ip` is answered within a second.
    fn ping(&self, ip: IpAddr, count: u32) -> bool {
        let (ip, count) = (ip.to_string(), count.to_string());
        self.try_run(["ping", "-n", "-q", "-i", "0.1", "-W", "1", "-c", &count, &ip]).status.success()
    }

    /// Listens on a TCP port of every address inside and tells each caller which address it came from.
    fn listen(&self, port: u16) -> Listener {
        self.enter(|| Listener::open(port))
            .unwrap_or_else(|error| panic!("listen on {port} in {}: {error}", self.place().name))
    }

    /// Connects to a [`Listener`] and returns the address it saw; an error when it is out of reach.
    fn seen_by(&self, server: SocketAddr) -> std::io::Result<IpAddr> {
        self.enter(|| seen::ask(server))
    }

    /// Reads `/proc/sys/<path>`, without the line end. Dots for slashes are accepted.
    fn sysctl(&self, path: &str) -> String {
        let file = sysctl_file(path);
        self.enter(|| std::fs::read_to_string(&file))
            .unwrap_or_else(|error| panic!("read {file} in {}: {error}", self.place().name))
            .trim_end()
            .to_owned()
    }

    /// Writes `/proc/sys/<path>`.
    fn set_sysctl(&self, path: &str, value: &str) {
        let file = sysctl_file(path);
        self.enter(|| std::fs::write(&file, value))
            .unwrap_or_else(|error| panic!("write {file} in {}: {error}", self.place().name));
    }
}

fn sysctl_file(path: &str) -> String {
    let path = if path.contains('/') { path.to_owned() } else { path.replace('.', "/") };
    format!("/proc/sys/{path}")
}

/// Both outputs of a command, for a person.
pub(crate) fn text(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{stdout}{stderr}")
}
