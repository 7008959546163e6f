//! How pods of one node reach pods of another: plain routes or VXLAN.
//!
//! [`Wanted`](wanted::Wanted) comes from the cluster's machine.

pub mod mtu;
pub mod wanted;
