//! The command line, and the networks that the demo shows.

use std::path::{Path, PathBuf};

use netns_tests::reference_bin_dir;
use serde_json::{Value, json};

const USAGE: &str = "usage: demo [--bin-dir DIR] [--one-node [--conf CONFLIST]...]";
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/x86_64-unknown-linux-musl/release");

/// What to show, and where the plugins are.
#[derive(Debug)]
pub struct Args {
    pub bin_dirs: Vec<PathBuf>,
    /// What one node shows without a daemon; empty for the cluster.
    pub networks: Vec<Network>,
}

/// A CNI configuration list.
#[derive(Debug)]
pub struct Network(pub Value);

impl Network {
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or("network")
    }

    /// The first plugin: the one that makes the pod's interface.
    pub fn main_plugin(&self) -> &Value {
        &self.0["plugins"][0]
    }

    /// What makes the pods' interfaces, and how.
    pub fn kind(&self) -> String {
        let word = |key: &str| self.main_plugin()[key].as_str();
        let program = word("type").unwrap_or_default();
        word("mode").map_or(program.to_owned(), |mode| format!("{program} in {mode} mode"))
    }

    /// The bridge that stays when the pods are gone; in veth mode there is none.
    pub fn bridge(&self) -> Option<&str> {
        let plugin = self.main_plugin();
        let bridge = plugin["bridge"].as_str().unwrap_or("cbr0");
        (plugin["mode"] != "veth" && plugin["type"] != "ptp").then_some(bridge)
    }

    /// Its ranges, as written.
    pub fn ranges(&self) -> Vec<&str> {
        let sets = self.main_plugin()["ipam"]["ranges"].as_array().into_iter().flatten();
        sets.filter_map(|set| set[0]["subnet"].as_str()).collect()
    }

    fn plugins(&self) -> impl Iterator<Item = &str> {
        self.0["plugins"].as_array().into_iter().flatten().filter_map(|plugin| plugin["type"].as_str())
    }
}

impl Args {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut bin_dir = PathBuf::from(std::env::var_os("WEFT_BIN_DIR").unwrap_or_else(|| BUILT.into()));
        let mut networks = Vec::new();
        let mut one_node = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"));
            match word.as_str() {
                "--bin-dir" => bin_dir = value()?.into(),
                "--one-node" => one_node = true,
                "--conf" => networks.push(read(Path::new(&value()?))?),
                _ => return Err(USAGE.to_owned()),
            }
        }
        if networks.is_empty() && one_node {
            networks = vec![network("bridge", 244), network("veth", 245)];
        }
        let bin_dirs = [Some(bin_dir), reference_bin_dir()].into_iter().flatten().collect();
        let args = Self { bin_dirs, networks };
        args.check_programs()?;
        Ok(args)
    }

    fn own_programs(&self) -> Vec<&'static str> {
        if self.networks.is_empty() { vec!["weft", "weftd", "podtool"] } else { vec!["podtool"] }
    }

    /// All programs are there, so that the demo does not break off in the middle.
    fn check_programs(&self) -> Result<(), String> {
        let own = self.bin_dirs[0].display();
        for program in self.networks.iter().flat_map(Network::plugins).chain(self.own_programs()) {
            if !self.bin_dirs.iter().any(|dir| dir.join(program).is_file()) {
                return Err(format!(
                    "no program `{program}` in {own}.\nBuild it with `make build`, or say where it is: --bin-dir DIR"
                ));
            }
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Network, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {name}: {error}"))?;
    let conflist: Value = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    if conflist["plugins"][0].is_object() {
        Ok(Network(conflist))
    } else {
        Err(format!("{name}: no plugins in it"))
    }
}

fn network(mode: &str, net: u8) -> Network {
    let mut plugin = json!({
        "type": "weft", "mode": mode, "ipMasq": true,
        "ipam": {"ranges": [[{"subnet": format!("10.{net}.0.0/24")}], [{"subnet": format!("fd00:{net}::/64")}]]}
    });
    if mode == "bridge" {
        plugin["bridge"] = json!("cbr0");
        plugin["isDefaultGateway"] = json!(true);
    }
    Network(json!({"cniVersion": "1.0.0", "name": format!("demo-{mode}"), "plugins": [plugin]}))
}
