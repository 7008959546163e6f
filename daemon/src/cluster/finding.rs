//! What a person should know: stable codes for programs, a sentence and the way out for people.

use std::fmt;

/// What kind of finding it is. The text form is stable: scripts rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// There is no configuration of the cluster.
    NoConfig,
    /// The cluster's configuration is not readable, or of a newer format.
    BadConfig,
    /// This node's own file says something else than the cluster.
    ConfigDiffers,
    /// A record that cannot be read.
    BadRecord,
    /// The store cannot be reached.
    StoreAway,
    /// The store refuses this node.
    StoreRefuses,
    /// The store takes no more data.
    StoreFull,
    /// No block is left.
    ClusterFull,
    /// More than 80 % of the blocks are held.
    ClusterFilling,
    /// The store was restored from a backup, or is another one.
    HistoryRewritten,
    /// Two nodes hold one block.
    DoublyOwned,
    /// Pods have addresses of a block that is not this node's any more.
    LostBlock,
    /// Another machine runs as this node.
    Clone,
    /// This node was removed.
    Removed,
    /// What is known is too old to give addresses from.
    StaleSnapshot,
    /// A peer's key is gone without `node rm`.
    Vanished,
    /// The files under `/var/lib/weft` were not what they should be.
    Identity,
    /// The plugin's folders could not be changed.
    Local,
}

impl Code {
    /// The stable text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoConfig => "no-config",
            Self::BadConfig => "bad-config",
            Self::ConfigDiffers => "config-differs",
            Self::BadRecord => "bad-record",
            Self::StoreAway => "store-away",
            Self::StoreRefuses => "store-refuses",
            Self::StoreFull => "store-full",
            Self::ClusterFull => "cluster-full",
            Self::ClusterFilling => "cluster-filling",
            Self::HistoryRewritten => "history-rewritten",
            Self::DoublyOwned => "doubly-owned",
            Self::LostBlock => "lost-block",
            Self::Clone => "clone",
            Self::Removed => "removed",
            Self::StaleSnapshot => "stale-snapshot",
            Self::Vanished => "vanished",
            Self::Identity => "identity",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing to know. Two with the same code and subject are the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub code: Code,
    /// What it is about: a key, a block, a node; empty if there can be only one.
    pub subject: String,
    /// What is the matter.
    pub sentence: String,
    /// What to do.
    pub way_out: String,
}

/// A finding came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FindingChange {
    /// Came, or says something else now.
    Raised(Finding),
    /// Is over.
    Cleared {
        /// Its code.
        code: Code,
        /// Its subject.
        subject: String,
    },
}
