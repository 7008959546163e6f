//! What a person should know of the data plane.

use serde::Serialize;

/// Something that is not as it should be and that the data plane alone cannot mend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Which kind: stable, for programs.
    pub code: &'static str,
    /// What it is about: a node, a link, a chain.
    pub subject: String,
    /// A sentence for people.
    pub text: String,
}
