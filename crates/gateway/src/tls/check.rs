//! Whether an upstream is who it should be: authorities and the name, pins, or both.
//!
//! Pins are compared with the key of the upstream's own certificate, and with no other of the chain it sends: whoever
//! answers in its place could add any certificate to that chain. To pin an authority is to trust no other (`ca_file`).

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::{Facts, Pin};

/// What every certificate of an upstream passes.
#[derive(Debug)]
pub(super) struct Check {
    /// `None` to believe any certificate.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<Pin>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Check {
    pub(super) fn new(
        authorities: Option<Arc<WebPkiServerVerifier>>,
        pins: Vec<Pin>,
        provider: &CryptoProvider,
    ) -> Self {
        Self { authorities, pins, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            authorities.verify_server_cert(leaf, rest, name, ocsp, now)?;
        }
        let is_pinned = || Facts::of(leaf).is_ok_and(|facts| self.pins.contains(&facts.pin));
        if self.pins.is_empty() || is_pinned() {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
