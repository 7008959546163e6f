//! Choosing and taking addresses: first one that has cooled down, at worst the one given back longest ago.

use std::collections::VecDeque;
use std::net::IpAddr;

use weft_cni::error::{Error, code};

use crate::ask::Family;
use crate::attachment::Attachment;
use crate::clock::{Deadline, boot_seconds};
use crate::collect::collect;
use crate::foreign::Foreign;
use crate::rebuild::Kernel;
use crate::record::{Record, TakenAddress};
use crate::slots::{Hint, MANY, Slots};
use crate::source::{Pool, Segment, Usage, taken_in};
use crate::state::State;

/// How many attachments are looked at for garbage when a pool runs low.
const COLLECT_SOME: usize = 8;
/// How many hints a search reads first.
const FEW: u64 = 32;

/// What a search for addresses needs beside the pools.
pub struct Taking<'a> {
    /// To tell garbage from attachments.
    pub kernel: &'a mut dyn Kernel,
    /// Addresses that host-local gave before us.
    pub foreign: &'a Foreign,
    /// Seconds for which an address is not given again.
    pub cooldown: u64,
    /// Addresses that proved to be somebody's.
    pub avoid: &'a [IpAddr],
    /// When to give up.
    pub deadline: Deadline,
}

/// Takes one address from each pool, all or none being the caller's to see to: on an error what was taken is in
/// the record, which is written before each attempt.
///
/// # Errors
/// Code 11 when a pool is exhausted (with used and total), 104 when a requested address is taken, 5 on a fault.
pub fn take(
    attachment: &Attachment<'_>,
    record: &mut Record,
    pools: &[Pool],
    taking: &mut Taking<'_>,
) -> Result<(), Error> {
    match attempt(attachment, record, pools, taking)? {
        Attempt::Taken => Ok(()),
        Attempt::Exhausted { error, .. } => Err(error),
    }
}

/// How an attempt to take addresses ended.
pub(crate) enum Attempt {
    /// One of each pool.
    Taken,
    /// Nothing free in one of the pools.
    Exhausted {
        /// For the caller.
        error: Error,
        /// The pool's family.
        family: Family,
    },
}

/// [`take`], told apart from faults that nothing is free.
pub(crate) fn attempt(
    attachment: &Attachment<'_>,
    record: &mut Record,
    pools: &[Pool],
    taking: &mut Taking<'_>,
) -> Result<Attempt, Error> {
    let mut searches: Vec<Search<'_>> =
        pools.iter().map(|pool| Search { pool, attachment, stage: Stage::start(pool) }).collect();
    record.addresses.clear();
    for search in &mut searches {
        match search.next(taking)? {
            Some(found) => record.addresses.push(found),
            None => {
                record.addresses.clear();
                return Ok(search.exhausted(taking.foreign));
            }
        }
    }
    attachment.write(record)?;
    for (index, search) in searches.iter_mut().enumerate() {
        while let Some(candidate) = record.addresses.get_mut(index) {
            if attachment.take(&candidate.file)? {
                break;
            }
            taking.deadline.check("an address was free")?;
            match search.next(taking)? {
                Some(found) => *candidate = found,
                None => return Ok(search.exhausted(taking.foreign)),
            }
            attachment.write(record)?;
        }
    }
    for (taken, search) in record.addresses.iter().zip(&searches) {
        search.note_use(taken);
    }
    Ok(Attempt::Taken)
}

/// How many addresses of a pool are taken, by the files.
///
/// # Errors
/// Code 5 on a disk fault.
pub fn usage(state: &State, pool: &Pool, foreign: &Foreign) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    for segment in &pool.segments {
        let taken = list(state, segment)?;
        let ours =
            taken.iter().filter(|ip| segment.index_of(**ip).is_some() && Some(**ip) != segment.gateway);
        let theirs = foreign.addresses().filter(|ip| segment.index_of(*ip).is_some() && !taken.contains(ip));
        usage.used += (ours.count() + theirs.count()) as u128;
        usage.total += segment.capacity();
    }
    Ok(usage)
}

