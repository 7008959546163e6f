//! Netlink attributes as bytes: a writer and a reader (`struct nlattr`, include/uapi/linux/netlink.h).

/// `NLA_F_NESTED`; with `NLA_F_NET_BYTEORDER` masked off on reading, together `~NLA_TYPE_MASK`.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER_LEN: usize = 4;

/// A list of attributes under construction. nf_tables takes its numbers in network byte order.
///
/// An attribute holds at most 65,531 bytes; who writes lists splits them (see [`crate::nft::Table::add_elements`]).
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    encoded: Vec<u8>,
}

impl Attributes {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends raw bytes, padded to four.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(HEADER_LEN + value.len()).unwrap_or(u16::MAX);
        self.encoded.extend_from_slice(&length.to_ne_bytes());
        self.encoded.extend_from_slice(&kind.to_ne_bytes());
        self.encoded.extend_from_slice(value);
        self.encoded.resize(self.encoded.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a number in network byte order.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a text with its NUL.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends a list as one attribute.
    pub fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.encoded)
    }

    /// The encoded list.
    pub fn as_bytes(&self) -> &[u8] {
        &self.encoded
    }
}

/// Reads a list: type without flags, and value. Ends at the first attribute that is cut short.
pub fn read(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(list, 0)?, half(list, 2)?);
        let value = list.get(HEADER_LEN..length.into())?;
        list = list.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The value of the first attribute of this type.
pub fn find(list: &[u8], kind: u16) -> Option<&[u8]> {
    read(list).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The number in the first attribute of this type.
pub fn number(list: &[u8], kind: u16) -> Option<u32> {
    find(list, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// The number, in the machine's own byte order as rtnetlink has it, in the first attribute of this type.
pub fn native(list: &[u8], kind: u16) -> Option<u32> {
    find(list, kind)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The address in the first attribute of this type; its length tells the family.
pub fn address(list: &[u8], kind: u16) -> Option<std::net::IpAddr> {
    let value = find(list, kind)?;
    let v4 = <[u8; 4]>::try_from(value).map(std::net::IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(std::net::IpAddr::from)).ok()
}

/// The text in the first attribute of this type, without its NUL.
pub fn text(list: &[u8], kind: u16) -> Option<String> {
    let value = find(list, kind)?;
    Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(list in prop::collection::vec((0u16..100, prop::collection::vec(any::<u8>(), 0..9)), 0..6)) {
            let written = list.iter().fold(Attributes::new(), |all, (kind, value)| all.bytes(*kind, value));
            let found: Vec<_> = read(written.as_bytes()).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(found, list);
        }

        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(read(&bytes).count() <= bytes.len() / HEADER_LEN);
        }
    }
}
