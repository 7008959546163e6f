//! One machine of the simulated cluster: disk, `/run`, pods, kernel, and the daemon if it runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_cni::ip::{IfAddr, Subnet};
use weft_overlay::wanted::Wanted;
use weftd::cluster::{
    BlockUse, COOLDOWN, Changed, Code, Finding, FindingChange, Input, Machine, Now, Output, Refusal,
    StartFacts, Withdrawn,
};
use weftd::store::model::Client;
use weftd::store::{StoreReply, StoreRequest};

use super::random::Random;

/// Addresses in a simulated block of either family.
pub const BLOCK_ADDRESSES: u32 = 16;

/// Survives reboots.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub identity: Option<Vec<u8>>,
    pub memory: Option<Vec<u8>>,
    pub snapshot: Option<Vec<u8>>,
}

/// A block's folder under `/run/weft/<stamp>`.
#[derive(Clone, Debug)]
pub struct Folder {
    pub granted: bool,
    /// Pods by the offset of their address.
    pub taken: BTreeMap<u32, u64>,
    /// Boot time of the last release, by offset.
    pub released: BTreeMap<u32, Duration>,
    pub empty_since: Duration,
}

/// One machine.
pub struct Node {
    pub name: Arc<str>,
    pub machine_id: String,
    pub client: Client,
    pub powered: bool,
    /// Gone for good: will never be powered on again.
    pub destroyed: bool,
    pub boots: u64,
    pub booted_at: Duration,
    /// Seconds by which its wall clock is off.
    pub wall_offset: i64,
    pub published: Vec<IfAddr>,
    pub disk: Disk,
    pub run_identity: Option<String>,
    pub folders: BTreeMap<Subnet, Folder>,
    pub daemon: Option<Machine>,
    pub daemon_down_since: Duration,
    pub exited: Option<String>,
    pub requests: VecDeque<StoreRequest>,
    pub inputs: VecDeque<Input>,
    /// The kernel: which node each block's route leads to, and that node's addresses.
    pub routes: BTreeMap<Subnet, Arc<str>>,
    pub wanted: Option<Arc<Wanted>>,
    pub findings: BTreeMap<(Code, String), Finding>,
    pub ready: bool,
    pub answers: BTreeMap<u64, Result<(), Refusal>>,
    pub next_need: u64,
    /// Outputs of each kind since last looked at.
    pub counted: BTreeMap<&'static str, u64>,
    /// The kind of the last output.
    pub did: Option<&'static str>,
    pub just_granted: Option<Subnet>,
    pub init: bool,
    pub offline_boot: bool,
}

impl Node {
    pub fn new(name: &str, index: u64, client: Client) -> Self {
        Self {
            name: name.into(),
            machine_id: format!("machine-{index}"),
            client,
            powered: true,
            destroyed: false,
            boots: 1,
            booted_at: Duration::ZERO,
            wall_offset: 0,
            published: vec![format!("192.0.2.{}/24", index % 250 + 1).parse().expect("an address")],
            disk: Disk::default(),
            run_identity: None,
            folders: BTreeMap::new(),
            daemon: None,
            daemon_down_since: Duration::ZERO,
            exited: None,
            requests: VecDeque::new(),
            inputs: VecDeque::new(),
            routes: BTreeMap::new(),
            wanted: None,
            findings: BTreeMap::new(),
            ready: false,
            answers: BTreeMap::new(),
            next_need: 1,
            counted: BTreeMap::new(),
            did: None,
            just_granted: None,
            init: true,
            offline_boot: true,
        }
    }

    pub fn stamp(&self) -> String {
        format!("{}-boot-{}", self.machine_id, self.boots)
    }

    pub fn now(&self, world: Duration) -> Now {
        let boot = Duration::from_secs(1) + world.saturating_sub(self.booted_at);
        let base = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + world;
        let off = Duration::from_secs(self.wall_offset.unsigned_abs());
        let wall = if self.wall_offset < 0 {
            base.checked_sub(off).unwrap_or(SystemTime::UNIX_EPOCH)
        } else {
            base + off
        };
        Now { boot, wall }
    }

