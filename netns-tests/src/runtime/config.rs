//! The files of a private containerd: its configuration, the CNI folders, where everything lies.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// containerd insists on a plugin of this name; where none is installed, this one will do.
const LOOPBACK: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" != ADD ] || nsenter --net="$CNI_NETNS" ip link set lo up || exit 1
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"0.3.1"}'
"#;

/// The folders and files of one containerd.
#[derive(Debug)]
pub struct Paths {
    /// Large or executable files; removed with the runtime.
    pub work: PathBuf,
    /// Sockets and mount points.
    pub state: PathBuf,
}

impl Paths {
    pub fn socket(&self) -> PathBuf {
        self.state.join("c.sock")
    }

    pub fn config(&self) -> PathBuf {
        self.work.join("config.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.work.join("containerd.log")
    }

    pub fn image(&self) -> PathBuf {
        self.work.join("image.tar")
    }

    pub fn conflist(&self) -> PathBuf {
        self.work.join("net.d/10-test.conflist")
    }

    /// Makes the folders and writes everything that containerd reads.
    pub fn prepare(
        &self,
        conflist: &Value,
        bin_dirs: &[PathBuf],
        image: &str,
        snapshotter: &str,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.state)?;
        fs::create_dir_all(self.work.join("net.d"))?;
        fs::create_dir_all(self.work.join("bin"))?;
        fs::write(self.conflist(), conflist.to_string())?;
        link_plugins(&self.work.join("bin"), bin_dirs)?;
        fs::write(self.config(), self.toml(image, snapshotter))
    }

    /// Written for containerd 1.6 and 1.7 (configuration version 2), which 2.x converts by itself.
    fn toml(&self, image: &str, snapshotter: &str) -> String {
        let work = self.work.display();
        let state = self.state.display();
        format!(
            r#"version = 2
root = "{work}/root"
state = "{state}/state"
disabled_plugins = [
    "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{state}/c.sock"
[debug]
level = "debug"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
enable_unprivileged_icmp = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{work}/bin"
conf_dir = "{work}/net.d"
max_conf_num = 1
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
        )
    }
}

/// One folder with all plugins: containerd 1.x takes only one. The first of a name wins.
fn link_plugins(target: &Path, bin_dirs: &[PathBuf]) -> io::Result<()> {
    for dir in bin_dirs {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let link = target.join(entry.file_name());
            if !link.is_symlink() {
                symlink(fs::canonicalize(entry.path())?, link)?;
            }
        }
    }
    let loopback = target.join("loopback");
    if !loopback.exists() {
        fs::write(&loopback, LOOPBACK)?;
        fs::set_permissions(&loopback, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
