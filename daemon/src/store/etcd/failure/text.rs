//! The messages of etcd, rustls and the kernel, and what we say instead.

use std::error::Error;

use super::{Context, Kind, Step};

/// How a TLS handshake ends with one who does not expect it.
const BROKEN_OFF: [&str; 3] = ["handshake eof", "connection reset", "broken pipe"];

const CLIENT_CERTIFICATE: &str = "Configure a client certificate from a CA it trusts, not expired";

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

/// What a broken connection means, which stood before or never did: the step (if another than the one attempted), whether it stays so until somebody
/// changes something, and the sentence.
pub fn explain_connection(chain: &str, stood: bool, context: &Context<'_>) -> (Option<Step>, bool, String) {
    let lower = chain.to_lowercase();
    let (is_tls, is_new) = (context.endpoint.starts_with("https"), context.step == Step::FirstCall);
    let has = |needle: &str| lower.contains(needle);
    let connect = |why: &str| (Some(Step::Connect), false, why.to_owned());
    let tls = |why: &str| (Some(Step::Tls), true, why.to_owned());
    if has("connection refused") {
        connect("connection refused. Nothing listens there: is etcd running, and is the port right?")
    } else if has("dns error") || has("failed to lookup address") {
        connect("its name is not known. Check the name, and this node's DNS or /etc/hosts")
    } else if has("no route to host") || has("network is unreachable") {
        connect("there is no route to it. Check the address and this node's network")
    } else if has("tcp connect error") || has("deadline has elapsed") || has("timed out") {
        connect("no answer. The host is down, or a packet filter drops the connection")
    } else if has("unknownissuer") {
        tls(
            "its certificate is from a CA that the configured CA file does not hold. Configure the CA of this etcd",
        )
    } else if has("certificate expired") {
        tls("its certificate has expired. Renew it; if it has not, this node's clock is wrong")
    } else if has("certificate not valid yet") {
        tls("its certificate is not valid yet. This node's clock is probably wrong")
    } else if has("not valid for name") {
        let names = chain.split_once("only valid for ").map(|(_, names)| names.trim_end_matches('.'));
        let valid = names.map(|names| format!(", but for {names}")).unwrap_or_default();
        tls(&format!(
            "its certificate is not for this host name{valid}. Use a name it is for, or issue another one"
        ))
    } else if has("invalid peer certificate") {
        tls(&format!("its certificate cannot be accepted ({chain})"))
    } else if has("alert: certificaterequired") || has("alert: badcertificate") || has("alert: unknownca") {
        tls(&format!("it does not accept this node's certificate. {CLIENT_CERTIFICATE}"))
    } else if has("alert: certificateexpired") {
        tls("it says that this node's certificate has expired. Renew it")
    } else if has("invalidcontenttype") || (is_tls && !stood && BROKEN_OFF.iter().any(|end| has(end))) {
        tls("it seems not to speak TLS. Use http:// for it, or switch TLS on there")
    } else if has("received fatal alert") {
        tls(&format!("it broke off the TLS handshake ({chain})"))
    } else if is_tls && is_new && stood {
        // With TLS 1.3 the member looks at our certificate after the handshake, and its alert is often lost.
        let why =
            "it closed the connection once TLS stood. Probably it does not accept this node's certificate";
        (Some(Step::Tls), false, format!("{why}. {CLIENT_CERTIFICATE}"))
    } else if is_new {
        (
            Some(Step::Connect),
            false,
            format!("it does not answer as etcd does ({chain}). Does it want https://?"),
        )
    } else {
        (None, false, format!("the connection broke ({chain})"))
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
    let user = context.user.unwrap_or("(none configured)");
    if has("permission denied") {
        let prefix = context.prefix;
        let advice = format!("etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}");
        (Kind::Refused, format!("user {user} has no permission for keys under {prefix}. Grant it: {advice}"))
    } else if has("authentication failed") {
        (Kind::Refused, format!("user {user} or the password is wrong. Correct them in the configuration"))
    } else if has("user name is empty") {
        (Kind::Refused, "the store asks for a user and a password, and none is configured".to_owned())
    } else if has("authentication is not enabled") {
        let why = format!(
            "user {user} is configured, but the store has no authentication. Remove the user, or enable it there"
        );
        (Kind::Refused, why)
    } else if has("database space exceeded") {
        let advice =
            "Compact and defragment it, then: etcdctl alarm disarm. Enable --auto-compaction-retention";
        (Kind::NoSpace, format!("etcd's database is full (alarm NOSPACE): it takes no more data. {advice}"))
    } else if has("no leader") {
        let why = "the member knows no leader: it is cut off from the others, or most members are down";
        (Kind::NotApplied, why.to_owned())
    } else if has("has been compacted") {
        (Kind::Compacted, "the store no longer has this revision".to_owned())
    } else if has("lease not found") {
        (Kind::NoLease, "the lease has ended".to_owned())
    } else if has("request is too large") || has("too many operations") {
        (Kind::Refused, format!("{message}. Its limits are below etcd's defaults"))
    } else if has("corrupt") {
        (Kind::Refused, format!("{message}. The member's data is damaged: replace the member"))
    } else if has("invalid auth token") || has("revision of auth store is old") || has("too many requests") {
        (Kind::NotApplied, message.to_owned())
    } else {
        // As "request timed out", "leader changed", "server stopped": it may have been applied.
        (Kind::Unknown, message.to_owned())
    }
}
