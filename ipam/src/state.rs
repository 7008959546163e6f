//! The state folder of one life of one node: opening it, building it once, proving that it is still there.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_cni::error::{Error, code};

use crate::clock::{Deadline, boot_seconds};
use crate::files;
use crate::rebuild::{self, Kernel};
use crate::record::FORMAT;
use crate::reserve::reserved_for;
use crate::stamp::Stamp;

/// Where the state lives. A tmpfs: an attachment never outlives the boot, so nothing is ever synced.
pub const DEFAULT_ROOT: &str = "/run/weft";
/// Where the marker lives that tells a wiped state folder from a new one.
const MARKER_ROOT: &str = "/var/lib/weft/attached";
const SUBFOLDERS: [&str; 7] = ["owner", "record", "pool", "block", "slot", "name", "verified"];
/// The subfolder that only the daemon fills and empties.
const BLOCKS: &str = "block";
const READY: &str = "ready";
const WIPED: &str = "wiped";

/// From here on [`State::is_crowded`].
const CROWD: u64 = 200;
/// `BOGO_DIRENT_SIZE` (mm/shmem.c).
const ENTRY_SIZE: u64 = 20;

/// How long, in seconds, a look at something shared is good for. Looking costs: a netfilter socket's close waits
/// 8–24 ms, a visit to /proc/sys/net up to 0.3 ms.
const LOOK_AGAIN: u64 = 5;

/// The content of `ready`.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    format: u32,
    built: u64,
    version: String,
}

/// The open state folder. While it exists nobody can rebuild the folder (it is locked shared).
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    folder: File,
}

/// The state folder was wiped in this life of the node, and delegated addresses cannot be rebuilt.
#[derive(Debug)]
pub struct Wiped {
    /// The file whose removal says that no pod with a delegated address is left.
    pub file: PathBuf,
}

impl State {
    /// Opens the folder of this boot and this node, and builds it first if need be.
    ///
    /// # Errors
    /// Code 5 if the folder cannot be made or read, 11 if somebody holds it locked past the deadline, 104 if it
    /// was written in another format.
    pub fn open(kernel: &mut dyn Kernel, deadline: Deadline) -> Result<Self, Error> {
        Self::open_at(Path::new(DEFAULT_ROOT), Path::new(MARKER_ROOT), kernel, deadline)
    }

