//! The seven versions of the protocol, and which verb exists in which.

use std::fmt;

use crate::error::{Error, code};
use crate::request::Command;

/// A released version of the CNI specification. Later is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the versions")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// Every version we speak, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version we speak; what is printed where no configuration says another.
    pub const LATEST: Self = Self::V1_1_0;

    /// Reads an exact version: `1.0` and `v1.0.0` are not versions. The empty string is 0.1.0, as in the Go
    /// library, where a missing `cniVersion` is an empty one.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The version as written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides whether a configuration of version `text` may be used with `command`.
///
/// # Errors
/// Code 1 when we do not speak the version or it does not have the verb. Code 6 when CHECK, GC or STATUS meet
/// something that is no version at all; ADD and DEL call that code 1 (both as `skel` does).
pub fn for_command(text: &str, command: Command) -> Result<Version, Error> {
    if let Some(since) = introduced(command) {
        let numbers = numbers(text)
            .ok_or_else(|| Error::decode(format!("cniVersion {text:?} cannot be parsed as a version")))?;
        if numbers < since {
            let msg = format!("config version does not allow {command}");
            return Err(Error::new(code::INCOMPATIBLE_VERSION, msg).with_details(supported(text)));
        }
    }
    Version::parse(text).ok_or_else(|| incompatible(text))
}

/// Code 1 for a version that we do not speak, worded as the Go library words it.
pub fn incompatible(text: &str) -> Error {
    Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions").with_details(supported(text))
}

fn supported(text: &str) -> String {
    let all: Vec<String> = Version::ALL.iter().map(|version| format!("{:?}", version.as_str())).collect();
    format!("config is {text:?}, plugin supports [{}]", all.join(" "))
}

/// The first version that has the verb, for the verbs that are refused before it.
fn introduced(command: Command) -> Option<[u32; 3]> {
    match command {
        Command::Check => Some([0, 4, 0]),
        Command::Gc | Command::Status => Some([1, 1, 0]),
        Command::Add | Command::Del | Command::Version => None,
    }
}

/// Reads one to three numbers, as Go's `version.ParseVersion` does: here, and only here, `1.0` is a version.
fn numbers(text: &str) -> Option<[u32; 3]> {
    let text = if text.is_empty() { "0.1.0" } else { text };
    let mut numbers = [0; 3];
    for (index, part) in text.split('.').enumerate() {
        *numbers.get_mut(index)? = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_seven_strings_are_versions() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        for text in ["1.0", "v1.0.0", "1.1", "9.9.9", "abc", "0.5.0", " 1.0.0", "1.0.0 "] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_empty_version_is_the_oldest() {
        assert_eq!(Version::parse(""), Some(Version::V0_1_0));
    }

    #[test]
    fn later_versions_are_greater() {
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
    }

    #[test]
    fn an_unknown_version_is_refused_with_the_list_of_ours() {
        for command in [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status] {
            let error = for_command("9.9.9", command).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (1, "incompatible CNI versions"));
            assert_eq!(
                error.details,
                "config is \"9.9.9\", plugin supports \
                 [\"0.1.0\" \"0.2.0\" \"0.3.0\" \"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]"
            );
        }
        assert_eq!(for_command("1.0", Command::Add).unwrap_err().code, 1);
    }

    #[test]
    fn check_gc_and_status_are_refused_before_their_version() {
        for (command, text) in [
            (Command::Check, ""),
            (Command::Check, "0.3.1"),
            (Command::Gc, "1.0.0"),
            (Command::Gc, "1.0"),
            (Command::Status, "1.0.0"),
        ] {
            let error = for_command(text, command).unwrap_err();
            assert_eq!(error.code, 1, "{command} {text}");
            assert_eq!(error.msg, format!("config version does not allow {command}"));
        }
        assert_eq!(for_command("0.4.0", Command::Check), Ok(Version::V0_4_0));
        assert_eq!(for_command("1.1.0", Command::Gc), Ok(Version::V1_1_0));
    }

    #[test]
    fn no_version_at_all_is_a_decode_failure_for_the_newer_verbs_only() {
        for command in [Command::Check, Command::Gc, Command::Status] {
            assert_eq!(for_command("abc", command).unwrap_err().code, 6, "{command}");
        }
        for command in [Command::Add, Command::Del] {
            assert_eq!(for_command("abc", command).unwrap_err().code, 1, "{command}");
        }
    }
}
