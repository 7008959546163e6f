//! The configuration that the container runtime reads. Its appearance says that pods can be started, so it comes
//! last; what changes in it (the MTU) reaches pods that are started afterwards.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::conf::PodMode;
use crate::files;

/// The bridge that pods are ports of.
pub const BRIDGE: &str = "cbr0";
/// Early in the alphabet: a runtime takes the first file.
pub const FILE: &str = "10-weft.conflist";
/// The network's name, by which records and aliases know their pods: never to be changed.
const NETWORK: &str = "weft";

/// What the conflist depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflist {
    /// How pods are joined to this node.
    pub mode: PodMode,
    /// Their MTU in bytes.
    pub mtu: Option<u32>,
}

impl Conflist {
    /// The content of the file.
    pub fn render(&self) -> String {
        let mut plugin = json!({
            "type": "weft",
            "mode": self.mode.as_str(),
            "capabilities": { "ips": true, "mac": true },
            "isDefaultGateway": true,
        });
        if self.mode == PodMode::Bridge {
            plugin["bridge"] = BRIDGE.into();
            plugin["hairpinMode"] = true.into();
        }
        if let Some(mtu) = self.mtu {
            plugin["mtu"] = mtu.into();
        }
        // No ranges: the addresses are those of the blocks that weftd is granted.
        plugin["ipam"] = json!({ "type": "weft-ipam" });
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
            "name": NETWORK,
            "plugins": [plugin],
        });
        let mut text = format!("{list:#}");
        text.push('\n');
        text
    }
}

/// Where the conflist is.
pub fn path(conf_dir: &Path) -> PathBuf {
    conf_dir.join(FILE)
}

/// Whether a file is a conflist of ours: nobody else's is removed.
pub fn is_ours(content: &[u8]) -> bool {
    let parsed: Option<Value> = serde_json::from_slice(content).ok();
    parsed.is_some_and(|list| list["name"] == NETWORK && list["plugins"][0]["type"] == "weft")
}

/// Writes the conflist; `false` if it was there already.
///
/// # Errors
/// A sentence.
pub fn write(conf_dir: &Path, conflist: &Conflist) -> Result<bool, String> {
    let path = path(conf_dir);
    let failed = |error: std::io::Error| format!("write {}: {error}", path.display());
    std::fs::create_dir_all(conf_dir).map_err(failed)?;
    files::replace(&path, conflist.render().as_bytes(), files::PUBLIC).map_err(failed)
}

/// Other configurations that the runtime would take before ours.
pub fn earlier(conf_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(conf_dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let read_by_runtimes = |name: &String| {
        [".conf", ".conflist", ".json"].iter().any(|suffix| name.ends_with(suffix)) && name.as_str() < FILE
    };
    let mut names: Vec<String> = names.filter(read_by_runtimes).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_and_its_options_are_only_named_in_bridge_mode() {
        let bridge: Value =
            serde_json::from_str(&Conflist { mode: PodMode::Bridge, mtu: Some(1450) }.render()).unwrap();
        let plugin = &bridge["plugins"][0];
        assert_eq!(
            (&plugin["mode"], &plugin["bridge"], &plugin["mtu"]),
            (&json!("bridge"), &json!("cbr0"), &json!(1450))
        );
        let veth: Value =
            serde_json::from_str(&Conflist { mode: PodMode::Veth, mtu: None }.render()).unwrap();
        let plugin = &veth["plugins"][0];
        assert_eq!(plugin["mode"], "veth");
        for key in ["bridge", "hairpinMode", "mtu"] {
            assert!(plugin.get(key).is_none(), "{key}: the plugin refuses it, or it says nothing");
        }
    }

    #[test]
    fn it_names_no_ranges_so_that_addresses_come_from_granted_blocks() {
        let list: Value =
            serde_json::from_str(&Conflist { mode: PodMode::Veth, mtu: None }.render()).unwrap();
        assert_eq!(list["plugins"][0]["ipam"], json!({"type": "weft-ipam"}));
    }

    #[test]
    fn only_our_own_file_is_recognised() {
        assert!(is_ours(Conflist { mode: PodMode::Bridge, mtu: None }.render().as_bytes()));
        for other in [
            "",
            "{}",
            r#"{"name":"weft","plugins":[{"type":"bridge"}]}"#,
            r#"{"name":"x","plugins":[{"type":"weft"}]}"#,
        ] {
            assert!(!is_ours(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_configuration_that_a_runtime_takes_first_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Conflist { mode: PodMode::Bridge, mtu: None }).unwrap();
        for name in ["05-other.conf", "00-note.txt", "10-flannel.conflist", "99-late.conflist"] {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        assert_eq!(earlier(folder.path()), ["05-other.conf", "10-flannel.conflist"]);
        assert_eq!(earlier(&folder.path().join("absent")), Vec::<String>::new());
    }
}
