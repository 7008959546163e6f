//! What must hold after every step, and what must hold when everything has been quiet for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weft_cni::ip::Subnet;
use weftd::cluster::{BlockRecord, BlockState, NodeRecord, NodeState};
use weftd::store::{Txn, Write};

use super::node::Node;
use super::world::{BLOCK_SIZE_V4, BLOCK_SIZE_V6, World, block_of};

/// How long after all owners of a doubly given block reach the store two may still give from it.
const STOPPED_WITHIN: Duration = Duration::from_secs(120);

/// No block gives addresses on two machines, and no machine gives from a block it never claimed.
pub fn safety(world: &mut World) {
    let mut giving: BTreeMap<Subnet, usize> = BTreeMap::new();
    for (index, node) in world.nodes.iter().enumerate() {
        for (block, _) in node.folders.iter().filter(|(_, folder)| folder.granted) {
            if let Some(other) = giving.insert(*block, index) {
                both_give(world, block, other, index);
            }
        }
        if let Some((block, owner)) = node.routes.iter().find(|(block, _)| !is_block(world, block)) {
            world.fail(&format!("{} routes {block} to {owner}, which is no block of the cluster", node.name));
        }
    }
}

/// Whether this is one of the cluster's blocks.
fn is_block(world: &World, block: &Subnet) -> bool {
    let size = if block.is_ipv4() { BLOCK_SIZE_V4 } else { BLOCK_SIZE_V6 };
    let mut cidrs = world.asked.cidrs.iter().flatten();
    block.prefix_len() == size && cidrs.any(|cidr| cidr.contains(block.addr()))
}

fn both_give(world: &World, block: &Subnet, one: usize, other: usize) {
    let (a, b) = (&world.nodes[one], &world.nodes[other]);
    let who = format!("{} ({}) and {} ({})", a.name, a.machine_id, b.name, b.machine_id);
    let clones = (a.name == b.name && a.machine_id == b.machine_id).then_some(&"one is a clone of the other");
    let Some(why) = world.excused.get(block).or(clones) else {
        world.fail(&format!("{who} both give addresses of {block}"));
    };
    if world.quiet_since.is_some_and(|since| world.now > since + STOPPED_WITHIN) {
        world.fail(&format!("{who} still give addresses of {block} ({why}) though both reach the store"));
    }
}

/// A claim that the store has committed.
pub fn remember_claims(world: &mut World, txn: &Txn) {
    for write in &txn.writes {
        let Write::Put { key, value, .. } = write else { continue };
        let Some(record) = key.strip_prefix("b/").and_then(|_| BlockRecord::parse(key, value).ok()) else {
            continue;
        };
        if record.state == BlockState::Held {
            world.claimed.insert((record.owner, block_of(key)));
        }
    }
}

/// A grant comes after its claim was committed.
pub fn grants_only_what_was_claimed(world: &mut World, index: usize) {
    let Some(block) = world.nodes[index].just_granted.take() else { return };
    let name = world.nodes[index].name.clone();
    if !world.claimed.contains(&(name.clone(), block)) {
        world.fail(&format!("{name} grants {block}, and never had a claim committed"));
    }
}

/// A block's record goes only when no address of it can be given any more.
pub fn releases_only_what_is_withdrawn(world: &World, index: usize, txn: &Txn) {
    let node = &world.nodes[index];
    for write in &txn.writes {
        let Write::Delete { key } = write else { continue };
        if key.starts_with("b/") && node.folders.contains_key(&block_of(key)) {
            world.fail(&format!("{} releases {} and still has its folder", node.name, block_of(key)));
        }
    }
}

/// A claim of a block that the claimer knows as another's is never made.
pub fn claims_nothing_known_as_anothers(world: &World, index: usize, txn: &Txn) {
    let node = &world.nodes[index];
    let Some(wanted) = &node.wanted else { return };
    let before = world.store.list("b/");
    for write in &txn.writes {
        let Write::Put { key, value, .. } = write else { continue };
        let Some(record) = key.strip_prefix("b/").and_then(|_| BlockRecord::parse(key, value).ok()) else {
            continue;
        };
        let block = block_of(key);
        // What it had in a history that was lost it may assert again.
        let own = super::actions::remembered(node.disk.memory.as_deref()).contains(&block);
        let known = wanted.peers.iter().find(|(_, peer)| peer.blocks.contains(&block));
        if let (BlockState::Held, false, Some((owner, _))) = (record.state, own, known) {
            world.fail(&format!(
                "{} claims {block} though it knows it as {owner}'s; {} keys",
                node.name,
                before.items.len()
            ));
        }
    }
}

/// The machines that take part: the last one of each name that runs and was not removed.
pub fn members(world: &World) -> Vec<&Node> {
    world.nodes.iter().filter(|node| node.powered && node.is_member()).collect()
}

fn records(world: &World) -> BTreeMap<Arc<str>, NodeRecord> {
    let items = world.store.list("n/").items;
    let parse = |item: &weftd::store::KeyValue| NodeRecord::parse(&item.key, &item.value).ok();
    items.iter().filter_map(parse).map(|record| (record.name.clone(), record)).collect()
}

/// Everything is as it should be after a quiet time.
pub fn liveness(world: &World) {
    everybody_takes_part(world);
    every_pod_reaches_every_pod(world);
    the_store_agrees_with_itself(world);
    nobody_keeps_more_than_needed(world);
}