/// One search through one pool.
struct Search<'a> {
    pool: &'a Pool,
    attachment: &'a Attachment<'a>,
    stage: Stage,
}

/// How desperate the search is.
enum Stage {
    /// This address or none.
    Requested(Option<IpAddr>),
    /// By the hints, from each segment's cursor on: never used, or cooled down.
    Cool(Walk),
    /// By the files: all that are free, the longest free first.
    Listed { free: VecDeque<TakenAddress>, last_resort: bool },
}

impl Stage {
    fn start(pool: &Pool) -> Self {
        match pool.requested {
            Some(ip) => Self::Requested(Some(ip)),
            None => Self::Cool(Walk::default()),
        }
    }
}

impl Search<'_> {
    /// The next candidate; `None` when there is none left.
    fn next(&mut self, taking: &mut Taking<'_>) -> Result<Option<TakenAddress>, Error> {
        loop {
            let last_resort = match &mut self.stage {
                Stage::Requested(_) => return self.requested(taking.foreign).map(Some),
                Stage::Cool(walk) => {
                    if let Some(found) = walk.next(self.attachment.state(), self.pool, taking)? {
                        return Ok(Some(found));
                    }
                    false
                }
                Stage::Listed { free, last_resort } => {
                    if let Some(found) = free.pop_front() {
                        return Ok(Some(found));
                    }
                    if *last_resort {
                        return Ok(None);
                    }
                    true
                }
            };
            let limit = if last_resort { usize::MAX } else { COLLECT_SOME };
            collect(self.attachment.state(), taking.kernel, Some(self.attachment.id()), limit)?;
            self.stage = Stage::Listed { free: self.list_free(taking)?, last_resort };
        }
    }

    fn requested(&mut self, foreign: &Foreign) -> Result<TakenAddress, Error> {
        let Stage::Requested(wanted) = &mut self.stage else {
            return Err(Error::new(code::INTERNAL, "no address was requested"));
        };
        let wanted = wanted.take().filter(|ip| !foreign.holds(*ip));
        let segment = |ip: IpAddr| self.pool.segments.iter().find(|segment| segment.index_of(ip).is_some());
        match wanted.and_then(|ip| segment(ip).map(|segment| candidate(segment, ip))) {
            Some(found) => Ok(found),
            None => {
                let ip = self.pool.requested.map_or_else(String::new, |ip| ip.to_string());
                let msg = format!(
                    "requested IP address {ip} is not available in range set {}",
                    self.pool.describe()
                );
                Err(Error::new(code::IPAM, msg).with_details(
                    "another attachment holds it, it is a gateway, or the node keeps it for itself",
                ))
            }
        }
    }

    fn list_free(&self, taking: &Taking<'_>) -> Result<VecDeque<TakenAddress>, Error> {
        let state = self.attachment.state();
        let mut free = Vec::new();
        for segment in &self.pool.segments {
            let taken = list(state, segment)?;
            let slots = open_slots(state, segment)?;
            let mut first = 0;
            while first < slots.length {
                let hints = slots.chunk(first, MANY).map_err(|error| state.io("read hints in", &error))?;
                for (offset, hint) in (0u64..).zip(&hints) {
                    let Some(ip) = segment.nth(first + offset) else { break };
                    if !taken.contains(&ip) && may_give(segment, ip, taking) {
                        let since = if let Hint::Released(second) = hint { *second } else { 0 };
                        free.push((since, candidate(segment, ip)));
                    }
                }
                first += hints.len() as u64;
            }
        }
        free.sort_by_key(|(since, _)| *since);
        Ok(free.into_iter().map(|(_, candidate)| candidate).collect())
    }

    /// Notes in the hints that the address is in use.
    fn note_use(&self, taken: &TakenAddress) {
        let Some((slot, index)) = &taken.slot else { return };
        let found = self.pool.segments.iter().enumerate().find(|(_, segment)| segment.slot == *slot);
        let Some((at, segment)) = found else { return };
        match &self.stage {
            // Open already.
            Stage::Cool(Walk { segment, current: Some(steps) }) if *segment == at => steps.slots.note_use(*index),
            _ => {
                if let Ok(slots) = open_slots(self.attachment.state(), segment) {
                    slots.note_use(*index);
                }
            }
        }
    }

    fn exhausted(&self, foreign: &Foreign) -> Attempt {
        let usage = usage(self.attachment.state(), self.pool, foreign).unwrap_or_default();
        let ranges = self.pool.describe();
        let msg = format!("no IP addresses available in range set: {ranges}");
        let details = format!(
            "{} of {} addresses are in use; stop pods on this node or give the network a larger range",
            usage.used, usage.total
        );
        Attempt::Exhausted {
            error: Error::new(code::TRY_AGAIN, msg).with_details(details),
            family: Family::of(self.pool.is_ipv4()),
        }
    }
}

