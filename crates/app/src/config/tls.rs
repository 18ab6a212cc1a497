//! What listeners and upstreams say of TLS: which files, who is trusted, and for what.
//!
//! Not here: what is in the files (`crate::tls`), which is looked at by whoever starts a node or checks a
//! configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use seawall_core::policy::Protocol;
use seawall_gateway::tls::{Oldest, PassedOn, Pin};

use super::finding::Finding;
use super::listeners::parse_host;
use super::policies::read_switch;
use super::reader::{Field, Keys, Section};

/// TLS of everything that speaks it, in the policy's order.
#[derive(Clone, Debug, Default)]
pub struct TlsConfig {
    /// Of each listener.
    pub listeners: Vec<Option<ListenerTls>>,
    /// Of each upstream.
    pub upstreams: Vec<Option<UpstreamTls>>,
}

/// A file, and where the configuration names it.
#[derive(Clone, Debug)]
pub struct FileAt {
    /// The file.
    pub path: PathBuf,
    /// Where what is wrong with it is told.
    pub at: Finding,
}

/// A certificate with its chain, and its key.
#[derive(Clone, Debug)]
pub struct PairAt {
    /// PEM, the leaf first.
    pub cert: FileAt,
    /// PEM.
    pub key: FileAt,
}

/// What a listener shows, and what it asks for.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// The first is shown to who asks for no name that any of them has.
    pub pairs: Vec<PairAt>,
    /// Who signs for clients.
    pub client_ca: Option<FileAt>,
    /// False if clients may come without a certificate.
    pub client_required: bool,
    /// What upstreams are told of a client's certificate.
    pub client_passed_on: PassedOn,
    /// The oldest version spoken.
    pub oldest: Oldest,
}

/// What an upstream must show, and what it is shown.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Who signs for it; the system's authorities if absent.
    pub ca: Option<FileAt>,
    /// What it is shown.
    pub pair: Option<PairAt>,
    /// The name its certificate must have; the endpoint's if absent.
    pub name: Option<String>,
    /// Keys of which its certificate must have one.
    pub pins: Vec<Pin>,
    /// False if any certificate is believed.
    pub verifies: bool,
    /// The oldest version spoken.
    pub oldest: Oldest,
    /// Where it is written.
    pub at: Finding,
}

impl UpstreamTls {
    /// What an `https` URL alone says: the system's authorities, and the name in the URL.
    pub(super) fn plain(at: Finding) -> Self {
        Self { ca: None, pair: None, name: None, pins: Vec::new(), verifies: true, oldest: Oldest::default(), at }
    }
}

const LISTENER: Keys = Keys {
    of: "`tls`",
    known: &[
        "cert_file",
        "key_file",
        "certificates",
        "client_ca_file",
        "client_cert",
        "client_cert_header",
        "min_version",
    ],
    later: &[],
};

const PAIR: Keys = Keys { of: "this certificate", known: &["cert_file", "key_file"], later: &[] };

/// Nothing if it cannot be read, which is told.
pub(super) fn listener(field: Field<'_>, protocol: Protocol) -> Option<ListenerTls> {
    let section = field.section(LISTENER);
    let mut pairs: Vec<_> = Vec::new();
    if ["cert_file", "key_file"].iter().any(|key| section.field(key).is_some()) {
        pairs.extend(pair(&section));
    }
    if let Some(list) = section.field("certificates") {
        pairs.extend(list.list().into_iter().filter_map(|item| pair(&item.section(PAIR))));
    }
    if pairs.is_empty() && section.field("certificates").is_none_or(|list| list.list().is_empty()) {
        section.required("cert_file", "server.pem");
    }
    let (client_cert, header) = (section.field("client_cert"), section.field("client_cert_header"));
    let client_ca = section.field("client_ca_file").and_then(file);
    if client_ca.is_none() {
        for field in [client_cert, header.filter(|field| !field.is_off())].into_iter().flatten() {
            field.error_with("nobody is named who signs for clients", "add `client_ca_file: clients.pem`");
        }
    }
    if let (Some(field), Protocol::Tcp) = (header, protocol) {
        field.reader.error_with(
            field.key_spot,
            "connections have no headers to say whose certificate it is",
            "remove it",
        );
    }
    let passed_on = header.filter(|field| !field.is_off()).and_then(|field| {
        field.parsed(|text| match text {
            "on" | "true" => Ok(PassedOn::Certificate),
            "chain" => Ok(PassedOn::Chain),
            _ => Err(format!("`{text}` is not understood; known are on, chain and off")),
        })
    });
    let required = client_cert.and_then(|field| {
        field.parsed(|text| match text {
            "required" => Ok(true),
            "optional" => Ok(false),
            _ => Err(format!("`{text}` is not understood; known are required and optional")),
        })
    });
    let oldest = oldest(&section);
    let (client_required, client_passed_on) = (required.unwrap_or(true), passed_on.unwrap_or_default());
    (!pairs.is_empty()).then_some(ListenerTls { pairs, client_ca, client_required, client_passed_on, oldest })
}

