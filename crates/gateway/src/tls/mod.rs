//! TLS on both sides: what a listener shows and asks for, and what an upstream must show.
//!
//! A [`ServerSide`] belongs to a listener and picks the certificate by the name the client asks for (SNI); a
//! [`ClientSide`] belongs to an upstream and checks the certificate against authorities, the name, and pins if there are
//! any. Both can be given other material while they are in use: handshakes from then on see it, and no connection is
//! dropped for it.
//! Not here: files, and when they are read again (`app`); how long a handshake may take (`listener.rs`, `pool.rs`).

mod certificate;
mod check;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use seawall_core::outcome::Failure;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub use certificate::{Facts, Pin};

use crate::net::Stream;
use check::Check;

/// What stands in for TLS where a gateway needs it, in the policy's order.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Of each listener.
    pub listeners: Vec<Option<Arc<ServerSide>>>,
    /// Of each upstream.
    pub upstreams: Vec<Option<Arc<ClientSide>>>,
}

impl Tls {
    pub(crate) fn listener(&self, index: usize) -> Option<Arc<ServerSide>> {
        self.listeners.get(index).cloned().flatten()
    }

    pub(crate) fn upstream(&self, index: usize) -> Option<Arc<ClientSide>> {
        self.upstreams.get(index).cloned().flatten()
    }
}

/// Certificates and keys that do not make a side.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file's text is not what it should be.
    #[error("{0}")]
    Pem(String),
    /// A certificate cannot be read.
    #[error("{0}")]
    Certificate(String),
    /// The key is not the certificate's, or cannot be used.
    #[error("the certificate and the key do not go together")]
    KeyMismatch(#[source] rustls::Error),
    /// Nobody would be trusted.
    #[error("no certificate of an authority in it")]
    NoAuthority,
    /// Anything else the library says no to.
    #[error("{0}")]
    Refused(String),
}

fn refused(error: impl std::fmt::Display) -> TlsError {
    TlsError::Refused(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The oldest version spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oldest {
    /// TLS 1.2.
    #[default]
    V12,
    /// TLS 1.3.
    V13,
}

impl Oldest {
    fn versions(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::V12 => vec![&version::TLS13, &version::TLS12],
            Self::V13 => vec![&version::TLS13],
        }
    }
}

/// A certificate with the chain behind it, and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: Facts,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), facts: self.facts.clone() }
    }
}

impl Identity {
    /// Reads both from PEM; the leaf comes first.
    ///
    /// # Errors
    /// [`TlsError`]: no certificate, no key, or one that is not the other's.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let leaf = chain.first().ok_or_else(|| TlsError::Pem("no certificate in it".into()))?;
        let facts = Facts::of(leaf).map_err(TlsError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TlsError::Pem(format!("no private key in PEM: {error}")))?;
        let identity = Self { chain, key, facts };
        identity.certified()?;
        Ok(identity)
    }

    /// What the leaf says.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn certified(&self) -> Result<CertifiedKey, TlsError> {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider()).map_err(TlsError::KeyMismatch)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem(format!("not certificates in PEM: {error}")))
}

/// Whose signatures are believed.
#[derive(Clone, Debug)]
pub struct Authorities {
    roots: Arc<RootCertStore>,
    facts: Vec<Facts>,
}

impl Authorities {
    /// Those in a PEM, and no others.
    ///
    /// # Errors
    /// [`TlsError`]: something in it is no certificate of an authority, or there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let (mut roots, mut facts) = (RootCertStore::empty(), Vec::new());
        for certificate in certificates(pem)? {
            facts.push(Facts::of(&certificate).map_err(TlsError::Certificate)?);
            roots.add(certificate).map_err(refused)?;
        }
        if roots.is_empty() { Err(TlsError::NoAuthority) } else { Ok(Self { roots: Arc::new(roots), facts }) }
    }

    /// Those of the system.
    ///
    /// # Errors
    /// [`TlsError`] if it has none.
    pub fn of_system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems carry some that nobody can read any more; those that can be read stand.
        roots.add_parsable_certificates(found.certs);
        match (roots.is_empty(), found.errors.first()) {
            (false, _) => Ok(Self { roots: Arc::new(roots), facts: Vec::new() }),
            (true, Some(error)) => Err(refused(error)),
            (true, None) => Err(TlsError::NoAuthority),
        }
    }

    /// What those of a PEM say; of the system's nothing is told.
    #[must_use]
    pub fn facts(&self) -> &[Facts] {
        &self.facts
    }
}

