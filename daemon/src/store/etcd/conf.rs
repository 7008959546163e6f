//! Where the etcd cluster is and how to speak with it.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::Prefix;

/// How to reach an etcd cluster.
#[derive(Clone, Debug)]
pub struct Conf {
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// Which of them is tried first, modulo their number; the others follow in their order. A number that differs
    /// between nodes spreads their watches.
    pub first: usize,
    /// Before each key.
    pub prefix: Prefix,
    /// Needed for `https`.
    pub tls: Option<TlsFiles>,
    /// When the store asks for them.
    pub credentials: Option<Credentials>,
    /// Where the password stands, if that can change.
    pub password_file: Option<PasswordFile>,
    /// Deadlines.
    pub timing: Timing,
}

impl Conf {
    /// For these endpoints, the rest by default.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let (prefix, timing) = (Prefix::default(), Timing::default());
        Self { endpoints, first: 0, prefix, tls: None, credentials: None, password_file: None, timing }
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), InvalidConf> {
        if self.endpoints.is_empty() {
            return Err(InvalidConf("no endpoint of the store is given".to_owned()));
        }
        let https = self.endpoints.iter().find(|endpoint| endpoint.is_tls());
        match (https, &self.tls) {
            (Some(endpoint), None) => {
                Err(InvalidConf(format!("{endpoint} needs the file of the CA that its certificate is from")))
            }
            _ => Ok(()),
        }
    }
}

/// A configuration that cannot work, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConf(String);

/// `http://host:port` or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// Parses the address of one member; without a scheme it is `https` if `tls`, else `http`.
    pub fn parse(text: &str, tls: bool) -> Result<Self, InvalidConf> {
        let invalid =
            |problem: &str| Err(InvalidConf(format!("{text:?} is no endpoint of a store: {problem}")));
        let (scheme, place) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), place)) => (scheme, place),
            Some(_) => return invalid("it begins with neither http:// nor https://"),
            None => (if tls { "https" } else { "http" }, text),
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let Some((host, port)) = place.rsplit_once(':') else { return invalid("it has no port, as :2379") };
        if port.parse::<u16>().is_err() {
            return invalid("its port is no number up to 65535");
        }
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || !(bracketed || host.bytes().all(is_plain)) {
            return invalid("its host is neither a name nor an address (IPv6 in brackets)");
        }
        Ok(Self(format!("{scheme}://{place}")))
    }

    /// As a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// PEM files; read anew for each connection after they changed.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Whom we believe.
    pub ca: PathBuf,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of the store.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A file that holds the password; read anew for each connection after it changed.
#[derive(Clone, Debug)]
pub struct PasswordFile {
    /// Where it is.
    pub path: PathBuf,
    /// Finds the password in its text, or says what is wrong with that.
    pub find: fn(&str) -> Result<String, String>,
}

impl PasswordFile {
    /// The password as it stands there now.
    pub fn read(&self) -> Result<String, String> {
        let text = fs::read_to_string(&self.path).map_err(|error| error.to_string())?;
        (self.find)(&text)
    }
}

/// Deadlines and pauses.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a TCP connection to stand.
    pub connect: Duration,
    /// For one call on one endpoint, connecting included.
    pub call: Duration,
    /// A watch that is silent for this long is asked for a sign of life.
    pub idle: Duration,
    /// And must give one within this, or is given up.
    pub sign_of_life: Duration,
    /// Between HTTP/2 pings while something is going on; etcd refuses more than one in 5 s.
    pub ping: Duration,
    /// For the answer to a ping.
    pub pong: Duration,
    /// A connection that answered so recently is not probed before a call that must not be sent twice.
    pub fresh: Duration,
    /// After the first failure of an endpoint; doubles with each.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_longest: Duration,
    /// About so often etcd is asked for its alarms.
    pub alarms: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            call: Duration::from_secs(5),
            idle: Duration::from_secs(10),
            sign_of_life: Duration::from_secs(5),
            ping: Duration::from_secs(10),
            pong: Duration::from_secs(5),
            fresh: Duration::from_secs(1),
            pause_first: Duration::from_millis(250),
            pause_longest: Duration::from_secs(10),
            alarms: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_or_a_host_with_a_port() {
        let cases = [
            ("http://a:2379", false, "http://a:2379"),
            ("https://10.0.0.1:2379/", false, "https://10.0.0.1:2379"),
            ("a.example:2379", true, "https://a.example:2379"),
            ("[fd00::1]:2379", false, "http://[fd00::1]:2379"),
        ];
        for (text, tls, expected) in cases {
            assert_eq!(Endpoint::parse(text, tls).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn a_bad_endpoint_is_refused_with_the_reason() {
        let cases = [
            ("ftp://a:1", "it begins with neither http:// nor https://"),
            ("http://a", "it has no port, as :2379"),
            ("http://a:b", "its port is no number up to 65535"),
            ("http://a/b:1", "its host is neither a name nor an address (IPv6 in brackets)"),
            ("fd00::1:2379", "its host is neither a name nor an address (IPv6 in brackets)"),
        ];
        for (text, problem) in cases {
            let expected = format!("{text:?} is no endpoint of a store: {problem}");
            assert_eq!(Endpoint::parse(text, false).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn https_without_a_ca_is_refused() {
        let conf = Conf::new(vec![Endpoint::parse("https://a:2379", false).unwrap()]);
        let expected = "https://a:2379 needs the file of the CA that its certificate is from";
        assert_eq!(conf.check().unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials { user: "weft".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
