//! TLS on both sides. An upstream that speaks it is another gateway with a plain server behind it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use seawall_core::policy::{Limits, Policy};
use seawall_gateway::tls::{
    Authorities, ClientMaterial, ClientSide, Clients, Facts, Identity, Oldest, PassedOn, ServerMaterial, ServerSide,
    Tls, TlsError,
};

use crate::world::{Client, Do, PATIENCE, Server, World, ok, policy, route, upstream, wait_until};

/// Who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, as PEM.
pub struct Pass {
    cert: String,
    key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pass(&self, names: &[&str]) -> Pass {
        self.pass_until(names, 2096)
    }

    fn pass_until(&self, names: &[&str], year: i32) -> Pass {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        Pass { cert: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn trusted(&self) -> Authorities {
        Authorities::from_pem(self.0.pem().as_bytes()).unwrap()
    }

    /// What a client of its own trusts and shows.
    pub fn client(&self, shows: Option<&Pass>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        match shows {
            None => builder.with_no_client_auth(),
            Some(pass) => {
                let chain = CertificateDer::pem_slice_iter(pass.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(pass.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

impl Pass {
    fn identity(&self) -> Identity {
        Identity::from_pem(self.cert.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

pub fn shows(passes: &[&Pass]) -> ServerMaterial {
    ServerMaterial {
        identities: passes.iter().map(|pass| pass.identity()).collect(),
        clients: None,
        oldest: Oldest::V12,
        protocols: vec![b"http/1.1"],
    }
}

pub fn trusts(authority: &Authority) -> ClientMaterial {
    ClientMaterial {
        authorities: Some(authority.trusted()),
        pins: Vec::new(),
        identity: None,
        oldest: Oldest::V12,
        name: None,
        protocols: vec![b"http/1.1"],
    }
}

/// A gateway whose only listener speaks TLS.
pub fn shut(server: &Server, limits: impl FnOnce(&mut Limits), material: &ServerMaterial) -> (World, Arc<ServerSide>) {
    let side = Arc::new(ServerSide::new(material).unwrap());
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]);
    limits(&mut policy.limits);
    let tls = Tls { listeners: vec![Some(Arc::clone(&side))], upstreams: vec![None] };
    (World::sealed(policy, tls), side)
}

/// A gateway with a sealed way to its only upstream.
pub fn calls(addresses: &[SocketAddr], tune: impl FnOnce(&mut Policy), material: &ClientMaterial) -> World {
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", addresses)]);
    policy.routes[0].guards.retry.attempts_max = 1;
    tune(&mut policy);
    let side = Arc::new(ClientSide::new(material).unwrap());
    World::sealed(policy, Tls { listeners: vec![None], upstreams: vec![Some(side)] })
}

pub fn connect(
    address: SocketAddr,
    config: ClientConfig,
    name: &str,
) -> Client<StreamOwned<ClientConnection, TcpStream>> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    Client::over(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream))
}

fn rejected(world: &World, reason: &str) -> u64 {
    (world.view)().rejected.iter().find(|(known, _)| *known == reason).unwrap().1
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn a_call_is_sealed_on_both_sides_and_whole() {
    let authority = Authority::new();
    let long = "0123456789".repeat(300_000);
    let server = Server::start({
        let long = long.clone();
        move |_, _| ok(&long)
    });
    let (inner, _) = shut(&server, |_| {}, &shows(&[&authority.pass(&["127.0.0.1"])]));
    let side = Arc::new(ServerSide::new(&shows(&[&authority.pass(&["front.example"])])).unwrap());
    let mut policy = policy(vec![route("r", 0)], vec![upstream("u", &[inner.address])]);
    // Two nodes of one name would see a loop.
    policy.node = "front".into();
    let way = Arc::new(ClientSide::new(&trusts(&authority)).unwrap());
    let front = World::sealed(policy, Tls { listeners: vec![Some(side)], upstreams: vec![Some(way)] });
    let mut client = connect(front.address, authority.client(None), "front.example");
    for _ in 0..2 {
        let answer = client.ask(&crate::world::post("/", "", &long));
        assert_eq!((answer.status, answer.body.len()), (200, long.len()));
    }
    for seen in server.seen() {
        assert_eq!((seen.header("x-forwarded-proto").as_deref(), seen.body.len()), (Some("https"), long.len()));
    }
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    let [first, other, wild] = [
        authority.pass(&["first.example"]),
        authority.pass(&["other.example", "first.example"]),
        authority.pass(&["*.pods.example"]),
    ];
    let (world, _) = shut(&server, |_| {}, &shows(&[&first, &other, &wild]));
    let shown_to = |name: &str| {
        let mut config = authority.client(None);
        // Whether the name fits is not asked: any of the three is looked at.
        config.dangerous().set_certificate_verifier(Arc::new(blind::Blind));
        let mut client = connect(world.address, config, name);
        assert_eq!(client.ask(GET).status, 200);
        Facts::of(&client.stream.conn.peer_certificates().unwrap()[0]).unwrap().names
    };
    for (name, shown) in [
        ("first.example", &["first.example"][..]),
        ("OTHER.example", &["other.example", "first.example"]),
        ("a.pods.example", &["*.pods.example"]),
        ("a.b.pods.example", &["first.example"]),
        ("127.0.0.1", &["first.example"]),
    ] {
        assert_eq!(shown_to(name), shown, "{name}");
    }
}

#[test]
fn clients_are_asked_for_a_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(|_, _| ok("well"));
    for required in [true, false] {
        let clients = Some(Clients { authorities: authority.trusted(), required, passed_on: PassedOn::Nothing });
        let material = ServerMaterial { clients, ..shows(&[&authority.pass(&["h.example"])]) };
        let (world, _) = shut(&server, |_| {}, &material);
        let ask = |shows: Option<&Pass>| {
            let mut client = connect(world.address, authority.client(shows), "h.example");
            client.send(GET).next().map(|answer| answer.status)
        };
        assert_eq!(ask(Some(&authority.pass(&["client"]))), Some(200));
        assert_eq!(ask(None), (!required).then_some(200));
        assert_eq!(ask(Some(&stranger.pass(&["client"]))), None);
        wait_until("those who were sent away are counted", || {
            rejected(&world, "tls_handshake") == 1 + u64::from(required)
        });
    }
}

#[test]
fn upstreams_are_told_whose_certificate_a_client_has_shown_where_that_is_wanted() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    // A second one behind it, as a client with an authority in between shows it.
    let mut pass = authority.pass(&["client"]);
    let chain = |pass: &Pass| -> Vec<String> {
        let certificates = CertificateDer::pem_slice_iter(pass.cert.as_bytes()).map(Result::unwrap);
        certificates.map(|certificate| format!(":{}:", STANDARD.encode(certificate))).collect()
    };
    pass.cert += &authority.pass(&["between"]).cert;
    let [leaf, behind] = chain(&pass).try_into().unwrap();
    for (passed_on, certificate, rest) in [
        (PassedOn::Nothing, None, None),
        (PassedOn::Certificate, Some(&leaf), None),
        (PassedOn::Chain, Some(&leaf), Some(&behind)),
    ] {
        let clients = Some(Clients { authorities: authority.trusted(), required: false, passed_on });
        let material = ServerMaterial { clients, ..shows(&[&authority.pass(&["h.example"])]) };
        let (world, _) = shut(&server, |_| {}, &material);
        let forged = "GET / HTTP/1.1\r\nHost: h\r\nClient-Cert: :Zm9yZ2Vk:\r\nClient-Cert-Chain: :Zm9yZ2Vk:\r\n\r\n";
        let told = |shows: Option<&Pass>| {
            let mut client = connect(world.address, authority.client(shows), "h.example");
            assert_eq!(client.ask(forged).status, 200);
            let seen = server.seen().pop().unwrap();
            assert!(!seen.head.contains("Zm9yZ2Vk"), "{}", seen.head);
            (seen.header("client-cert"), seen.header("client-cert-chain"))
        };
        assert_eq!(told(Some(&pass)), (certificate.cloned(), rest.cloned()), "{passed_on:?}");
        assert_eq!(told(None), (None, None), "{passed_on:?}");
    }
}

#[test]
fn plain_words_silence_and_noise_are_turned_away_and_counted() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    let material = shows(&[&authority.pass(&["h.example"])]);
    let (world, _) = shut(&server, |limits| limits.header_timeout = Duration::from_millis(100), &material);
    let answer = world.client().ask(GET);
    assert_eq!((answer.status, answer.body.as_str()), (400, "this port speaks TLS: ask again by https://\n"));
    let mut silent = world.client();
    assert_eq!(silent.rest(), "");
    let mut noisy = world.client();
    noisy.stream.write_all(&[0x16, 3, 1, 0xff, 0xff, 9, 9, 9, 9]).unwrap();
    let mut heard = Vec::new();
    let _ = noisy.stream.read_to_end(&mut heard);
    assert!(heard.is_empty() || heard[0] == 0x15, "an alert, if anything: {heard:?}");
    for reason in ["plain_on_tls", "tls_handshake_timeout", "tls_handshake"] {
        wait_until(reason, || rejected(&world, reason) == 1);
    }
    assert_eq!(server.count(), 0);
}

#[test]
fn a_new_certificate_drops_no_connection() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    let (old, new) = (authority.pass(&["h.example"]), authority.pass(&["h.example", "new.example"]));
    let (world, side) = shut(&server, |_| {}, &shows(&[&old]));
    let mut before = connect(world.address, authority.client(None), "h.example");
    assert_eq!(before.ask(GET).status, 200);
    side.replace(&shows(&[&new])).unwrap();
    assert!(matches!(side.replace(&shows(&[])), Err(TlsError::Pem(_))), "nothing to show changes nothing");
    let mut after = connect(world.address, authority.client(None), "new.example");
    assert_eq!((before.ask(GET).status, after.ask(GET).status), (200, 200));
    assert_eq!((world.view)().connections_total, 2);
}

#[test]
fn an_upstream_must_be_who_it_should_be() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(|_, _| ok("well"));
    let pass = authority.pass(&["inner.example"]);
    let pin = pass.identity().facts().pin;
    let (inner, _) = shut(&server, |_| {}, &shows(&[&pass]));
    let (old, _) = shut(&server, |_| {}, &shows(&[&authority.pass_until(&["inner.example"], 2020)]));
    let named = ClientMaterial { name: Some("inner.example".into()), ..trusts(&authority) };
    let blind = ClientMaterial { authorities: None, ..trusts(&authority) };
    for (what, world, material, failure) in [
        ("trusted", &inner, named.clone(), None),
        ("of another name", &inner, trusts(&authority), Some("tls_certificate")),
        (
            "of another authority",
            &inner,
            ClientMaterial { authorities: Some(stranger.trusted()), ..named.clone() },
            Some("tls_certificate"),
        ),
        ("out of date", &old, named.clone(), Some("tls_certificate")),
        ("pinned", &inner, ClientMaterial { pins: vec![[0; 32], pin], ..named.clone() }, None),
        (
            "another key than the pinned",
            &inner,
            ClientMaterial { pins: vec![[0; 32]], ..named.clone() },
            Some("tls_certificate"),
        ),
        ("only pinned", &old, ClientMaterial { pins: vec![pin], ..blind.clone() }, Some("tls_certificate")),
        ("not looked at", &old, blind.clone(), None),
        ("pinned and otherwise not looked at", &inner, ClientMaterial { pins: vec![pin], ..blind.clone() }, None),
    ] {
        let front = calls(&[world.address], |policy| policy.node = "front".into(), &material);
        let answer = front.get("/");
        let failures = front.route(0).failures;
        let failed: Vec<_> = failures.iter().filter(|(_, count)| *count > 0).map(|(name, _)| *name).collect();
        assert_eq!(failed, Vec::from_iter(failure), "{what}: {}", answer.head);
        assert_eq!(answer.status, if failure.is_some() { 502 } else { 200 }, "{what}");
        if failure.is_some() {
            assert!(answer.must("proxy-status").contains("error=tls_certificate_error"), "{what}: {}", answer.head);
        }
    }
}

#[test]
fn an_upstream_that_cannot_be_trusted_or_speaks_plainly_never_sees_the_request() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(|_, _| ok("well"));
    let plain = Server::start(|_, _| Do::Close);
    let (good, _) = shut(&server, |_| {}, &shows(&[&authority.pass(&["127.0.0.1"])]));
    let (false_one, _) = shut(&server, |_| {}, &shows(&[&stranger.pass(&["127.0.0.1"])]));
    for bad in [false_one.address, plain.address] {
        let tune = |policy: &mut Policy| {
            policy.node = "front".into();
            policy.routes[0].guards.retry.attempts_max = 3;
        };
        let front = calls(&[bad, good.address], tune, &trusts(&authority));
        for _ in 0..8 {
            // Not idempotent: only what was never sent may be sent again.
            assert_eq!(front.post("/", "", "once").status, 200);
        }
    }
    assert_eq!((server.count(), plain.seen().iter().filter(|seen| seen.line().starts_with("POST")).count()), (16, 0));
}

#[test]
fn we_show_our_own_certificate_and_ask_for_a_host_of_its_own() {
    let authority = Authority::new();
    let server = Server::start(|_, _| ok("well"));
    let clients = Some(Clients { authorities: authority.trusted(), required: true, passed_on: PassedOn::Nothing });
    let (inner, _) = shut(&server, |_| {}, &ServerMaterial { clients, ..shows(&[&authority.pass(&["127.0.0.1"])]) });
    let tune = |policy: &mut Policy| {
        policy.node = "front".into();
        policy.upstreams[0].host = Some("inner.example".into());
    };
    let ours = authority.pass(&["front"]);
    let material = ClientMaterial { identity: Some(ours.identity()), oldest: Oldest::V13, ..trusts(&authority) };
    let front = calls(&[inner.address], tune, &material);
    assert_eq!(front.get("/").status, 200);
    assert_eq!(server.seen()[0].header("host").as_deref(), Some("inner.example"));
    let stranger = calls(&[inner.address], tune, &trusts(&authority));
    assert_eq!(stranger.get("/").status, 502);
}

#[test]
fn files_that_make_no_side_say_why() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (one, two) = (authority.pass(&["a"]), other.pass(&["b"]));
    let told = |cert: &str, key: &str| Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap_err().to_string();
    assert_eq!(told(&one.cert, &two.key), "the certificate and the key do not go together");
    assert_eq!(told("", &one.key), "no certificate in it");
    assert!(told(&one.cert, "").starts_with("no private key in PEM"));
    assert!(
        told("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &one.key)
            .starts_with("not a certificate")
    );
    assert!(matches!(Authorities::from_pem(b"nothing"), Err(TlsError::NoAuthority)));
    assert!(!authority.trusted().facts().is_empty());
    let unnamed = ClientSide::new(&ClientMaterial { name: Some("a b".into()), ..trusts(&authority) });
    assert_eq!(unnamed.unwrap_err().to_string(), "`a b` is no name that a certificate could have");
}

/// A client that believes everything, to look at what it is shown.
mod blind {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub struct Blind;

    impl ServerCertVerifier for Blind {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
}