/// What clients must show.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Who has signed it.
    pub authorities: Authorities,
    /// True if those without a certificate are sent away.
    pub required: bool,
    /// What upstreams are told of it.
    pub passed_on: PassedOn,
}

/// What upstreams are told of a client's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassedOn {
    /// Nothing.
    #[default]
    Nothing,
    /// The certificate.
    Certificate,
    /// The certificate, and those the client showed behind it.
    Chain,
}

/// A client's certificate in the words of RFC 9440. Nothing of a client that showed none, or that nobody is to hear of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// `Client-Cert`.
    pub(crate) certificate: Option<HeaderValue>,
    /// `Client-Cert-Chain`.
    pub(crate) chain: Option<HeaderValue>,
}

impl Shown {
    fn of(chain: &[CertificateDer<'_>], passed_on: PassedOn) -> Self {
        let Some((leaf, rest)) = chain.split_first().filter(|_| passed_on != PassedOn::Nothing) else {
            return Self::default();
        };
        // A sequence of bytes as RFC 8941 writes it: letters, digits and colons alone.
        let bytes = |certificate: &CertificateDer<'_>| format!(":{}:", STANDARD.encode(certificate));
        let value = |text: String| HeaderValue::from_maybe_shared(text).ok();
        let rest: Vec<_> = rest.iter().map(bytes).collect();
        Self {
            certificate: value(bytes(leaf)),
            chain: value(rest.join(", ")).filter(|_| passed_on == PassedOn::Chain && !rest.is_empty()),
        }
    }
}

/// What a listener needs.
#[derive(Clone, Debug)]
pub struct ServerMaterial {
    /// Chosen by name; the first stands in for all other names.
    pub identities: Vec<Identity>,
    /// What clients must show, if anything.
    pub clients: Option<Clients>,
    /// The oldest version spoken.
    pub oldest: Oldest,
    /// The protocols offered, the liked one first (ALPN); none to leave it open.
    pub protocols: Vec<&'static [u8]>,
}

/// A listener's side.
pub struct ServerSide {
    config: ArcSwap<ServerConfig>,
    passed_on: PassedOn,
}

impl std::fmt::Debug for ServerSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSide")
    }
}

impl ServerSide {
    /// # Errors
    /// [`TlsError`] if the material makes no listener.
    pub fn new(material: &ServerMaterial) -> Result<Self, TlsError> {
        let passed_on = material.clients.as_ref().map(|clients| clients.passed_on).unwrap_or_default();
        Ok(Self { config: ArcSwap::new(server_config(material)?), passed_on })
    }

    /// Handshakes from now on use this.
    ///
    /// # Errors
    /// [`TlsError`]; then nothing changes.
    pub fn replace(&self, material: &ServerMaterial) -> Result<(), TlsError> {
        self.config.store(server_config(material)?);
        Ok(())
    }

    /// What upstreams are told of the client at the other end.
    pub(crate) fn shown(&self, stream: &Stream) -> Shown {
        Shown::of(stream.certificates(), self.passed_on)
    }

    /// The handshake. Who is turned away has been told why by an alert, or by a plain answer if it spoke plain HTTP.
    pub(crate) async fn accept(&self, stream: Stream) -> Result<Stream, Unsealed> {
        let accepting = TlsAcceptor::from(self.config.load_full()).accept(stream);
        match accepting.into_fallible().await {
            Ok(sealed) => Ok(Stream::Tls(Box::new(TlsStream::Server(sealed)))),
            Err((error, stream)) => match tls_error(&error) {
                Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                    Err(Unsealed::Plain(stream))
                }
                _ => Err(Unsealed::Failed(error)),
            },
        }
    }
}

/// A handshake that came to nothing.
pub(crate) enum Unsealed {
    /// What came is not TLS.
    Plain(Stream),
    /// Anything else.
    Failed(io::Error),
}

fn server_config(material: &ServerMaterial) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&material.oldest.versions())
        .map_err(refused)?;
    let builder = match &material.clients {
        None => builder.with_no_client_auth(),
        Some(Clients { authorities, required, passed_on: _ }) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&authorities.roots), provider);
            let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(refused)?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Names::of(&material.identities)?));
    config.alpn_protocols = material.protocols.iter().map(|name| name.to_vec()).collect();
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(refused)?;
    Ok(Arc::new(config))
}

