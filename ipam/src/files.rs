//! Files that appear whole or not at all, and locks that can tell when their file was taken away.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};

use crate::clock::Deadline;

/// The first pause while waiting for a lock; it grows up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// Nobody but root reads the state.
const MODE: u32 = 0o600;

/// Makes a nameless file in `folder` that holds `content` and, if asked for, is locked already. [`publish`] gives
/// it its name; killed before that, nothing is left.
pub fn unnamed(folder: &Path, content: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).mode(MODE).custom_flags(libc::O_TMPFILE).open(folder)?;
    file.write_all(content)?;
    Ok(file)
}

/// Gives a nameless file its name; `AlreadyExists` if the name is taken.
pub fn publish(file: &File, path: &Path) -> io::Result<()> {
    match nix::unistd::linkat(file, "", AT_FDCWD, path, AtFlags::AT_EMPTY_PATH) {
        // Without CAP_DAC_READ_SEARCH; or the folder is gone, which the other way says too.
        Err(nix::errno::Errno::ENOENT) => {}
        outcome => return Ok(outcome?),
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    nix::unistd::linkat(AT_FDCWD, &source, AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(())
}

/// Replaces `path` by a whole new file, which is returned. `spare` is the name it has until then, in the same folder.
pub fn replace(path: &Path, spare: &Path, content: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(spare)?;
    let written = file.write_all(content).and_then(|()| fs::rename(spare, path));
    if written.is_err() {
        remove(spare)?;
    }
    written.map(|()| file)
}

/// Removes a file; a missing one is no error, nor is a missing folder.
pub fn remove(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(path))
}

/// Turns "there is none" into success.
pub fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads a small file; `None` if there is none.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::with_capacity(1024);
    file.read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Whether `file` is what `path` leads to now; a path that leads to nothing is a no.
///
/// # Errors
/// When either cannot be looked at.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(there) => {
            let ours = file.metadata()?;
            Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks exclusively (flock(2)); `false` when the deadline passed first.
pub fn lock_exclusive(file: &File, deadline: Deadline) -> io::Result<bool> {
    wait_for(deadline, || file.try_lock())
}

/// Locks shared (flock(2)); `false` when the deadline passed first.
pub fn lock_shared(file: &File, deadline: Deadline) -> io::Result<bool> {
    wait_for(deadline, || file.try_lock_shared())
}

fn wait_for(deadline: Deadline, attempt: impl Fn() -> Result<(), TryLockError>) -> io::Result<bool> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if deadline.remaining().is_zero() => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Who holds the flock on `file`, for a sentence.
pub fn holder(file: &File) -> String {
    lock_holder(file).map_or_else(|| "an unknown process".to_owned(), |pid| format!("process {pid}"))
}

/// The process that holds the flock on `file`, from /proc/locks; for error messages.
fn lock_holder(file: &File) -> Option<u32> {
    let there = file.metadata().ok()?;
    // Inode numbers alone are the same on every tmpfs.
    let (major, minor) = (nix::sys::stat::major(there.dev()), nix::sys::stat::minor(there.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", there.ino());
    let table = fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "FLOCK")?;
        let inode = words.get(at + 4)?;
        (*inode == wanted && !words.contains(&"->")).then(|| words.get(at + 3)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Instant::now(), Duration::from_millis(30))
    }

    #[test]
    fn a_file_that_was_never_published_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(unnamed(folder.path(), b"x").unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_published_file_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        publish(&unnamed(folder.path(), b"first").unwrap(), &path).unwrap();
        let second = publish(&unnamed(folder.path(), b"second").unwrap(), &path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().unwrap(), b"first");
    }

    #[test]
    fn a_lock_wait_ends_and_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let holder = unnamed(folder.path(), b"").unwrap();
        publish(&holder, &path).unwrap();
        assert!(lock_exclusive(&holder, soon()).unwrap());
        let other = File::open(&path).unwrap();
        assert!(!lock_exclusive(&other, soon()).unwrap());
        assert_eq!(lock_holder(&other), Some(std::process::id()));
        drop(holder);
        assert!(lock_exclusive(&other, soon()).unwrap(), "a dead holder leaves no lock");
    }

    #[test]
    fn a_file_that_was_replaced_is_not_ours_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let first = unnamed(folder.path(), b"").unwrap();
        publish(&first, &path).unwrap();
        assert!(is_at(&first, &path).unwrap());
        replace(&path, &folder.path().join("a.new"), b"other").unwrap();
        assert!(!is_at(&first, &path).unwrap());
    }
}