    pub fn used(&self, world: Duration) -> Vec<BlockUse> {
        let boot = self.now(world).boot;
        let used = |(block, folder): (&Subnet, &Folder)| {
            let resting = folder
                .released
                .iter()
                .filter(|(offset, at)| !folder.taken.contains_key(offset) && **at + COOLDOWN > boot);
            let resting = u32::try_from(resting.count()).unwrap_or(0);
            let used = u32::try_from(folder.taken.len()).unwrap_or(0);
            BlockUse {
                block: *block,
                granted: folder.granted,
                used,
                free_cool: BLOCK_ADDRESSES - used - resting,
                resting,
                empty_since: folder.taken.is_empty().then_some(folder.empty_since),
            }
        };
        self.folders.iter().map(used).collect()
    }

    pub fn start(&mut self, world: Duration, random: &mut Random, asked: weftd::cluster::Asked) {
        let facts = StartFacts {
            node: self.name.clone(),
            machine_id: self.machine_id.clone(),
            stamp: self.stamp(),
            identity_file: self.disk.identity.clone(),
            run_identity: self.run_identity.clone(),
            memory: self.disk.memory.clone(),
            snapshot: self.disk.snapshot.clone(),
            local: self.used(world),
            asked: self.init.then_some(asked),
            init: self.init,
            published: self.published.clone(),
            version: "0".to_owned(),
            mtu: None,
            offline_boot: self.offline_boot,
            seed: random.bytes(),
        };
        (self.requests, self.inputs, self.wanted) = (VecDeque::new(), VecDeque::new(), None);
        self.findings.clear();
        match Machine::new(facts, self.now(world)) {
            Ok(machine) => (self.daemon, self.exited) = (Some(machine), None),
            Err(refusal) => self.exited = Some(refusal.to_string()),
        }
    }

    /// The daemon dies; what it had not done yet is not done.
    pub fn crash(&mut self, world: Duration) {
        self.daemon = None;
        self.daemon_down_since = world;
        self.requests.clear();
        self.inputs.clear();
    }

    /// The machine stops: pods, folders and routes are gone.
    pub fn power_off(&mut self, world: Duration) {
        self.crash(world);
        self.powered = false;
        self.folders.clear();
        self.routes.clear();
        self.run_identity = None;
    }

    pub fn power_on(&mut self, world: Duration) {
        self.powered = true;
        self.boots += 1;
        self.booted_at = world;
    }

    pub fn handle(&mut self, input: Input, world: Duration) {
        let now = self.now(world);
        if let Some(machine) = &mut self.daemon {
            machine.handle(input, now);
        }
    }

    /// Does one thing that the machine wants done. False: there was nothing.
    pub fn perform(&mut self, world: Duration) -> Option<Performed> {
        let output = self.daemon.as_mut()?.poll()?;
        Some(self.execute(output, world))
    }

    fn execute(&mut self, output: Output, world: Duration) -> Performed {
        let boot = self.now(world).boot;
        let (kind, input) = match output {
            Output::Store(request) => {
                self.requests.push_back(request);
                ("store", None)
            }
            Output::Follow(resume) => return Performed::Follow(resume),
            Output::PersistIdentity { file, run } => {
                (self.disk.identity, self.run_identity) = (Some(file), Some(run));
                ("identity", None)
            }
            Output::PersistMemory(bytes) => {
                self.disk.memory = Some(bytes);
                ("memory", None)
            }
            Output::PersistSnapshot(bytes) => {
                self.disk.snapshot = Some(bytes);
                ("snapshot", None)
            }
            Output::Grant(block) => {
                self.just_granted = Some(block);
                let new = || Folder {
                    granted: true,
                    taken: BTreeMap::new(),
                    released: BTreeMap::new(),
                    empty_since: boot,
                };
                self.folders.entry(block).or_insert_with(new).granted = true;
                ("grant", Some(Input::GrantDone { block, result: Ok(()) }))
            }
            Output::Quarantine(block) => {
                if let Some(folder) = self.folders.get_mut(&block) {
                    folder.granted = false;
                }
                ("quarantine", Some(Input::QuarantineDone { block, result: Ok(()) }))
            }
            Output::Withdraw(block) => {
                let empty = self.folders.get(&block).is_none_or(|folder| folder.taken.is_empty());
                let result = if empty { Withdrawn::Gone } else { Withdrawn::InUse };
                if empty {
                    self.folders.remove(&block);
                }
                ("withdraw", Some(Input::WithdrawDone { block, result }))
            }
            Output::Wanted { wanted, changed } => {
                self.apply(&wanted, &changed);
                ("wanted", None)
            }
            Output::Finding(FindingChange::Raised(finding)) => {
                self.findings.insert((finding.code, finding.subject.clone()), finding);
                ("finding", None)
            }
            Output::Finding(FindingChange::Cleared { code, subject }) => {
                self.findings.remove(&(code, subject));
                ("finding", None)
            }
            Output::Ready(ready) => {
                self.ready = ready;
                ("ready", None)
            }
            Output::NeedAnswer { id, result } => {
                self.answers.insert(id, result);
                ("answer", None)
            }
            Output::Exit { sentence, .. } => {
                self.exited = Some(sentence);
                self.crash(world);
                ("exit", None)
            }
        };
        *self.counted.entry(kind).or_default() += 1;
        self.did = Some(kind);
        // An answer comes after what is waiting already.
        self.inputs.extend(input);
        Performed::Done
    }

