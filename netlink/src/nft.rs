//! nf_tables over netlink: tables, base chains, rules, sets and their elements, in atomic batches.
//!
//! Attributes are written raw. netlink-packet-netfilter 0.4 has no masquerade, decodes far more than Weft reads, and
//! would be a second way to say the same thing; the writer here is forty lines.
//!
//! Byte order: set keys and rule data are network order, but for interface indexes (and marks), which are the
//! host's. Each field of a concatenation is padded to four bytes.

mod batch;
mod expression;
mod uapi;

use std::net::IpAddr;
use std::slice;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

pub use self::batch::{Batch, generation, next_generation};
pub use self::expression::{Comparison, Expression, Header, Meta, Register, RouteFact};
use self::uapi::*;
use crate::attributes::{self, Attributes};
use crate::error::Result;
use crate::socket::{Request, Socket};

/// `struct nfgenmsg`, in front of the attributes of each message.
const ANSWER_HEADER_LEN: usize = 4;
/// `nlmsg_type` of the event that each committed transaction causes.
pub(crate) const NEW_GENERATION: u16 = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN;
/// `NFTNL_UDATA_RULE_COMMENT` (libnftnl/udata.h).
const RULE_COMMENT: u8 = 0;
/// Elements in one message: their list is one attribute, which holds 64 KiB, and the largest (end of an IPv6
/// interval) takes 36 bytes. Even, so that an interval is not torn apart.
const ELEMENTS_PER_MESSAGE: usize = 512;
/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_SET_KEYBYTEORDER` (libnftnl/udata.h): read by `nft`, not the kernel.
const TABLE_COMMENT: u8 = 0;
const KEY_BYTE_ORDER: u8 = 0;
/// `BYTEORDER_HOST_ENDIAN` (nftables, include/datatype.h).
const HOST_ORDER: u32 = 1;

/// Address family of a table (`NFPROTO_…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// Frames on a bridge.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

/// A table, by what the kernel knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
}

/// A chain attached to a netfilter hook, with policy accept.
#[derive(Clone, Copy, Debug)]
pub struct BaseChain {
    /// Its name.
    pub name: &'static str,
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// Hook number in the family (`NF_INET_…`, `NF_BR_…`).
    pub hook: u32,
    /// Order on the hook; lower runs first.
    pub priority: i32,
}

/// A set to create.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What a key is to `nft` (`enum datatypes`, nftables' include/datatype.h; a concatenation shifts by 6 bits a
    /// field). A wrong number works, but is listed as junk.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_length: u32,
    /// Whether it holds ranges instead of single keys.
    pub interval: bool,
    /// Whether its keys are numbers in host byte order. Only `nft` wants to know, to list them right.
    pub host_order: bool,
}

/// A key as the kernel stores it: no allocation of its own, as sets have thousands of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    // What is unused is zero, so that the order is that of the bytes.
    bytes: [u8; KEY_ROOM],
    length: u8,
}

/// The longest key of our sets: an IPv6 address, an interface name.
const KEY_ROOM: usize = 16;

/// One end of an interval, or one single key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key.
    pub key: Key,
    /// Whether it opens something. An interval set holds for each range a start and, unless the range reaches the
    /// highest key, the first key behind it with NFT_SET_ELEM_INTERVAL_END. Orders ends before starts of one key.
    pub start: bool,
}

/// A base chain found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundChain {
    /// `NFPROTO_…` of its table.
    pub family: u8,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Hook number.
    pub hook: u32,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
}

impl Key {
    /// `None` for more bytes than any key of our sets has.
    pub fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; KEY_ROOM];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self { bytes, length: u8::try_from(key.len()).ok()? })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl<const LENGTH: usize> From<[u8; LENGTH]> for Key {
    fn from(key: [u8; LENGTH]) -> Self {
        const { assert!(LENGTH <= KEY_ROOM, "no key is that long") };
        Self::new(&key).unwrap_or(Self { bytes: [0; KEY_ROOM], length: 0 })
    }
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(address) => address.octets().into(),
        }
    }
}

impl Element {
    /// A single key, or the first key of an interval.
    pub fn start(key: Key) -> Self {
        Self { key, start: true }
    }

    /// The first key behind an interval.
    pub fn end(key: Key) -> Self {
        Self { key, start: false }
    }
}

impl Table {
    /// Creates the table with a comment. Exists already: EEXIST if `extra_flags` has NLM_F_EXCL.
    pub fn create(self, comment: &str, extra_flags: u16) -> Request {
        let comment = user_data(TABLE_COMMENT, &[comment.as_bytes(), &[0]].concat());
        let attributes =
            Attributes::new().text(NFTA_TABLE_NAME, self.name).bytes(NFTA_TABLE_USERDATA, &comment);
        self.message(NFT_MSG_NEWTABLE, NLM_F_CREATE | extra_flags, &attributes)
    }

