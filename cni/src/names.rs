//! Names that come from outside: container, network, interface. Once parsed they are safe to use.

use std::fmt;

use crate::error::Error;

/// The longest interface name in bytes: the kernel's `IFNAMSIZ` without its NUL.
const IFNAME_MAX: usize = 15;

/// Declares a name that only its own `parse` can make.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// `CNI_CONTAINERID`. Letters, digits, `_`, `.`, `-`, of any length: never use it raw as a file or kernel name.
    ContainerId
}
name! {
    /// The network's `name`, of the same alphabet and also of any length.
    NetworkName
}
name! {
    /// `CNI_IFNAME`: what the kernel accepts as a device name, and nothing that would break a path.
    IfName
}

impl ContainerId {
    /// Reads a container ID.
    ///
    /// # Errors
    /// Code 4 when it is empty or has other characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if is_identifier(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::environment("invalid characters in CNI_CONTAINERID").with_details(format!("{text:?}")))
    }
}

impl NetworkName {
    /// Reads a network name.
    ///
    /// # Errors
    /// Code 7 when it is empty or has other characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::config("missing network name"));
        }
        if is_identifier(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::config("invalid characters found in network name").with_details(format!("{text:?}")))
    }
}

impl IfName {
    /// Reads an interface name: at most 15 bytes (not characters), as the kernel counts.
    ///
    /// # Errors
    /// Code 4 when it is empty, `.`, `..`, too long, or has `/`, `:`, white space or control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match ifname_problem(text) {
            None => Ok(Self(text.to_owned())),
            Some(problem) => {
                Err(Error::environment(format!("CNI_IFNAME: {problem}")).with_details(format!("{text:?}")))
            }
        }
    }
}

fn ifname_problem(text: &str) -> Option<&'static str> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() {
        Some("interface name is empty")
    } else if text.len() > IFNAME_MAX {
        Some("interface name is too long, it may have 15 bytes")
    } else if text == "." || text == ".." {
        Some("interface name is . or ..")
    } else if text.contains('%') {
        Some("interface name contains %, which the kernel takes for a pattern")
    } else if text.chars().any(forbidden) {
        Some("interface name contains / or : or whitespace or control characters")
    } else {
        None
    }
}

/// The specification's `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
fn is_identifier(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && text.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD_IDENTIFIERS: [&str; 12] =
        ["../../x", ".x", "-x", "_x", "a/b", "a b", "x\n", "a\0b", "é", "a:b", "aé", "a;b"];

    #[test]
    fn container_ids_are_refused_when_they_could_be_a_path() {
        for text in BAD_IDENTIFIERS.into_iter().chain([""]) {
            assert_eq!(ContainerId::parse(text).unwrap_err().code, 4, "{text:?}");
        }
    }

    #[test]
    fn container_ids_of_any_length_are_valid() {
        for length in [1, 300, 4096] {
            let text = "a".repeat(length);
            assert_eq!(ContainerId::parse(&text).unwrap().as_str(), text);
        }
        assert!(ContainerId::parse("0-_.Zz").is_ok());
    }

    #[test]
    fn network_names_are_configuration_errors() {
        assert_eq!(NetworkName::parse(""), Err(Error::config("missing network name")));
        for text in BAD_IDENTIFIERS {
            assert_eq!(NetworkName::parse(text).unwrap_err().code, 7, "{text:?}");
        }
        assert!(NetworkName::parse("my.net-1_x").is_ok());
    }

    #[test]
    fn interface_names_that_the_kernel_or_a_path_would_trip_over_are_refused() {
        let bad =
            ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\n", "sixteen_bytes_xx", "a\u{a0}b", "a\u{2003}"];
        for text in bad.into_iter().chain(["a\0b", "a\u{7f}", "\u{1b}[0m"]) {
            assert_eq!(IfName::parse(text).unwrap_err().code, 4, "{text:?}");
        }
    }

    #[test]
    fn the_limit_of_interface_names_counts_bytes() {
        for text in ["fifteen_bytes_x", "ééééééé1", "...", "eth0@x"] {
            assert!(IfName::parse(text).is_ok(), "{text:?}");
        }
        assert!(IfName::parse("éééééééé").is_err(), "8 characters, but 16 bytes");
    }
}