fn pair(section: &Section<'_>) -> Option<PairAt> {
    let cert = section.required("cert_file", "server.pem").and_then(file);
    let key = section.required("key_file", "server.key").and_then(file);
    Some(PairAt { cert: cert?, key: key? })
}

fn file(field: Field<'_>) -> Option<FileAt> {
    let path = super::node::read_path(field)?;
    Some(FileAt { path, at: field.reader.place(field.spot()) })
}

fn oldest(section: &Section<'_>) -> Oldest {
    let parse = |text: &str| match text {
        "1.2" => Ok(Oldest::V12),
        "1.3" => Ok(Oldest::V13),
        _ => Err(format!("`{text}` is no version spoken here; known are \"1.2\" and \"1.3\"")),
    };
    section.field("min_version").and_then(|field| field.parsed(parse)).unwrap_or_default()
}

const UPSTREAM: Keys = Keys {
    of: "`tls`",
    known: &["ca_file", "cert_file", "key_file", "server_name", "pins", "verify", "min_version"],
    later: &[],
};

/// TLS towards an upstream: asked for by the key `tls` (`on`, or how), or by an `https` URL at `url`.
pub(super) fn upstream(field: Option<Field<'_>>, url: Option<Field<'_>>) -> Option<UpstreamTls> {
    let plain = |at: Field<'_>| UpstreamTls::plain(at.reader.place(at.spot()));
    let Some(field) = field else { return url.map(plain) };
    if field.is_off() {
        if let Some(url) = url {
            url.error_with("`https` and `tls: off` contradict each other", "write `http`, or remove `tls`");
        }
        return None;
    }
    if matches!(field.peek(), Some("on" | "true")) {
        return Some(plain(field));
    }
    let section = field.section(UPSTREAM);
    let has_pair = ["cert_file", "key_file"].iter().any(|key| section.field(key).is_some());
    let tls = UpstreamTls {
        ca: section.field("ca_file").and_then(file),
        pair: if has_pair { pair(&section) } else { None },
        name: section.field("server_name").and_then(|field| field.parsed(parse_server_name)),
        pins: section.field("pins").map(pins).unwrap_or_default(),
        // What cannot be read is told, and not taken for a no.
        verifies: section.field("verify").is_none_or(|field| read_switch(field) || !field.is_off()),
        oldest: oldest(&section),
        ..plain(field)
    };
    if let (false, Some(verify)) = (tls.verifies, section.field("verify")) {
        for ignored in ["ca_file", "server_name"].iter().filter_map(|key| section.field(key)) {
            ignored.error_with("with `verify: off` it has no effect", "remove one of the two");
        }
        if tls.pins.is_empty() {
            let message = "whoever answers at this upstream's address is believed to be it";
            verify.reader.warning(verify.spot(), message, "trust its authority with `ca_file`, or its key with `pins`");
        }
    }
    Some(tls)
}

fn parse_server_name(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() { Ok(text.into()) } else { parse_host(text) }
}

fn pins(field: Field<'_>) -> Vec<Pin> {
    let items = field.list_or_one();
    if items.is_empty() {
        field.error_with("an empty list trusts no key", "remove it to trust every key that an authority signs for");
    }
    items.into_iter().filter_map(|item| item.parsed(parse_pin)).collect()
}

/// `sha256/BASE64`, as curl and RFC 7469 write it.
fn parse_pin(text: &str) -> Result<Pin, String> {
    let decoded = text.strip_prefix("sha256/").and_then(|text| STANDARD.decode(text).ok());
    decoded
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("`{text}` is no pin: expected `sha256/` and 44 characters of base64 (RFC 7469)"))
}

/// `sha256/BASE64`.
pub(crate) fn pin_text(pin: &Pin) -> String {
    format!("sha256/{}", STANDARD.encode(pin))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pins_are_written_as_curl_writes_them() {
        let pin: Pin = std::array::from_fn(|at| at as u8);
        assert_eq!(pin_text(&pin), "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        for wrong in [
            "",
            "sha256/",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "sha256/AAEC",
            "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH-8=",
        ] {
            assert!(parse_pin(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_pin_reads_as_it_is_written(pin: [u8; 32]) {
            prop_assert_eq!(parse_pin(&pin_text(&pin)), Ok(pin));
        }
    }
}
