//! What a node writes to its own disk: what it last said to the store, and what it last heard from it.
//! With the first it notices a store that was restored from a backup; with the second it starts without a store.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Now;
use super::peers::Entry;
use super::record::{FORMAT, Garbage, Network, NodeRecord, parse, to_value};

/// When something was certain, by both clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which boot.
    pub stamp: String,
    /// `CLOCK_BOOTTIME` in milliseconds.
    pub boot: u64,
    /// Seconds since 1970.
    pub wall: u64,
}

impl Moment {
    pub fn new(stamp: &str, now: Now) -> Self {
        let boot = u64::try_from(now.boot.as_millis()).unwrap_or(u64::MAX);
        Self { stamp: stamp.to_owned(), boot, wall: seconds(now.wall) }
    }

    /// How long ago it was at most; `None` if that cannot be told, which counts as too long ago.
    pub fn age(&self, stamp: &str, now: Now) -> Option<Duration> {
        if self.stamp == stamp {
            return now.boot.checked_sub(Duration::from_millis(self.boot));
        }
        // The other boot's clock tells nothing; this boot has lasted at least so long.
        seconds(now.wall).checked_sub(self.wall).map(|age| Duration::from_secs(age).max(now.boot))
    }
}

/// Seconds since 1970; 0 for a clock before it.
pub fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0)
}

/// Small, written before anything that relies on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub format: u32,
    /// The own record as it was last known to stand in the store.
    pub record: NodeRecord,
    /// The store's identity and the highest revision seen.
    pub cluster: u64,
    pub revision: i64,
    /// When the store last proved that this node's record stood.
    pub contact: Moment,
}

impl Memory {
    pub fn parse(bytes: &[u8]) -> Result<Self, Garbage> {
        parse("memory", "memory of this node", bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        to_value(self)
    }
}

/// Large, written now and then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub format: u32,
    pub cluster: u64,
    pub revision: i64,
    pub config_revision: i64,
    pub network: Network,
    pub nodes: Vec<(Arc<str>, Entry)>,
}

/// [`Snapshot`] of what is borrowed.
#[derive(Serialize)]
pub struct SnapshotRef<'a> {
    pub format: u32,
    pub cluster: u64,
    pub revision: i64,
    pub config_revision: i64,
    pub network: &'a Network,
    pub nodes: Vec<(&'a Arc<str>, &'a Entry)>,
}

impl Snapshot {
    pub fn parse(bytes: &[u8]) -> Result<Self, Garbage> {
        // Own file, not limited in size as a record is; the format is checked the same way.
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let complain = |problem: String| Garbage::Unreadable {
            key: "snapshot".to_owned(),
            what: "snapshot of the cluster",
            problem,
        };
        let head: Head = serde_json::from_slice(bytes).map_err(|error| complain(error.to_string()))?;
        if head.format != u64::from(FORMAT) {
            return Err(complain(format!("it has format {}", head.format)));
        }
        serde_json::from_slice(bytes).map_err(|error| complain(error.to_string()))
    }
}

impl SnapshotRef<'_> {
    pub fn to_bytes(&self) -> Vec<u8> {
        to_value(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(boot: u64, wall: u64) -> Now {
        Now { boot: Duration::from_secs(boot), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall) }
    }

    #[test]
    fn an_age_is_by_the_boot_clock_within_a_boot_whatever_the_wall_clock_does() {
        let moment = Moment::new("boot-1", now(100, 1_000_000));
        assert_eq!(moment.age("boot-1", now(160, 5)), Some(Duration::from_secs(60)));
        assert_eq!(moment.age("boot-1", now(50, 5)), None, "the clock went back: cannot be told");
    }

    #[test]
    fn an_age_over_a_reboot_cannot_be_told_when_the_clock_stands_before_it() {
        let moment = Moment::new("boot-1", now(100, 1_000_000));
        assert_eq!(moment.age("boot-2", now(5, 999_999)), None);
        assert_eq!(moment.age("boot-2", now(5, 1_000_060)), Some(Duration::from_secs(60)));
        assert_eq!(moment.age("boot-2", now(900, 1_000_060)), Some(Duration::from_secs(900)));
    }
}
