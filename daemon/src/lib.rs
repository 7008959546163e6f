//! What the node daemon is made of, as a library, so that tests and the simulator drive the code that runs.

pub mod cluster;
pub mod store;
