//! A WireGuard device in user space: `boringtun`'s protocol engine on a data path of our own, which takes large
//! packets from the kernel and gives large packets back.

pub mod allowed;
pub mod checksum;
pub mod control;
pub mod device;
pub mod headers;
pub mod keepalive;
pub mod lane;
pub mod log;
pub mod merge;
pub mod offload;
pub mod serve;
pub mod split;
#[cfg(test)]
mod testing;
pub mod tun;
pub mod uapi;
pub mod udp;
