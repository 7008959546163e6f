//! One attachment under its lock: its record, and the addresses it holds.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::PathBuf;

use weft_cni::error::{Error, code};

use crate::clock::{Deadline, OPERATION_LIMIT};
use crate::files;
use crate::key::{AttachmentId, Key};
use crate::record::{FORMAT, Owner, Record, TakenAddress};
use crate::slots::Slots;
use crate::state::{State, make_folder};

/// An attachment whose lock this process holds. Dropping it frees the lock and changes nothing else.
#[derive(Debug)]
pub struct Attachment<'s> {
    state: &'s State,
    key: Key,
    id: AttachmentId,
    lock: File,
}

/// What [`State::begin`] found.
#[derive(Debug)]
pub enum Begun<'s> {
    /// Nobody had it: it is new, and locked.
    Fresh(Attachment<'s>),
    /// It was there: an earlier ADD, finished or dead.
    Existing(Attachment<'s>),
}

impl State {
    /// Makes the owner file of an attachment, or finds the one there is; either way its lock is held.
    ///
    /// # Errors
    /// Code 11 when somebody holds the lock past the deadline (details name the process), or when the folder was wiped
    /// meanwhile; 5 on a disk fault.
    pub fn begin(&self, owner: &Owner, deadline: Deadline) -> Result<Begun<'_>, Error> {
        let key = owner.key().ok_or_else(|| Error::new(code::INTERNAL, "an owner without hashes"))?;
        let id = key.id();
        let path = self.owner_path(&id);
        let content = serde_json::to_vec(owner).unwrap_or_default();
        loop {
            let lock = files::unnamed(&self.at("owner"), &content).map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    self.wiped_meanwhile()
                } else {
                    self.io("write an owner file into", &error)
                }
            })?;
            // Locked before it has a name: whoever finds it finds it locked.
            lock.lock().map_err(|error| self.io("lock an owner file in", &error))?;
            match files::publish(&lock, &path) {
                Ok(()) => return Ok(Begun::Fresh(Attachment { state: self, key, id, lock })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.wiped_meanwhile()),
                Err(error) => return Err(self.io("name an owner file in", &error)),
            }
            if let Some(attachment) = self.find(&key, deadline)? {
                return Ok(Begun::Existing(attachment));
            }
        }
    }

    /// Locks an attachment that there is; `None` if there is none (any more).
    ///
    /// # Errors
    /// As [`State::begin`].
    pub fn find(&self, key: &Key, deadline: Deadline) -> Result<Option<Attachment<'_>>, Error> {
        let id = key.id();
        let path = self.owner_path(&id);
        loop {
            let lock = match File::open(&path) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(self.io("open an owner file in", &error)),
            };
            let locked = files::lock_exclusive(&lock, deadline)
                .map_err(|error| self.io("lock an owner file in", &error))?;
            if !locked {
                return Err(busy(&lock, &path));
            }
            // The former holder may have ended the attachment while we waited: then this lock locks nothing.
            if files::is_at(&lock, &path).map_err(|error| self.io("look into", &error))? {
                return Ok(Some(Attachment { state: self, key: key.clone(), id, lock }));
            }
        }
    }

    /// The attachment if nobody works on it; `None` if there is none or its lock is taken.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn find_idle(&self, key: &Key) -> Result<Option<Attachment<'_>>, Error> {
        let now = Deadline::after(std::time::Instant::now(), std::time::Duration::ZERO);
        match self.find(key, now) {
            Err(error) if error.code == code::TRY_AGAIN => Ok(None),
            other => other,
        }
    }

    /// Every attachment there is, as its owner file says. Damaged files are left out: they harm nobody else.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn owners(&self) -> Result<Vec<Owner>, Error> {
        let folder = self.at("owner");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io("list the owners in", &error)),
        };
        let parse = |entry: fs::DirEntry| {
            let content = files::read(&entry.path()).ok().flatten()?;
            serde_json::from_slice::<Owner>(&content).ok().filter(|owner| owner.key().is_some())
        };
        Ok(entries.flatten().filter_map(parse).collect())
    }

    /// The record of an attachment, without its lock: what it says may change at once.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn peek(&self, key: &Key) -> Result<Option<Record>, Error> {
        let path = self.record_path(&key.id());
        let content = files::read(&path).map_err(|error| self.io("read a record in", &error))?;
        // The host end's name follows from the attachment: a record with another's is not this attachment's.
        let own = |record: &Record| record.host.as_ref().is_none_or(|host| host.name == key.id().host_name());
        Ok(content.and_then(|bytes| parse_record(&bytes)).filter(own))
    }

    fn owner_path(&self, id: &AttachmentId) -> PathBuf {
        self.at("owner").join(id.as_str())
    }

    fn record_path(&self, id: &AttachmentId) -> PathBuf {
        self.at("record").join(id.as_str())
    }
}