/// A walk over all segments by their hints.
#[derive(Default)]
struct Walk {
    segment: usize,
    current: Option<Steps>,
}

/// A walk over one segment: from the cursor once around.
struct Steps {
    slots: Slots,
    start: u64,
    done: u64,
    chunk: VecDeque<Hint>,
}

impl Walk {
    fn next(
        &mut self,
        state: &State,
        pool: &Pool,
        taking: &Taking<'_>,
    ) -> Result<Option<TakenAddress>, Error> {
        let now = boot_seconds();
        while let Some(segment) = pool.segments.get(self.segment) {
            let steps = match &mut self.current {
                Some(steps) => steps,
                None => self.current.insert(Steps::over(open_slots(state, segment)?)),
            };
            while let Some((index, hint)) = steps.step().map_err(|error| state.io("read hints in", &error))? {
                let cool = match hint {
                    Hint::Unused => true,
                    Hint::Released(second) => second + taking.cooldown <= now,
                    Hint::InUse => false,
                };
                if let Some(ip) = segment.nth(index).filter(|ip| cool && may_give(segment, *ip, taking)) {
                    // Moved before the attempt, so that others who search now look elsewhere.
                    steps.slots.advance(index);
                    return Ok(Some(candidate(segment, ip)));
                }
            }
            self.segment += 1;
            self.current = None;
        }
        Ok(None)
    }
}

impl Steps {
    fn over(slots: Slots) -> Self {
        let start = slots.cursor();
        Self { slots, start, done: 0, chunk: VecDeque::new() }
    }

    fn step(&mut self) -> std::io::Result<Option<(u64, Hint)>> {
        let length = self.slots.length;
        if self.done >= length {
            return Ok(None);
        }
        let index = (self.start + self.done) % length;
        if self.chunk.is_empty() || index == 0 {
            // Mostly one of the first will do.
            let most = if self.done == 0 { FEW } else { MANY };
            self.chunk = self.slots.chunk(index, most)?.into();
        }
        self.done += 1;
        Ok(self.chunk.pop_front().map(|hint| (index, hint)))
    }
}

fn may_give(segment: &Segment, ip: IpAddr, taking: &Taking<'_>) -> bool {
    segment.gateway != Some(ip) && !taking.avoid.contains(&ip) && !taking.foreign.holds(ip)
}

fn candidate(segment: &Segment, ip: IpAddr) -> TakenAddress {
    let index = segment.index_of(ip).and_then(|index| u64::try_from(index).ok());
    TakenAddress {
        address: segment.with_prefix(ip),
        gateway: segment.gateway,
        file: segment.file(ip),
        slot: index.map(|index| (segment.slot.clone(), index)),
    }
}

fn open_slots(state: &State, segment: &Segment) -> Result<Slots, Error> {
    Slots::open(state, &segment.slot, segment.len()).map_err(|error| state.io("open hints in", &error))
}

fn list(state: &State, segment: &Segment) -> Result<std::collections::BTreeSet<IpAddr>, Error> {
    taken_in(state, &segment.folder).map_err(|error| state.io("list the addresses in", &error))
}
