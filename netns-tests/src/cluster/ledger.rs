//! What all nodes of a cluster give, by the files that say so: nothing may be given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use weft_cni::ip::Subnet;

use crate::node::Node;

/// The addresses that pods of a node have, and the node's own reserved ones.
pub fn addresses_given(node: &Node) -> BTreeSet<IpAddr> {
    addresses_held(node).into_keys().collect()
}

/// The same, each with the inode of its file: given again to another, an address has another.
pub(super) fn addresses_held(node: &Node) -> BTreeMap<IpAddr, u64> {
    let blocks = block_folders(node).into_iter().filter(|folder| name(folder).is_some());
    let files = blocks.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files
        .filter_map(|file| Some((file.file_name().to_str()?.parse().ok()?, file.metadata().ok()?.ino())))
        .collect()
}

/// The folders of the blocks that a node was granted, each with its inode: granted again, a block has another.
pub(super) fn blocks_held(node: &Node) -> BTreeMap<Subnet, u64> {
    let folders = block_folders(node).into_iter();
    folders
        .filter_map(|folder| Some((cidr(name(&folder)?).parse().ok()?, fs::metadata(&folder).ok()?.ino())))
        .collect()
}

/// The blocks that a node gives addresses of: granted, and not set aside.
pub fn blocks_giving(node: &Node) -> BTreeSet<String> {
    let folders = block_folders(node);
    let names: BTreeSet<String> =
        folders.iter().filter_map(|folder| folder.file_name()?.to_str().map(str::to_owned)).collect();
    let set_aside = |folder: &str| names.contains(&format!(".quarantine-{folder}"));
    names
        .iter()
        .filter(|folder| !folder.starts_with('.') && !set_aside(folder))
        .map(|folder| cidr(folder))
        .collect()
}

/// What is given twice in the whole cluster, a sentence each.
pub fn doubly_given<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Vec<String> {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut blocks: Vec<(Subnet, &str)> = Vec::new();
    let mut twice = Vec::new();
    for node in nodes {
        for ip in addresses_given(node) {
            if let Some(other) = owners.insert(ip, node.name()) {
                twice.push(format!("{ip} on {other} and {}", node.name()));
            }
        }
        for block in blocks_giving(node).iter().filter_map(|block| block.parse::<Subnet>().ok()) {
            let others =
                blocks.iter().filter(|(other, owner)| other.overlaps(&block) && *owner != node.name());
            twice.extend(
                others.map(|(other, owner)| format!("{other} of {owner} and {block} of {}", node.name())),
            );
            blocks.push((block, node.name()));
        }
    }
    twice
}

fn block_folders(node: &Node) -> Vec<PathBuf> {
    let list =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    list(node.path("/run/weft")).flat_map(|state| list(state.join("block"))).collect()
}

fn name(folder: &std::path::Path) -> Option<&str> {
    folder.file_name()?.to_str().filter(|name| !name.starts_with('.'))
}

/// `10.1.2.0-26` is the folder of 10.1.2.0/26.
fn cidr(folder: &str) -> String {
    folder.rsplit_once('-').map_or(folder.to_owned(), |(address, length)| format!("{address}/{length}"))
}
