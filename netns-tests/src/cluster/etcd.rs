//! A real etcd of one or three members, each in a namespace of its own on the wire, so that a member can be killed,
//! frozen, cut off, and the whole restored from an earlier state.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::etcd_api::{self, KeyValue, PORT, encode, items, number, prefix_range};
use super::proc::Process;
use super::tls::{Authority, Identity};
use super::underlay::{Segment, Wire, bare};
use super::{PATIENCE, long};
use crate::inside::{Inside, Place};
use crate::lab::Lab;
use crate::wait::wait_until;

/// Host number of the first member.
const FIRST_HOST: usize = 11;

/// What the store shall be like.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// One or three.
    pub members: usize,
    /// Clients need certificates, and so does it.
    pub tls: bool,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self { members: 1, tls: false }
    }
}

/// The members.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    dir: PathBuf,
    tls: Option<Tls>,
    /// Who this lab itself is, once etcd wants to know.
    login: Mutex<Option<(String, String)>>,
}

#[derive(Debug)]
struct Tls {
    authority: Authority,
    servers: Identity,
    clients: Identity,
}

#[derive(Debug)]
struct Member {
    name: String,
    place: Place,
    address: String,
    process: Mutex<Option<Process>>,
}

/// The state of a stopped etcd, to be restored later.
#[derive(Debug)]
pub struct Snapshot(PathBuf);

impl Etcd {
    pub(super) fn start(lab: &Lab, wire: &mut Wire, options: &EtcdOptions) -> Self {
        let dir = lab.shared.dir.join("etcd");
        fs::create_dir_all(&dir).expect("make etcd's folder");
        let member = |index: usize| {
            let name = format!("etcd{}", index + 1);
            let place = bare(lab, &name);
            wire.plug(lab, &place, Segment::Near, FIRST_HOST + index);
            let address = wire.address(Segment::Near, FIRST_HOST + index);
            Member { name, place, address, process: Mutex::new(None) }
        };
        let members: Vec<Member> = (0..options.members).map(member).collect();
        let tls = options.tls.then(|| {
            let authority = Authority::new(&dir, "ca");
            let addresses: Vec<IpAddr> =
                members.iter().filter_map(|member| member.address.parse().ok()).collect();
            let servers = authority.sign("server", &addresses);
            let clients = authority.sign("client", &[]);
            Tls { authority, servers, clients }
        });
        let etcd = Self { members, dir, tls, login: Mutex::new(None) };
        etcd.start_all();
        etcd
    }

