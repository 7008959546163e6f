//! Puts the plugins where the container runtime looks. A plugin that runs at this moment is replaced by rename, so
//! that nobody ever sees half a program or "text file busy".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

/// The plugins.
pub const PLUGINS: [&str; 2] = ["weft", "weft-ipam"];

/// What became of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Where it is.
    pub path: PathBuf,
    /// It was not there, or another.
    pub changed: bool,
}

/// The folder that the plugins come from: the one that this program lies in.
///
/// # Errors
/// A sentence when the kernel does not tell.
pub fn source() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("find this program's own folder: {error}"))?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Installs all plugins.
///
/// # Errors
/// All failures, a sentence each.
pub fn install(from: &Path, bin_dir: &Path) -> Result<Vec<Installed>, Vec<String>> {
    let (done, failed): (Vec<_>, Vec<_>) =
        PLUGINS.into_iter().map(|name| one(&from.join(name), &bin_dir.join(name))).partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(done.into_iter().flatten().collect()) } else { Err(failed) }
}

/// Which plugins are in `bin_dir`.
pub fn present(bin_dir: &Path) -> bool {
    PLUGINS.iter().all(|name| bin_dir.join(name).is_file())
}

fn one(from: &Path, to: &Path) -> Result<Installed, String> {
    let content = fs::read(from).map_err(|error| format!("read {}: {error}", from.display()))?;
    // The same file by another name: nothing to do, and never to be replaced by a copy of itself.
    if fs::canonicalize(from).ok() == fs::canonicalize(to).ok() {
        return Ok(Installed { path: to.to_owned(), changed: false });
    }
    let failed = |error: io::Error| format!("install {}: {error}", to.display());
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let changed = files::replace(to, &content, files::PROGRAM).map_err(failed)?;
    Ok(Installed { path: to.to_owned(), changed })
}

/// Removes the plugins; returns those that were there.
///
/// # Errors
/// All failures, a sentence each.
pub fn remove(bin_dir: &Path) -> Result<Vec<PathBuf>, Vec<String>> {
    let mut removed = Vec::new();
    let mut failed = Vec::new();
    for name in PLUGINS {
        let path = bin_dir.join(name);
        match files::remove(&path) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(error) => failed.push(format!("remove {}: {error}", path.display())),
        }
    }
    if failed.is_empty() { Ok(removed) } else { Err(failed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_plugins() -> tempfile::TempDir {
        let from = tempfile::tempdir().unwrap();
        for name in PLUGINS {
            fs::write(from.path().join(name), format!("program {name}")).unwrap();
        }
        from
    }

    #[test]
    fn plugins_are_installed_once_and_removed() {
        let (from, to) = (folder_with_plugins(), tempfile::tempdir().unwrap());
        let bin_dir = to.path().join("opt/cni/bin");
        assert!(!present(&bin_dir));
        assert!(install(from.path(), &bin_dir).unwrap().iter().all(|plugin| plugin.changed));
        assert!(install(from.path(), &bin_dir).unwrap().iter().all(|plugin| !plugin.changed));
        assert!(present(&bin_dir));
        assert_eq!(remove(&bin_dir).unwrap().len(), 2);
        assert_eq!(remove(&bin_dir).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn every_missing_program_is_named() {
        let (empty, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(install(empty.path(), to.path()).unwrap_err().len(), 2);
    }

    #[test]
    fn a_folder_is_not_installed_into_itself() {
        let from = folder_with_plugins();
        assert!(install(from.path(), from.path()).unwrap().iter().all(|plugin| !plugin.changed));
        assert!(present(from.path()));
    }
}
