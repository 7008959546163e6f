//! The plugin's folders as the daemon changes them: blocks granted, set aside and taken back, the node's own
//! addresses kept from pods, what is in use counted, garbage collected. Opens the state for each errand: whoever
//! holds it open keeps others from rebuilding it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use weft_cni::error::Error;
use weft_cni::ip::Subnet;
use weft_ipam::ask::Family;
use weft_ipam::clock::{Deadline, boot_seconds};
use weft_ipam::{BlockUsage, HostKernel, Reservation, State, collect, mend_routes};
use weft_overlay::wanted::Wanted;

use crate::cluster::{BlockUse, COOLDOWN, Withdrawn};
use crate::files;
use crate::mirror::{Blocks, places};

/// How long one errand may wait for a lock. The daemon does nothing else meanwhile.
const LIMIT: Duration = Duration::from_secs(3);
/// The file in the state folder that says which identity its pods were started under.
const IDENTITY: &str = "instance";

/// The plugin's folders.
#[derive(Debug, Default)]
pub struct Local {
    /// When a block that never gave an address was first seen empty.
    empty: BTreeMap<Subnet, Duration>,
    /// The node's own addresses, as far as the cluster said.
    own: Vec<IpAddr>,
}

fn open() -> Result<State, Error> {
    State::open(&mut HostKernel::default(), Deadline::after(Instant::now(), LIMIT))
}

fn sentence(error: &Error) -> String {
    if error.details.is_empty() { error.msg.clone() } else { format!("{} ({})", error.msg, error.details) }
}

impl Local {
    /// The identity that the pods of this boot were started under.
    ///
    /// # Errors
    /// A sentence.
    pub fn identity() -> Result<Option<String>, String> {
        Self::identity_in(&open().map_err(|error| sentence(&error))?)
    }

    /// The same where nothing is to be made that is not there.
    ///
    /// # Errors
    /// A sentence.
    pub fn existing_identity() -> Result<Option<String>, String> {
        let deadline = Deadline::after(Instant::now(), LIMIT);
        let state = State::open_existing(&mut HostKernel::default(), deadline);
        state.map_err(|error| sentence(&error))?.map_or(Ok(None), |state| Self::identity_in(&state))
    }

    fn identity_in(state: &State) -> Result<Option<String>, String> {
        let path = state.path().join(IDENTITY);
        let content = files::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        Ok(content.and_then(|bytes| String::from_utf8(bytes).ok()).map(|text| text.trim().to_owned()))
    }

    /// Notes the identity.
    ///
    /// # Errors
    /// A sentence.
    pub fn note_identity(instance: &str) -> Result<(), String> {
        let state = open().map_err(|error| sentence(&error))?;
        let path = state.path().join(IDENTITY);
        let written = files::replace(&path, format!("{instance}\n").as_bytes(), files::PRIVATE);
        written.map(drop).map_err(|error| format!("write {}: {error}", path.display()))
    }

    /// What the cluster says about this node: its families and its own addresses, kept from pods from now on.
    ///
    /// # Errors
    /// A sentence.
    pub fn follow(&mut self, wanted: &Wanted) -> Result<(), String> {
        self.own.clone_from(&wanted.this.node_addresses);
        let state = open().map_err(|error| sentence(&error))?;
        self.arrange(&state, wanted).map_err(|error| sentence(&error))
    }

    fn arrange(&self, state: &State, wanted: &Wanted) -> Result<(), Error> {
        let families: Vec<Family> =
            [true, false].into_iter().filter(|ipv4| wanted.has_family(*ipv4)).map(Family::of).collect();
        state.expect_families(&families)?;
        for kept in state.reserved()? {
            let same_family = |own: &&IpAddr| own.is_ipv4() == kept.address.is_ipv4();
            if self.own.iter().any(|own| same_family(&own)) && !self.own.contains(&kept.address) {
                state.unreserve(kept.address)?;
            }
        }
        for address in &self.own {
            let why = weft_ipam::NODE_ADDRESS.to_owned();
            if !state.reserve(&Reservation { address: *address, why })? {
                tracing::debug!(%address, "the node's own address could not be kept from pods yet");
            }
        }
        Ok(())
    }

