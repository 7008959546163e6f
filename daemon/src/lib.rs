//! What the node daemon is made of, as a library, so that tests and the simulator drive the code that runs.

pub mod address;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod conf;
pub mod conflist;
pub mod files;
pub mod forward;
pub mod install;
mod ipam_show;
pub mod metrics;
pub mod mirror;
pub mod notify;
pub mod probe;
pub mod rights;
pub mod run;
pub mod socket;
pub mod store;
mod store_of;
