//! The cluster simulator: nodes as plain structs over the model store, each running the production machine, with
//! model kernels and model folders of the plugin. See README.md beside this file for what it checks and how it fails.

#[path = "../etcd_lab/mod.rs"]
mod etcd_lab;

mod actions;
mod both;
mod checks;
mod node;
mod random;
mod real;
mod rules;
mod scale;
mod store;
mod store_says;
mod traces;
mod world;
