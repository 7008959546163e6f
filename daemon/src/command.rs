//! The operator's commands. Each reads what there is, says it, and answers with an exit code that scripts can trust.

pub mod check;
pub mod config;
pub mod install;
pub mod node;
pub mod repair;
pub mod status;
pub mod store;
mod table;

use std::io::{self, Write};

use crate::conf::Invalid;

/// The exit code of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Fine = 0,
    /// It found something, or refused.
    FoundSomething = 1,
    /// It could not tell.
    CouldNotTell = 2,
}

/// A command that did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub verdict: Verdict,
    /// Why, and what to do: a sentence each.
    pub sentences: Vec<String>,
}

impl Failure {
    /// It was refused: as it stands, trying again does not help.
    pub fn refused(sentence: impl Into<String>) -> Self {
        Self { verdict: Verdict::FoundSomething, sentences: vec![sentence.into()] }
    }

    /// It could not be told or done, this time.
    pub fn could_not_tell(sentence: impl Into<String>) -> Self {
        Self { verdict: Verdict::CouldNotTell, sentences: vec![sentence.into()] }
    }

    /// Several reasons at once.
    pub fn all(verdict: Verdict, sentences: Vec<String>) -> Self {
        Self { verdict, sentences }
    }
}

impl From<Vec<Invalid>> for Failure {
    fn from(problems: Vec<Invalid>) -> Self {
        Self::all(Verdict::FoundSomething, problems.iter().map(ToString::to_string).collect())
    }
}

/// Prints what a command has to say.
pub fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::could_not_tell(format!("write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Runs a future to its end, for commands that speak to the store.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::could_not_tell(format!("start: {error}")))?.block_on(work)
}
