//! The store that a configuration names.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cluster::host_seed;
use crate::conf::{Conf, StoreConf, StoreKind, read_password};
use crate::store::etcd::{self, Etcd};
use crate::store::file::File;
use crate::store::{Prefix, Store};

/// Makes it; nothing is connected to yet.
///
/// # Errors
/// A sentence when it cannot be.
pub fn open(conf: &Conf) -> Result<Arc<dyn Store>, String> {
    match conf.store.kind {
        StoreKind::File => {
            let path = conf.store.endpoints.first().map(PathBuf::from).unwrap_or_default();
            Ok(Arc::new(File::new(path)))
        }
        StoreKind::Etcd => {
            let mut etcd = etcd(&conf.store)?;
            // Nodes spread their watches over the members.
            etcd.first = usize::try_from(host_seed(conf.node.as_str()) >> 1).unwrap_or(0);
            etcd.check().map_err(|error| error.to_string())?;
            Ok(Arc::new(Etcd::new(etcd)))
        }
    }
}

fn etcd(conf: &StoreConf) -> Result<etcd::Conf, String> {
    let endpoints: Result<Vec<etcd::Endpoint>, _> =
        conf.endpoints.iter().map(|text| etcd::Endpoint::parse(text, false)).collect();
    let mut etcd = etcd::Conf::new(endpoints.map_err(|error| error.to_string())?);
    etcd.prefix = Prefix::parse(&conf.prefix).map_err(|error| error.to_string())?;
    etcd.tls =
        conf.ca.clone().map(|ca| etcd::TlsFiles { ca, identity: conf.cert.clone().zip(conf.key.clone()) });
    let login = conf.username.clone().zip(conf.password.as_ref());
    etcd.credentials =
        login.map(|(user, password)| etcd::Credentials { user, password: password.reveal().to_owned() });
    let file = conf.password_file.clone();
    etcd.password_file = file.map(|path| etcd::PasswordFile { path, find: read_password });
    Ok(etcd)
}
