//! The internet checksum (RFC 1071), eight bytes at a time.

/// A sum of 16-bit words in the byte order of memory: the one's complement sum does not care which order it is taken
/// in, as long as the result is stored in the same (RFC 1071, section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset of what is summed up; a last odd byte is followed by a zero.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = self.0;
        let mut carries = 0;
        for word in words {
            let (next, carry) = sum.overflowing_add(u64::from_ne_bytes(*word));
            sum = next;
            carries += u64::from(carry);
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        Self(add_carrying(add_carrying(sum, u64::from_ne_bytes(last)), carries))
    }

    /// Adds one word as it stands on the wire.
    #[must_use]
    pub fn with_word(self, word: u16) -> Self {
        Self(add_carrying(self.0, u64::from(u16::from_ne_bytes(word.to_be_bytes()))))
    }

    /// The sum in 16 bits, as it is stored in a packet whose checksum is still to be completed.
    pub fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        #[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
        (sum as u16).to_ne_bytes()
    }

    /// The checksum: the complement of the sum.
    pub fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// Whether what was summed up, its checksum included, is intact.
    pub fn is_intact(self) -> bool {
        self.folded() == [0xff; 2]
    }
}

fn add_carrying(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as the RFC tells it.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap()).to_be_bytes()
    }

    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::default().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_plain_way(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0usize..1500) {
            prop_assert_eq!(Sum::default().with(&bytes).checksum(), plain(&bytes));
            let cut = (cut * 2).min(bytes.len() & !1);
            let in_parts = Sum::default().with(&bytes[..cut]).with(&bytes[cut..]);
            prop_assert_eq!(in_parts.checksum(), plain(&bytes));
        }

        #[test]
        fn a_word_is_two_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), word in any::<u16>()) {
            let even = &bytes[..bytes.len() & !1];
            let mut longer = even.to_vec();
            longer.extend(word.to_be_bytes());
            prop_assert_eq!(Sum::default().with(even).with_word(word).checksum(), plain(&longer));
        }
    }
}
