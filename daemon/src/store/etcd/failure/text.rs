//! The messages of etcd, rustls and the kernel, and what we say instead.

use std::error::Error;

use super::{Context, Kind, Step};

/// Parts of messages in lower case, and what they mean: no connection.
const NOT_CONNECTED: &[(&[&str], &str)] = &[
    (
        &["connection refused"],
        "connection refused. Nothing listens there: is etcd running, and is the port right?",
    ),
    (
        &["dns error", "failed to lookup address"],
        "its name is not known. Check the name, and this node's DNS or /etc/hosts",
    ),
    (
        &["no route to host", "network is unreachable"],
        "there is no route to it. Check the address and this node's network",
    ),
    (
        &["tcp connect error", "deadline has elapsed", "timed out"],
        "no answer. The host is down, or a packet filter drops the connection",
    ),
];

/// The same: no TLS, until somebody changes something.
const TLS_REFUSED: &[(&[&str], &str)] = &[
    (
        &["unknownissuer"],
        "its certificate is from a CA that the configured CA file does not hold. Configure the CA of this etcd",
    ),
    (
        &["invalid peer certificate: certificate expired"],
        "its certificate has expired. Renew it; if it has not, this node's clock is wrong",
    ),
    (&["certificate not valid yet"], "its certificate is not valid yet. This node's clock is probably wrong"),
    (
        &["alert: certificaterequired", "alert: badcertificate", "alert: unknownca"],
        "it does not accept this node's certificate. Configure a client certificate from a CA it trusts, not expired",
    ),
    (&["alert: certificateexpired"], "it says that this node's certificate has expired. Renew it"),
    (&["invalidcontenttype"], NO_TLS),
];

const NO_TLS: &str = "it seems not to speak TLS. Use http:// for it, or switch TLS on there";

/// How a TLS handshake ends with one who does not expect it.
const BROKEN_OFF: [&str; 3] = ["handshake eof", "connection reset", "broken pipe"];

/// With TLS 1.3 a member looks at our certificate after the handshake, and its alert is often lost.
const ALERT_LOST: &str = "it closed the connection once TLS stood. Probably it does not accept this node's \
     certificate. Configure a client certificate from a CA it trusts, not expired";

/// The messages of an error and all its causes, without repetitions.
pub fn chain(error: &dyn Error) -> String {
    let mut messages = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if messages.last().is_none_or(|last| !last.ends_with(&message)) {
            messages.push(message);
        }
        source = cause.source();
    }
    messages.join(": ")
}

/// What a broken connection means, which stood before or never did: the step (if another than the one attempted),
/// its kind (if it is not just broken), and the sentence.
pub fn explain_connection(
    chain: &str,
    stood: bool,
    context: &Context<'_>,
) -> (Option<Step>, Option<Kind>, String) {
    let lower = chain.to_lowercase();
    if let Some(why) = look_up(NOT_CONNECTED, &lower) {
        return (Some(Step::Connect), None, why);
    }
    let refused = if let Some((_, names)) = chain.split_once("not valid for name") {
        Some(another_name(names))
    } else {
        look_up(TLS_REFUSED, &lower).or_else(|| other_tls(chain, &lower))
    };
    if let Some(why) = refused {
        return (Some(Step::Tls), Some(Kind::EndpointRefused), why);
    }
    let (is_tls, is_new) = (context.endpoint.starts_with("https"), context.step == Step::FirstCall);
    match (is_tls, is_new, stood) {
        (true, _, false) if BROKEN_OFF.iter().any(|end| lower.contains(end)) => {
            (Some(Step::Tls), Some(Kind::EndpointRefused), NO_TLS.to_owned())
        }
        (true, true, true) => (Some(Step::Tls), Some(Kind::BrokeOff), ALERT_LOST.to_owned()),
        (false, true, _) => {
            let why = format!("it does not answer as etcd does ({chain}). Does it want https://?");
            (Some(Step::Connect), None, why)
        }
        _ => (None, None, format!("the connection broke ({chain})")),
    }
}

fn look_up(table: &[(&[&str], &str)], lower: &str) -> Option<String> {
    let holds = |(needles, _): &&(&[&str], &str)| needles.iter().any(|needle| lower.contains(needle));
    table.iter().find(holds).map(|(_, why)| (*why).to_owned())
}

/// rustls names what the certificate is valid for at the end.
fn another_name(names: &str) -> String {
    let valid = names.split_once("only valid for ").map(|(_, names)| format!(", but for {names}"));
    let valid = valid.unwrap_or_default();
    format!("its certificate is not for this host name{valid}. Use a name it is for, or issue another one")
}

fn other_tls(chain: &str, lower: &str) -> Option<String> {
    if lower.contains("invalid peer certificate") {
        Some(format!("its certificate cannot be accepted ({chain})"))
    } else if lower.contains("received fatal alert") {
        Some(format!("it broke off the TLS handshake ({chain})"))
    } else {
        None
    }
}

/// Whether a message of etcd is about user and password rather than the call.
pub fn is_about_logging_in(message: &str) -> bool {
    ["authentication failed", "user name is empty", "authentication is not enabled", "invalid auth token"]
        .iter()
        .any(|part| message.contains(part))
}

/// What a message of etcd means, and the sentence.
pub fn explain_answer(message: &str, context: &Context<'_>) -> (Kind, String) {
    let has = |needle: &str| message.contains(needle);
    let (user, prefix) = (context.user.unwrap_or("(none configured)"), context.prefix);
    if has("permission denied") {
        let advice = format!("etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}");
        let why = format!("user {user} has no permission for keys under {prefix}. Grant it: {advice}");
        (Kind::Refused, why)
    } else if has("authentication failed") {
        (Kind::Refused, format!("user {user} or the password is wrong. Correct them in the configuration"))
    } else if has("authentication is not enabled") {
        let why = format!("user {user} is configured, but the store has no authentication. {NO_LOGIN}");
        (Kind::Refused, why)
    } else {
        let known = ANSWERS.iter().find(|(needle, ..)| has(needle));
        // Of what is not known, as "request timed out", "leader changed", "server stopped": it may have been applied.
        let (kind, why) = known.map_or((Kind::Unknown, ""), |&(_, kind, why)| (kind, why));
        (kind, if why.is_empty() { message.to_owned() } else { why.replace("{}", message) })
    }
}

const NO_LOGIN: &str = "Remove the user, or enable it there";

/// What is the matter with a full etcd, and the cure.
pub const FULL: &str = "etcd's database is full (alarm NOSPACE): it takes no more data. Compact and defragment it, \
    then: etcdctl alarm disarm. Enable --auto-compaction-retention";

/// A part of etcd's message, what it means, and the sentence, where `{}` stands for the message.
const ANSWERS: &[(&str, Kind, &str)] = &[
    ("user name is empty", Kind::Refused, "the store asks for a user and a password, and none is configured"),
    ("database space exceeded", Kind::NoSpace, FULL),
    (
        "no leader",
        Kind::NotApplied,
        "the member knows no leader: it is cut off from the others, or most members are down",
    ),
    ("has been compacted", Kind::Compacted, "the store no longer has this revision"),
    ("lease not found", Kind::NoLease, "the lease has ended"),
    ("request is too large", Kind::Refused, "{}. Its limits are below etcd's defaults"),
    ("too many operations", Kind::Refused, "{}. Its limits are below etcd's defaults"),
    ("corrupt", Kind::Refused, "{}. The member's data is damaged: replace the member"),
    ("invalid auth token", Kind::NotApplied, ""),
    ("revision of auth store is old", Kind::NotApplied, ""),
    ("too many requests", Kind::NotApplied, ""),
];
