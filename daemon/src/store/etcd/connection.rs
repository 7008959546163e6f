//! One connection to one endpoint, made with the certificates and the password as they are now.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};

use super::conf::{Conf, Credentials, Endpoint, TlsFiles};
use super::failure::{Context, Failure, Kind, Step};
use crate::store::CONFIG;

/// Largest answer that is taken: a thousand revisions of node records in one message of a watch.
pub const MAX_MESSAGE: usize = 64 << 20;

/// What a store says about itself with each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its identity.
    pub cluster: u64,
    /// Its revision.
    pub revision: i64,
}

impl Head {
    /// From the header of an answer.
    pub fn of(header: Option<&etcd_client::ResponseHeader>) -> Result<Self, etcd_client::Error> {
        let header =
            header.ok_or_else(|| etcd_client::Error::Internal("an answer without a header".to_owned()))?;
        Ok(Self { cluster: header.cluster_id(), revision: header.revision() })
    }
}

/// A client of one endpoint.
#[derive(Clone)]
pub struct Connection {
    /// Of the endpoint.
    pub index: usize,
    /// Speaks with this endpoint alone.
    pub client: Client,
    files: Vec<FileStamp>,
}

/// Tells whether a file was replaced or rewritten: its inode, change and length.
pub type FileStamp = Option<(u64, i64, i64, u64)>;

impl Connection {
    /// Makes a client and logs in. Without a user nothing is sent yet.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all that is not about the files comes from logging in"
    )]
    pub async fn open(conf: &Conf, index: usize, endpoint: &Endpoint) -> Result<Self, Failure> {
        let prepare = context(conf, endpoint, Step::Prepare);
        // Before they are read: what is written meanwhile is read the next time.
        let files = stamps(conf);
        let (credentials, stale) = credentials(conf);
        let options =
            options(conf, endpoint, credentials).map_err(|why| prepare.fail(Kind::EndpointRefused, why))?;
        let client = Client::connect([endpoint.as_str()], Some(options)).await;
        let client = client.map_err(|error| match &error {
            etcd_client::Error::TransportError(cause) => {
                prepare.fail(Kind::EndpointRefused, unusable(conf, &super::failure::chain(cause)))
            }
            answer => {
                let mut failure = context(conf, endpoint, Step::LogIn).explain(answer);
                failure.why.push_str(&stale);
                failure
            }
        })?;
        Ok(Self { index, client, files })
    }

    /// Whether certificates and password are still those it was made with.
    pub fn is_current(&self, conf: &Conf) -> bool {
        self.files == stamps(conf)
    }

    /// Asks the store, by way of its leader, what it is and how far.
    pub async fn head(&self, conf: &Conf) -> Result<Head, etcd_client::Error> {
        let options = GetOptions::new().with_keys_only();
        let answer = self.client.kv_client().get(conf.prefix.join(CONFIG), Some(options)).await?;
        Head::of(answer.header())
    }
}

/// What sentences about this endpoint name.
pub fn context<'a>(conf: &'a Conf, endpoint: &'a Endpoint, step: Step) -> Context<'a> {
    let user = conf.credentials.as_ref().map(|credentials| credentials.user.as_str());
    Context { endpoint: endpoint.as_str(), step, user, prefix: conf.prefix.as_str() }
}

fn options(
    conf: &Conf,
    endpoint: &Endpoint,
    credentials: Option<Credentials>,
) -> Result<ConnectOptions, String> {
    let timing = &conf.timing;
    let mut options = ConnectOptions::new()
        .with_connect_timeout(timing.connect)
        .with_keep_alive(timing.ping, timing.pong)
        // etcd takes pings without a call going on for an attack and closes the connection.
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(Credentials { user, password }) = credentials {
        options = options.with_user(user, password);
    }
    if endpoint.is_tls() {
        let files = conf.tls.as_ref().ok_or("the CA's file is not configured")?;
        options = options.with_tls(tls(files)?);
    }
    Ok(options)
}

/// The user, with the password as its file has it now. From a file that cannot be read the password of the start
/// stays, with words for the case that it is refused.
fn credentials(conf: &Conf) -> (Option<Credentials>, String) {
    let Some(known) = conf.credentials.clone() else { return (None, String::new()) };
    let Some(file) = &conf.password_file else { return (Some(known), String::new()) };
    match file.read() {
        Ok(password) => (Some(Credentials { password, ..known }), String::new()),
        Err(problem) => {
            let path = file.path.display();
            (
                Some(known),
                format!(" (the password is that of the start: {path} cannot be read anew: {problem})"),
            )
        }
    }
}

fn tls(files: &TlsFiles) -> Result<TlsOptions, String> {
    let mut tls =
        TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem(&files.ca, "CERTIFICATE")?));
    if let Some((certificate, key)) = &files.identity {
        let (certificate, key) = (read_pem(certificate, "CERTIFICATE")?, read_pem(key, "PRIVATE KEY")?);
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(tls)
}

fn read_pem(path: &Path, kind: &str) -> Result<String, String> {
    let text =
        fs::read_to_string(path).map_err(|error: io::Error| format!("read {}: {error}", path.display()))?;
    let found = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(kind));
    if found { Ok(text) } else { Err(format!("{} holds no {kind} in PEM format", path.display())) }
}

fn unusable(conf: &Conf, cause: &str) -> String {
    let names: Vec<_> = paths(conf).map(|path| path.display().to_string()).collect();
    format!("the certificates in {} cannot be used ({cause})", names.join(", "))
}

fn paths(conf: &Conf) -> impl Iterator<Item = &PathBuf> {
    conf.tls.iter().flat_map(|files| {
        let own = files.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        std::iter::once(&files.ca).chain(own)
    })
}

/// Of every file that a connection is made with.
pub fn stamps(conf: &Conf) -> Vec<FileStamp> {
    let stamp = |path: &PathBuf| {
        let facts = fs::metadata(path).ok()?;
        Some((facts.ino(), facts.ctime(), facts.ctime_nsec(), facts.len()))
    };
    let password = conf.password_file.iter().map(|file| &file.path);
    paths(conf).chain(password).map(stamp).collect()
}
