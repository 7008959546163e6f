//! Why the store did not do what it was asked, in sentences for people.

/// What went wrong, as a sentence for people: on which endpoint, at which step, why, what to do.
pub type Reason = String;

/// The store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was applied. Later it may work.
    #[error("{reason}")]
    Unavailable {
        /// See [`Reason`].
        reason: Reason,
    },
    /// May have been applied: read back before anything else.
    #[error("{reason}")]
    UnknownOutcome {
        /// See [`Reason`].
        reason: Reason,
    },
    /// Nothing was applied, and will not be until somebody changes something: a certificate, a password, a permission.
    #[error("{reason}")]
    Refused {
        /// See [`Reason`].
        reason: Reason,
    },
    /// What was asked for is older than what the store still has.
    #[error("the store has no history before revision {oldest}")]
    Compacted {
        /// The oldest revision it has.
        oldest: i64,
    },
    /// Nothing was applied: the store takes no more data.
    #[error("{reason}")]
    NoSpace {
        /// See [`Reason`].
        reason: Reason,
    },
}
