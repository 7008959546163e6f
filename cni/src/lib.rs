//! The CNI protocol for Weft's two plugins: environment, configuration, results, errors, verbs, delegates.
//!
//! Everything here is parsing, printing and dispatch. This crate never opens a netlink socket, never enters a
//! namespace and keeps no state. The rules it follows are those of the CNI specification 1.1.0 and, where the
//! specification is silent, of the Go library that every runtime was tuned to.

pub mod args;
pub mod conf;
pub mod delegate;
pub mod dns;
pub mod error;
pub mod hostlocal;
pub mod ip;
pub mod names;
pub mod object;
pub mod request;
pub mod result;
pub mod route;
pub mod run;
mod sys;
pub mod version;

pub use args::CniArgs;
pub use conf::{NetConf, ValidAttachment};
pub use delegate::Delegate;
pub use dns::Dns;
pub use error::{Error, code};
pub use hostlocal::{IpamConf, Range, RangeSet};
pub use ip::{IfAddr, Subnet};
pub use names::{ContainerId, IfName, NetworkName};
pub use object::Object;
pub use request::{Attachment, Command, Environment};
pub use result::{AddResult, Interface, IpConfig, check_family_limit};
pub use route::Route;
pub use run::{Call, Finished, Plugin, panic_json, run};
pub use version::Version;
