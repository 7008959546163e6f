//! The daemon's side of the allocator, on a node of the lab.

use std::time::Instant;

use netns_tests::{Inside, Node};
use weft_ipam::clock::{Deadline, OPERATION_LIMIT};
use weft_ipam::{HostKernel, State};

/// Runs `work` with the node's open state folder, as `weftd` would.
pub fn as_daemon<T: Send>(node: &Node, work: impl FnOnce(&State, Deadline) -> T + Send) -> T {
    node.enter(|| {
        let deadline = Deadline::after(Instant::now(), OPERATION_LIMIT);
        work(&State::open(&mut HostKernel::default(), deadline).unwrap(), deadline)
    })
}

/// Lets the plugin give addresses of these blocks.
pub fn grant(node: &Node, blocks: &[&str]) {
    as_daemon(node, |state, deadline| {
        blocks.iter().for_each(|block| state.grant(&block.parse().unwrap(), deadline).unwrap());
    });
}
