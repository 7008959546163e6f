//! The operator's commands against a real etcd: what they print, what they refuse, and which exit code comes of it.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

mod etcd_lab;

use std::path::PathBuf;
use std::process::{Command, Output};

use etcd_lab::{Cluster, runtime};
use serde_json::Value;
use tempfile::TempDir;

const FINE: i32 = 0;
const FOUND_SOMETHING: i32 = 1;
const COULD_NOT_TELL: i32 = 2;

/// A cluster's store, and a file that names it.
struct Operator {
    etcd: Cluster,
    folder: TempDir,
}

impl Operator {
    /// `None`, loudly, where there is no etcd.
    fn new() -> Option<Self> {
        Some(Self { etcd: Cluster::one()?, folder: tempfile::tempdir().unwrap() })
    }

    fn file(&self) -> PathBuf {
        let path = self.folder.path().join("weftd.toml");
        let store = format!("node = \"a\"\n[store]\nendpoints = [\"{}\"]\n", self.etcd.url(0));
        std::fs::write(&path, store).unwrap();
        path
    }

    fn weftd(&self, words: &[&str]) -> Output {
        weftd().args(words).arg("--config").arg(self.file()).output().unwrap()
    }

    #[track_caller]
    fn says(&self, words: &[&str], expected: i32) -> String {
        said(&self.weftd(words), expected)
    }

    fn put(&self, key: &str, value: &str) {
        let put = async { self.etcd.admin(0).await.put(key, value, None).await };
        runtime().block_on(put).unwrap();
    }
}

fn weftd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEFT_")) {
        command.env_remove(name);
    }
    command
}

/// Everything that was said; asserts the exit code.
#[track_caller]
fn said(output: &Output, expected: i32) -> String {
    let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned();
    assert_eq!(output.status.code(), Some(expected), "{text}");
    text
}

#[test]
fn a_configuration_is_created_once_shown_and_changed() {
    let Some(operator) = Operator::new() else { return };
    let none = operator.says(&["config", "get"], FOUND_SOMETHING);
    assert!(none.contains("weftd config init"), "it says what to do: {none}");
    let bare = operator.says(&["config", "init"], FOUND_SOMETHING);
    assert!(bare.contains("network.cidrs: is missing"), "{bare}");

    let init = ["config", "init", "--network-cidrs", "10.199.0.0/16,fd00:199::/104", "--vxlan-vni", "7"];
    let created = operator.says(&init, FINE);
    assert!(created.contains("vni = 7"), "{created}");
    assert!(operator.says(&init, FOUND_SOMETHING).contains("already"));

    let got = operator.says(&["config", "get", "-o", "json"], FINE);
    let network: Value = serde_json::from_str(&got).unwrap();
    assert_eq!(network["cidrs"], serde_json::json!(["10.199.0.0/16", "fd00:199::/104"]));

    let grown = "cidrs=10.199.0.0/16,fd00:199::/104,10.198.0.0/16";
    let set = operator.says(&["config", "set", grown, "masquerade=false"], FINE);
    assert!(set.contains("10.198.0.0/16") && set.contains("masquerade = false"), "{set}");
    assert!(operator.says(&["config", "set", "masquerade=false"], FINE).contains("nothing to change"));
}