/// Picks a certificate by the name asked for.
#[derive(Debug)]
struct Names {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the first label.
    wild: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl Names {
    fn of(identities: &[Identity]) -> Result<Self, TlsError> {
        let (mut exact, mut wild) = (HashMap::new(), HashMap::new());
        let mut default = None;
        for identity in identities {
            let key = Arc::new(identity.certified()?);
            for name in &identity.facts.names {
                let name = name.to_ascii_lowercase();
                // The first that speaks for a name keeps it.
                match name.strip_prefix("*.") {
                    Some(parent) => wild.entry(parent.to_owned()).or_insert_with(|| Arc::clone(&key)),
                    None => exact.entry(name).or_insert_with(|| Arc::clone(&key)),
                };
            }
            default.get_or_insert(key);
        }
        let default = default.ok_or_else(|| TlsError::Pem("no certificate to show".into()))?;
        Ok(Self { exact, wild, default })
    }

    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            let wild = || name.split_once('.').and_then(|(_, parent)| self.wild.get(parent));
            self.exact.get(name).or_else(wild)
        });
        Arc::clone(found.unwrap_or(&self.default))
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(self.choose(name.as_deref()))
    }
}

/// What a client needs to trust an upstream.
#[derive(Clone, Debug)]
pub struct ClientMaterial {
    /// Who signs for it. Without, nobody has to: only pins are left, or nothing.
    pub authorities: Option<Authorities>,
    /// The keys of which its certificate must have one; any key if empty.
    pub pins: Vec<Pin>,
    /// What we show, if it asks.
    pub identity: Option<Identity>,
    /// The oldest version spoken.
    pub oldest: Oldest,
    /// The name its certificate must have, in place of the endpoint's.
    pub name: Option<String>,
    /// The protocols offered, the liked one first (ALPN); none to leave it open.
    pub protocols: Vec<&'static [u8]>,
}

/// An upstream's side.
pub struct ClientSide(ArcSwap<Client>);

struct Client {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for ClientSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientSide")
    }
}

impl ClientSide {
    /// # Errors
    /// [`TlsError`] if the material makes no client.
    pub fn new(material: &ClientMaterial) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::from_pointee(client(material)?)))
    }

    /// Handshakes from now on use this.
    ///
    /// # Errors
    /// [`TlsError`]; then nothing changes.
    pub fn replace(&self, material: &ClientMaterial) -> Result<(), TlsError> {
        self.0.store(Arc::new(client(material)?));
        Ok(())
    }

    /// The handshake with the endpoint at `host:port`.
    pub(crate) async fn connect(&self, host_port: &str, stream: Stream) -> Result<Stream, Untrusted> {
        let client = self.0.load_full();
        let name = match &client.name {
            Some(name) => name.clone(),
            None => server_name(host_of(host_port)).map_err(|error| Untrusted::new(Failure::Tls, error))?,
        };
        let sealed = TlsConnector::from(Arc::clone(&client.config)).connect(name, stream).await;
        sealed.map(|sealed| Stream::Tls(Box::new(TlsStream::Client(sealed)))).map_err(|error| {
            let failure = match tls_error(&error) {
                Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                    Failure::TlsCertificate
                }
                _ => Failure::Tls,
            };
            Untrusted::new(failure, error)
        })
    }
}

/// Why a connection to an upstream was not sealed.
pub(crate) struct Untrusted {
    pub(crate) failure: Failure,
    pub(crate) why: String,
}

impl Untrusted {
    fn new(failure: Failure, why: impl std::fmt::Display) -> Self {
        Self { failure, why: why.to_string() }
    }
}

fn client(material: &ClientMaterial) -> Result<Client, TlsError> {
    let provider = provider();
    let verifier = match &material.authorities {
        None => None,
        Some(authorities) => {
            let roots = Arc::clone(&authorities.roots);
            let built = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            Some(built.map_err(refused)?)
        }
    };
    let check = Check::new(verifier, material.pins.clone(), &provider);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&material.oldest.versions())
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let mut config = match &material.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = (identity.chain.clone(), identity.key.clone_key());
            builder.with_client_auth_cert(chain, key).map_err(TlsError::KeyMismatch)?
        }
    };
    config.alpn_protocols = material.protocols.iter().map(|name| name.to_vec()).collect();
    let name = material.name.as_deref().map(server_name).transpose().map_err(TlsError::Refused)?;
    Ok(Client { config: Arc::new(config), name })
}

/// A name as certificates have it: of a host, or an IP address.
fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(text.to_owned());
    name.map_err(|_| format!("`{text}` is no name that a certificate could have"))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_of(host_port: &str) -> &str {
    let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
