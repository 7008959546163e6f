//! Blocking netlink for Weft: one request socket with the kernel's own error texts, the few rtnetlink
//! operations a pod network needs, entering network namespaces, and the nf_tables encoder.
//!
//! No runtime, no threads, no retries that hide a fault. What to change is decided elsewhere; this crate only
//! says it to the kernel and reports what the kernel said.

pub mod addr;
pub mod attributes;
mod deletion;
mod error;
mod events;
pub mod fdb;
mod legacy;
pub mod link;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod route;
pub mod rules;
mod socket;
pub mod sys;

pub use deletion::{Deletion, Hearing, Word};
pub use error::{Error, Result};
pub use events::{Drained, Event, EventStream};
pub use socket::{Protocol, Request, Socket};