    /// The kernel follows what is wanted, and what is said to have changed must be all that changed.
    fn apply(&mut self, wanted: &Arc<Wanted>, changed: &Changed) {
        if let (Changed::Peers(names), Some(before)) = (changed, &self.wanted) {
            let mut patched = Wanted::clone(before);
            for name in names {
                match wanted.peers.get(name) {
                    Some(peer) => patched.peers.insert(name.clone(), peer.clone()),
                    None => patched.peers.remove(name),
                };
            }
            assert_eq!(&patched, &**wanted, "more changed than {names:?}");
        }
        for (name, peer) in &wanted.peers {
            for block in &peer.blocks {
                self.routes.insert(*block, name.clone());
            }
        }
        if wanted.may_remove {
            let kept: BTreeSet<(Subnet, Arc<str>)> = wanted
                .peers
                .iter()
                .flat_map(|(name, peer)| peer.blocks.iter().map(|block| (*block, name.clone())))
                .collect();
            self.routes.retain(|block, name| kept.contains(&(*block, name.clone())));
        }
        self.wanted = Some(wanted.clone());
    }

    /// The plugin starts a pod: an address of each family, or a question to the daemon.
    pub fn add_pod(&mut self, pod: u64, world: Duration) -> bool {
        let choose = |ipv4: bool| {
            let of_family =
                self.folders.iter().filter(|(block, folder)| block.is_ipv4() == ipv4 && folder.granted);
            let free = of_family.filter(|(_, folder)| folder.taken.len() < BLOCK_ADDRESSES as usize);
            let fullest = free.max_by_key(|(_, folder)| folder.taken.len());
            fullest.map(|(block, _)| *block)
        };
        let Some(blocks) = [true, false].into_iter().map(choose).collect::<Option<Vec<Subnet>>>() else {
            let id = self.next_need;
            self.next_need += 1;
            self.handle(Input::LocalUse(self.used(world)), world);
            self.handle(Input::NeedBlock { id }, world);
            return false;
        };
        for block in blocks {
            let Some(folder) = self.folders.get_mut(&block) else { continue };
            let free = |offset: &u32| !folder.taken.contains_key(offset);
            let rested = |offset: &u32| folder.released.get(offset).copied().unwrap_or_default();
            if let Some(offset) = (0..BLOCK_ADDRESSES).filter(free).min_by_key(rested) {
                folder.taken.insert(offset, pod);
            }
        }
        true
    }

    /// A pod with an address of IPv4 alone.
    pub fn add_pod_v4(&mut self, pod: u64) {
        let folder = self.folders.values_mut().find(|folder| folder.granted).expect("a granted block");
        let offset =
            (0..BLOCK_ADDRESSES).find(|offset| !folder.taken.contains_key(offset)).expect("a free address");
        folder.taken.insert(offset, pod);
    }

    pub fn pods(&self) -> BTreeSet<u64> {
        self.folders.values().flat_map(|folder| folder.taken.values().copied()).collect()
    }

    pub fn remove_pod(&mut self, pod: u64, world: Duration) {
        let boot = self.now(world).boot;
        for folder in self.folders.values_mut() {
            let offsets: Vec<u32> =
                folder.taken.iter().filter(|(_, held)| **held == pod).map(|(offset, _)| *offset).collect();
            for offset in offsets {
                folder.taken.remove(&offset);
                folder.released.insert(offset, boot);
                folder.empty_since = boot;
            }
        }
    }

    pub fn is_member(&self) -> bool {
        self.daemon.as_ref().is_some_and(|machine| machine.status().phase == "member")
    }

    pub fn reply(&mut self, reply: StoreReply) {
        self.inputs.push_back(Input::Store(reply));
    }
}

/// What came of one output.
pub enum Performed {
    Done,
    Follow(Option<weftd::store::Resume>),
}
