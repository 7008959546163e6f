//! Addresses that the node keeps for itself. Each is a file of its own in its block, so that no pod can take it and
//! the block is never empty; it is no attachment, so that no DEL, GC or collector ever touches it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_cni::error::Error;
use weft_cni::ip::Subnet;

use crate::files;
use crate::record::FORMAT;
use crate::slots::Slots;
use crate::source::{Segment, block_name, granted};
use crate::state::State;

/// What the first address of a node's first block is reserved for: the node's own address on the pod network.
pub const NODE_ADDRESS: &str = "node address";

/// An address that the node keeps for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// What for.
    pub why: String,
}

impl Reservation {
    /// The node address of `block`: its first.
    pub fn node_address(block: &Subnet) -> Self {
        Self { address: block.first(), why: NODE_ADDRESS.to_owned() }
    }
}

/// What the address' file holds. A pod's address file holds its owner instead.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    format: u32,
    reserved: String,
}

impl State {
    /// Keeps an address of a granted block from pods; done already is fine. `false`: a pod has it, or its block is
    /// not granted. For a new block [`State::grant_with`] leaves pods no moment to take it first.
    ///
    /// A wipe of the folder takes reservations with it, as it takes grants: whoever grants again, reserves again.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn reserve(&self, reservation: &Reservation) -> Result<bool, Error> {
        let ip = reservation.address;
        match granted(self)?.into_iter().find(|block| block.index_of(ip).is_some()) {
            Some(block) => self.reserve_in(&block.folder, &block, &reservation.why, ip),
            None => Ok(false),
        }
    }

    /// In a block's folder, which pods may not see yet.
    pub(crate) fn reserve_in(
        &self,
        folder: &str,
        block: &Segment,
        why: &str,
        ip: IpAddr,
    ) -> Result<bool, Error> {
        let failed =
            |error: io::Error| Error::io(format!("reserve {ip} in {}", self.path().display()), &error);
        let path = self.at(folder).join(ip.to_string());
        let content = Content { format: FORMAT, reserved: why.to_owned() };
        let json = serde_json::to_vec(&content).unwrap_or_default();
        let made = files::unnamed(&self.at(folder), &json).and_then(|file| files::publish(&file, &path));
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(reserved_for(&path).map_err(failed)?.is_some());
            }
            // The block was withdrawn meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        if let (Some(index), Ok(slots)) = (block.index_of(ip), Slots::open(self, &block.slot, block.len())) {
            slots.note_use(u64::try_from(index).unwrap_or(u64::MAX));
        }
        Ok(true)
    }

    /// Gives a reserved address to pods again; one that is not reserved is left alone.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn unreserve(&self, ip: IpAddr) -> Result<(), Error> {
        let failed = |error: io::Error| Error::io(format!("give up the reservation of {ip}"), &error);
        let Some(block) = granted(self)?.into_iter().find(|block| block.index_of(ip).is_some()) else {
            return Ok(());
        };
        let path = self.at(block.file(ip));
        if reserved_for(&path).map_err(failed)?.is_none() {
            return Ok(());
        }
        if let Some(index) = block.index_of(ip).and_then(|index| u64::try_from(index).ok()) {
            Slots::note_release(self, &block.slot, index);
        }
        files::remove(&path).map_err(failed)
    }

    /// Every reserved address.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn reserved(&self) -> Result<Vec<Reservation>, Error> {
        let failed = |error: io::Error| self.io("look for reserved addresses in", &error);
        let mut found = Vec::new();
        for block in granted(self)? {
            let entries = match fs::read_dir(self.at(&block.folder)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                let why = reserved_for(&entry.path()).map_err(failed)?;
                found.extend(why.map(|why| Reservation { address, why }));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The node's own addresses on the pod network, at most one for each family. Cheap: an ADD asks, and looks only
    /// where they can be, at the first address of each block.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn node_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        for block in granted(self)? {
            let why = reserved_for(&self.at(block.file(block.first)))
                .map_err(|error| self.io("look for the node address in", &error))?;
            if why.is_some_and(|why| why == NODE_ADDRESS) {
                found.push(block.first);
            }
        }
        found.sort();
        found.dedup_by_key(|ip| ip.is_ipv4());
        Ok(found)
    }
}

/// The folder of a block that pods may not see yet.
pub(crate) fn hidden(block: &Subnet) -> String {
    format!("block/.{}", block_name(block))
}

/// What an address file is reserved for; `None` if it is a pod's, or not there.
pub(crate) fn reserved_for(path: &Path) -> io::Result<Option<String>> {
    let content = files::read(path)?.and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
    Ok(content.map(|content| content.reserved))
}