    /// Lets the plugin give addresses of `block`, without the node's own.
    ///
    /// # Errors
    /// A sentence.
    pub fn grant(&mut self, block: &Subnet) -> Result<(), String> {
        self.empty.remove(block);
        let reserve = self.reservation(block);
        let granted = open().and_then(|state| {
            state.grant_with(block, reserve.as_slice(), Deadline::after(Instant::now(), LIMIT))
        });
        granted.map_err(|error| sentence(&error))
    }

    /// The first address of a node's first block is its own. Before the cluster has said which block that is, each
    /// block may be it: what turns out not to be is given to pods by [`Local::follow`].
    fn reservation(&self, block: &Subnet) -> Option<Reservation> {
        let of_family: Vec<&IpAddr> =
            self.own.iter().filter(|own| own.is_ipv4() == block.is_ipv4()).collect();
        let may_be = of_family.is_empty() || of_family.contains(&&block.first());
        may_be.then(|| Reservation::node_address(block))
    }

    /// Lets the plugin give no more addresses of `block`.
    ///
    /// # Errors
    /// A sentence.
    pub fn quarantine(block: &Subnet) -> Result<(), String> {
        open().and_then(|state| state.quarantine(block)).map_err(|error| sentence(&error))
    }

    /// Takes an empty block back.
    pub fn withdraw(&mut self, block: &Subnet) -> Withdrawn {
        self.empty.remove(block);
        let attempt = open().and_then(|state| {
            // Nobody's but the node's own: it goes with the block, or comes back.
            state.unreserve(block.first())?;
            let gone = state.withdraw(block)?;
            if !gone && let Some(own) = self.reservation(block).filter(|_| self.own.contains(&block.first()))
            {
                state.reserve(&own)?;
            }
            Ok(gone)
        });
        match attempt {
            Ok(true) => Withdrawn::Gone,
            Ok(false) => Withdrawn::InUse,
            Err(error) => Withdrawn::Failed(sentence(&error)),
        }
    }

    /// Puts back routes to pods that somebody took; returns how many. May take a while: not for the loop itself.
    ///
    /// # Errors
    /// A sentence.
    pub fn mend() -> Result<usize, String> {
        let mended = open().and_then(|state| mend_routes(&state, &mut HostKernel::default()));
        mended.map(|routes| routes.len()).map_err(|error| sentence(&error))
    }

    /// The addresses that pods have, block by block. May take a while: not for the loop itself.
    ///
    /// # Errors
    /// A sentence.
    pub fn addresses() -> Result<Blocks, String> {
        let listed = open().and_then(|state| state.block_addresses());
        let listed = listed.map_err(|error| sentence(&error))?;
        Ok(listed.into_iter().map(|(block, addresses)| (block, places(&block, &addresses))).collect())
    }

    /// Counts what is in use.
    ///
    /// # Errors
    /// A sentence.
    pub fn usage(&mut self) -> Result<Vec<BlockUse>, String> {
        let counted = open().and_then(|state| state.block_usage(COOLDOWN.as_secs()));
        let counted = counted.map_err(|error| sentence(&error))?;
        let now = Duration::from_secs(boot_seconds());
        self.empty.retain(|block, _| counted.iter().any(|usage| usage.block == *block && usage.used == 0));
        Ok(counted.iter().map(|usage| self.one(usage, now)).collect())
    }

    fn one(&mut self, usage: &BlockUsage, now: Duration) -> BlockUse {
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let first_seen = || *self.empty.entry(usage.block).or_insert(now);
        let empty_since =
            (usage.used == 0).then(|| usage.last_release.map_or_else(first_seen, Duration::from_secs));
        BlockUse {
            block: usage.block,
            granted: usage.giving,
            used: count(usage.used),
            free_cool: count(usage.free),
            resting: count(usage.resting),
            empty_since,
        }
    }

    /// Ends attachments whose pods are gone and whose DEL never came; returns how many.
    ///
    /// # Errors
    /// A sentence.
    pub fn collect() -> Result<usize, String> {
        let mut kernel = HostKernel::default();
        let deadline = Deadline::after(Instant::now(), LIMIT);
        let Some(state) = State::open_existing(&mut kernel, deadline).map_err(|error| sentence(&error))?
        else {
            return Ok(0);
        };
        let collected = collect(&state, &mut kernel, None, usize::MAX).map_err(|error| sentence(&error))?;
        for gone in &collected {
            tracing::info!(container = %gone.owner.container_id, ifname = %gone.owner.ifname, "collected a pod that was gone");
        }
        Ok(collected.len())
    }
}
