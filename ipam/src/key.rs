//! Names of attachments: fixed-length hashes, because container IDs and network names have no length limit, and
//! file names, link names and aliases have.

use std::fmt;

use sha2::{Digest, Sha256};

/// The first 64 bits of a SHA-256, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(String);

impl Hash {
    /// Hashes one name.
    pub fn of(text: &str) -> Self {
        Self(hex(Sha256::digest(text.as_bytes()).get(..8).unwrap_or_default()))
    }

    /// Takes a hash that was written down; `None` unless it is 16 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        is_hex(text, 16).then(|| Self(text.to_owned()))
    }

    /// The 16 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An attachment by the hashes of its three names; all that an alias can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Hash of the network's name.
    pub network: Hash,
    /// Hash of the container ID.
    pub container: Hash,
    /// Hash of the interface name inside the pod.
    pub ifname: Hash,
}

impl Key {
    /// The key of (network, containerID, ifname).
    pub fn of(network: &str, container: &str, ifname: &str) -> Self {
        Self { network: Hash::of(network), container: Hash::of(container), ifname: Hash::of(ifname) }
    }

    /// The attachment's own name: made from the hashes, so that it follows from an alias too.
    pub fn id(&self) -> AttachmentId {
        let text = format!("{} {} {}", self.network, self.container, self.ifname);
        AttachmentId(hex(Sha256::digest(text.as_bytes()).get(..16).unwrap_or_default()))
    }
}

/// 128 bits that name an attachment, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(String);

impl AttachmentId {
    /// Takes an id that was written down, such as a file name.
    pub fn parse(text: &str) -> Option<Self> {
        is_hex(text, 32).then(|| Self(text.to_owned()))
    }

    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host end's interface name: `veth` and 11 digits, the 15 bytes that the kernel allows.
    pub fn host_name(&self) -> String {
        format!("veth{}", self.0.get(..11).unwrap_or_default())
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Without the formatter, which would be a twentieth of an ADD's instructions.
fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_differ_in_the_last_character_do_not_collide() {
        let long = "c".repeat(299);
        let a = Key::of("net", &format!("{long}a"), "eth0").id();
        let b = Key::of("net", &format!("{long}b"), "eth0").id();
        assert_ne!(a, b);
        assert_eq!(a.host_name().len(), 15);
    }

    #[test]
    fn two_interfaces_of_one_pod_are_two_attachments() {
        assert_ne!(Key::of("net", "c", "eth0").id(), Key::of("net", "c", "eth1").id());
    }

    #[test]
    fn only_the_exact_spelling_of_a_hash_is_taken_back() {
        let hash = Hash::of("x");
        assert_eq!(Hash::parse(hash.as_str()), Some(hash.clone()));
        assert_eq!(Hash::parse(&hash.as_str().to_uppercase()), None);
        assert_eq!(Hash::parse("../../etc/passwd"), None);
    }
}