impl Attachment<'_> {
    /// Whose it is.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its name.
    pub fn id(&self) -> &AttachmentId {
        &self.id
    }

    /// The state it lives in.
    pub fn state(&self) -> &State {
        self.state
    }

    /// Its record; `None` if none was written, or if it cannot be understood.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        self.state.peek(&self.key)
    }

    /// Writes the record, whole.
    ///
    /// # Errors
    /// Code 5 on a disk fault; the former record is then untouched.
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        self.put(record).map(drop)
    }

    /// Writes the record for the last time before the answer. `false`: owner, record or address files are not the
    /// ones that this process made: somebody wiped them.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn write_and_verify(&self, record: &Record) -> Result<bool, Error> {
        let written = self.put(record)?;
        let stands = |file: &File, path: PathBuf| {
            files::is_at(file, &path).map_err(|error| self.state.io("look into", &error))
        };
        for taken in record.addresses.iter().filter(|taken| !taken.file.is_empty()) {
            if !self.holds(&taken.file)? {
                return Ok(false);
            }
        }
        Ok(stands(&written, self.state.record_path(&self.id))?
            && stands(&self.lock, self.state.owner_path(&self.id))?
            && self.state.is_current()?)
    }

    fn put(&self, record: &Record) -> Result<File, Error> {
        let content = serde_json::to_vec(record).unwrap_or_default();
        files::replace(&self.state.record_path(&self.id), &self.spare_path(), &content)
            .map_err(|error| self.state.io("write a record into", &error))
    }

    /// Takes the address whose file this is, by exclusive creation; `false` if somebody has it.
    ///
    /// # Errors
    /// Code 5 on a disk fault, 11 if the state was wiped meanwhile. A withdrawn block counts as taken.
    pub(crate) fn take(&self, file: &str) -> Result<bool, Error> {
        let target = self.state.at(file);
        match files::publish(&self.lock, &target) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(self.holds(file)?),
            // The block was withdrawn; or the whole folder was wiped, and the name of our own file with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.lock.metadata() {
                Ok(own) if own.nlink() == 0 => Err(wiped()),
                _ => Ok(false),
            },
            Err(error) => Err(Error::io(format!("take {}", target.display()), &error)),
        }
    }

    /// Whether this attachment holds the address whose file this is.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn holds(&self, file: &str) -> Result<bool, Error> {
        files::is_at(&self.lock, &self.state.at(file)).map_err(|error| self.state.io("look into", &error))
    }

    /// The addresses of a record that this attachment really holds, or that a delegate gave it. A candidate that
    /// another attachment took first is not among them.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn held(&self, record: &Record) -> Result<Vec<IpAddr>, Error> {
        let mut held = Vec::new();
        for taken in &record.addresses {
            if taken.file.is_empty() || self.holds(&taken.file)? {
                held.push(taken.address.addr());
            }
        }
        Ok(held)
    }

    /// Gives back one address. Does nothing if another attachment holds it now.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn release(&self, taken: &TakenAddress) -> Result<(), Error> {
        if taken.file.is_empty() || !self.holds(&taken.file)? {
            return Ok(());
        }
        if let Some((slot, index)) = &taken.slot {
            // Before the file goes: killed in between, the address is still taken and the hint harms nobody.
            Slots::note_release(self.state, slot, *index);
        }
        let path = self.state.at(&taken.file);
        files::remove(&path).map_err(|error| Error::io(format!("give back {}", path.display()), &error))
    }

    /// Gives back all addresses: those that the record names, or without a record those that a search finds.
    ///
    /// # Errors
    /// Code 5 on a disk fault, after having tried them all.
    pub fn release_all(&self, record: Option<&Record>) -> Result<(), Error> {
        let found;
        let addresses = match record {
            Some(record) => &record.addresses,
            None => {
                found = self.search()?;
                &found
            }
        };
        let mut outcome = Ok(());
        for taken in addresses {
            outcome = outcome.and(self.release(taken));
        }
        outcome
    }

    /// Removes record and owner file, and with it the lock. Addresses must have been given back.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn end(self) -> Result<(), Error> {
        let owner = self.state.owner_path(&self.id);
        let gone = |error: io::Error| self.state.io("remove a record from", &error);
        files::remove(&self.spare_path()).map_err(gone)?;
        files::remove(&self.state.record_path(&self.id)).map_err(gone)?;
        // A wiped folder may hold a successor's owner file under this name by now.
        if files::is_at(&self.lock, &owner).map_err(gone)? {
            files::remove(&owner).map_err(gone)?;
        }
        Ok(())
    }

    /// The slow way to this attachment's addresses: look at every address file of every folder.
    fn search(&self) -> Result<Vec<TakenAddress>, Error> {
        let inode = self.lock.metadata().map_err(|error| self.state.io("look into", &error))?.ino();
        let mut found = Vec::new();
        for parent in ["pool", "block"] {
            for folder in list(self.state.at(parent)).map_err(|error| self.state.io("list", &error))? {
                let name = folder.file_name();
                let entries = list(folder.path()).map_err(|error| self.state.io("list", &error))?;
                for entry in entries.iter().filter(|entry| entry.ino() == inode) {
                    let address = entry.file_name().to_string_lossy().parse::<IpAddr>();
                    let Ok(address) = address else { continue };
                    let file = format!("{parent}/{}/{address}", name.to_string_lossy());
                    found.push(TakenAddress {
                        address: weft_cni::ip::IfAddr::host(address),
                        gateway: None,
                        file,
                        slot: None,
                    });
                }
            }
        }
        Ok(found)
    }

    fn spare_path(&self) -> PathBuf {
        self.state.at("record").join(format!("{}.new", self.id))
    }
}