    /// Creates a base chain, or leaves it as it is.
    pub fn create_chain(self, chain: &BaseChain) -> Request {
        let hook = Attributes::new()
            .number(NFTA_HOOK_HOOKNUM, chain.hook)
            .number(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
        let attributes = Attributes::new()
            .text(NFTA_CHAIN_TABLE, self.name)
            .text(NFTA_CHAIN_NAME, chain.name)
            .text(NFTA_CHAIN_TYPE, chain.kind)
            .number(NFTA_CHAIN_POLICY, libc::NF_ACCEPT.cast_unsigned())
            .nested(NFTA_CHAIN_HOOK, hook);
        self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attributes)
    }

    /// Creates a set, or leaves it as it is. `id` distinguishes the sets of one batch.
    pub fn create_set(self, set: &Set, id: u32) -> Request {
        let attributes = Attributes::new()
            .text(NFTA_SET_TABLE, self.name)
            .text(NFTA_SET_NAME, set.name)
            .number(NFTA_SET_FLAGS, if set.interval { NFT_SET_INTERVAL } else { 0 })
            .number(NFTA_SET_KEY_TYPE, set.key_type)
            .number(NFTA_SET_KEY_LEN, set.key_length)
            .number(NFTA_SET_ID, id);
        let attributes = match set.host_order {
            true => {
                attributes.bytes(NFTA_SET_USERDATA, &user_data(KEY_BYTE_ORDER, &HOST_ORDER.to_ne_bytes()))
            }
            false => attributes,
        };
        self.message(NFT_MSG_NEWSET, NLM_F_CREATE, &attributes)
    }

    /// Appends a rule.
    pub fn add_rule(self, chain: &str, rule: impl IntoIterator<Item = Expression>) -> Request {
        let list = rule.into_iter().fold(Attributes::new(), |list, expression| {
            list.nested(NFTA_LIST_ELEM, expression.into_attributes())
        });
        let attributes = self.rules_of(chain).nested(NFTA_RULE_EXPRESSIONS, list);
        self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attributes)
    }

    /// Appends a rule with a comment, which [`Table::comments`] reads back.
    pub fn add_commented_rule(
        self,
        chain: &str,
        rule: impl IntoIterator<Item = Expression>,
        comment: &str,
    ) -> Request {
        let mut request = self.add_rule(chain, rule);
        let comment = user_data(RULE_COMMENT, &[comment.as_bytes(), &[0]].concat());
        let comment = Attributes::new().bytes(NFTA_RULE_USERDATA, &comment);
        request.payload.extend_from_slice(comment.as_bytes());
        request
    }

    /// The comments of a chain's rules, in their order; empty for a rule without one. No rules when the chain or the
    /// table is absent.
    pub fn comments(self, socket: &mut Socket, chain: &str) -> Result<Vec<String>> {
        let request = self.message(NFT_MSG_GETRULE, 0, &self.rules_of(chain));
        socket.dump(&request, |(_, body)| Ok(Some(parse_comment(body).unwrap_or_default())))
    }

    /// Removes the table with all that is in it; ENOENT if there is none.
    pub fn delete(self) -> Request {
        self.message(NFT_MSG_DELTABLE, 0, &Attributes::new().text(NFTA_TABLE_NAME, self.name))
    }

    /// Removes all rules of a chain (`nft flush chain`).
    pub fn flush_chain(self, chain: &str) -> Request {
        self.message(NFT_MSG_DELRULE, 0, &self.rules_of(chain))
    }

    /// Adds elements, in as many messages as they need; those that are there already are no error. An interval is
    /// its start followed by its end; intervals in ascending order.
    pub fn add_elements(self, set: &str, elements: &[Element]) -> impl Iterator<Item = Request> {
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements)
    }

    /// Removes elements. One that is missing refuses the whole batch (ENOENT).
    pub fn remove_elements(self, set: &str, elements: &[Element]) -> impl Iterator<Item = Request> {
        self.elements(NFT_MSG_DELSETELEM, 0, set, elements)
    }

    fn elements(self, kind: u16, flags: u16, set: &str, list: &[Element]) -> impl Iterator<Item = Request> {
        list.chunks(ELEMENTS_PER_MESSAGE).map(move |part| {
            let part = part.iter().fold(Attributes::new(), |all, element| {
                let key = expression::value(element.key.as_bytes());
                let encoded = Attributes::new();
                let encoded = match element.start {
                    true => encoded,
                    false => encoded.number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END),
                };
                all.nested(NFTA_LIST_ELEM, encoded.nested(NFTA_SET_ELEM_KEY, key))
            });
            self.message(kind, flags, &self.elements_of(set).nested(NFTA_SET_ELEM_LIST_ELEMENTS, part))
        })
    }

    /// Whether the table exists.
    pub fn exists(self, socket: &mut Socket) -> Result<bool> {
        let request = self.message(NFT_MSG_GETTABLE, 0, &Attributes::new().text(NFTA_TABLE_NAME, self.name));
        Ok(socket.get(&request, &[libc::ENOENT], |_| Ok(()))?.is_some())
    }

    /// How many rules a chain has; 0 when the chain or the table is absent.
    pub fn count_rules(self, socket: &mut Socket, chain: &str) -> Result<usize> {
        let request = self.message(NFT_MSG_GETRULE, 0, &self.rules_of(chain));
        Ok(socket.dump(&request, |_| Ok(Some(())))?.len())
    }

    /// Whether a set without intervals holds the key; false when the set or the table is absent.
    pub fn holds(self, socket: &mut Socket, set: &str, key: &Element) -> Result<bool> {
        for request in self.elements(NFT_MSG_GETSETELEM, 0, set, slice::from_ref(key)) {
            if socket.get(&request, &[libc::ENOENT], |_| Ok(()))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The elements of a set, ascending; `None` when the set or the table is absent.
    pub fn dump_elements(self, socket: &mut Socket, set: &str) -> Result<Option<Vec<Element>>> {
        let request = self.message(NFT_MSG_GETSETELEM, 0, &self.elements_of(set));
        let parts = match socket.dump(&request, |(_, body)| Ok(Some(parse_elements(body)))) {
            Err(error) if error.is(libc::ENOENT) => return Ok(None),
            parts => parts?,
        };
        let mut elements = parts.concat();
        elements.sort();
        Ok(Some(elements))
    }

    fn rules_of(self, chain: &str) -> Attributes {
        Attributes::new().text(NFTA_RULE_TABLE, self.name).text(NFTA_RULE_CHAIN, chain)
    }

    fn elements_of(self, set: &str) -> Attributes {
        Attributes::new().text(NFTA_SET_ELEM_LIST_TABLE, self.name).text(NFTA_SET_ELEM_LIST_SET, set)
    }

    fn message(self, kind: u16, flags: u16, attributes: &Attributes) -> Request {
        message(kind, flags, self.family as u8, attributes)
    }
}

/// All base chains of the network namespace, whoever made them.
pub fn dump_base_chains(socket: &mut Socket) -> Result<Vec<FoundChain>> {
    let request = message(NFT_MSG_GETCHAIN, 0, 0, &Attributes::new());
    socket.dump(&request, |(_, body)| Ok(parse_base_chain(body)))
}

fn message(kind: u16, flags: u16, family: u8, attributes: &Attributes) -> Request {
    let mut payload = vec![family, 0, 0, 0];
    payload.extend_from_slice(attributes.as_bytes());
    Request { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags, payload }
}

/// A field of user data as libnftnl writes it: type, length, value.
fn user_data(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, length], value].concat()
}

