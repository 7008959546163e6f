//! What can happen to the cluster, at random.

use std::time::Duration;

use weft_cni::ip::Subnet;
use weftd::cluster::{Code, Input, Removal};

use super::node::Node;
use super::world::{Weather, World};

/// How long a daemon stays down on a machine that runs: something restarts it. Were it longer than most of
/// `reissue_after`, a removed node would give from blocks that are others' by then, and nobody there could stop it.
const DAEMON_DOWN: Duration = Duration::from_secs(120);

impl World {
    /// One thing happens.
    pub fn step(&mut self) {
        self.steps += 1;
        let index = usize::try_from(self.random.below(self.nodes.len() as u64)).expect("an index");
        match self.random.below(1000) {
            0..=699 => self.progress(index),
            700..=789 => {
                let most = if self.random.chance(4) { 120_000 } else { 4000 };
                let mut left = self.random.below(most);
                while left > 0 {
                    let millis = left.min(5000);
                    left -= millis;
                    self.pass(Duration::from_millis(millis));
                }
            }
            790..=859 => self.pod_starts(index),
            860..=909 => self.pod_stops(index),
            910..=939 => self.observe_if_up(index),
            _ => self.trouble(index),
        }
        super::checks::safety(self);
    }

    /// The node, its connection or the store does one of the things that wait.
    fn progress(&mut self, index: usize) {
        for _ in 0..self.random.below(6) + 1 {
            match self.random.below(8) {
                0..=2 => drop(self.perform(index)),
                3..=4 => drop(self.serve(index)),
                5..=6 => drop(self.hear(index)),
                _ => drop(self.follow(index)),
            }
            super::checks::safety(self);
        }
    }

    /// Time passes for all, and with it what nobody has to cause.
    pub fn pass(&mut self, by: Duration) {
        self.advance(by);
        for index in 0..self.nodes.len() {
            let (node, now) = (&self.nodes[index], self.now);
            let down = node.daemon.is_none() && node.powered && node.exited.is_none();
            if down && now > node.daemon_down_since + DAEMON_DOWN {
                self.daemon_starts(index);
            }
        }
    }

    fn observe_if_up(&mut self, index: usize) {
        if self.nodes[index].daemon.is_some() {
            self.observe(index);
        }
    }

    fn pod_starts(&mut self, index: usize) {
        if self.nodes[index].powered {
            let pod = self.next_pod;
            self.next_pod += 1;
            self.nodes[index].add_pod(pod, self.now);
        }
    }

    fn pod_stops(&mut self, index: usize) {
        let pods: Vec<u64> = self.nodes[index].pods().into_iter().collect();
        let count = 1 + self.random.below(4);
        for _ in 0..count {
            if let Some(pod) = self.random.pick(&pods).copied() {
                self.nodes[index].remove_pod(pod, self.now);
            }
        }
    }

    fn trouble(&mut self, index: usize) {
        let what = self.random.below(100);
        if self.gentle && matches!(what, 35..=50 | 60..=67 | 98..) {
            return;
        }
        match what {
            0..=13 => self.daemon_crashes(index),
            14..=21 => self.daemon_starts(index),
            22..=28 => self.reboot(index),
            29..=34 => self.switch(index),
            35..=44 => self.partition(index),
            45..=50 => self.silence(index),
            51..=55 => self.store.compact(self.store.revision()),
            56..=59 => self.back_up(),
            60..=62 => self.restore_some(),
            63..=67 => self.change_weather(),
            68..=71 => self.change_address(index),
            72..=75 => self.jump_clock(index),
            76..=79 => self.wipe(index),
            80..=82 => self.clone_machine(index),
            83..=86 => self.remove_some(index),
            87..=90 => self.join(),
            91..=93 => self.reimage(index),
            94..=95 => self.revert(index),
            96 => self.delete_by_hand(index),
            97 => self.write_by_hand(),
            _ => self.store_away(),
        }
    }

    fn daemon_crashes(&mut self, index: usize) {
        if self.nodes[index].daemon.is_some() {
            self.say_of(index, "weftd dies");
            self.crash(index);
        }
    }

    pub fn daemon_starts(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.daemon.is_none() && node.powered && !node.destroyed {
            // A clock that jumped is set right before long; one that was never set shows 1970.
            if node.wall_offset.abs() > 5 && node.wall_offset > -1_000_000_000 {
                node.wall_offset = 0;
            }
            self.say_of(index, "weftd starts");
            self.start(index);
        }
    }

    fn reboot(&mut self, index: usize) {
        if self.nodes[index].powered {
            self.say_of(index, "reboots");
            self.power_off(index);
            self.boot(index);
        }
    }

    fn boot(&mut self, index: usize) {
        self.nodes[index].power_on(self.now);
        self.nodes[index].wall_offset = if self.random.chance(10) { -1_800_000_000 } else { 0 };
        self.say_of(index, "boots");
        self.start(index);
    }

