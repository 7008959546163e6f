//! Weft's own tables, `inet weft` and `bridge weft`: masquerading, the spoof guard, and the cluster's chains.
//!
//! Each function reads, decides and commits one atomic batch, guarded by the generation id; what is there already
//! is not sent again. A damaged table (`nft flush ruleset`, a deleted rule) is repaired on the way. Elements that
//! others put into the sets stay. The caller opens the netfilter socket: its close may wait 8–24 ms.

mod forward;
mod interval;
mod masquerade;
mod overlay;
mod spoof_guard;

use netlink_packet_core::NLM_F_EXCL;

pub use self::forward::{ForwardChain, Tool, WEFT_COMMENT, forward_chains, legacy_forward_chains};
pub(crate) use self::forward::{HOOK_FORWARD, of_legacy};
pub use self::interval::Interval;
pub use self::masquerade::{Masquerade, ensure_masquerade, missing_masquerade, remove_masquerade_source};
pub use self::overlay::{Overlay, OverlayState, ensure_overlay, remove_tables};
pub use self::spoof_guard::{guard_port, port_is_guarded, unguard_port};
use crate::error::Result;
use crate::nft::{self, BaseChain, Batch, Expression, Set, Table};
use crate::socket::Socket;

/// Name of Weft's table in each family.
const TABLE_NAME: &str = "weft";
/// Comment of each table; the number changes when the chains or sets do.
const COMMENT: &str = "weft rules 1";
/// A busy kube-proxy changes the generation all the time: after so many refusals it is tried without the guard.
/// That is safe, as a batch that no longer fits is still refused whole; only a change of the same intervals counts.
const GUARDED_ATTEMPTS: usize = 10;
/// All attempts, after which the refusal is returned.
const ATTEMPTS: usize = 20;
/// What the kernel says when another writer came in between: the generation changed, the table was made, intervals
/// are gone, or overlap with new ones.
const OVERTAKEN: [i32; 4] = [libc::ERESTART, libc::EEXIST, libc::ENOENT, libc::ENOTEMPTY];

/// One table of ours: its sets, its only chain and that chain's rules.
struct Schema {
    table: Table,
    sets: &'static [Set],
    chain: BaseChain,
    rules: &'static [fn() -> Vec<Expression>],
}

/// How much of a table of ours there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Absent,
    /// Not as many rules as there should be.
    Damaged,
    /// With its rules, hence with the chain and the sets that these need.
    Intact,
}

impl Schema {
    fn observe(&self, socket: &mut Socket) -> Result<Presence> {
        if self.table.count_rules(socket, self.chain.name)? == self.rules.len() {
            return Ok(Presence::Intact);
        }
        Ok(if self.table.exists(socket)? { Presence::Damaged } else { Presence::Absent })
    }

    /// Makes the table. NLM_F_EXCL refuses the whole batch when another creator was first, so rules never double.
    /// In a damaged one, what is missing is made and the rules are replaced.
    fn build(&self, presence: Presence) -> Batch {
        let mut batch = Batch::new();
        if presence == Presence::Intact {
            return batch;
        }
        let damaged = presence == Presence::Damaged;
        batch.extend([self.table.create(COMMENT, if damaged { 0 } else { NLM_F_EXCL })]);
        batch.extend(self.sets.iter().zip(1..).map(|(set, id)| self.table.create_set(set, id)));
        batch.extend([self.table.create_chain(&self.chain)]);
        batch.extend(damaged.then(|| self.table.flush_chain(self.chain.name)));
        batch.extend(self.rules.iter().map(|rule| self.table.add_rule(self.chain.name, rule())));
        batch
    }
}

/// What came of [`transact`].
struct Transaction<T> {
    /// What the batch was made from.
    observed: T,
    /// Of which generation that is.
    generation: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There was nothing to do.
    Nothing,
    /// Committed, and nobody came in between.
    Guarded,
    /// Committed, whatever others did meanwhile.
    Unguarded,
}

/// Commits what `plan` makes of what `observe` sees, again from the start whenever another writer came in between.
/// Says whether anything was changed.
fn commit<T: PartialEq>(
    socket: &mut Socket,
    observe: impl FnMut(&mut Socket) -> Result<T>,
    plan: impl Fn(&T) -> Batch,
) -> Result<bool> {
    Ok(transact(socket, None, observe, plan)?.outcome != Outcome::Nothing)
}

/// The same, beginning with what is known already, and of which generation. `plan` is called once for each attempt.
fn transact<T: PartialEq>(
    socket: &mut Socket,
    mut known: Option<(u32, T)>,
    mut observe: impl FnMut(&mut Socket) -> Result<T>,
    mut plan: impl FnMut(&T) -> Batch,
) -> Result<Transaction<T>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (generation, observed) = match known.take() {
            Some(known) => known,
            None => settled(socket, &mut observe)?,
        };
        let batch = plan(&observed);
        if batch.is_empty() {
            return Ok(Transaction { observed, generation, outcome: Outcome::Nothing });
        }
        let guard = (attempt <= GUARDED_ATTEMPTS).then_some(generation);
        match batch.commit(socket, guard) {
            Err(error) if attempt < ATTEMPTS && OVERTAKEN.contains(&error.errno) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                let outcome = if guard.is_some() { Outcome::Guarded } else { Outcome::Unguarded };
                return Ok(Transaction { observed, generation, outcome });
            }
        }
    }
}

/// Observes until no one commits anything meanwhile, or the same is seen twice. With the generation before it.
///
/// The kernel marks no dump of set elements as interrupted (NLM_F_DUMP_INTR). One that meets a commit may show an
/// interval's start without its end, which looks like an interval up to the highest address.
fn settled<T: PartialEq>(
    socket: &mut Socket,
    mut observe: impl FnMut(&mut Socket) -> Result<T>,
) -> Result<(u32, T)> {
    let mut before = None;
    let mut generation = nft::generation(socket)?;
    loop {
        let observed = observe(socket)?;
        let now = nft::generation(socket)?;
        if now == generation || before.as_ref() == Some(&observed) {
            return Ok((generation, observed));
        }
        before = Some(observed);
        generation = now;
    }
}
