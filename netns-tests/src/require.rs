//! What a test needs from the machine, and what happens when it is missing.

use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use crate::host;
use crate::netns::on_own_thread;

/// With this set to `require`, a test that cannot run fails instead of being skipped.
const MODE: &str = "NETNS_TESTS";
/// The folder of the built programs.
const BIN_DIR: &str = "WEFT_BIN_DIR";

/// Whether this machine can run labs. When not, says why, past the test runner's capture, and the
/// test returns early; with `NETNS_TESTS=require` it panics instead.
pub fn require() -> bool {
    granted(probe())
}

pub(crate) fn granted(probed: Result<(), String>) -> bool {
    match probed {
        Ok(()) => true,
        Err(reason) if std::env::var_os(MODE).is_some_and(|mode| mode == "require") => {
            panic!("{MODE}=require, but {reason}")
        }
        Err(reason) => {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            host::say(&format!("SKIPPED {test}: {reason}"));
            false
        }
    }
}

/// [`require`], and a container runtime is installed.
pub fn require_containerd() -> bool {
    granted(probe_containerd())
}

/// Whether further programs are installed; [`require`] says what happens when not.
pub fn require_programs(programs: &[&str]) -> bool {
    granted(programs.iter().try_for_each(|program| installed(program)))
}

/// Whether this machine can run labs with a container runtime, and what is missing if not.
pub fn probe_containerd() -> Result<(), String> {
    probe()?;
    ["containerd", "ctr", "runc"].iter().try_for_each(|tool| installed(tool))
}

/// The folder with `weft` and `weft-ipam`: `$WEFT_BIN_DIR`, or where `make build` puts them.
pub fn weft_bin_dir() -> PathBuf {
    let dir = bin_dir();
    have(&dir, "weft");
    dir
}

/// The program of the test images: in one of `dirs`, else where `weft` is.
pub(crate) fn podtool(dirs: &[PathBuf]) -> PathBuf {
    let given = dirs.iter().map(|dir| dir.join("podtool")).find(|path| path.is_file());
    given.unwrap_or_else(|| {
        let dir = bin_dir();
        have(&dir, "podtool");
        dir.join("podtool")
    })
}

fn bin_dir() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/x86_64-unknown-linux-musl/release");
    let dir = std::env::var_os(BIN_DIR).map_or(built, PathBuf::from);
    dir.canonicalize().unwrap_or(dir)
}

fn have(dir: &Path, program: &str) {
    assert!(
        dir.join(program).is_file(),
        "no program `{program}` in {}: run `make build`, or set {BIN_DIR} to the folder that has it",
        dir.display()
    );
}

/// The reference plugins' folder, where this machine has them.
pub fn reference_bin_dir() -> Option<PathBuf> {
    let places = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
    places.iter().map(PathBuf::from).find(|dir| dir.join("bridge").is_file())
}

fn probe() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("labs need root".to_owned());
    }
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    on_own_thread(|| Ok(unshare(namespaces)?)).map_err(|error| format!("no new namespaces: {error}"))?;
    ["ip", "bridge", "tc", "nft", "ping"].iter().try_for_each(|tool| installed(tool))
}

/// Whether a program is in the PATH.
pub fn has_command(tool: &str) -> bool {
    installed(tool).is_ok()
}

pub(crate) fn installed(tool: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
        Ok(())
    } else {
        Err(format!("`{tool}` is not installed"))
    }
}
