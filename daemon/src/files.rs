//! Files that somebody else reads while we write: whole or not at all, also across a power cut, and untouched when
//! nothing changes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Only root reads it.
pub const PRIVATE: u32 = 0o600;
/// Everybody reads it.
pub const PUBLIC: u32 = 0o644;
/// Everybody runs it.
pub const PROGRAM: u32 = 0o755;

/// Makes `path` hold `content`; `false` if it did already. The new file is complete and on the disk before it takes
/// the name, so neither a reader nor a power cut sees half of it, and a program that runs is never written to
/// ("text file busy").
///
/// # Errors
/// What the file system refuses; the old file is then as it was.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    if holds(path, content, mode)? {
        return Ok(false);
    }
    let spare = spare(path);
    let written = write(&spare, content, mode).and_then(|()| fs::rename(&spare, path));
    if let Err(error) = written {
        // The reason why is worth more than what clean-up says.
        let _ignored = fs::remove_file(&spare);
        return Err(error);
    }
    sync_folder(path)?;
    Ok(true)
}

/// Removes a file; `false` if there was none.
///
/// # Errors
/// What the file system refuses.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// What the file system refuses.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder that only root may look into, and its parents.
///
/// # Errors
/// What the file system refuses.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // It may have been there with another mode.
    if fs::metadata(path)?.permissions().mode() & 0o777 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// A lock that ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{holder} holds {}", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// As in "process 17".
        holder: String,
    },
    /// The file system refused.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, and writes into it who has it.
    ///
    /// # Errors
    /// When another process has it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // It is for the sentence only.
                let _unread = file.read_to_string(&mut pid);
                let pid = pid.trim();
                let holder =
                    if pid.is_empty() { "another process".to_owned() } else { format!("process {pid}") };
                return Err(LockError::Held { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self(file))
    }
}

fn holds(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => return Ok(false),
        Ok(found) if found.len() != content.len() as u64 || found.permissions().mode() & 0o777 != mode => {
            return Ok(false);
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(read(path)?.is_some_and(|there| there == content))
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // Left behind by a kill; it may have any mode.
    remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    // The umask took something away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Its name begins with a dot and ends with no suffix that a container runtime reads.
fn spare(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.weft-new"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_file_that_holds_it_already_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        assert!(replace(&path, b"one", PUBLIC).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!replace(&path, b"one", PUBLIC).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(replace(&path, b"two", PUBLIC).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(replace(&path, b"two", PRIVATE).unwrap(), "the mode counts too");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no spare file stays");
    }

    #[test]
    fn what_a_kill_left_behind_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(spare(&path), b"half").unwrap();
        assert!(replace(&path, b"whole", PRIVATE).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_program_that_runs_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sleep");
        replace(&path, &fs::read("/bin/sleep").unwrap(), PROGRAM).unwrap();
        let mut running = Command::new(&path).arg("60").spawn().unwrap();
        let busy = OpenOptions::new().write(true).open(&path).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ExecutableFileBusy, "else this test shows nothing");
        let replaced = replace(&path, b"#!/bin/sh\n", PROGRAM);
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(replaced.unwrap());
    }

    #[test]
    fn a_symbolic_link_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("a"), folder.path().join("target"));
        fs::write(&target, b"x").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(replace(&path, b"x", PUBLIC).unwrap());
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read(&target).unwrap(), b"x");
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let refused = Lock::take(&path).unwrap_err().to_string();
        assert_eq!(refused, format!("process {} holds {}", std::process::id(), path.display()));
        drop(first);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_folder_that_others_could_read_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        fs::create_dir_all(&path).unwrap();
        private_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }
}
