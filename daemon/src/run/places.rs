//! The folders and files of a running daemon, and proof that they are still the host's.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_ipam::{DEFAULT_ROOT, is_at};

use crate::conf::Conf;
use crate::files::{Lock, LockError, private_folder};

/// The socket's folder.
pub const RUN_DIR: &str = "/run/weftd";
/// Held by the running daemon, there and in the data folder.
const LOCK: &str = "weftd.lock";
/// How often the lock is tried, and the pause between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// Where everything is. Only one daemon can hold it.
#[derive(Debug)]
pub struct Places {
    data_dir: PathBuf,
    root: File,
    _locks: [Lock; 2],
}

impl Places {
    /// Makes the folders and takes the locks.
    ///
    /// # Errors
    /// A sentence; above all when another daemon runs on this node.
    pub fn take(conf: &Conf) -> Result<Self, String> {
        let failed = |path: &Path, error: io::Error| format!("make {}: {error}", path.display());
        let run_dir = Path::new(RUN_DIR);
        for folder in [run_dir, &conf.data_dir] {
            private_folder(folder).map_err(|error| failed(folder, error))?;
        }
        let root = Path::new(DEFAULT_ROOT);
        DirBuilder::new().recursive(true).mode(0o755).create(root).map_err(|error| failed(root, error))?;
        let root = File::open(root).map_err(|error| format!("open {DEFAULT_ROOT}: {error}"))?;
        let locks = [lock(run_dir)?, lock(&conf.data_dir)?];
        Ok(Self { data_dir: conf.data_dir.clone(), root, _locks: locks })
    }

    /// The node's identity.
    pub fn identity(&self) -> PathBuf {
        identity(&self.data_dir)
    }

    /// What this node last said and saw.
    pub fn memory(&self) -> PathBuf {
        memory(&self.data_dir)
    }

    /// The cluster as it was last seen.
    pub fn snapshot(&self) -> PathBuf {
        snapshot(&self.data_dir)
    }

    /// Whether a daemon runs on this node.
    pub fn is_running() -> bool {
        let path = Path::new(RUN_DIR).join(LOCK);
        fs::metadata(&path).is_ok() && matches!(Lock::take(&path), Err(LockError::Held { .. }))
    }

    /// Whether `/run/weft` is still the folder that plugins use. It is not when somebody removed it: a container
    /// that mounted it then looks into a folder that nobody else can find.
    pub fn are_current(&self) -> bool {
        let removed = self.root.metadata().map_or(true, |found| found.nlink() == 0);
        // A folder that cannot be looked at for a moment proves nothing.
        !removed && is_at(&self.root, Path::new(DEFAULT_ROOT)).unwrap_or(true)
    }
}

/// A node's identity, in its data folder.
pub fn identity(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.json")
}

/// What a node last said and saw, in its data folder.
pub fn memory(data_dir: &Path) -> PathBuf {
    data_dir.join("memory.json")
}

/// The cluster as it was last seen, in a node's data folder.
pub fn snapshot(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshot.json")
}

/// Everything in the data folder that Weft made.
pub fn data_files(data_dir: &Path) -> Vec<PathBuf> {
    ["identity.json", "memory.json", "snapshot.json", LOCK].map(|name| data_dir.join(name)).to_vec()
}

/// Where a plugin, or a command, finds the daemon.
pub fn socket() -> &'static Path {
    Path::new(weft_ipam::ask::SOCKET)
}

/// A daemon that is ending, or a command that looks whether one runs, may have it for a moment.
fn lock(folder: &Path) -> Result<Lock, String> {
    let path = folder.join(LOCK);
    let mut attempts = 0;
    loop {
        match Lock::take(&path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if attempts < ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(PAUSE);
            }
            Err(LockError::Held { path, holder }) => {
                let path = path.display();
                return Err(format!("another weftd runs on this node: {holder} holds {path}; stop it first"));
            }
            Err(error @ LockError::Io { .. }) => return Err(error.to_string()),
        }
    }
}