    /// The URLs that clients use.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.url(member, 2379)).collect()
    }

    /// Who signed the members' certificates, where there are some.
    pub fn authority(&self) -> Option<&Authority> {
        self.tls.as_ref().map(|tls| &tls.authority)
    }

    /// A client's certificate, where one is needed.
    pub fn client(&self) -> Option<&Identity> {
        self.tls.as_ref().map(|tls| &tls.clients)
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Starts every member that does not run, and waits until the cluster answers.
    pub fn start_all(&self) {
        (0..self.members.len()).for_each(|index| self.spawn(index));
        wait_until("etcd answers", PATIENCE, || self.try_call("kv/range", &prefix_range("/none")).is_ok());
    }

    /// Starts a member that was stopped or killed.
    pub fn spawn(&self, index: usize) {
        let mut process = self.members[index].process();
        if process.is_none() {
            *process = Some(self.run(&self.members[index]));
        }
    }

    /// SIGTERM to every member, and their end.
    pub fn stop_all(&self) {
        for member in &self.members {
            if let Some(mut process) = member.process().take() {
                process.kill();
            }
        }
    }

    /// SIGKILL to a member.
    pub fn kill(&self, index: usize) {
        if let Some(mut process) = self.members[index].process().take() {
            process.kill();
        }
    }

    /// SIGSTOP (`true`) or SIGCONT: a member that holds its connections and says nothing.
    pub fn freeze(&self, index: usize, frozen: bool) {
        if let Some(process) = &*self.members[index].process() {
            process.signal(if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
        }
    }

    /// Cuts a member off from everybody (`true`), or joins it again.
    pub fn cut_off(&self, wire: &Wire, index: usize, cut: bool) {
        wire.set_plugged(&self.members[index].place, !cut);
    }

    /// Cuts a member off from the other members only (`true`): its clients still reach it.
    pub fn isolate(&self, index: usize, cut: bool) {
        let others = self.members.iter().enumerate().filter(|(other, _)| *other != index);
        for (_, other) in others {
            Wire::set_blocked(&self.members[index].place, &other.address, cut);
        }
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let leads = |member: &Member| {
            let status = member.call("maintenance/status", &json!({}), None).ok()?;
            (status["leader"] == status["header"]["member_id"]).then_some(())
        };
        self.members.iter().position(|member| leads(member).is_some()).expect("etcd has a leader")
    }

    /// Which member a process of `place` is connected to, by the address of its connections' other ends.
    pub fn members_of(&self, place: &impl Inside) -> Vec<usize> {
        let output = place.run(["ss", "-Htn", "state", "established"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let used = |member: &&Member| {
            text.contains(&format!("{}:2379", member.address))
                || text.contains(&format!("[{}]:2379", member.address))
        };
        (0..self.members.len()).filter(|index| used(&&self.members[*index])).collect()
    }

    /// Stops it, keeps a copy of its state, starts it again.
    pub fn snapshot(&self, name: &str) -> Snapshot {
        self.stop_all();
        let kept = self.dir.join(format!("snapshot-{name}"));
        copy_tree(&self.dir.join("data"), &kept);
        self.start_all();
        Snapshot(kept)
    }

    /// Stops it, puts an earlier state in the place of its own, and starts it: what came after is forgotten.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.stop_all();
        self.replace_by(snapshot);
        self.start_all();
    }

    /// [`Etcd::restore`] that lets nobody connect before `meanwhile` is done (over the members' own loopback).
    pub fn restore_hidden(&self, wire: &Wire, snapshot: &Snapshot, meanwhile: impl FnOnce(&Self)) {
        assert_eq!(self.members.len(), 1, "members that are cut off from each other have no leader");
        self.cut_off(wire, 0, true);
        self.restore(snapshot);
        meanwhile(self);
        self.cut_off(wire, 0, false);
    }

    fn replace_by(&self, snapshot: &Snapshot) {
        let data = self.dir.join("data");
        fs::remove_dir_all(&data).expect("remove etcd's state");
        copy_tree(&snapshot.0, &data);
    }

    /// All keys that begin with `prefix`.
    pub fn list(&self, prefix: &str) -> Vec<KeyValue> {
        items(&self.call("kv/range", &prefix_range(prefix)))
    }

    /// One key.
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        items(&self.call("kv/range", &json!({"key": encode(key.as_bytes())}))).pop()
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &str) {
        self.call("kv/put", &json!({"key": encode(key.as_bytes()), "value": encode(value.as_bytes())}));
    }

    /// Writes many keys, a hundred at once.
    pub fn put_all(&self, items: &[(String, String)]) {
        for items in items.chunks(100) {
            let put = |(key, value): &(String, String)| json!({"requestPut": {"key": encode(key.as_bytes()), "value": encode(value.as_bytes())}});
            self.call("kv/txn", &json!({"success": items.iter().map(put).collect::<Vec<_>>()}));
        }
    }

    /// What the first member counts, by name with labels, as Prometheus reads it.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let place = &self.members.first().expect("a member").place;
        let text = place.enter(|| etcd_api::get("/metrics")).unwrap_or_else(|error| panic!("{error}"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    /// The process id of the first member.
    pub fn pid(&self) -> u32 {
        let member = self.members.first().and_then(|member| member.process().as_ref().map(Process::pid));
        member.expect("etcd runs")
    }

    /// Deletes all keys that begin with `prefix`.
    pub fn delete(&self, prefix: &str) {
        self.call("kv/deleterange", &prefix_range(prefix));
    }

    /// The revision of now.
    pub fn revision(&self) -> i64 {
        number(&self.call("kv/range", &prefix_range("/none"))["header"]["revision"])
    }

    /// Writes until the revision is past `revision`.
    pub fn drive_past(&self, revision: i64) {
        while self.revision() <= revision {
            self.put("/elsewhere", "x");
        }
    }

    /// Forgets history before now.
    pub fn compact(&self) {
        let revision = self.revision();
        self.call("kv/compaction", &json!({"revision": revision.to_string(), "physical": true}));
    }

    /// From now on everybody must log in; `user` may do everything below `prefix`.
    pub fn require_login(&self, user: &str, password: &str, prefix: &str) {
        for (name, word) in [("root", "root"), (user, password)] {
            self.call("auth/user/add", &json!({"name": name, "password": word}));
        }
        self.call("auth/role/add", &json!({"name": "root"}));
        self.call("auth/role/add", &json!({"name": "weft"}));
        let mut grant = prefix_range(prefix);
        grant["permType"] = json!("READWRITE");
        self.call("auth/role/grant", &json!({"name": "weft", "perm": grant}));
        self.call("auth/user/grant", &json!({"user": "root", "role": "root"}));
        self.call("auth/user/grant", &json!({"user": user, "role": "weft"}));
        self.call("auth/enable", &json!({}));
        *self.login() = Some(("root".to_owned(), "root".to_owned()));
    }

    /// A user's password is another one from now on; what was logged in with the old one is void.
    pub fn change_password(&self, user: &str, password: &str) {
        self.call("auth/user/changepw", &json!({"name": user, "password": password}));
    }

    fn login(&self) -> MutexGuard<'_, Option<(String, String)>> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, path: &str, body: &Value) -> Value {
        // A read that meets an election was not done, and is asked again; a write may have been.
        let met_election = |error: &str| path == "kv/range" && error.contains("leader changed");
        let answer = crate::wait::poll(PATIENCE, || match self.try_call(path, body) {
            Err(error) if met_election(&error) => None,
            answer => Some(answer),
        });
        answer.expect("etcd has a leader in the end").unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_call(&self, path: &str, body: &Value) -> Result<Value, String> {
        let running = self.members.iter().find(|member| member.process().is_some());
        let member = running.ok_or("no etcd member runs")?;
        let login = self.login().clone();
        let token = match &login {
            Some((name, password)) => {
                let answer =
                    member.call("auth/authenticate", &json!({"name": name, "password": password}), None)?;
                answer["token"].as_str().map(str::to_owned)
            }
            None => None,
        };
        member.call(path, body, token.as_deref())
    }

    fn run(&self, member: &Member) -> Process {
        let (clients, peers) = (self.url(member, 2379), plain_url(member, 2380));
        let all: Vec<String> =
            self.members.iter().map(|other| format!("{}={}", other.name, plain_url(other, 2380))).collect();
        let local = format!("http://127.0.0.1:{PORT}");
        let mut command = member.place.command("etcd");
        command
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.dir.join("data").join(&member.name));
        command.args(["--listen-client-urls", &format!("{clients},{local}")]);
        command.args(["--advertise-client-urls", &clients, "--listen-peer-urls", &peers]);
        command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &all.join(",")]);
        // Tests share two slow cores: a late heartbeat is no dead leader.
        let (beat, election) = if long() { ("100", "1000") } else { ("150", "1500") };
        command.args(["--heartbeat-interval", beat, "--election-timeout", election]);
        command.args(["--log-level", "warn", "--logger", "zap"]);
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.servers.cert).arg("--key-file").arg(&tls.servers.key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.authority.ca);
        }
        Process::spawn(command, &self.dir.join(format!("{}.log", member.name)))
    }

    fn url(&self, member: &Member, port: u16) -> String {
        let plain = plain_url(member, port);
        if self.tls.is_some() { plain.replacen("http", "https", 1) } else { plain }
    }
}

impl Member {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, path: &str, body: &Value, token: Option<&str>) -> Result<Value, String> {
        self.place.enter(|| etcd_api::call(path, body, token))
    }
}

fn plain_url(member: &Member, port: u16) -> String {
    let address = &member.address;
    if address.contains(':') {
        format!("http://[{address}]:{port}")
    } else {
        format!("http://{address}:{port}")
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("read a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}