    fn switch(&mut self, index: usize) {
        if self.nodes[index].powered {
            self.say_of(index, "is switched off");
            self.power_off(index);
        } else if !self.nodes[index].destroyed {
            self.boot(index);
        }
    }

    fn partition(&mut self, index: usize) {
        let client = self.nodes[index].client;
        let faults = self.store.faults(client);
        faults.partitioned = !faults.partitioned;
        let cut = faults.partitioned;
        self.say_of(index, if cut { "is cut off" } else { "is connected again" });
    }

    fn silence(&mut self, index: usize) {
        let client = self.nodes[index].client;
        let faults = self.store.faults(client);
        faults.silent_watch = !faults.silent_watch;
        if !faults.silent_watch {
            self.store.break_watch(client);
        }
    }

    fn back_up(&mut self) {
        let backup = self.store.backup();
        self.backups.push((self.now, backup));
        self.say(|| "backup".to_owned());
    }

    fn restore_some(&mut self) {
        let backups = std::mem::take(&mut self.backups);
        if let Some((at, backup)) = self.random.pick(&backups).cloned()
            && self.now < at + Duration::from_secs(400)
        {
            let past = self.random.chance(40);
            self.restore(&backup, past);
            self.backups = Vec::new();
        } else {
            self.backups = backups;
        }
    }

    fn change_weather(&mut self) {
        self.weather = match self.random.below(3) {
            0 => Weather::default(),
            1 => Weather { unknown: 20, unavailable: 10, stale: 0 },
            _ => Weather { unknown: 10, unavailable: 5, stale: 20 },
        };
    }

    fn change_address(&mut self, index: usize) {
        let host = self.random.below(250) + 1;
        let net = self.random.below(3);
        let addresses = vec![format!("198.51.{net}.{host}/24").parse().expect("an address")];
        let node = &mut self.nodes[index];
        node.published.clone_from(&addresses);
        node.handle(Input::Published(addresses), self.now);
    }

    fn jump_clock(&mut self, index: usize) {
        let far = i64::try_from(self.random.below(80_000)).unwrap_or(0) - 40_000;
        if self.nodes[index].daemon.is_some() {
            self.nodes[index].wall_offset = far;
        }
    }

    /// `/var/lib/weft` is lost, under running pods or with the machine's reboot.
    fn wipe(&mut self, index: usize) {
        self.say_of(index, "loses /var/lib/weft");
        self.crash(index);
        self.nodes[index].disk = super::node::Disk::default();
        if self.random.chance(50) && self.nodes[index].powered {
            self.power_off(index);
            self.boot(index);
        }
    }

    fn clone_machine(&mut self, index: usize) {
        if self.nodes.len() >= 9 || self.nodes[index].destroyed {
            return;
        }
        self.say_of(index, "is cloned");
        self.excuse_all_of(index, "its owner was cloned");
        let client = self.store.client();
        let original = &self.nodes[index];
        let mut clone = Node::new(&original.name, self.next_index, client);
        self.next_index += 1;
        clone.disk = original.disk.clone();
        clone.machine_id = original.machine_id.clone();
        clone.boots = original.boots + 1000;
        clone.booted_at = self.now;
        self.nodes.push(clone);
        let clone = self.nodes.len() - 1;
        self.start(clone);
    }

    /// Everything that a machine has, or will believe to have when it starts from its disk.
    fn excuse_all_of(&mut self, index: usize, why: &'static str) {
        let node = &self.nodes[index];
        let mut blocks: Vec<Subnet> = node.folders.keys().copied().collect();
        if let Some(machine) = &node.daemon {
            blocks.extend(machine.status().blocks.iter().map(|held| held.cidr));
        }
        blocks.extend(remembered(node.disk.memory.as_deref()));
        let name = node.name.clone();
        blocks.extend(
            self.held_blocks().into_iter().filter(|(_, (owner, _))| *owner == name).map(|(block, _)| block),
        );
        self.excused.extend(blocks.into_iter().map(|block| (block, why)));
    }

    fn remove_some(&mut self, index: usize) {
        let name = self.nodes[index].name.clone();
        let force = self.random.chance(50);
        // Said of a machine that is gone for good, and only then.
        let others = self.nodes.iter().enumerate().any(|(other, node)| other != index && node.name == name);
        let destroyed = !self.nodes[index].powered && !others && self.random.chance(50);
        if destroyed {
            self.nodes[index].destroyed = true;
        }
        drop(self.remove(&name, Removal { force, destroyed }));
    }

    fn join(&mut self) {
        if self.nodes.len() < 9 {
            let name = format!("n{}", self.next_index);
            self.add_node(&name);
        }
    }

    /// Another machine takes the name of one that is switched off, or not reached.
    fn reimage(&mut self, index: usize) {
        if self.nodes.len() < 9 && !self.nodes[index].powered {
            let name = self.nodes[index].name.clone();
            self.nodes[index].destroyed = true;
            self.say_of(index, "is replaced by a new machine");
            self.add_node(&name);
        }
    }

