//! The daemon's side of the blocks: granting one to the plugin, and taking it back.

use std::fs;
use std::io;

use weft_cni::error::Error;
use weft_cni::ip::Subnet;

use crate::clock::Deadline;
use crate::files;
use crate::source::{block_name, granted};
use crate::state::{State, make_folder};

impl State {
    /// Lets the plugin give addresses of `block`. Addresses in it that live attachments already have (their
    /// records were rebuilt before the grant came back) are taken before the block can be seen.
    ///
    /// # Errors
    /// Code 5 on a disk fault, 11 if such an attachment stays locked past the deadline.
    pub fn grant(&self, block: &Subnet, deadline: Deadline) -> Result<(), Error> {
        let name = block_name(block);
        let (hidden, shown) = (format!("block/.{name}"), format!("block/{name}"));
        if self.at(&shown).exists() {
            return Ok(());
        }
        let failed = |error: io::Error| self.io("grant a block in", &error);
        make_folder(&self.at(&hidden)).map_err(failed)?;
        for owner in self.owners()? {
            let Some(key) = owner.key() else { continue };
            let Some(attachment) = self.find(&key, deadline)? else { continue };
            let Some(mut record) = attachment.record()? else { continue };
            let homeless = record.addresses.iter_mut().filter(|taken| {
                record.delegate.is_none() && taken.file.is_empty() && block.contains(taken.address.addr())
            });
            let mut moved = false;
            for taken in homeless {
                let ip = taken.address.addr();
                attachment.take(&format!("{hidden}/{ip}"))?;
                taken.file = format!("{shown}/{ip}");
                moved = true;
            }
            if moved {
                attachment.write(&record)?;
            }
        }
        fs::rename(self.at(&hidden), self.at(&shown)).map_err(failed)
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