fn list(folder: PathBuf) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn parse_record(bytes: &[u8]) -> Option<Record> {
    serde_json::from_slice::<Record>(bytes).ok().filter(|record| record.format == FORMAT)
}

/// Every address would look taken now: no need to try them all.
fn wiped() -> Error {
    Error::new(code::TRY_AGAIN, "the records under /run/weft were wiped during this operation")
        .with_details("what was done has been undone; try again")
}

fn busy(lock: &File, path: &std::path::Path) -> Error {
    let holder = files::holder(lock);
    Error::new(
        code::TRY_AGAIN,
        format!("another operation on this attachment has not ended within {} s", OPERATION_LIMIT.as_secs()),
    )
    .with_details(format!("{holder} holds {}; end it if it hangs, then try again", path.display()))
}

/// Makes the folder of a network's addresses and notes its name in clear.
pub(crate) fn make_pool(state: &State, network: &str, folder: &str) -> Result<(), Error> {
    let failed = |error: io::Error| state.io("make a pool in", &error);
    make_folder(&state.at(folder)).map_err(failed)?;
    let name = state.at("name").join(folder.rsplit('/').next().unwrap_or_default());
    match files::unnamed(&state.at("name"), network.as_bytes()).and_then(|file| files::publish(&file, &name))
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    }
}