    /// The machine's disk is put back to what it was, as with a snapshot of a virtual machine.
    fn revert(&mut self, index: usize) {
        if self.nodes[index].destroyed {
            return;
        }
        let old = self.nodes[index].disk.clone();
        self.excuse_all_of(index, "its owner's disk was reverted");
        let rounds = self.random.below(60);
        for _ in 0..rounds {
            let other = usize::try_from(self.random.below(self.nodes.len() as u64)).expect("an index");
            self.progress(other);
            self.pass(Duration::from_millis(500));
        }
        self.say_of(index, "is reverted to an old disk");
        self.excuse_all_of(index, "its owner's disk was reverted");
        self.power_off(index);
        self.nodes[index].disk = old;
        self.boot(index);
    }

    /// Somebody deletes a node's record with etcdctl.
    fn delete_by_hand(&mut self, index: usize) {
        let name = self.nodes[index].name.clone();
        let key = format!("n/{name}");
        self.deleted.insert(name);
        self.say(|| format!("somebody deletes {key}"));
        self.store.write(vec![weftd::store::Write::Delete { key }], self.now);
    }

    /// Somebody with access to the store lists what is no block of the cluster: a network of others, all of the
    /// cluster, everything.
    fn write_by_hand(&mut self) {
        let foreign =
            ["10.2.0.0/28", "10.1.0.0/24", "10.1.0.32/29", "0.0.0.0/0", "fd01::/124", "fd00::/120", "::/0"];
        let count = self.random.below(foreign.len() as u64);
        let blocks = foreign.iter().skip(usize::try_from(count).expect("an index"));
        let blocks: Vec<String> =
            blocks.map(|cidr| format!(r#"{{"cidr":"{cidr}","epoch":999999}}"#)).collect();
        self.say(|| format!("somebody writes n/evil with {blocks:?}"));
        let value = format!(
            r#"{{"format":1,"name":"evil","instance":"i","epoch":1,"serial":{},"state":"active","addresses":["192.0.2.250/24"],"blocks":[{}],"session":"s"}}"#,
            self.steps,
            blocks.join(",")
        );
        let (key, value) = ("n/evil".to_owned(), value.into_bytes());
        self.store.write(vec![weftd::store::Write::Put { key, value, lease: None }], self.now);
    }

    fn store_away(&mut self) {
        let away = self.random.chance(50);
        for index in 0..self.nodes.len() {
            let client = self.nodes[index].client;
            self.store.faults(client).partitioned = away;
        }
        self.say(|| format!("the store is {}", if away { "away" } else { "back" }));
    }

    fn say_of(&mut self, index: usize, what: &str) {
        let node = &self.nodes[index];
        let line = format!("{} ({}) {what}", node.name, node.machine_id);
        self.say(|| line);
    }

    /// All faults end; everything that runs is given time; an operator accepts what is lost for good.
    pub fn quiet(&mut self) {
        self.say(|| "quiet".to_owned());
        self.quiet_since = Some(self.now);
        self.weather = Weather::default();
        for index in 0..self.nodes.len() {
            let client = self.nodes[index].client;
            *self.store.faults(client) = weftd::store::model::Faults::default();
            self.store.break_watch(client);
            self.nodes[index].wall_offset = 0;
            self.daemon_starts(index);
        }
        self.rest(400);
        if self.store.list("config").items.is_empty() {
            // A restore lost it; nodes say so, and a person makes it again.
            let network = weftd::cluster::create(&self.asked).expect("a configuration");
            let value = serde_json::to_vec(&network).expect("plain data");
            let key = "config".to_owned();
            self.store.write(vec![weftd::store::Write::Put { key, value, lease: None }], self.now);
        }
        for index in 0..self.nodes.len() {
            let rewritten =
                self.nodes[index].findings.keys().any(|(code, _)| *code == Code::HistoryRewritten);
            if rewritten {
                self.nodes[index].handle(Input::AcceptHistory, self.now);
            }
        }
        self.rest(900);
    }

    /// Time passes, with a look at the folders now and then.
    pub fn rest(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        self.drain();
        while self.now < end {
            for index in 0..self.nodes.len() {
                self.observe_if_up(index);
            }
            self.drain();
            self.pass(Duration::from_secs(5));
            self.drain();
        }
    }
}

/// The blocks in a node's memory file.
pub fn remembered(memory: Option<&[u8]>) -> Vec<Subnet> {
    let value: Option<serde_json::Value> = memory.and_then(|bytes| serde_json::from_slice(bytes).ok());
    let blocks = value.as_ref().and_then(|value| value["record"]["blocks"].as_array());
    let cidr = |held: &serde_json::Value| held["cidr"].as_str()?.parse().ok();
    blocks.into_iter().flatten().filter_map(cidr).collect()
}
