//! `[store]`: what belongs together is asked for together.

use std::path::PathBuf;

use toml::Value;

use super::Reader;
use crate::conf::layers::Layers;
use crate::conf::{Secret, StoreConf, StoreKind};

const PREFIX: &str = "/weft/v1/";

impl Reader<'_> {
    pub(super) fn store(&mut self) -> Option<StoreConf> {
        let kinds = [("etcd", Some(StoreKind::Etcd)), ("file", Some(StoreKind::File)), ("kubernetes", None)];
        let kind = match self.choice("store.kind", &kinds) {
            Some(None) => {
                self.complain("store.kind", "\"kubernetes\" is not built in this version; use \"etcd\"");
                None
            }
            Some(kind) => kind,
            None => Some(StoreKind::Etcd),
        };
        let store = StoreConf {
            kind: kind.unwrap_or(StoreKind::Etcd),
            endpoints: self.list("store.endpoints").unwrap_or_default(),
            ca: self.text("store.ca").map(PathBuf::from),
            cert: self.text("store.cert").map(PathBuf::from),
            key: self.text("store.key").map(PathBuf::from),
            username: self.text("store.username"),
            password: self.text("store.password").map(Secret::new),
            password_file: None,
            prefix: self.text("store.prefix").unwrap_or_else(|| PREFIX.to_owned()),
        };
        match store.kind {
            StoreKind::Etcd => self.check_etcd(&store),
            StoreKind::File => self.check_file(&store),
        }
        kind.map(|_| store)
    }

    fn check_etcd(&mut self, store: &StoreConf) {
        if store.endpoints.is_empty() {
            self.complain(
                "store.endpoints",
                "is missing: the etcd members, as in [\"https://10.0.0.1:2379\"]",
            );
        }
        for endpoint in &store.endpoints {
            if let Err(problem) = check_url(endpoint) {
                self.complain("store.endpoints", problem);
            }
        }
        let https = store.endpoints.iter().filter(|url| url.starts_with("https://")).count();
        if https != 0 && https != store.endpoints.len() {
            self.complain("store.endpoints", "some are https and some are not; use one of the two");
        }
        if https != 0 && store.ca.is_none() {
            self.complain(
                "store.ca",
                "is missing: https needs the authority's certificates; no public one is trusted",
            );
        }
        for (path, given) in [("store.ca", &store.ca), ("store.cert", &store.cert), ("store.key", &store.key)]
        {
            if https == 0 && given.is_some() {
                self.complain(path, "has no meaning without https in store.endpoints");
            }
        }
        if store.cert.is_some() != store.key.is_some() {
            let missing = if store.cert.is_some() { "store.key" } else { "store.cert" };
            self.complain(missing, "is missing: a certificate and its key go together");
        }
        if store.username.is_some() != store.password.is_some() {
            let missing = if store.username.is_some() { "store.password" } else { "store.username" };
            self.complain(missing, "is missing: a user name and a password go together");
        }
        let plain = store.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || !store.prefix.starts_with('/') || !store.prefix.ends_with('/') {
            self.complain("store.prefix", format!("{:?} must begin and end with '/'", store.prefix));
        }
    }

    fn check_file(&mut self, store: &StoreConf) {
        match store.endpoints.as_slice() {
            [path] if path.starts_with('/') => {}
            [other] => self.complain("store.endpoints", format!("{other:?} is no absolute path of a file")),
            _ => self.complain(
                "store.endpoints",
                "a store of kind \"file\" is one path, as in [\"/etc/weft/cluster.json\"]",
            ),
        }
    }
}

/// The password of a file, as of one that was changed under a running daemon.
///
/// # Errors
/// What is wrong with the file, without anything of its content.
pub fn read_password(text: &str) -> Result<String, String> {
    let layers = Layers::new().file(text);
    if layers.is_unreadable() {
        return Err("it is no TOML".to_owned());
    }
    match layers.get("store.password") {
        Some((Value::String(password), _)) if !password.is_empty() => Ok(password.clone()),
        Some(_) => Err("store.password is no string with something in it".to_owned()),
        None => Err("it has no store.password any more".to_owned()),
    }
}

/// `http(s)://host:port`, and nothing behind it.
fn check_url(url: &str) -> Result<(), String> {
    let Some((scheme, authority)) = url.split_once("://") else {
        return Err(format!("{url:?} is no URL, as in \"https://10.0.0.1:2379\""));
    };
    if scheme != "https" && scheme != "http" {
        return Err(format!("{url:?} is neither https nor http"));
    }
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let Some((host, port)) = authority.rsplit_once(':') else {
        return Err(format!("{url:?} has no port; etcd's is 2379"));
    };
    if port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(format!("{url:?} has no port that could be; etcd's is 2379"));
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fine = match inner {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    if fine { Ok(()) } else { Err(format!("{url:?} names no host (an IPv6 address goes into brackets)")) }
}
