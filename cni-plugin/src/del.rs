//! DEL: from (network, containerID, ifname) alone. It never enters the pod's namespace, and every step can be
//! repeated: packet rules, link gone, neighbours and routes, addresses, record, lock.

use weft_cni::conf::NetConf;
use weft_cni::delegate::Delegate;
use weft_cni::error::{Error, code};
use weft_cni::request::{Command, Environment};
use weft_cni::run::Call;
use weft_ipam::alias::Alias;
use weft_ipam::clock::Deadline;
use weft_ipam::foreign::Foreign;
use weft_ipam::{
    Attachment, Begun, Bridge, HostKernel, Key, Owner, Record, State, neighbour_removals, remove_neighbours,
    remove_remaining_neighbours, remove_routes,
};

use crate::link;

/// Ends an attachment.
///
/// # Errors
/// Only when a retry can help: code 102, 5 or 11. What could be done has been done.
pub fn del(call: &Call<'_>, deadline: Deadline) -> Result<(), Error> {
    let names = Names::of(call);
    let mut kernel = HostKernel::default();
    let known = loop {
        let state = match State::open_existing(&mut kernel, deadline) {
            Ok(Some(state)) => state,
            Ok(None) => break Ok(false),
            Err(error) => break Err(error),
        };
        match end_recorded(&state, &names, call, &mut kernel, deadline) {
            // Wiped under us: what failed, failed in a folder that is gone, or was, until somebody rebuilt it.
            Err(_) if !state.is_whole() && !deadline.remaining().is_zero() => {}
            Ok(Known::Wiped) => {}
            Ok(known) => break Ok(known == Known::Ended),
            Err(error) => break Err(error),
        }
    };
    match known {
        Ok(true) => Ok(()),
        Ok(false) => end_unrecorded(&names, call, &mut kernel, deadline),
        // Without its record: at least what the kernel knows by name. The error stays, for a retry can help.
        Err(error) => {
            let _also_failed = end_in_kernel(&names.key(), &mut kernel, deadline);
            Err(error)
        }
    }
}

/// What names an attachment.
struct Names<'a> {
    network: &'a str,
    container: &'a str,
    ifname: &'a str,
}

impl<'a> Names<'a> {
    fn of(call: &Call<'a>) -> Self {
        Self {
            network: call.conf.name.as_str(),
            container: call.attachment.container_id.as_str(),
            ifname: call.attachment.ifname.as_str(),
        }
    }

    fn key(&self) -> Key {
        Key::of(self.network, self.container, self.ifname)
    }

    fn owner(&self) -> Owner {
        Owner::new(self.network, self.container, self.ifname)
    }
}

/// What the records say of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It was there, and is ended.
    Ended,
    /// There is none.
    Nothing,
    /// The folder was wiped in between: look again.
    Wiped,
}

/// Ends an attachment that has an owner file.
fn end_recorded(
    state: &State,
    names: &Names<'_>,
    call: &Call<'_>,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<Known, Error> {
    let key = names.key();
    let attachment = match state.find(&key, deadline)? {
        Some(attachment) => attachment,
        None if link::host_end_by_name(kernel.socket()?, &key.id())?.is_none()
            && state.peek(&key)?.is_none() =>
        {
            return Ok(Known::Nothing);
        }
        // A link or a record without owner: take the lock, so that an ADD of this moment is waited for.
        None => match state.begin(&names.owner(), deadline) {
            Ok(Begun::Fresh(attachment) | Begun::Existing(attachment)) => attachment,
            // Before its deadline it says "try again" of a wiped folder only.
            Err(error) if error.code == code::TRY_AGAIN && !deadline.remaining().is_zero() => {
                return Ok(Known::Wiped);
            }
            Err(error) => return Err(error),
        },
    };
    let record = attachment.record()?;
    let delegate = match &record {
        Some(record) if !record.rebuilt => record.delegate.clone(),
        _ => delegated(call.conf),
    };
    tear_down(attachment, record.as_ref(), kernel, deadline, || {
        delegate_del(delegate.as_deref(), call.conf, call.env, deadline)
    })?;
    if record.is_none_or(|record| record.rebuilt) {
        release_foreign(call, names)?;
    }
    // Wiped while we worked: whoever rebuilt the folder may have found our link still there.
    Ok(if state.is_current()? { Known::Ended } else { Known::Nothing })
}

