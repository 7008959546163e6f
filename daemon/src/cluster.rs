//! The cluster as one node decides on it: which blocks are its own, who its peers are, what may be removed.
//!
//! [`Machine`] is pure: facts, answers and time go in, [`Output`]s come out. It reads no clock, no file and no random
//! numbers, and never awaits, so that the simulator in `daemon/tests/simulator` drives this very code.
//!
//! ```text
//! Machine::new(facts, now) ── handle(input, now) ──▶ poll() until None ──▶ next_timeout() ──▶ handle(Tick, now) …
//! ```
//!
//! Outputs are to be done in their order: what is persisted before a grant is what makes the grant safe.

mod blocks;
mod conf;
mod finding;
mod identity;
mod machine;
mod memory;
mod node_rm;
mod peers;
mod record;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_cni::ip::{IfAddr, Subnet};
pub use weft_overlay::wanted::Changed;
use weft_overlay::wanted::Wanted;

pub use blocks::{BlockSizes, block_key, claim_order, host_seed};
pub use conf::{Asked, Problem, change, create};
pub use finding::{Code, Finding, FindingChange};
pub use identity::{known_instance, vtep_mac};
pub use machine::{Machine, Status};
pub use node_rm::{Farewell, Removal, plan_farewell, plan_removal, removal_reads};
pub use record::{
    BlockRecord, BlockState, FORMAT, Garbage, HeldBlock, Network, NodeRecord, NodeState, RemovedAt,
    SessionRecord, node_key, session_key,
};

use crate::store::{Resume, StoreReply, StoreRequest, Ttl, WatchInput};

/// Life of a node's session without a renewal. A clone waits this long before it believes what it sees.
pub const SESSION_TTL: Ttl = Ttl(30);

/// How long a peer whose key vanished without a tombstone is still reached.
pub const VANISHED_AFTER: Duration = Duration::from_secs(600);

/// How long nobody claims blocks after a node found the store rewritten, so that each can re-assert its own first.
pub const RECOVERY_PAUSE: Duration = Duration::from_secs(60);

/// How long a booted node waits for the store before it trusts its cached snapshot.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(10);

/// How long a changed address must hold before it is published: every node hears of it.
pub const ADDRESS_HOLD: Duration = Duration::from_secs(30);

/// How long an empty block is kept: the addresses in it rest first.
pub const COOLDOWN: Duration = Duration::from_secs(120);

/// The time, read by whoever drives the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`: never jumps, starts again with each boot.
    pub boot: Duration,
    /// `CLOCK_REALTIME`: may jump.
    pub wall: SystemTime,
}

/// What is known when `weftd` starts.
#[derive(Clone, Debug)]
pub struct StartFacts {
    /// The node's name, as in its key.
    pub node: Arc<str>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Boot id and cookie of the node's network namespace: where pods live and die.
    pub stamp: String,
    /// What [`Output::PersistIdentity`] wrote under `/var/lib/weft`, if it is there.
    pub identity_file: Option<Vec<u8>>,
    /// What it wrote into the stamp's folder under `/run/weft`.
    pub run_identity: Option<String>,
    /// What [`Output::PersistMemory`] wrote.
    pub memory: Option<Vec<u8>>,
    /// What [`Output::PersistSnapshot`] wrote.
    pub snapshot: Option<Vec<u8>>,
    /// Every block with a folder under the stamp, granted or not.
    pub local: Vec<BlockUse>,
    /// What this node's own file says about the cluster.
    pub asked: Option<Asked>,
    /// Create the cluster's configuration if there is none.
    pub init: bool,
    /// Addresses that others reach this node by, in the order of preference.
    pub published: Vec<IfAddr>,
    /// This program's version.
    pub version: String,
    /// The pods' MTU if a person has set it on this node.
    pub mtu: Option<u32>,
    /// Grant from the cached snapshot when the store cannot be reached after a boot.
    pub offline_boot: bool,
    /// 32 random bytes, new each start.
    pub seed: [u8; 32],
}