fn everybody_takes_part(world: &World) {
    let records = records(world);
    for node in world.nodes.iter().filter(|node| node.powered) {
        let Some(machine) = &node.daemon else {
            if node.exited.is_none() {
                world.fail(&format!("{} does not run", node.name));
            }
            continue;
        };
        let status = machine.status();
        match status.phase {
            "member" => {
                let removed = records.get(&node.name).is_none_or(|record| record.state == NodeState::Removed);
                let stuck = status.granted.is_empty() && !full(world);
                if removed || stuck || !status.complete {
                    world.fail(&format!("{} ({}) is no member: {status:?}", node.name, node.machine_id));
                }
            }
            "removed" => {
                // A restore may have lost the tombstone; a person has to say it again.
                let tombstone = records.get(&node.name).and_then(|record| record.removed.as_ref());
                let acknowledged = tombstone.is_none_or(|removed| removed.acknowledged);
                if node.pods().is_empty() && !acknowledged {
                    world.fail(&format!("{} did not acknowledge its removal: {status:?}", node.name));
                }
            }
            "superseded" => {}
            other => world.fail(&format!("{} ({}) is {other}: {status:?}", node.name, node.machine_id)),
        }
        if node.folders.values().any(|folder| folder.granted) && status.phase != "member" {
            world.fail(&format!("{} gives addresses though {}", node.name, status.phase));
        }
    }
}

fn full(world: &World) -> bool {
    world.store.list("b/").items.len() >= 30
}

/// Each node's routes lead each won block to its owner, and nothing else is routed.
fn every_pod_reaches_every_pod(world: &World) {
    let records = records(world);
    let mut owners: BTreeMap<Subnet, (u64, Arc<str>)> = BTreeMap::new();
    for record in records.values().filter(|record| record.state == NodeState::Active) {
        for held in record.blocks.iter().filter(|held| is_block(world, &held.cidr)) {
            let entry = owners.entry(held.cidr).or_insert((held.epoch, record.name.clone()));
            if (held.epoch, &entry.1) > (entry.0, &record.name) {
                *entry = (held.epoch, record.name.clone());
            }
        }
    }
    for node in members(world) {
        let expected: BTreeMap<Subnet, Arc<str>> = owners
            .iter()
            .filter(|(_, (_, owner))| *owner != node.name)
            .map(|(block, (_, owner))| (*block, owner.clone()))
            .collect();
        if node.routes != expected {
            let why: Vec<String> = node.findings.values().map(|finding| finding.sentence.clone()).collect();
            world.fail(&format!(
                "{} routes {:?}, the records say {expected:?}; may remove: {:?}; {why:?}",
                node.name,
                node.routes,
                node.wanted.as_ref().map(|wanted| wanted.may_remove)
            ));
        }
        for (block, folder) in node.folders.iter().filter(|(_, folder)| folder.granted) {
            if owners.get(block).is_none_or(|(_, owner)| *owner != node.name) {
                world.fail(&format!(
                    "{} gives addresses of {block}, which {:?} has",
                    node.name,
                    owners.get(block)
                ));
            }
            let _pods = &folder.taken;
        }
    }
}

/// A block's record and its owner's record say the same, and nothing is left over.
fn the_store_agrees_with_itself(world: &World) {
    let records = records(world);
    let listed: BTreeSet<(Subnet, Arc<str>)> = records
        .values()
        .filter(|record| record.state == NodeState::Active)
        .flat_map(|record| record.blocks.iter().map(|held| (held.cidr, record.name.clone())))
        .filter(|(block, _)| is_block(world, block))
        .collect();
    let held: BTreeSet<(Subnet, Arc<str>)> =
        world.held_blocks().into_iter().map(|(block, (owner, _))| (block, owner)).collect();
    let contested = |block: &Subnet| world.excused.contains_key(block);
    let mut differ = held
        .symmetric_difference(&listed)
        .filter(|(block, owner)| !contested(block) && !world.deleted.contains(owner));
    if let Some((block, owner)) = differ.next() {
        let lists = if listed.contains(&(*block, owner.clone())) { "lists" } else { "does not list" };
        world.fail(&format!("{owner}'s record {lists} {block}, and the block's record does not agree"));
    }
}

/// Surplus goes back: one spare at most.
fn nobody_keeps_more_than_needed(world: &World) {
    for node in members(world) {
        let count = |ipv4: bool| {
            node.folders.iter().filter(move |(block, folder)| block.is_ipv4() == ipv4 && folder.granted)
        };
        let busy = |ipv4: bool| count(ipv4).filter(|(_, folder)| !folder.taken.is_empty()).count().max(1);
        let need = busy(true).max(busy(false)) + 1;
        if count(true).count() > need && count(false).count() > need && movable(node) {
            let blocks: Vec<String> = node.folders.keys().map(Subnet::to_string).collect();
            world.fail(&format!("{} keeps {blocks:?}, and needs {need} of each family", node.name));
        }
    }
}

/// Whether each family has an empty block besides the first, which is never given back.
fn movable(node: &Node) -> bool {
    let Some(machine) = &node.daemon else { return false };
    let blocks = machine.status().blocks;
    [true, false].into_iter().all(|ipv4| {
        let of_family = blocks.iter().filter(|held| held.cidr.is_ipv4() == ipv4).skip(1);
        let empty = |held: &&weftd::cluster::HeldBlock| {
            node.folders.get(&held.cidr).is_some_and(|folder| folder.granted && folder.taken.is_empty())
        };
        of_family.filter(empty).count() > 1
    })
}
