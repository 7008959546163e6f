//! `CNI_ARGS`: `KEY=value;KEY=value`.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use crate::error::Error;

/// The pairs of `CNI_ARGS`. Keys we do not know are kept and ignored, whether or not `IgnoreUnknown` is there:
/// strictness about them broke upgrades of others (kubernetes#24983).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    pairs: BTreeMap<String, String>,
}

impl CniArgs {
    /// Reads the variable. Bytes that are no UTF-8 become U+FFFD: values of ours fail later where they are
    /// parsed, values of others do not matter.
    ///
    /// # Errors
    /// Code 4 when a pair does not have exactly one `=`, worded as the Go library words it.
    pub fn parse(raw: &OsStr) -> Result<Self, Error> {
        let text = raw.to_string_lossy();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let pairs = text.split(';').map(pair).collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// The value of `key`, matched exactly; the last one if it is there twice.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }
}

fn pair(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((key, value)) if !value.contains('=') => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(Error::environment(format!("ARGS: invalid pair {text:?}")).context("CNI_ARGS")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(text: &str) -> Result<CniArgs, Error> {
        CniArgs::parse(OsStr::new(text))
    }

    #[test]
    fn pairs_come_in_any_order_and_unknown_keys_do_not_hurt() {
        let args = parse("K8S_POD_NAME=web-0;IgnoreUnknown=1;X=;IP=10.0.0.5").unwrap();
        assert_eq!(args.get("K8S_POD_NAME"), Some("web-0"));
        assert_eq!(args.get("IP"), Some("10.0.0.5"));
        assert_eq!(args.get("X"), Some(""));
        assert_eq!(args.get("ip"), None, "keys are exact");
    }

    #[test]
    fn the_last_of_two_equal_keys_wins() {
        assert_eq!(parse("A=1;A=2").unwrap().get("A"), Some("2"));
    }

    #[test]
    fn an_empty_variable_has_no_pairs() {
        assert_eq!(parse(""), Ok(CniArgs::default()));
    }

    #[test]
    fn every_pair_has_exactly_one_equals_sign() {
        for (text, bad) in [("A", "A"), ("A=1;", ""), (";A=1", ""), ("A=1=2", "A=1=2"), ("A=1;B;C=3", "B")] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code, 4);
            assert_eq!(error.msg, format!("CNI_ARGS: ARGS: invalid pair {bad:?}"));
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_do_not_panic() {
        let args = CniArgs::parse(OsStr::from_bytes(b"A=\xff\xfe;B=2")).unwrap();
        assert_eq!(args.get("A"), Some("\u{fffd}\u{fffd}"));
        assert_eq!(args.get("B"), Some("2"));
    }
}