/// What the plugin's folder of a block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockUse {
    /// The block.
    pub block: Subnet,
    /// Whether the plugin can give addresses of it. False: quarantined, pods still have addresses of it.
    pub granted: bool,
    /// Addresses in use.
    pub used: u32,
    /// Addresses that are free and have rested.
    pub free_cool: u32,
    /// Addresses that are free and rest still.
    pub resting: u32,
    /// Boot time at which it became empty or was granted; `None` while an address of it is in use.
    pub empty_since: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The store answered a request.
    Store(StoreReply),
    /// What following the store brought.
    Watch(WatchInput),
    /// All blocks with a folder, as [`StartFacts::local`]: when something changed, and before [`Input::NeedBlock`].
    LocalUse(Vec<BlockUse>),
    /// The plugin found nothing free. Answered by [`Output::NeedAnswer`].
    NeedBlock {
        /// Chosen by the asker.
        id: u64,
    },
    /// A grant was done, or failed with the reason.
    GrantDone {
        /// The block.
        block: Subnet,
        /// Why not.
        result: Result<(), String>,
    },
    /// A quarantine was done, or failed with the reason.
    QuarantineDone {
        /// The block.
        block: Subnet,
        /// Why not.
        result: Result<(), String>,
    },
    /// A withdrawal was done, or not.
    WithdrawDone {
        /// The block.
        block: Subnet,
        /// What came of it.
        result: Withdrawn,
    },
    /// The addresses that others reach this node by are now these.
    Published(Vec<IfAddr>),
    /// A person says that the rewritten store is right as it is: `weftd repair --accept`.
    AcceptHistory,
    /// A password or certificate was changed: a store that refused this node may be asked again at once.
    NewLogin,
    /// Time passed.
    Tick,
    /// The process ends; the network stays.
    Stop,
}

/// What came of [`Output::Withdraw`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// No address of it can be given any more.
    Gone,
    /// An address of it is in use; nothing changed.
    InUse,
    /// Could not tell.
    Failed(String),
}

/// What is to be done. Order matters.
#[derive(Clone, Debug)]
pub enum Output {
    /// Ask the store. Exactly one answer is expected, by [`Input::Store`].
    Store(StoreRequest),
    /// Follow `config` and `n/`: once, before anything else. What is to be listed again is asked by `Op::Relist`.
    Follow(Option<Resume>),
    /// Write the identity: one file under `/var/lib/weft`, the id alone into the stamp's folder under `/run/weft`.
    PersistIdentity {
        /// For `/var/lib/weft`.
        file: Vec<u8>,
        /// For `/run/weft`.
        run: String,
    },
    /// Write what this node last said and saw; must be on the disk before the next output is done.
    PersistMemory(Vec<u8>),
    /// Write the snapshot; may be late, or lost.
    PersistSnapshot(Vec<u8>),
    /// Let the plugin give addresses of this block. Answer: [`Input::GrantDone`].
    Grant(Subnet),
    /// Let it give none any more; addresses in use stay. Answer: [`Input::QuarantineDone`].
    Quarantine(Subnet),
    /// Take an empty block back, by `rmdir`, also a quarantined one. Answer: [`Input::WithdrawDone`].
    Withdraw(Subnet),
    /// What the data plane should bring about.
    Wanted {
        /// All of it.
        wanted: Arc<Wanted>,
        /// What is new since the last one.
        changed: Changed,
    },
    /// Something to know appeared or went.
    Finding(FindingChange),
    /// Whether an ADD can succeed as far as the cluster is concerned: the conflist may be written.
    Ready(bool),
    /// The answer to [`Input::NeedBlock`].
    NeedAnswer {
        /// The question's.
        id: u64,
        /// `Ok`: something is free now. Else a sentence and its details.
        result: Result<(), Refusal>,
    },
    /// End the process with this.
    Exit {
        /// The exit code.
        code: u8,
        /// Why, and what to do.
        sentence: String,
    },
}

/// Why something was not done, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}: {details}")]
pub struct Refusal {
    /// What was not done.
    pub sentence: String,
    /// Why, and what to do.
    pub details: String,
}
