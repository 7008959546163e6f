//! What every refusal owes: one JSON object, a code that may be used, one sentence, and an untouched node.

use std::path::Path;

use netns_tests::{CniError, Inside, Node, Outcome};
use serde_json::Value;

/// The error of a refused call, with everything checked that holds for each of them.
#[track_caller]
pub fn refusal(outcome: &Outcome) -> CniError {
    let error = outcome.error();
    let object: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    for key in object.as_object().unwrap().keys() {
        assert!(
            ["cniVersion", "code", "msg", "details"].contains(&key.as_str()),
            "foreign key {key}: {outcome}"
        );
    }
    let usable = matches!(error.code, 1 | 2 | 4..=8 | 11 | 50 | 51 | 100..=104);
    assert!(usable, "code {} is reserved, or says that DEL is not needed: {outcome}", error.code);
    let text = format!("{} {}", error.msg, error.details);
    assert!(!text.contains(['\n', '\r']), "more than one line: {outcome}");
    for word in ["panic", "internal error", "Some(", "Err(", "Os {"] {
        assert!(!text.contains(word), "no sentence for people, it has {word}: {outcome}");
    }
    error
}

/// What is wrong with a refusal that must have this code and say these words; nothing, if all is well. `what`
/// names the case.
pub fn problem(what: &str, outcome: &Outcome, code: u64, words: &[&str]) -> Option<String> {
    if outcome.status.code().is_none_or(|code| code == 0) {
        return Some(format!("{what}: should be refused: {outcome}"));
    }
    let error = refusal(outcome);
    if error.code != code {
        return Some(format!("{what}: code should be {code}: {outcome}"));
    }
    let text = format!("{} {}", error.msg, error.details);
    let missing = words.iter().find(|word| !text.contains(**word))?;
    Some(format!("{what}: nothing says {missing:?}: {outcome}"))
}

/// Asserts code and words (in message or details) of a refusal.
#[track_caller]
pub fn assert_refused(what: &str, outcome: &Outcome, code: u64, words: &[&str]) -> CniError {
    match problem(what, outcome, code, words) {
        Some(problem) => panic!("{problem}"),
        None => outcome.error(),
    }
}

/// Asserts that a node which never had a pod still has neither link nor file of ours.
#[track_caller]
pub fn assert_untouched(node: &Node) {
    let mut files = Vec::new();
    for folder in ["/run/weft", "/var/lib/weft", "/var/lib/cni"] {
        list(&node.path(folder), &mut files);
    }
    assert!(files.is_empty(), "files were made: {files:#?}");
    let links = node.json(["ip", "-j", "link", "show"]);
    let names: Vec<&str> =
        links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap()).collect();
    assert_eq!(names, ["lo"], "links were made");
    assert_eq!(node.sysctl("net.ipv4.ip_forward"), "0");
    assert_eq!(
        node.json(["nft", "-j", "list", "tables"])["nftables"].as_array().map_or(0, |all| all.len() - 1),
        0
    );
}

fn list(folder: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        files.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), files);
        }
    }
}
