//! GC: ends what this network has and the runtime does not list. It spares what is younger than itself and what
//! another runtime on the node made, as long as it lives.

use weft_cni::conf::{NetConf, ValidAttachment};
use weft_cni::delegate::Delegate;
use weft_cni::error::{Error, code};
use weft_cni::request::{Command, Environment};
use weft_ipam::clock::{Deadline, boot_nanos};
use weft_ipam::foreign::Foreign;
use weft_ipam::{Hash, HostKernel, Kernel, Key, Owner, Record, State};

use crate::del;

/// Ends every attachment of this network that `keep` does not name. Goes on after a failure.
///
/// # Errors
/// All failures and everything spared, in one error.
pub fn gc(
    conf: &NetConf,
    env: &Environment,
    keep: &[ValidAttachment],
    deadline: Deadline,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let started = boot_nanos();
    let mut kernel = HostKernel::default();
    let mut failures = Vec::new();
    if let Some(state) = State::open_existing(&mut kernel, deadline)? {
        let network = Hash::of(conf.name.as_str());
        for owner in state.owners()? {
            let Some(key) = owner.key().filter(|key| key.network == network && !is_kept(key, keep)) else {
                continue;
            };
            let mut sweep = Sweep { state: &state, kernel: &mut kernel, conf, env, deadline, started };
            match sweep.end(&owner, &key) {
                Ok(true) => notes.push(format!("removed {}", owner.describe())),
                Ok(false) => {}
                Err(error) => failures.push(error),
            }
        }
    }
    release_foreign(conf, keep, &mut failures);
    if let Err(error) = delegate_gc(conf, env, deadline) {
        failures.push(error);
    }
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        count => {
            let sentences: Vec<String> = failures.iter().map(Error::to_string).collect();
            let code = failures.first().map_or(code::INTERNAL, |error| error.code);
            Err(Error::new(code, format!("{count} attachments could not be collected"))
                .with_details(sentences.join("; ")))
        }
    }
}

struct Sweep<'a> {
    state: &'a State,
    kernel: &'a mut HostKernel,
    conf: &'a NetConf,
    env: &'a Environment,
    deadline: Deadline,
    started: u64,
}

impl Sweep<'_> {
    /// Ends one attachment; `false` if it is young or somebody works on it.
    fn end(&mut self, owner: &Owner, key: &Key) -> Result<bool, Error> {
        self.deadline.check("everything was collected")?;
        let Some(attachment) = self.state.find_idle(key)? else { return Ok(false) };
        let record = attachment.record()?;
        if record.as_ref().is_some_and(|record| record.created >= self.started) {
            return Ok(false);
        }
        if let Some(record) = record.as_ref().filter(|record| made_by_another_runtime(record))
            && self.kernel.is_alive(record)?
        {
            let msg =
                format!("{} lives and was made by another runtime ({})", owner.describe(), record.runtime);
            return Err(Error::new(code::IPAM, msg).with_details(
                "two runtimes share this network: set \"disableGC\": true, or give each its own network name",
            ));
        }
        let delegate = record.as_ref().and_then(|record| record.delegate.clone());
        let env = self.env.for_attachment(&owner.container_id, &owner.ifname);
        let (conf, deadline) = (self.conf, self.deadline);
        del::tear_down(attachment, record.as_ref(), self.kernel, deadline, || {
            // The reference IPAM plugins have no GC of their own.
            del::delegate_del(delegate.as_deref(), conf, &env, deadline)
        })?;
        Ok(true)
    }
}

/// A record that was rebuilt from an alias has only a part of the runtime's hash.
fn made_by_another_runtime(record: &Record) -> bool {
    let own = crate::plugin::calling_runtime();
    let theirs = &record.runtime;
    let known = !theirs.is_empty() && !own.is_empty();
    let same = theirs == own || (record.rebuilt && Hash::of(own).as_str().starts_with(theirs.as_str()));
    known && !same
}

fn is_kept(key: &Key, keep: &[ValidAttachment]) -> bool {
    keep.iter().any(|valid| {
        Hash::of(&valid.container_id) == key.container
            && valid.ifname.as_ref().is_none_or(|ifname| Hash::of(ifname) == key.ifname)
    })
}

/// Addresses that host-local gave before the network was switched to Weft.
fn release_foreign(conf: &NetConf, keep: &[ValidAttachment], failures: &mut Vec<Error>) {
    let foreign = Foreign::of(conf);
    for held in foreign.reservations() {
        let kept = keep.iter().any(|valid| {
            held.container_id == valid.container_id
                && (held.ifname.is_none() || valid.ifname.is_none() || held.ifname == valid.ifname)
        });
        if !kept && let Err(error) = foreign.remove(&held) {
            failures.push(error);
        }
    }
}

fn delegate_gc(conf: &NetConf, env: &Environment, deadline: Deadline) -> Result<(), Error> {
    let Some(kind) = del::delegated(conf) else { return Ok(()) };
    let delegate = Delegate::find(&kind, &env.path)?;
    delegate.run(Command::Gc, env, &conf.raw, deadline.instant()).map(drop)
}