fn parse_elements(body: &[u8]) -> Vec<Element> {
    let attributes = body.get(ANSWER_HEADER_LEN..).unwrap_or_default();
    let list = attributes::find(attributes, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let parse = |element: &[u8]| {
        let key =
            Key::new(attributes::find(attributes::find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?)?;
        let flags = attributes::number(element, NFTA_SET_ELEM_FLAGS).unwrap_or(0);
        Some(Element { key, start: flags & NFT_SET_ELEM_INTERVAL_END == 0 })
    };
    attributes::read(list).filter_map(|(_, element)| parse(element)).collect()
}

/// Who committed a transaction, as the event of [`crate::EventStream::nftables`] says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The generation that it made.
    pub generation: u32,
    /// The id of the thread: the process's, if it is its first.
    pub process: u32,
    /// The thread's name.
    pub name: String,
}

/// Reads the event of a transaction.
pub fn parse_event(kind: u16, body: &[u8]) -> Option<Commit> {
    let attributes = body.get(ANSWER_HEADER_LEN..).filter(|_| kind == NEW_GENERATION)?;
    Some(Commit {
        generation: attributes::number(attributes, NFTA_GEN_ID)?,
        process: attributes::number(attributes, NFTA_GEN_PROC_PID).unwrap_or(0),
        name: attributes::text(attributes, NFTA_GEN_PROC_NAME).unwrap_or_default(),
    })
}

fn parse_comment(body: &[u8]) -> Option<String> {
    let data = attributes::find(body.get(ANSWER_HEADER_LEN..)?, NFTA_RULE_USERDATA)?;
    let &[kind, length] = data.first_chunk()?;
    let text = data.get(2..2 + usize::from(length)).filter(|_| kind == RULE_COMMENT)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// `None` for a chain that hangs on no hook.
fn parse_base_chain(body: &[u8]) -> Option<FoundChain> {
    let attributes = body.get(ANSWER_HEADER_LEN..)?;
    Some(FoundChain {
        family: *body.first()?,
        table: attributes::text(attributes, NFTA_CHAIN_TABLE)?,
        name: attributes::text(attributes, NFTA_CHAIN_NAME)?,
        hook: attributes::number(attributes::find(attributes, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?,
        drops: attributes::number(attributes, NFTA_CHAIN_POLICY) == Some(libc::NF_DROP.cast_unsigned()),
    })
}