/// Ends all that there is of an attachment, in the order that leaves nothing behind wherever it is cut off.
///
/// # Errors
/// The first failure, after which the record stays for a retry.
pub fn tear_down(
    attachment: Attachment<'_>,
    record: Option<&Record>,
    kernel: &mut HostKernel,
    deadline: Deadline,
    delegate_del: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    match record {
        Some(record) => end_host(&attachment, record, kernel, deadline)?,
        None => end_in_kernel(attachment.key(), kernel, deadline)?,
    }
    delegate_del()?;
    attachment.release_all(record)?;
    attachment.end()
}

fn end_host(
    attachment: &Attachment<'_>,
    record: &Record,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<(), Error> {
    let mut held = attachment.held(record)?;
    kernel.leave_out_successors(record, &mut held)?;
    kernel.remove_rules(record, &held)?;
    if let Some(host) = &record.host
        && let Some(found) = kernel.host_end(host)?
    {
        let removals = |bridge: &Bridge| neighbour_removals(bridge.index, &held);
        let neighbours = record.bridge.as_ref().map(removals).unwrap_or_default();
        link::delete(kernel, found.index, neighbours, deadline)?;
    }
    let Some(Bridge { index, .. }) = &record.bridge else { return Ok(()) };
    // Should the link have gone without us, or a packet have brought one back in between.
    remove_remaining_neighbours(kernel.socket()?, *index, &held)?;
    if record.routed { remove_routes(kernel.socket()?, *index, &held) } else { Ok(()) }
}

/// Ends what the kernel knows of an attachment by the name and the alias of its host end.
fn end_in_kernel(key: &Key, kernel: &mut HostKernel, deadline: Deadline) -> Result<(), Error> {
    let Some(host) = link::host_end_by_name(kernel.socket()?, &key.id())? else { return Ok(()) };
    link::delete(kernel, host.index, Vec::new(), deadline)?;
    let alias = host.alias.as_deref().and_then(Alias::parse).filter(|alias| alias.key == *key);
    if let (Some(alias), Some(bridge)) = (alias, host.master) {
        remove_neighbours(kernel.socket()?, bridge, &alias.addresses)?;
        if alias.cluster {
            remove_routes(kernel.socket()?, bridge, &alias.addresses)?;
        }
    }
    Ok(())
}

/// No record of ours: an attachment that never was, or one that the reference plugins made before the network
/// was switched to Weft.
fn end_unrecorded(
    names: &Names<'_>,
    call: &Call<'_>,
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Result<(), Error> {
    end_in_kernel(&names.key(), kernel, deadline)?;
    delegate_del(delegated(call.conf).as_deref(), call.conf, call.env, deadline)?;
    release_foreign(call, names)
}

fn release_foreign(call: &Call<'_>, names: &Names<'_>) -> Result<(), Error> {
    Foreign::of(call.conf).release(names.container, names.ifname)
}

/// DEL of the IPAM plugin that gave the addresses, if it is not ours.
///
/// # Errors
/// The delegate's own.
pub fn delegate_del(
    kind: Option<&str>,
    conf: &NetConf,
    env: &Environment,
    deadline: Deadline,
) -> Result<(), Error> {
    let Some(kind) = kind else { return Ok(()) };
    let delegate = Delegate::find(kind, &env.path)?;
    delegate.run(Command::Del, env, &conf.raw, deadline.instant()).map(drop)
}

/// The IPAM plugin that the configuration delegates to, if it is not ours.
pub fn delegated(conf: &NetConf) -> Option<String> {
    let kind = conf.ipam().ok().flatten()?.string("type").ok().flatten()?;
    (!kind.is_empty() && kind != "weft-ipam").then_some(kind)
}
