//! JSON objects read the way Go reads them: keys without case, `null` as absent.
//!
//! containerd really sends `HostPort`, CRI-O `hostPort`; a strict reader would see nothing in one of them.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::error::Error;

/// A JSON object that knows where in the configuration it is, so that its errors can say so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    path: String,
    map: Map<String, Value>,
}

impl Object {
    /// The outermost object.
    pub fn new(map: Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// An object found at `path`, such as `ipam.ranges[0][1]`.
    ///
    /// # Errors
    /// Code 6 when `value` is no object.
    pub fn from_value(path: impl Into<String>, value: &Value) -> Result<Self, Error> {
        let path = path.into();
        match value.as_object() {
            Some(map) => Ok(Self { path, map: map.clone() }),
            None => Err(mismatch(&path, "an object", value)),
        }
    }

    /// The value of `key`; an exact match wins over one that differs in case, and `null` is absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.get_with_null(key).filter(|value| !value.is_null())
    }

    /// Like [`Object::get`], but tells `null` from absent: for the one list where that makes a difference.
    pub fn get_with_null(&self, key: &str) -> Option<&Value> {
        self.map.get(key).or_else(|| {
            self.map.iter().rev().find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value)
        })
    }

    /// Whether `key` has a value other than `null`.
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The object as it was written.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// The keys other than `known` (compared without case), with their values.
    pub fn without(&self, known: &[&str]) -> Map<String, Value> {
        let is_known = |key: &str| known.iter().any(|name| name.eq_ignore_ascii_case(key));
        let unknown = self.map.iter().filter(|(key, _)| !is_known(key));
        unknown.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Where `key` is, for messages.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A string.
    ///
    /// # Errors
    /// This and all further accessors: code 6 naming the path and what is there instead, if it has another type.
    pub fn string(&self, key: &str) -> Result<Option<String>, Error> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A string with at least one character: Go cannot tell an empty one from an absent one.
    ///
    /// # Errors
    /// Code 6 when it is no string.
    pub fn text(&self, key: &str) -> Result<Option<String>, Error> {
        Ok(self.string(key)?.filter(|text| !text.is_empty()))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Code 6 when it is neither.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// `true` or `false`, also written as a string, as libcni accepts for `disableCheck` and its like.
    ///
    /// # Errors
    /// Code 6 when it is none of the four.
    pub fn bool_or_string(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", |value| match value.as_str() {
            Some(text) => text.to_ascii_lowercase().parse().ok(),
            None => value.as_bool(),
        })
    }

    /// A whole number up to 4294967295.
    ///
    /// # Errors
    /// Code 6 when it is something else, or too large.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "a number from 0 to 4294967295", |value| u32::try_from(value.as_u64()?).ok())
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// Code 6 when it is something else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "a number that is not negative", Value::as_u64)
    }

    /// A whole number.
    ///
    /// # Errors
    /// Code 6 when it is something else.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, Error> {
        self.typed(key, "a whole number", Value::as_i64)
    }

    /// An object inside this one.
    ///
    /// # Errors
    /// Code 6 when it is no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        self.get(key).map(|value| Self::from_value(self.path_of(key), value)).transpose()
    }

    /// An array.
    ///
    /// # Errors
    /// Code 6 when it is no array.
    pub fn array(&self, key: &str) -> Result<Option<&Vec<Value>>, Error> {
        self.typed(key, "an array", Value::as_array)
    }

    /// An array of objects, each knowing its place; absent is empty.
    ///
    /// # Errors
    /// Code 6 when it is no array, or one element is no object.
    pub fn objects(&self, key: &str) -> Result<Vec<Self>, Error> {
        let items = self.array(key)?.into_iter().flatten().enumerate();
        items.map(|(at, item)| Self::from_value(format!("{}[{at}]", self.path_of(key)), item)).collect()
    }

    /// An array of strings.
    ///
    /// # Errors
    /// Code 6 when it is no array, or one element is no string.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(items) = self.array(key)? else { return Ok(None) };
        let read = |(at, item): (usize, &Value)| match item.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(mismatch(&format!("{}[{at}]", self.path_of(key)), "a string", item)),
        };
        items.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
    }

    /// A string that has a meaning; an empty one is absent.
    ///
    /// # Errors
    /// Code 6 when it is no string; `code` when it cannot be parsed.
    pub fn parsed<T>(&self, key: &str, code: u32) -> Result<Option<T>, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let parsed = text.parse().map(Some);
        parsed.map_err(|problem: T::Err| Error::new(code, format!("{}: {problem}", self.path_of(key))))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| mismatch(&self.path_of(key), expected, value))
    }
}

/// Code 6: something else than `expected` is at `path`.
pub fn mismatch(path: &str, expected: &str, found: &Value) -> Error {
    let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
    Error::decode(format!("{place}expected {expected}, found {}", describe(found)))
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {:?}", shorten(text, 60)),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// The first `limit` characters, so that a message stays readable whatever was sent.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
