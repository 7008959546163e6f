//! Forwarding entries of VXLAN devices: behind which node a MAC is. Each function names the `bridge fdb` command it
//! equals.

use std::net::IpAddr;

use crate::attributes::{Attributes, address, find};
use crate::error::Result;
use crate::link::Mac;
use crate::socket::{Request, Socket};

/// Message types (include/uapi/linux/rtnetlink.h).
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// `NLM_F_…` of new objects (include/uapi/linux/netlink.h).
const REPLACE_OR_CREATE: u16 = 0x100 | 0x400;
const CREATE_OR_APPEND: u16 = 0x400 | 0x800;
/// `struct ndmsg` (include/uapi/linux/neighbour.h), its flags, states and attributes.
const HEADER_LEN: usize = 12;
const NTF_SELF: u8 = 0x02;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// An entry: frames to `mac` go to the node at `remote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Interface index of the VXLAN device.
    pub link: u32,
    /// Destination of the frames; all zero: those to unknown MACs and to groups.
    pub mac: Mac,
    /// The node's underlay address.
    pub remote: IpAddr,
}

/// `bridge fdb replace MAC dev … dst REMOTE self permanent`. A unicast MAC has one remote.
pub fn replace(entry: &Entry) -> Request {
    request(RTM_NEWNEIGH, REPLACE_OR_CREATE, entry)
}

/// `bridge fdb append …`: a further remote for the all-zero MAC or a group.
pub fn append(entry: &Entry) -> Request {
    request(RTM_NEWNEIGH, CREATE_OR_APPEND, entry)
}

/// `bridge fdb del MAC dev … dst REMOTE self`; ENOENT if there is none.
pub fn delete(entry: &Entry) -> Request {
    request(RTM_DELNEIGH, 0, entry)
}

/// `bridge fdb show dev …`, entries with a remote.
pub fn of_link(socket: &mut Socket, link: u32) -> Result<Vec<Entry>> {
    let request = Request { kind: RTM_GETNEIGH, flags: 0, payload: header(link, 0, 0).to_vec() };
    let list = socket.dump(&request, |(kind, body)| Ok(parse_event(kind, body)))?;
    // Kernels without strict checking ignore the filter.
    Ok(list.into_iter().map(|(entry, _)| entry).filter(|entry| entry.link == link).collect())
}

/// What an event says: the entry, and whether it is there now. `None` for an event about anything else.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<(Entry, bool)> {
    let attributes = body.get(HEADER_LEN..).filter(|_| matches!(kind, RTM_NEWNEIGH | RTM_DELNEIGH))?;
    if i32::from(*body.first()?) != libc::AF_BRIDGE {
        return None;
    }
    let entry = Entry {
        link: u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?),
        mac: find(attributes, NDA_LLADDR)?.try_into().ok().map(Mac)?,
        remote: address(attributes, NDA_DST)?,
    };
    Some((entry, kind == RTM_NEWNEIGH))
}

fn request(kind: u16, flags: u16, entry: &Entry) -> Request {
    let attributes = Attributes::new().bytes(NDA_LLADDR, &entry.mac.0);
    let attributes = match entry.remote {
        IpAddr::V4(v4) => attributes.bytes(NDA_DST, &v4.octets()),
        IpAddr::V6(v6) => attributes.bytes(NDA_DST, &v6.octets()),
    };
    let mut payload = header(entry.link, NUD_PERMANENT | NUD_NOARP, NTF_SELF).to_vec();
    payload.extend_from_slice(attributes.as_bytes());
    Request { kind, flags, payload }
}

/// `struct ndmsg` of family AF_BRIDGE.
fn header(link: u32, state: u16, flags: u8) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = link.to_ne_bytes();
    let [low, high] = state.to_ne_bytes();
    let family = u8::try_from(libc::AF_BRIDGE).unwrap_or(0);
    [family, 0, 0, 0, a, b, c, d, low, high, flags, 0]
}
