//! Weft's node allocator: which addresses this node may give, who holds which, and proof of it on disk.
//!
//! The state is plain files under `/run/weft/<stamp>/`, readable with `cat`:
//!
//! ```text
//! ready                      written last; without it the folder is rebuilt from the kernel first
//! owner/<id>                 who the attachment is; also its lock
//! record/<id>                what was done for it
//! pool/<network>/<address>   taken: a hard link to the holder's owner file
//! block/<cidr>/<address>     the same in a block that weftd was granted; or a file of its own: reserved by the node
//! families                   which families the cluster has, so that no pod gets one of two
//! slot/<range>               when each address was given back (a hint, never the truth)
//! name/<network>             the network's name in clear
//! verified/<what>            when a shared object (a masquerade range) was last seen in the kernel
//! ```
//!
//! There is no global lock. Taking an address is the exclusive creation of its file; giving a block back is
//! `rmdir`, which the kernel refuses while an address is in it; only the holder of an attachment's lock removes
//! an address of that attachment.

pub mod alias;
pub mod ask;
mod attachment;
mod block_use;
pub mod clock;
mod collect;
mod files;
pub mod foreign;
mod grant;
mod kernel;
mod key;
mod mend;
mod obtain;
mod rebuild;
mod record;
mod reserve;
mod slots;
mod source;
pub mod stamp;
mod state;
mod take;
#[cfg(test)]
mod tests;

pub use attachment::{Attachment, Begun};
pub use block_use::BlockUsage;
pub use collect::{Collected, collect};
pub use files::is_at;
pub use kernel::{HostKernel, refused, remove_neighbours, remove_routes};
pub use key::{AttachmentId, Hash, Key};
pub use mend::mend_routes;
pub use obtain::obtain;
pub use rebuild::{Kernel, Live, NoKernel};
pub use record::{Bridge, Host, Owner, Phase, Record, TakenAddress};
pub use reserve::{NODE_ADDRESS, Reservation};
pub use source::{Blocks, Pool, Ranges, Segment, Source, Usage};
pub use state::{DEFAULT_ROOT, State, Wiped};
pub use take::{Taking, take, usage};
