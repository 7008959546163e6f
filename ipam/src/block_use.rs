//! How full each block is, for the daemon: counted from the address files and their hints, without looking into any
//! record. A block that is set aside (quarantined) keeps the addresses that pods have and gives no more.

use std::fs;
use std::io;
use std::net::IpAddr;

use weft_cni::error::Error;
use weft_cni::ip::Subnet;

use crate::clock::boot_seconds;
use crate::files;
use crate::reserve::reserved_for;
use crate::slots::{Hint, MANY, Slots};
use crate::source::{Segment, block_name, granted, taken_in};
use crate::state::{State, make_folder};

/// How full a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockUsage {
    /// The block.
    pub block: Subnet,
    /// Whether pods get addresses of it; otherwise it is set aside.
    pub giving: bool,
    /// Addresses that pods have.
    pub used: u64,
    /// Addresses that are free and have rested.
    pub free: u64,
    /// Addresses that are free and were given back less than `cooldown` ago.
    pub resting: u64,
    /// When, in seconds since boot, the last address was given back; `None` if none ever was.
    pub last_release: Option<u64>,
}

impl State {
    /// How full every block is; an address rests for `cooldown` seconds.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn block_usage(&self, cooldown: u64) -> Result<Vec<BlockUsage>, Error> {
        granted(self)?.iter().map(|block| self.usage_of(block, cooldown)).collect()
    }

    /// The addresses that pods have, block by block, ascending.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn block_addresses(&self) -> Result<Vec<(Subnet, Vec<IpAddr>)>, Error> {
        let kept: Vec<IpAddr> = self.reserved()?.into_iter().map(|kept| kept.address).collect();
        let of_block = |block: Segment| {
            let taken =
                taken_in(self, &block.folder).map_err(|error| self.io("list the addresses in", &error))?;
            Ok((block.subnet, taken.into_iter().filter(|ip| !kept.contains(ip)).collect()))
        };
        granted(self)?.into_iter().map(of_block).collect()
    }

    /// Lets pods get no more addresses of `block`; those that they have stay. An ADD that is under way may still
    /// take one. Granting it again ends it.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn quarantine(&self, block: &Subnet) -> Result<(), Error> {
        make_folder(&self.at(mark(block))).map_err(|error| self.io("set a block aside in", &error))
    }

    /// Ends a quarantine; there being none is fine.
    pub(crate) fn end_quarantine(&self, block: &Subnet) -> Result<(), Error> {
        files::absent_is_fine(fs::remove_dir(self.at(mark(block))))
            .map_err(|error| self.io("give addresses of a block again in", &error))
    }

    pub(crate) fn is_quarantined(&self, block: &Subnet) -> bool {
        self.at(mark(block)).exists()
    }

    fn usage_of(&self, block: &Segment, cooldown: u64) -> Result<BlockUsage, Error> {
        let failed = |error: io::Error| self.io("count the addresses in", &error);
        let taken = taken_in(self, &block.folder).map_err(failed)?;
        let kept = reserved_for(&self.at(block.file(block.first))).map_err(failed)?.is_some();
        let used = (taken.len() as u64).saturating_sub(u64::from(kept));
        let mut usage = BlockUsage {
            block: block.subnet,
            giving: !self.is_quarantined(&block.subnet),
            used,
            free: 0,
            resting: 0,
            last_release: None,
        };
        let now = boot_seconds();
        for (index, hint) in self.hints(block).map_err(failed)? {
            let Hint::Released(at) = hint else { continue };
            if block.nth(index).is_none_or(|ip| taken.contains(&ip)) {
                continue;
            }
            usage.last_release = usage.last_release.max(Some(at));
            usage.resting += u64::from(now.saturating_sub(at) < cooldown);
        }
        let size = u64::try_from(block.len()).unwrap_or(u64::MAX);
        usage.free = size.saturating_sub(taken.len() as u64).saturating_sub(usage.resting);
        Ok(usage)
    }

    fn hints(&self, block: &Segment) -> io::Result<Vec<(u64, Hint)>> {
        if !self.at("slot").join(&block.slot).exists() {
            return Ok(Vec::new());
        }
        let slots = Slots::open(self, &block.slot, block.len())?;
        let mut hints = Vec::new();
        let mut first = 0;
        while first < slots.length {
            let chunk = slots.chunk(first, MANY)?;
            let Ok(count @ 1..) = u64::try_from(chunk.len()) else { break };
            hints.extend((first..).zip(chunk));
            first += count;
        }
        Ok(hints)
    }
}

/// A folder, hidden from whoever lists blocks.
fn mark(block: &Subnet) -> String {
    format!("block/.quarantine-{}", block_name(block))
}
