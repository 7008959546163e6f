//! Real etcd members on loopback, as children of the test: gone when their [`Cluster`] is, also when the test panics or is killed.
#![expect(clippy::unwrap_used, reason = "a laboratory for tests")]
#![expect(dead_code, reason = "each test file uses a part of it")]

pub mod certificates;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use weftd::store::etcd::{Conf, Endpoint, Etcd, Timing};
use weftd::store::{Op, Store};

/// How long a state is waited for on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    members: Vec<Member>,
    scheme: &'static str,
    folder: TempDir,
}

struct Member {
    args: Vec<String>,
    port: u16,
    data: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// One member that answers; `None`, loudly, where there is no etcd.
    pub fn one() -> Option<Self> {
        let cluster = Self::with(1, "http", &[])?;
        cluster.wait_until_it_answers();
        Some(cluster)
    }

    /// This many members, started but not waited for.
    pub fn with(members: usize, scheme: &'static str, extra: &[String]) -> Option<Self> {
        let there = Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok();
        if !there {
            let required = std::env::var_os("NETNS_TESTS").is_some_and(|mode| mode == "require");
            assert!(!required, "this test needs etcd (Debian: etcd-server)");
            // Past the capture of the test's output; nobody is left to be told if this fails.
            let _unheard = writeln!(io::stderr(), "SKIPPED: this test needs etcd (Debian: etcd-server)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(members * 2);
        let peer = |index: usize| format!("http://127.0.0.1:{}", ports[members + index]);
        let all: Vec<_> = (0..members).map(|index| format!("m{index}={}", peer(index))).collect();
        let members = (0..members).map(|index| {
            let (port, data) = (ports[index], folder.path().join(format!("m{index}")));
            let client = format!("{scheme}://127.0.0.1:{port}");
            let mut args: Vec<_> = [
                ("name", format!("m{index}")),
                ("data-dir", data.display().to_string()),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client),
                ("listen-peer-urls", peer(index)),
                ("initial-advertise-peer-urls", peer(index)),
                ("initial-cluster", all.join(",")),
            ]
            .map(|(name, value)| format!("--{name}={value}"))
            .to_vec();
            args.extend_from_slice(extra);
            Member { args, port, data, child: None }
        });
        let mut cluster = Self { members: members.collect(), scheme, folder };
        (0..cluster.members.len()).for_each(|index| cluster.start(index));
        Some(cluster)
    }

    pub fn start(&mut self, index: usize) {
        let log = File::options().append(true).create(true).open(self.log_path(index)).unwrap();
        let member = &mut self.members[index];
        let mut command = Command::new("setpriv");
        // The kernel ends it with this test's thread, whatever happens to that.
        command.args(["--pdeathsig", "KILL", "etcd"]).args(&member.args);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        member.child = Some(child.unwrap());
    }

    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid(index));
        netns_tests::wait_until("all threads have stopped", PATIENCE, || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
            })
        });
    }

    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    /// Copies a stopped member's data: a backup.
    pub fn back_up(&mut self, index: usize) -> PathBuf {
        self.kill(index);
        let copy = self.folder.path().join("backup");
        let _none_yet = fs::remove_dir_all(&copy);
        copy_folder(&self.members[index].data, &copy);
        self.start(index);
        copy
    }

    /// Copies a member's data as it is this moment, as pulling the plug would leave it: a backup, without a restart.
    pub fn copy_running(&self, index: usize, name: &str) -> PathBuf {
        let copy = self.folder.path().join(name);
        self.freeze(index);
        copy_folder(&self.members[index].data, &copy);
        self.thaw(index);
        copy
    }

    /// Puts a backup in the place of a member's data.
    pub fn restore(&mut self, index: usize, backup: &Path) {
        self.kill(index);
        fs::remove_dir_all(&self.members[index].data).unwrap();
        copy_folder(backup, &self.members[index].data);
        self.start(index);
    }

    pub fn url(&self, index: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[index].port)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// For all members, with deadlines short enough for a test.
    pub fn conf(&self) -> Conf {
        let urls = (0..self.members.len()).map(|index| Endpoint::parse(&self.url(index), false).unwrap());
        Conf { timing: timing(), ..Conf::new(urls.collect()) }
    }

    /// The client of etcd itself, for what an operator does.
    pub async fn admin(&self, index: usize) -> etcd_client::Client {
        etcd_client::Client::connect([self.url(index)], None).await.unwrap()
    }

    pub fn wait_until_it_answers(&self) {
        let runtime = runtime();
        let store = Etcd::new(self.conf());
        netns_tests::wait_until("etcd answers", PATIENCE, || {
            runtime.block_on(store.call(Op::Read(Vec::new()))).is_ok()
        });
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("m{index}.log"))
    }

    fn signal(&self, index: usize, signal: Signal) {
        kill(Pid::from_raw(self.pid(index).try_into().unwrap()), signal).unwrap();
    }

    fn pid(&self, index: usize) -> u32 {
        self.members[index].child.as_ref().unwrap().id()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn timing() -> Timing {
    let second = Duration::from_secs(1);
    Timing {
        call: second * 3,
        idle: second,
        sign_of_life: second * 2,
        pause_first: Duration::from_millis(50),
        pause_longest: second,
        // Only tests that are about them want them among what they wait for.
        alarms: second * 3600,
        ..Timing::default()
    }
}

/// Ports that nobody uses. All are held until all are known, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status().unwrap();
    assert!(status.success());
}
