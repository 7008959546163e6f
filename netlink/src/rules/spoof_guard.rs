//! `macspoofchk`: a guarded bridge port passes frames of its own source MAC only.

use std::slice;

use super::{Presence, Schema, TABLE_NAME, commit};
use crate::error::Result;
use crate::nft::{BaseChain, Batch, Element, Expression, Family, Header, Meta, Register, Set, Table};
use crate::socket::Socket;

const TABLE: Table = Table { family: Family::Bridge, name: TABLE_NAME };
/// Ports that are guarded: interface index.
const GUARDED: &str = "guarded";
/// What they may send: interface index and source MAC.
const MAC: &str = "mac";

static SCHEMA: Schema = Schema {
    table: TABLE,
    sets: &[
        Set { name: GUARDED, key_type: IFACE_INDEX, key_length: 4, interval: false, host_order: true },
        Set {
            name: MAC,
            key_type: IFACE_INDEX << 6 | ETHER_ADDR,
            key_length: 12,
            interval: false,
            host_order: false,
        },
    ],
    // NF_BR_PRE_ROUTING; NF_BR_PRI_NAT_DST_BRIDGED, which `nft` calls `dstnat`.
    chain: BaseChain { name: "prerouting", kind: "filter", hook: 0, priority: -300 },
    rules: &[rule],
};

/// `TYPE_IFINDEX`, `TYPE_ETHERADDR` (nftables, include/datatype.h).
const IFACE_INDEX: u32 = 20;
const ETHER_ADDR: u32 = 9;

/// `iif @guarded iif . ether saddr != @mac drop`. Generic `meta iif`: not every kernel has NFT_BRIDGE_META.
fn rule() -> Vec<Expression> {
    vec![
        Expression::meta(Meta::InputIndex, Register::First),
        Expression::member_of(GUARDED, Register::First),
        Expression::meta(Meta::InputIndex, Register::First),
        Expression::payload(Header::Link, 6, 6, Register::Second),
        Expression::not_member_of(MAC, Register::First),
        Expression::drop(),
    ]
}

/// From now on frames from port `ifindex` with a source MAC other than `mac` are dropped. A MAC allowed before
/// stays allowed.
pub fn guard_port(socket: &mut Socket, ifindex: u32, mac: [u8; 6]) -> Result<()> {
    let observe = |socket: &mut Socket| Ok((SCHEMA.observe(socket)?, held(socket, ifindex, mac)?));
    commit(socket, observe, |(presence, held)| {
        let mut batch = SCHEMA.build(*presence);
        for (set, element) in elements(ifindex, mac).into_iter().filter(|element| !held.contains(element)) {
            batch.extend(TABLE.add_elements(set, &[element]));
        }
        batch
    })?;
    Ok(())
}

/// Lets port `ifindex` send anything again and forgets `mac`. Whatever is absent already is no error.
///
/// Looks first: a missing element would refuse the whole batch (NFT_MSG_DESTROYSETELEM needs Linux 6.3), and a
/// refused batch waits for the kernel's clean-up, some 15 ms.
pub fn unguard_port(socket: &mut Socket, ifindex: u32, mac: [u8; 6]) -> Result<()> {
    let observe = |socket: &mut Socket| held(socket, ifindex, mac);
    commit(socket, observe, |held| {
        let mut batch = Batch::new();
        for (set, element) in held {
            batch.extend(TABLE.remove_elements(set, slice::from_ref(element)));
        }
        batch
    })?;
    Ok(())
}

/// Whether port `ifindex` is guarded and may send from `mac`.
pub fn port_is_guarded(socket: &mut Socket, ifindex: u32, mac: [u8; 6]) -> Result<bool> {
    let complete = held(socket, ifindex, mac)? == elements(ifindex, mac);
    Ok(complete && SCHEMA.observe(socket)? == Presence::Intact)
}

/// Those of the port's elements that are there.
fn held(socket: &mut Socket, ifindex: u32, mac: [u8; 6]) -> Result<Vec<(&'static str, Element)>> {
    let mut held = Vec::new();
    for (set, element) in elements(ifindex, mac) {
        if TABLE.holds(socket, set, &element)? {
            held.push((set, element));
        }
    }
    Ok(held)
}

/// Interface indexes are in host byte order; the MAC is padded to a multiple of four.
fn elements(ifindex: u32, mac: [u8; 6]) -> [(&'static str, Element); 2] {
    let port = ifindex.to_ne_bytes();
    let mut allowed = [0; 12];
    for (to, from) in allowed.iter_mut().zip(port.iter().chain(&mac)) {
        *to = *from;
    }
    [(GUARDED, Element::start(port.into())), (MAC, Element::start(allowed.into()))]
}
