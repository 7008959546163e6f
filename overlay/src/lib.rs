//! How pods of one node reach pods of another: plain routes, VXLAN or WireGuard.
//!
//! **The backends themselves are not built yet.** This version of Weft networks the pods of one node; nothing here
//! sends a packet, sets a route or reads a key. What there is, [`mtu`], is what all three backends will share.

pub mod mtu;