#[test]
fn a_change_that_must_not_be_is_refused_with_all_reasons() {
    let Some(operator) = Operator::new() else { return };
    operator.says(&["config", "init", "--network-cidrs", "10.199.0.0/16"], FINE);
    let text = operator.says(&["config", "set", "cidrs=10.198.0.0/16", "block_size_v4=25"], FOUND_SOMETHING);
    for part in ["10.199.0.0/16 is missing", "25 is not 26"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text =
        operator.says(&["config", "set", "colour=red", "mtu=1400", "masquerade=perhaps"], FOUND_SOMETHING);
    for part in ["colour", "each node's own", "neither true nor false"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let loopback = operator.says(&["config", "set", "cidrs=10.199.0.0/16,127.0.0.0/8"], FOUND_SOMETHING);
    assert!(loopback.contains("127.0.0.0/8"), "{loopback}");
}

#[test]
fn nodes_are_listed_and_only_a_known_one_is_removed() {
    let Some(operator) = Operator::new() else { return };
    operator.says(&["config", "init", "--network-cidrs", "10.199.0.0/16"], FINE);
    assert_eq!(operator.says(&["node", "ls"], FINE).lines().count(), 1, "the heading");
    let record = r#"{"format":1,"name":"b","instance":"i","epoch":1,"serial":4,"state":"active","version":"0.1.0",
        "addresses":["192.0.2.1/24"],"blocks":[{"cidr":"10.199.0.0/26","epoch":7}],"session":"s"}"#;
    operator.put("/weft/v1/n/b", record);
    let block = r#"{"format":1,"owner":"b","instance":"i","epoch":7,"state":"held"}"#;
    operator.put("/weft/v1/b/10.199.0.0-26", block);
    let session = r#"{"format":1,"instance":"i","session":"s","stamp":"x","addresses":["192.0.2.1/24"]}"#;
    operator.put("/weft/v1/alive/b", session);
    assert!(operator.says(&["node", "ls"], FINE).contains("b     alive"));

    let unknown = operator.says(&["node", "rm", "c"], FOUND_SOMETHING);
    assert!(unknown.contains("there is no node c"), "{unknown}");
    let alive = operator.says(&["node", "rm", "b"], FOUND_SOMETHING);
    assert!(alive.contains("192.0.2.1") && alive.contains("--force"), "{alive}");
    operator.says(&["node", "rm", "b", "--force"], FINE);
    let listed: Value = serde_json::from_str(&operator.says(&["node", "ls", "-o", "json"], FINE)).unwrap();
    assert_eq!(listed["nodes"][0]["state"], "removed");
    operator.says(&["node", "rm", "b", "--destroyed", "--force"], FINE);

    operator.put("/weft/v1/n/broken", "nonsense");
    assert!(operator.says(&["node", "ls"], FOUND_SOMETHING).contains("n/broken"));
}

#[test]
fn a_store_that_is_away_is_no_verdict() {
    let Some(mut operator) = Operator::new() else { return };
    operator.etcd.kill(0);
    for words in [&["config", "get"][..], &["node", "ls"], &["node", "rm", "b"]] {
        let text = operator.says(words, COULD_NOT_TELL);
        assert!(text.contains(&operator.etcd.url(0)), "{words:?} names whom it asked: {text}");
    }
}

#[test]
fn every_problem_of_a_file_is_named_at_once_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weftd.toml");
    let text = "node = \"A\"\n[store]\nendpoints = [\"10.0.0.1\"]\n[network]\nmtu = 1\nbackend = \"wireguard\"\nfoo = 1\n";
    std::fs::write(&file, text).unwrap();
    for words in [&["run"][..], &["config", "get"], &["node", "ls"]] {
        let output = weftd().args(words).arg("--config").arg(&file).output().unwrap();
        let text = said(&output, FOUND_SOMETHING);
        for part in ["node: ", "store.endpoints: ", "network.mtu: ", "network.backend: ", "network.foo: "] {
            assert!(text.contains(part), "{words:?} {part}: {text}");
        }
    }
    let missing = weftd().args(["run", "--config", "/nonexistent/weftd.toml"]).output().unwrap();
    assert!(said(&missing, FOUND_SOMETHING).contains("/nonexistent/weftd.toml"));
}

#[test]
fn plugins_are_installed_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    let install = || {
        let mut command = weftd();
        command.args(["install", "--store-endpoints", "http://127.0.0.1:1", "--node", "a"]);
        command.arg("--from").arg(&from).arg("--cni-bin-dir").arg(&to).output().unwrap()
    };
    let text = said(&install(), COULD_NOT_TELL);
    assert!(text.contains("from/weft:") && text.contains("from/weft-ipam:"), "both are named: {text}");
    for name in ["weft", "weft-ipam"] {
        std::fs::write(from.join(name), name).unwrap();
    }
    assert!(said(&install(), FINE).contains("installed"));
    assert!(said(&install(), FINE).contains("was there already"));
    assert_eq!(std::fs::read(to.join("weft")).unwrap(), b"weft");
}
