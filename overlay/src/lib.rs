//! How pods of one node reach pods of another: plain routes or VXLAN.
//!
//! [`Wanted`](wanted::Wanted) comes from the cluster's machine, [`Underlay`](underlay::Underlay) from the kernel.
//! [`desired`](desired::desired) and [`plan`](plan::plan) decide, purely; [`execute`](execute::execute) does it.
//! [`DataPlane`] runs all of it on a thread of its own.
//!
//! Ours are routes of protocol 87 with a next hop or of type unreachable, links named `weft-…` with all that is on them, and
//! the nf_tables tables named `weft`.

pub mod backoff;
pub mod desired;
pub mod dirty;
mod driver;
pub mod execute;
pub mod finding;
mod kernel;
pub mod mtu;
pub mod objects;
pub mod observed;
mod pass;
pub mod plan;
pub mod report;
pub mod settings;
mod share;
#[cfg(test)]
mod testing;
pub mod underlay;
pub mod wanted;

pub use driver::{DataPlane, Setup};
pub use report::{PlaneReport, Removal};
