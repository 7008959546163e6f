//! The expressions of nf_tables rules that Weft uses, each named as `nft --debug=netlink` shows it.

use super::uapi::*;
use crate::attributes::Attributes;

/// One expression of a rule, encoded.
#[derive(Clone, Debug)]
pub struct Expression(Attributes);

/// A register: `FIRST` holds up to 16 bytes; a concatenation goes on 4 bytes further in `SECOND`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// `NFT_REG_1`, the same memory as `NFT_REG32_00`.
    First = 1,
    /// `NFT_REG32_01`: bytes 4 to 7 of `NFT_REG_1`.
    Second = 9,
}

/// What `meta` loads (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Index of the interface the packet came in by; host byte order.
    InputIndex = 4,
    /// Name of the interface the packet leaves by, padded with zeros to 16 bytes.
    OutputName = 7,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    Protocol = 15,
    /// Protocol number behind the IP header, one byte.
    Transport = 16,
}

/// What `rt` loads of the packet's route (`enum nft_rt_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RouteFact {
    /// The IPv4 next hop; the packet's own destination on a link.
    NextHopV4 = 1,
    /// The same in IPv6.
    NextHopV6 = 2,
    /// The largest TCP segment that fits both ways; two bytes, host byte order.
    SegmentSize = 3,
}

/// Which header an offset counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// Ethernet.
    Link = 0,
    /// IPv4 or IPv6.
    Network = 1,
    /// TCP, UDP, ICMP.
    Transport = 2,
}

/// How `cmp` compares (`enum nft_cmp_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Comparison {
    /// The rule goes on if equal.
    Equal = 0,
    /// The rule goes on if not equal.
    NotEqual = 1,
}

impl Expression {
    /// `meta load key => reg`.
    pub fn meta(key: Meta, into: Register) -> Self {
        let data = Attributes::new().number(NFTA_META_KEY, key as u32).number(NFTA_META_DREG, into as u32);
        Self::new("meta", data)
    }

    /// `payload load len b @ header + offset => reg`.
    pub fn payload(header: Header, offset: u32, length: u32, into: Register) -> Self {
        let data = Attributes::new()
            .number(NFTA_PAYLOAD_DREG, into as u32)
            .number(NFTA_PAYLOAD_BASE, header as u32)
            .number(NFTA_PAYLOAD_OFFSET, offset)
            .number(NFTA_PAYLOAD_LEN, length);
        Self::new("payload", data)
    }

    /// `bitwise reg = ( reg & mask ) ^ 0`.
    pub fn mask<const N: usize>(register: Register, mask: [u8; N]) -> Self {
        let data = Attributes::new()
            .number(NFTA_BITWISE_SREG, register as u32)
            .number(NFTA_BITWISE_DREG, register as u32)
            .number(NFTA_BITWISE_LEN, u32::try_from(N).unwrap_or(u32::MAX))
            .nested(NFTA_BITWISE_MASK, value(&mask))
            .nested(NFTA_BITWISE_XOR, value(&[0; N]));
        Self::new("bitwise", data)
    }

    /// `rt load fact => reg`.
    pub fn route(fact: RouteFact, into: Register) -> Self {
        let data = Attributes::new().number(NFTA_RT_KEY, fact as u32).number(NFTA_RT_DREG, into as u32);
        Self::new("rt", data)
    }

    /// `byteorder reg = hton(reg, 2, 2)`: a two-byte number into network byte order.
    pub fn to_network_order(register: Register) -> Self {
        let data = Attributes::new()
            .number(NFTA_BYTEORDER_SREG, register as u32)
            .number(NFTA_BYTEORDER_DREG, register as u32)
            .number(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON)
            .number(NFTA_BYTEORDER_LEN, 2)
            .number(NFTA_BYTEORDER_SIZE, 2);
        Self::new("byteorder", data)
    }

    /// `exthdr write tcpopt reg => 2b @ 2 + 2`: the maximum segment size option. The kernel only ever lowers it.
    pub fn set_segment_size(from: Register) -> Self {
        /// `TCPOPT_MSS`, and where its number is.
        const MSS: u8 = 2;
        const NUMBER: u32 = 2;
        let data = Attributes::new()
            .number(NFTA_EXTHDR_SREG, from as u32)
            .bytes(NFTA_EXTHDR_TYPE, &[MSS])
            .number(NFTA_EXTHDR_OFFSET, NUMBER)
            .number(NFTA_EXTHDR_LEN, 2)
            .number(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT);
        Self::new("exthdr", data)
    }

    /// `counter`.
    pub fn counter() -> Self {
        let zero = 0u64.to_be_bytes();
        Self::new(
            "counter",
            Attributes::new().bytes(NFTA_COUNTER_BYTES, &zero).bytes(NFTA_COUNTER_PACKETS, &zero),
        )
    }

    /// `cmp eq|neq reg data`.
    pub fn compare(register: Register, comparison: Comparison, data: &[u8]) -> Self {
        let data = Attributes::new()
            .number(NFTA_CMP_SREG, register as u32)
            .number(NFTA_CMP_OP, comparison as u32)
            .nested(NFTA_CMP_DATA, value(data));
        Self::new("cmp", data)
    }

    /// `lookup reg set`: the rule goes on if the set holds what the register holds.
    pub fn member_of(set: &str, register: Register) -> Self {
        Self::lookup(set, register, 0)
    }

    /// `lookup reg set 0x1`: the rule goes on if the set does not hold it.
    pub fn not_member_of(set: &str, register: Register) -> Self {
        Self::lookup(set, register, NFT_LOOKUP_F_INV)
    }

    fn lookup(set: &str, register: Register, flags: u32) -> Self {
        let data = Attributes::new()
            .text(NFTA_LOOKUP_SET, set)
            .number(NFTA_LOOKUP_SREG, register as u32)
            .number(NFTA_LOOKUP_FLAGS, flags);
        Self::new("lookup", data)
    }

    /// `masq flags fully-random`: two packets that start at once from one port must not collide.
    pub fn masquerade_fully_random() -> Self {
        Self::new("masq", Attributes::new().number(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY))
    }

    /// `immediate reg 0 drop`.
    pub fn drop() -> Self {
        let verdict = Attributes::new().number(NFTA_VERDICT_CODE, libc::NF_DROP.cast_unsigned());
        let data = Attributes::new()
            .number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .nested(NFTA_IMMEDIATE_DATA, Attributes::new().nested(NFTA_DATA_VERDICT, verdict));
        Self::new("immediate", data)
    }

    fn new(name: &str, data: Attributes) -> Self {
        Self(Attributes::new().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data))
    }

    /// The expression as it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(super) fn into_attributes(self) -> Attributes {
        self.0
    }
}

/// `struct nft_data` holding a value.
pub(super) fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(NFTA_DATA_VALUE, bytes)
}
