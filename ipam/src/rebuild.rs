//! Rebuilding wiped records from the only witness that cannot be wiped: the links in the kernel.

use std::net::IpAddr;

use weft_cni::error::Error;
use weft_cni::ip::IfAddr;

use crate::alias::Alias;
use crate::attachment::{Attachment, Begun, make_pool};
use crate::clock::{Deadline, OPERATION_LIMIT, boot_nanos};
use crate::record::{Bridge, Host, Owner, Phase, Record, TakenAddress};
use crate::source::{block_folder_of, pool_folder};
use crate::state::State;

/// A live host end of ours.
#[derive(Clone, Debug)]
pub struct Live {
    /// What its alias says.
    pub alias: Alias,
    /// The link.
    pub host: Host,
    /// The bridge it is a port of.
    pub bridge: Option<Bridge>,
}

/// What the allocator asks of the kernel.
pub trait Kernel {
    /// Every live host end with an alias of ours.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses to tell.
    fn live(&mut self) -> Result<Vec<Live>, Error>;

    /// Whether what the record describes still exists: its host end, or for a delegated address its namespace.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses to tell.
    fn is_alive(&mut self, record: &Record) -> Result<bool, Error>;

    /// Removes what a vanished host end leaves in the kernel: set elements, and the neighbour entries and routes of
    /// the addresses that it really held.
    ///
    /// # Errors
    /// Code 102 if the kernel refuses.
    fn clean(&mut self, record: &Record, held: &[IpAddr]) -> Result<(), Error>;
}

/// A node without links of ours; for tests.
#[derive(Debug, Default)]
pub struct NoKernel;

impl Kernel for NoKernel {
    fn live(&mut self) -> Result<Vec<Live>, Error> {
        Ok(Vec::new())
    }

    fn is_alive(&mut self, _record: &Record) -> Result<bool, Error> {
        Ok(true)
    }

    fn clean(&mut self, _record: &Record, _held: &[IpAddr]) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes owner, record and address files for every live link that has none.
pub(crate) fn run(state: &State, kernel: &mut dyn Kernel) -> Result<(), Error> {
    let deadline = Deadline::after(std::time::Instant::now(), OPERATION_LIMIT);
    for live in kernel.live()? {
        match state.begin(&Owner::of_key(&live.alias.key), deadline)? {
            Begun::Fresh(attachment) => restore(&attachment, &live)?,
            Begun::Existing(attachment) => {
                if attachment.record()?.is_none_or(|record| !holds_all(&attachment, &record)) {
                    restore(&attachment, &live)?;
                }
            }
        }
    }
    Ok(())
}

fn holds_all(attachment: &Attachment<'_>, record: &Record) -> bool {
    record
        .addresses
        .iter()
        .all(|taken| taken.file.is_empty() || attachment.holds(&taken.file).unwrap_or(false))
}

fn restore(attachment: &Attachment<'_>, live: &Live) -> Result<(), Error> {
    let state = attachment.state();
    let mut record = Record::begun(boot_nanos(), live.alias.runtime.clone(), std::path::PathBuf::new());
    record.phase = Phase::Done;
    record.rebuilt = true;
    record.host = Some(Host { name: attachment.id().host_name(), ..live.host.clone() });
    record.bridge = live.bridge.clone();
    record.routed = live.alias.cluster && live.bridge.is_some();
    for address in &live.alias.addresses {
        let folder = if !live.alias.own_addresses {
            None
        } else if live.alias.cluster {
            block_folder_of(state, *address)?
        } else {
            let folder = pool_folder(&live.alias.key.network);
            make_pool(state, "", &folder)?;
            Some(folder)
        };
        let file = folder.map_or_else(String::new, |folder| format!("{folder}/{address}"));
        if !file.is_empty() && !attachment.take(&file)? {
            record.notes.push(format!("{address} is held by another attachment too"));
            continue;
        }
        let address = IfAddr::host(*address);
        record.addresses.push(TakenAddress { address, gateway: None, file, slot: None });
    }
    attachment.write(&record)
}
