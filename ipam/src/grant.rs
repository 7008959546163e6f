//! The daemon's side of the blocks: granting one to the plugin, and taking it back.

use std::fs;
use std::io;

use weft_cni::error::{Error, code};
use weft_cni::ip::Subnet;

use crate::ask::Family;
use crate::clock::Deadline;
use crate::files;
use crate::record::{Record, TakenAddress};
use crate::reserve::{Reservation, hidden};
use crate::source::{block_name, block_segment, granted};
use crate::state::{State, make_folder};

/// Which families the cluster has.
const FAMILIES: &str = "families";

impl State {
    /// Lets the plugin give addresses of `block`. Addresses in it that live attachments already have (their
    /// records were rebuilt before the grant came back) are taken before the block can be seen.
    ///
    /// # Errors
    /// Code 5 on a disk fault, 11 if such an attachment stays locked past the deadline.
    pub fn grant(&self, block: &Subnet, deadline: Deadline) -> Result<(), Error> {
        self.grant_with(block, &[], deadline)
    }

    /// The same, with the addresses of the block that pods must never get. One that a live pod has already is
    /// its own: look at [`State::reserved`].
    ///
    /// # Errors
    /// As [`State::grant`].
    pub fn grant_with(
        &self,
        block: &Subnet,
        reserve: &[Reservation],
        deadline: Deadline,
    ) -> Result<(), Error> {
        let (hidden, shown) = (hidden(block), format!("block/{}", block_name(block)));
        let failed = |error: io::Error| self.io("grant a block in", &error);
        let there = self.at(&shown).exists();
        if !there {
            make_folder(&self.at(&hidden)).map_err(failed)?;
            self.take_for_homeless(block, &hidden, &shown, deadline)?;
        }
        let segment = block_segment(&block_name(block))
            .ok_or_else(|| Error::new(code::INTERNAL, format!("{block} is no block")))?;
        for Reservation { address, why } in reserve.iter().filter(|kept| block.contains(kept.address)) {
            self.reserve_in(if there { &shown } else { &hidden }, &segment, why, *address)?;
        }
        if there {
            return self.end_quarantine(block);
        }
        self.end_quarantine(block)?;
        fs::rename(self.at(&hidden), self.at(&shown)).map_err(failed)
    }

    /// Only an attachment that has addresses without a file is waited for: others may be waiting for this very
    /// grant, under their lock. No new one can come up, since rebuilding needs the folder for itself.
    fn take_for_homeless(
        &self,
        block: &Subnet,
        hidden: &str,
        shown: &str,
        deadline: Deadline,
    ) -> Result<(), Error> {
        for owner in self.owners()? {
            let Some(key) = owner.key() else { continue };
            if self.peek(&key)?.is_none_or(|mut record| homeless(&mut record, block).next().is_none()) {
                continue;
            }
            let Some(attachment) = self.find(&key, deadline)? else { continue };
            let Some(mut record) = attachment.record()? else { continue };
            let mut moved = false;
            for taken in homeless(&mut record, block) {
                let ip = taken.address.addr();
                attachment.take(&format!("{hidden}/{ip}"))?;
                taken.file = format!("{shown}/{ip}");
                moved = true;
            }
            if moved {
                attachment.write(&record)?;
            }
        }
        Ok(())
    }

    /// Says which families the cluster has, so that no pod gets one only while the other's block is on its way.
    /// To be said before the first block is granted.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn expect_families(&self, families: &[Family]) -> Result<(), Error> {
        let json = serde_json::to_vec(families).unwrap_or_default();
        if files::read(&self.at(FAMILIES)).map_err(|error| self.io("look into", &error))?
            == Some(json.clone())
        {
            return Ok(());
        }
        files::replace(&self.at(FAMILIES), &self.at("families.new"), &json)
            .map(drop)
            .map_err(|error| self.io("say which families there are in", &error))
    }

    /// What [`State::expect_families`] said; nothing was said: empty.
    pub(crate) fn expected_families(&self) -> Vec<Family> {
        let content = files::read(&self.at(FAMILIES)).ok().flatten();
        content.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    /// Takes a block back; `false` if an address of it is in use. After `true` no address of it can be given,
    /// and only then may the store be told.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn withdraw(&self, block: &Subnet) -> Result<bool, Error> {
        let name = block_name(block);
        match fs::remove_dir(self.at("block").join(&name)) {
            Ok(()) => {
                self.end_quarantine(block)?;
                let hints = self.at("slot").join(&name);
                files::remove(&hints).map_err(|error| self.io("remove hints from", &error))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(self.io("withdraw a block from", &error)),
        }
    }

    /// The blocks that are granted.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn granted(&self) -> Result<Vec<Subnet>, Error> {
        Ok(granted(self)?.into_iter().map(|segment| segment.subnet).collect())
    }
}

/// Addresses of ours in `block` that no file keeps from others.
fn homeless<'r>(record: &'r mut Record, block: &'r Subnet) -> impl Iterator<Item = &'r mut TakenAddress> {
    let own = record.delegate.is_none();
    record
        .addresses
        .iter_mut()
        .filter(move |taken| own && taken.file.is_empty() && block.contains(taken.address.addr()))
}
