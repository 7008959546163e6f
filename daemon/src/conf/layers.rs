//! File, variables and flags laid over each other: a flag beats a variable beats the file, key by key.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Invalid;
use super::keys::{KEYS, Key, Kind};
use super::suggest::nearest;
use super::variables::refuse_variables;

/// The field of a problem with the file as a whole.
const FILE: &str = "(file)";

/// Where a value was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File,
    /// In a `WEFT_…` variable.
    Variable,
    /// On the command line.
    Flag,
}

/// What was given for each key, before it is understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    problems: Vec<Invalid>,
}

impl Layers {
    /// Nothing was given.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays the content of the file below everything.
    #[must_use]
    pub fn file(mut self, text: &str) -> Self {
        match text.parse::<Table>() {
            Ok(table) => self.take_table("", table),
            Err(error) => self.problems.push(Invalid::new(FILE, error.to_string().trim_end().to_owned())),
        }
        self
    }

    /// Lays the `WEFT_…` variables among `variables` over what there is. One that nobody would read is refused.
    #[must_use]
    pub fn variables(mut self, variables: &BTreeMap<String, String>) -> Self {
        self.problems.extend(refuse_variables(variables));
        let given = KEYS.iter().filter_map(|key| Some((key, variables.get(&key.variable())?.clone())));
        given.fold(self, |layers, (key, text)| layers.text(key, &text, Origin::Variable))
    }

    /// Where a key was given.
    pub fn origin(&self, path: &str) -> Option<Origin> {
        self.values.get(path).map(|(_, origin)| *origin)
    }

    /// Lays the flags over what there is.
    #[must_use]
    pub fn flags<'a>(self, flags: impl IntoIterator<Item = (&'static Key, &'a str)>) -> Self {
        flags.into_iter().fold(self, |layers, (key, text)| layers.text(key, text, Origin::Flag))
    }

    /// What was given for a key, and where.
    pub(super) fn get(&self, path: &str) -> Option<&(Value, Origin)> {
        self.values.get(path)
    }

    /// What is wrong so far.
    pub(super) fn problems(&self) -> &[Invalid] {
        &self.problems
    }

    /// Whether the file is no TOML at all.
    pub(super) fn is_unreadable(&self) -> bool {
        self.problems.iter().any(|problem| problem.field == FILE)
    }

    /// How a key is called in a problem.
    pub(super) fn field(&self, path: &str) -> String {
        name(path, self.origin(path).unwrap_or(Origin::File))
    }

    fn take_table(&mut self, section: &str, table: Table) {
        for (name, value) in table {
            let path = if section.is_empty() { name } else { format!("{section}.{name}") };
            match (Key::find(&path), value) {
                (Some(key), value) => {
                    self.values.insert(key.path, (value, Origin::File));
                }
                (None, Value::Table(inner)) if is_section(&path) => self.take_table(&path, inner),
                (None, _) => self.problems.push(unknown(&path)),
            }
        }
    }

    fn text(mut self, key: &'static Key, text: &str, origin: Origin) -> Self {
        match understand(key.kind, text) {
            Ok(value) => {
                self.values.insert(key.path, (value, origin));
            }
            Err(problem) => self.problems.push(Invalid::new(name(key.path, origin), problem)),
        }
        self
    }
}

fn name(path: &str, origin: Origin) -> String {
    match (origin, Key::find(path)) {
        (Origin::Variable, Some(key)) => format!("{path} ({})", key.variable()),
        (Origin::Flag, Some(key)) => format!("{path} (--{})", key.flag()),
        (Origin::File | Origin::Variable | Origin::Flag, _) => path.to_owned(),
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.split_once('.').is_some_and(|(section, _)| section == path))
}

fn unknown(path: &str) -> Invalid {
    let sections = KEYS.iter().filter_map(|key| key.path.split_once('.').map(|(section, _)| section));
    // A key in the wrong section, such as a top-level `cidrs`, is meant as well.
    let last = path.rsplit('.').next().unwrap_or(path);
    let moved = || KEYS.iter().map(|key| key.path).find(|known| known.rsplit('.').next() == Some(last));
    let problem = match nearest(path, KEYS.iter().map(|key| key.path).chain(sections)).or_else(moved) {
        Some(meant) => format!("there is no such key; is {meant} meant?"),
        None => "there is no such key; conf/weftd.toml explains those there are".to_owned(),
    };
    Invalid::new(path, problem)
}

/// A flag or variable is text; the file has types.
fn understand(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::List => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            Ok(Value::Array(words.map(|word| Value::String(word.to_owned())).collect()))
        }
        Kind::Number => {
            text.trim().parse().map(Value::Integer).map_err(|_| format!("{text:?} is no whole number"))
        }
        Kind::Bool => match text.trim() {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
    }
}