    /// The same, or `None` when there is no such folder. For DEL, which must not need to write.
    ///
    /// # Errors
    /// As [`State::open`].
    pub fn open_existing(kernel: &mut dyn Kernel, deadline: Deadline) -> Result<Option<Self>, Error> {
        let root = Path::new(DEFAULT_ROOT);
        let path = root.join(current_stamp()?.folder());
        match fs::metadata(&path) {
            Ok(_) => Self::open(kernel, deadline).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("look for {}", path.display()), &error)),
        }
    }

    pub(crate) fn open_at(
        root: &Path,
        marker_root: &Path,
        kernel: &mut dyn Kernel,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let stamp = current_stamp()?;
        let path = root.join(stamp.folder());
        loop {
            let folder = open_folder(&path, deadline)?;
            lock(&path, &folder, files::lock_shared(&folder, deadline))?;
            let state = Self { path: path.clone(), folder };
            if !state.is_current()? {
                continue;
            }
            if state.check_ready()? {
                return Ok(state);
            }
            state.folder.unlock().map_err(|error| Error::io(format!("unlock {}", path.display()), &error))?;
            lock(&path, &state.folder, files::lock_exclusive(&state.folder, deadline))?;
            if state.is_current()? && !state.check_ready()? {
                match state.build(&stamp, root, marker_root, kernel) {
                    // Wiped meanwhile, wholly or (11) its files first: build what is there now.
                    Err(error) if error.code == code::TRY_AGAIN || !state.is_current()? => {
                        deadline.check("the state folder stayed")?;
                    }
                    built => built?,
                }
            }
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the folder.
    pub(crate) fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// Whether the folder is still the one that everybody finds. `false`: it was wiped meanwhile.
    ///
    /// # Errors
    /// Code 5 if the folder cannot be looked at.
    pub fn is_current(&self) -> Result<bool, Error> {
        files::is_at(&self.folder, &self.path)
            .map_err(|error| Error::io(format!("look at {}", self.path.display()), &error))
    }

    /// Whether the folder is current and no subfolder of it is gone: a wipe takes them one after the other.
    pub fn is_whole(&self) -> bool {
        self.is_current().unwrap_or(true) && self.has_all_parts().unwrap_or(true)
    }

    /// Whether there are so many attachments that what grows with them is worth going round. By the size of a
    /// folder: a tmpfs counts 20 bytes an entry. Other file systems count blocks, which makes it true.
    pub fn is_crowded(&self) -> bool {
        fs::metadata(self.at("owner")).is_ok_and(|folder| folder.size() > CROWD * ENTRY_SIZE)
    }

    /// Tries whether an ADD could write its files, by one without a name that is gone again at once.
    ///
    /// # Errors
    /// Code 5: the disk is full, read-only or not ours.
    pub fn try_writing(&self) -> Result<(), Error> {
        files::unnamed(&self.at("owner"), b"STATUS")
            .map(drop)
            .map_err(|error| self.io("write a file into", &error))
    }

    /// Makes the next operation rebuild the folder from the kernel. For when the records proved wrong.
    ///
    /// # Errors
    /// Code 5 if the file cannot be removed.
    pub fn distrust(&self) -> Result<(), Error> {
        files::remove(&self.at(READY)).map_err(|error| self.io("distrust the records in", &error))
    }

    /// Set once the folder was wiped in this life of the node: what was delegated then is lost.
    ///
    /// # Errors
    /// Code 5 if the folder cannot be looked at.
    pub fn wiped(&self) -> Result<Option<Wiped>, Error> {
        let file = self.at(WIPED);
        let there = file.try_exists().map_err(|error| self.io("look into", &error))?;
        Ok(there.then_some(Wiped { file }))
    }

    /// Whether something that many attachments share was seen in the kernel within the last five seconds.
    /// Others may undo it; the next ADD after that time repairs it.
    pub fn was_verified_lately(&self, name: &str) -> bool {
        self.verified_at(name).is_some_and(|at| boot_seconds().saturating_sub(at) < LOOK_AGAIN)
    }

    /// When, in seconds since boot, something that many attachments share was last seen in the kernel.
    pub fn verified_at(&self, name: &str) -> Option<u64> {
        let content = files::read(&self.at("verified").join(name)).ok()??;
        std::str::from_utf8(&content).ok()?.trim().parse().ok()
    }

    /// Notes that something was seen in the kernel at `second` since boot.
    ///
    /// # Errors
    /// Code 5 on a disk fault.
    pub fn note_verified(&self, name: &str, second: u64) -> Result<(), Error> {
        let folder = self.at("verified");
        let path = folder.join(name);
        // No name in between that a kill could leave behind; absent for a moment, it counts as never seen.
        let noted = files::unnamed(&folder, second.to_string().as_bytes())
            .and_then(|file| files::remove(&path).and_then(|()| files::publish(&file, &path)));
        match noted {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.io("note what was verified in", &error))
            }
            _ => Ok(()),
        }
    }

    /// What was looked for is gone, though this process had the folder open.
    pub(crate) fn wiped_meanwhile(&self) -> Error {
        let what = format!("the state folder {} was wiped meanwhile", self.path.display());
        Error::new(code::TRY_AGAIN, what)
            .with_details("the next attempt rebuilds it from the kernel: try again")
    }

    pub(crate) fn io(&self, what: &str, error: &io::Error) -> Error {
        Error::io(format!("{what} {}", self.path.display()), error)
    }

    fn check_ready(&self) -> Result<bool, Error> {
        if !self.has_all_parts().map_err(|error| self.io("look at", &error))? {
            return Ok(false);
        }
        let path = self.at(READY);
        let Some(content) = files::read(&path).map_err(|error| self.io("read", &error))? else {
            return Ok(false);
        };
        match serde_json::from_slice::<Ready>(&content) {
            Ok(ready) if ready.format == FORMAT => Ok(true),
            Ok(ready) => Err(Error::new(
                code::IPAM,
                format!("{} has format {}, this program knows format {FORMAT}", path.display(), ready.format),
            )
            .with_details(
                "install the version of Weft that wrote it, or drain the node and remove the folder",
            )),
            Err(_) => Ok(false),
        }
    }

    /// Whether no subfolder was removed, by the folder's link count: two, and one for each subfolder. File systems
    /// that do not count have one.
    fn has_all_parts(&self) -> io::Result<bool> {
        let links = self.folder.metadata()?.nlink();
        Ok(links == 1 || links >= 2 + SUBFOLDERS.len() as u64)
    }

    /// Removes what a partial wipe left: address files without their owners would be taken for ever. The granted
    /// blocks stay granted, but for now nobody has an address of them, save what the node keeps for itself.
    fn clear(&self) -> io::Result<()> {
        for name in SUBFOLDERS.into_iter().filter(|name| *name != BLOCKS) {
            files::absent_is_fine(fs::remove_dir_all(self.at(name)))?;
        }
        let blocks = match fs::read_dir(self.at(BLOCKS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            blocks => blocks?,
        };
        for block in blocks {
            for taken in fs::read_dir(block?.path())? {
                let path = taken?.path();
                if reserved_for(&path)?.is_none() {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    /// Runs under the exclusive lock: no operation is under way in this folder.
    fn build(
        &self,
        stamp: &Stamp,
        root: &Path,
        marker_root: &Path,
        kernel: &mut dyn Kernel,
    ) -> Result<(), Error> {
        let marker = marker_root.join(stamp.folder());
        let wiped = SUBFOLDERS.iter().any(|name| !self.at(name).exists());
        if wiped {
            self.clear().map_err(|error| self.io("clear what is left of", &error))?;
        }
        for name in SUBFOLDERS {
            make_folder(&self.at(name)).map_err(|error| self.io("make folders in", &error))?;
        }
        if wiped && marker.exists() {
            files::replace(&self.at(WIPED), &self.at("wiped.new"), b"").map_err(|e| self.io("mark", &e))?;
        }
        rebuild::run(self, kernel)?;
        // Only delegated addresses need the marker; ours are proved by the kernel's aliases.
        let _unproved = make_folders(marker_root).and_then(|()| fs::write(&marker, b""));
        let ready =
            Ready { format: FORMAT, built: boot_seconds(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let content = serde_json::to_vec(&ready).unwrap_or_default();
        files::replace(&self.at(READY), &self.at("ready.new"), &content)
            .map_err(|error| self.io("finish", &error))?;
        sweep(root, stamp);
        sweep(marker_root, stamp);
        Ok(())
    }
}

fn current_stamp() -> Result<Stamp, Error> {
    Stamp::current()
        .map_err(|error| Error::io("find out the boot id and this node's network namespace", &error))
}

/// Opens the folder, made if need be, and again if it is wiped in between.
fn open_folder(path: &Path, deadline: Deadline) -> Result<File, Error> {
    let failed = |error: io::Error| Error::io(format!("open the state folder {}", path.display()), &error);
    loop {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_folders(path).map_err(failed)?,
            opened => return opened.map_err(failed),
        }
        deadline.check("the state folder stayed")?;
    }
}

fn lock(path: &Path, folder: &File, outcome: io::Result<bool>) -> Result<(), Error> {
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Error::new(code::TRY_AGAIN, format!("the state folder {} is locked", path.display()))
                .with_details(format!(
                    "{} holds it; end it if it hangs, then try again",
                    files::holder(folder)
                )))
        }
        Err(error) => Err(Error::io(format!("lock {}", path.display()), &error)),
    }
}

/// Makes a folder that only root may enter; one that exists is fine.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn make_folders(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// Removes what other boots left. A failure is no harm: the next boot tries again.
fn sweep(root: &Path, stamp: &Stamp) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| stamp.is_of_another_boot(name)) {
            let path = entry.path();
            let _retried_next_boot =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}
