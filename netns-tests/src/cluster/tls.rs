//! Certificates of tests: an authority, and what it signs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};

/// Who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its own certificate, a PEM file.
    pub ca: PathBuf,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one; its files go to `dir`, their names begin with `name`.
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = dir.join(format!("{name}.pem"));
        fs::write(&ca, params.self_signed(&key).expect("a certificate").pem()).expect("write a certificate");
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), ca }
    }

    /// A certificate for servers at these addresses and for clients.
    pub fn sign(&self, name: &str, addresses: &[IpAddr]) -> Identity {
        self.sign_until(name, addresses, 2100)
    }

    /// The same, which expired long ago.
    pub fn sign_expired(&self, name: &str) -> Identity {
        self.sign_until(name, &[], 2001)
    }

    fn sign_until(&self, name: &str, addresses: &[IpAddr], year: i32) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = addresses.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let identity = Identity {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}-key.pem")),
        };
        let signed = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        fs::write(&identity.cert, signed.pem()).expect("write a certificate");
        fs::write(&identity.key, key.serialize_pem()).expect("write a key");
        identity
    }
}
