//! Names of keys, and the prefix that sets one cluster's keys apart from what else is in the store.

use std::fmt;

/// The cluster's configuration.
pub const CONFIG: &str = "config";

/// Begins the key of each node record.
pub const NODES: &str = "n/";

/// What is followed is one range, `config` up to this. No key but [`CONFIG`] and those under [`NODES`] may lie in it,
/// so that one watcher sees both in the order of their revisions.
pub const FOLLOWED_END: &str = "n0";

/// Longest key without prefix.
const MAX_LEN: usize = 320;

/// Whether this key is one of those that are followed.
pub fn is_followed(key: &str) -> bool {
    key == CONFIG || key.starts_with(NODES)
}

/// Why a text is no key or prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what} of the store: {problem}")]
pub struct InvalidKey {
    what: &'static str,
    text: String,
    problem: &'static str,
}

/// Refuses what is no key: printable ASCII without spaces, `/` only between parts that are not empty.
pub fn check_key(key: &str) -> Result<(), InvalidKey> {
    let problem = if key.is_empty() {
        "it is empty"
    } else if key.len() > MAX_LEN {
        "it is longer than 320 bytes"
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        "only printable ASCII without spaces is allowed"
    } else if key.split('/').any(str::is_empty) {
        "a part between slashes is empty"
    } else {
        return Ok(());
    };
    Err(InvalidKey { what: "key", text: key.to_owned(), problem })
}

/// Stands before every key of one cluster; begins and ends with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Parses a prefix; a missing slash at an end is added.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let inner = text.strip_prefix('/').unwrap_or(text);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        check_key(inner).map_err(|error| InvalidKey { what: "prefix", text: text.to_owned(), ..error })?;
        Ok(Self(format!("/{inner}/")))
    }

    /// The key as the store has it.
    pub fn join(&self, key: &str) -> String {
        format!("{}{key}", self.0)
    }

    /// The key without this prefix, if it has it and is text.
    pub fn strip<'a>(&self, full: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(full).ok()?.strip_prefix(&self.0)
    }

    /// As it stands before keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("/weft/v1/".to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_begins_and_ends_with_a_slash() {
        for text in ["weft/v1", "/weft/v1", "weft/v1/", "/weft/v1/"] {
            assert_eq!(Prefix::parse(text).unwrap(), Prefix::default(), "{text}");
        }
        for text in ["", "/", "//", "a//b", "a b"] {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_refused_with_its_name_and_the_reason() {
        check_key("b/10.1.2.0-26").unwrap();
        let cases = [
            ("", "\"\" is no key of the store: it is empty"),
            ("n/", "\"n/\" is no key of the store: a part between slashes is empty"),
            ("n/a b", "\"n/a b\" is no key of the store: only printable ASCII without spaces is allowed"),
        ];
        for (key, expected) in cases {
            assert_eq!(check_key(key).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_followed_range_holds_config_and_nodes_alone() {
        for key in ["config", "n/a", "n/~"] {
            assert!((CONFIG..FOLLOWED_END).contains(&key) && is_followed(key), "{key}");
        }
        for key in ["alive/a", "b/10.1.2.0-26", "use/a", "pause"] {
            assert!(!(CONFIG..FOLLOWED_END).contains(&key), "{key}");
        }
    }

    #[test]
    fn only_keys_with_the_prefix_are_ours() {
        let prefix = Prefix::default();
        assert_eq!(prefix.strip(prefix.join("n/a").as_bytes()), Some("n/a"));
        assert_eq!(prefix.strip(b"/other/n/a"), None);
    }
}
