//! What an error of etcd or of the connection to it means: whom to ask next, whether anything was applied, and the
//! sentence for people.

mod text;

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

pub use text::{FULL, chain};

use crate::store::StoreError;

/// One endpoint did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As the operator wrote it, or nothing when it is not about one.
    pub endpoint: String,
    /// What was attempted.
    pub step: Step,
    /// What it means.
    pub kind: Kind,
    /// Why it failed, and what to do.
    pub why: String,
}

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the certificates, or build a client.
    Prepare,
    /// A TCP connection.
    Connect,
    /// TLS on it.
    Tls,
    /// User and password.
    LogIn,
    /// The first call on a new connection, a read.
    FirstCall,
    /// A call.
    Call(&'static str),
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing was applied; another endpoint may do it.
    NotApplied,
    /// May have been applied; if it may be repeated, another endpoint may do it.
    Unknown,
    /// This endpoint cannot be used until somebody changes something; others may.
    EndpointRefused,
    /// It ended a connection as one does who refuses our certificate; a member that stops does the same, once.
    BrokeOff,
    /// No endpoint will do it until somebody changes something.
    Refused,
    /// No endpoint takes more data.
    NoSpace,
    /// Older than what the store has.
    Compacted,
    /// No such lease.
    NoLease,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare the connection",
            Self::Connect => "connect",
            Self::Tls => "set up TLS",
            Self::LogIn => "log in",
            Self::FirstCall => "read",
            Self::Call(name) => name,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {}: {}: {}", self.endpoint, self.step, self.why)
    }
}

/// What the sentences name.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Of the member.
    pub endpoint: &'a str,
    /// What was attempted.
    pub step: Step,
    /// The user, if one is configured.
    pub user: Option<&'a str>,
    /// Before each key.
    pub prefix: &'a str,
}

impl Context<'_> {
    /// Makes a failure of this context.
    pub fn fail(&self, kind: Kind, why: impl Into<String>) -> Failure {
        Failure { endpoint: self.endpoint.to_owned(), step: self.step, kind, why: why.into() }
    }

    /// No answer came in time.
    pub fn timed_out(&self, limit: Duration) -> Failure {
        let why = format!(
            "no answer within {} s. The member may be overloaded, frozen or cut off from the others",
            limit.as_secs_f32()
        );
        self.fail(Kind::Unknown, why)
    }

    /// Says what an error of the client means.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest is about parts of the client that are not used"
    )]
    pub fn explain(&self, error: &etcd_client::Error) -> Failure {
        match error {
            etcd_client::Error::GRpcStatus(status) => match status.source() {
                Some(source) => self.broken(&chain(source), &format!("{source:?}")),
                None => self.answered(status.message()),
            },
            etcd_client::Error::TransportError(error) => self.broken(&chain(error), &format!("{error:?}")),
            etcd_client::Error::LeaseKeepAliveError(message) if message == "lease not found" => {
                self.fail(Kind::NoLease, "the lease has ended")
            }
            other => self.fail(Kind::Unknown, other.to_string()),
        }
    }

    /// The connection failed. `debug` names the types in the chain, of which one says that nothing was sent.
    pub fn broken(&self, chain: &str, debug: &str) -> Failure {
        let stood = !debug.contains("ConnectError(");
        let (step, kind, why) = text::explain_connection(chain, stood, self);
        let kind = kind.unwrap_or(if stood { Kind::Unknown } else { Kind::NotApplied });
        Failure { step: step.unwrap_or(self.step), ..self.fail(kind, why) }
    }

    /// etcd answered with this message.
    pub fn answered(&self, message: &str) -> Failure {
        let (kind, why) = text::explain_answer(message, self);
        let step = if text::is_about_logging_in(message) { Step::LogIn } else { self.step };
        Failure { step, ..self.fail(kind, why) }
    }
}

/// What several endpoints said, as one error. `failures` is not empty, and the last one ended the attempt.
pub fn combine(failures: &[Failure], repeatable: bool) -> StoreError {
    let reason = all_of(failures);
    let all_refused = failures.iter().all(|failure| failure.kind == Kind::EndpointRefused);
    match failures.last().map(|last| last.kind) {
        Some(Kind::Unknown) if !repeatable => StoreError::UnknownOutcome { reason },
        Some(Kind::Refused) => StoreError::Refused { reason: last_of(failures) },
        Some(Kind::NoSpace) => StoreError::NoSpace { reason: last_of(failures) },
        Some(Kind::Compacted | Kind::NoLease | Kind::NotApplied | Kind::BrokeOff | Kind::Unknown) => {
            StoreError::Unavailable { reason }
        }
        Some(Kind::EndpointRefused) if all_refused => StoreError::Refused { reason },
        Some(Kind::EndpointRefused) | None => StoreError::Unavailable { reason },
    }
}

/// What is the matter when the follower finds nobody, by what each of `endpoints` said last: the store refuses this
/// node if the cluster said so, or most of its endpoints. One that refuses among others that are away is an outage.
pub fn verdict(last: &[Failure], endpoints: usize) -> StoreError {
    let count = |kind| last.iter().filter(|failure| failure.kind == kind).count();
    if let Some(refusal) = last.iter().find(|failure| failure.kind == Kind::Refused) {
        return StoreError::Refused { reason: refusal.to_string() };
    }
    let reason = all_of(last);
    if 2 * count(Kind::EndpointRefused) > endpoints {
        StoreError::Refused { reason }
    } else {
        StoreError::Unavailable { reason }
    }
}

fn all_of(failures: &[Failure]) -> String {
    match failures {
        [] => "no endpoint of the store is given".to_owned(),
        [only] => only.to_string(),
        several => {
            let all: Vec<_> = several.iter().map(Failure::to_string).collect();
            format!("none of {} endpoints answered: {}", several.len(), all.join("; "))
        }
    }
}

fn last_of(failures: &[Failure]) -> String {
    failures.last().map(Failure::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
