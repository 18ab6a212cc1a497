//! What is written in a certificate: for whom it speaks, until when, and by which key it is known.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use seawall_core::time::Wall;
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// SHA-256 of a certificate's public key with its algorithm (`SubjectPublicKeyInfo`): it outlives a renewal of the
/// certificate with the same key. As RFC 7469 counts it.
pub type Pin = [u8; 32];

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The names and addresses it speaks for, as written: `api.example`, `*.example`, `10.0.0.1`.
    pub names: Vec<String>,
    /// From when it holds.
    pub not_before: Wall,
    /// Until when it holds.
    pub not_after: Wall,
    /// Its key's mark.
    pub pin: Pin,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let read = Certificate::from_der(certificate).map_err(|error| format!("not a certificate: {error}"))?;
        let signed = read.tbs_certificate();
        let validity = signed.validity();
        let key = signed.subject_public_key_info().to_der().map_err(|error| format!("its key: {error}"))?;
        Ok(Self {
            names: names(&read)?,
            not_before: wall(validity.not_before.to_unix_duration()),
            not_after: wall(validity.not_after.to_unix_duration()),
            pin: Sha256::digest(key).into(),
        })
    }

    /// True if the name belongs to it. A wildcard stands for one label (RFC 9525, section 6.3).
    #[must_use]
    pub fn speaks_for(&self, name: &str) -> bool {
        self.names.iter().any(|written| match written.strip_prefix("*.") {
            Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
            None => written.eq_ignore_ascii_case(name),
        })
    }

    /// How long it still holds; nothing if it does not any more.
    #[must_use]
    pub fn left(&self, now: Wall) -> Option<Duration> {
        let left = self.not_after.as_millis().checked_sub(now.as_millis()).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }
}

fn wall(since_epoch: Duration) -> Wall {
    Wall::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn names(certificate: &Certificate) -> Result<Vec<String>, String> {
    let found = certificate.tbs_certificate().get_extension::<SubjectAltName>();
    let Some((_, alternatives)) = found.map_err(|error| format!("its names: {error}"))? else {
        return Ok(Vec::new());
    };
    Ok(alternatives.0.iter().filter_map(name).collect())
}

fn name(written: &GeneralName) -> Option<String> {
    match written {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => match *bytes.as_bytes() {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            ref longer => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(longer).ok()?).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_says_whose_it_is_and_until_when() {
        let key = KeyPair::generate().unwrap();
        let names = ["api.example".to_owned(), "*.pods.example".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        let facts = Facts::of(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(facts.names, names);
        let renewed = Facts::of(CertificateParams::new(names).unwrap().self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(facts.pin, renewed.pin, "a mark of the key, not of the certificate");

        let day = |days: u64| Wall::from_millis(facts.not_before.as_millis() + days * 86_400_000);
        assert_eq!(facts.left(day(364)), Some(Duration::from_secs(86_400)));
        assert_eq!(facts.left(day(365)), None);

        for (name, is_its) in [
            ("API.example", true),
            ("a.pods.example", true),
            ("a.b.pods.example", false),
            ("pods.example", false),
            ("api.example.org", false),
        ] {
            assert_eq!(facts.speaks_for(name), is_its, "{name}");
        }
        assert!(Facts::of(&CertificateDer::from(vec![1, 2, 3])).unwrap_err().starts_with("not a certificate"));
    }
}
