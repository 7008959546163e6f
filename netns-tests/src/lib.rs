//! Whole topologies in network namespaces, made in a few lines and gone at the end of the test.
//!
//! [`Lab`] owns everything. [`Lab::node`] is a machine of its own (network and mount namespace),
//! [`Lab::outside`] a server behind its uplink, [`Node::pod`] what a runtime hands to a CNI plugin.
//! [`Node::cni`] and [`Node::chain`] drive plugins exactly as a runtime does; [`Residue`] says what
//! they left behind. Needs root; never touches the caller's own network.

mod cgroup;
mod chain;
pub mod cluster;
mod cni;
mod cri;
mod host;
mod inside;
mod lab;
mod netns;
mod node;
mod outcome;
mod pod;
mod require;
mod residue;
mod runtime;
mod seen;
mod server;
mod sys;
mod wait;

pub use chain::{Chain, ChainFailure};
pub use cni::{Call, Cni, Running, StdoutTo};
pub use inside::{Inside, Place};
#[doc(hidden)]
pub use lab::test_name;
pub use lab::{Lab, Wire};
pub use node::Node;
pub use outcome::{CniError, Outcome};
pub use pod::Pod;
pub use require::{
    has_command, probe_containerd, reference_bin_dir, require, require_containerd, require_programs,
    weft_bin_dir,
};
pub use residue::{Allow, Residue};
pub use runtime::{CriError, CriPod, ExecOutput, Runtime};
pub use seen::Listener;
pub use server::Server;
pub use wait::{wait_for, wait_until};
