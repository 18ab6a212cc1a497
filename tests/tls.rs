//! TLS with the programs others use: certificates by `openssl`, `curl` in front, nginx behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::house::{Node, Place, port, wait_for};
use crate::nginx::Nginx;
use crate::server::{Server, ok};

/// A folder with an authority, as `openssl` makes one.
pub struct Authority(pub tempfile::TempDir);

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        let [key, cert] = ["ca.key", "ca.pem"].map(|name| authority.path(name));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=tests",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-keyout",
            text(&key),
            "-out",
            text(&cert),
        ]);
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A certificate `NAME.pem` with its key `NAME.key`.
    pub fn pass(&self, name: &str, names: &str, days: &str) {
        let [key, asked, cert, names_file] =
            ["key", "csr", "pem", "ext"].map(|end| self.path(&format!("{name}.{end}")));
        std::fs::write(&names_file, format!("subjectAltName={names}\n")).unwrap();
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &format!("/CN={name}"),
            "-keyout",
            text(&key),
            "-out",
            text(&asked),
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            text(&asked),
            "-CA",
            text(&self.path("ca.pem")),
            "-CAkey",
            text(&self.path("ca.key")),
            "-CAcreateserial",
            "-days",
            days,
            "-extfile",
            text(&names_file),
            "-out",
            text(&cert),
        ]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `curl`, from the authority's folder.
fn curl(authority: &Authority, node: &Node, arguments: &[&str]) -> Result<String, i32> {
    let mut command = Command::new("curl");
    command.current_dir(authority.0.path()).args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--cacert",
        "ca.pem",
    ]);
    let output = command.args(arguments).arg(format!("https://localhost:{}/", node.address().port())).output();
    let output = output.expect("curl runs");
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        code => Err(code.unwrap_or(-1)),
    }
}

/// nginx that lets nobody in without a certificate, and says what it made of it.
fn sealed_nginx(authority: &Authority) -> (Nginx, u16) {
    let (mut nginx, sealed) = (Nginx::start(), port());
    let dir = authority.0.path().display();
    nginx.kill();
    nginx.configure(
        "plain",
        &format!(
            "server {{ listen 127.0.0.1:{sealed} ssl; ssl_certificate {dir}/inner.pem; ssl_certificate_key {dir}/inner.key;\n\
             ssl_client_certificate {dir}/ca.pem; ssl_verify_client on;\n\
             location / {{ return 200 'client $ssl_client_verify, host $host'; }} }}\n"
        ),
    );
    nginx.run();
    (nginx, sealed)
}

#[test]
fn certificates_are_shown_asked_for_and_renewed_under_way() {
    let authority = Authority::new();
    for (name, names) in [("front", "DNS:localhost"), ("inner", "DNS:inner.example"), ("client", "DNS:client")] {
        authority.pass(name, names, "365");
    }
    let (_nginx, sealed) = sealed_nginx(&authority);
    let dir = authority.0.path().display();
    let place = Place::new(&format!(
        "listeners:\n  - address: \"127.0.0.1:0\"\n    \
         tls: {{ cert_file: {dir}/front.pem, key_file: {dir}/front.key, client_ca_file: {dir}/ca.pem }}\n    \
         routes: [{{ name: api, upstream: up }}]\n\
         upstreams:\n  up:\n    endpoints: [\"127.0.0.1:{sealed}\"]\n    host: inner.example\n    \
         tls: {{ ca_file: {dir}/ca.pem, server_name: inner.example, cert_file: {dir}/client.pem, key_file: {dir}/client.key }}\n"
    ));
    let node = place.node();
    let with = ["--cert", "client.pem", "--key", "client.key"];
    assert_eq!(curl(&authority, &node, &with).as_deref(), Ok("client SUCCESS, host inner.example"));
    assert!(curl(&authority, &node, &[]).is_err(), "without a certificate nobody comes in");
    assert_eq!(curl(&authority, &node, &[&with[..], &["--tls-max", "1.2"]].concat()).unwrap().len(), 34);
    let expiry = |node: &Node| {
        let metrics = node.metrics().0;
        let line = metrics.lines().find(|line| line.contains("front.pem")).expect("a line of its own").to_owned();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    let before = expiry(&node);

    // A key that is not the certificate's: as if only half had been copied yet.
    let whole = std::fs::read(authority.path("front.key")).unwrap();
    std::fs::write(authority.path("front.key"), std::fs::read(authority.path("client.key")).unwrap()).unwrap();
    node.process.signal(Signal::HUP);
    wait_for("the refusal is told", || node.journal().has("certificate_refused").then_some(()));
    assert!(curl(&authority, &node, &with).is_ok(), "the old one stays");
    std::fs::write(authority.path("front.key"), whole).unwrap();

    authority.pass("front", "DNS:localhost", "20");
    node.process.signal(Signal::HUP);
    wait_for("the new one is told", || node.journal().has("certificate_changed").then_some(()));
    assert_eq!(curl(&authority, &node, &with).as_deref(), Ok("client SUCCESS, host inner.example"));
    assert!(expiry(&node) < before);
    wait_for("its end is told ahead", || node.journal().has("certificate_expiring").then_some(()));
    let journal = node.journal();
    assert!(journal.first("certificate_refused")["fields"]["why"].as_str().unwrap().contains("do not go together"));
    assert_eq!(journal.first("certificate_expiring")["fields"]["days_left"], "19");
}

#[test]
fn an_upstream_is_told_whose_certificate_a_client_has_shown() {
    let authority = Authority::new();
    for (name, names) in [("front", "DNS:localhost"), ("client", "URI:spiffe://shop.example/orders")] {
        authority.pass(name, names, "365");
    }
    let server = Server::start(|_| ok("here"));
    let dir = authority.0.path().display();
    let config = |header: &str| {
        format!(
            "listeners:\n  - address: \"127.0.0.1:0\"\n    tls: {{ cert_file: {dir}/front.pem, key_file: {dir}/front.key, \
             client_ca_file: {dir}/ca.pem, client_cert_header: {header} }}\n    routes: [{{ upstream: up }}]\n\
             upstreams: {{ up: {{ url: \"http://{}\" }} }}\n",
            server.address
        )
    };
    let pem = std::fs::read_to_string(authority.path("client.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let place = Place::new(&config("on"));
    let node = place.node();
    let told = |more: &[&str]| {
        let forged = ["--cert", "client.pem", "--key", "client.key", "-H", "Client-Cert: :Zm9yZ2Vk:"];
        assert_eq!(curl(&authority, &node, &[&forged[..], more].concat()).as_deref(), Ok("here"));
        server.seen().pop().expect("it came").header("client-cert")
    };
    let certificate = format!(":{base64}:");
    assert_eq!(told(&["--http1.1"]), Some(certificate.clone()));
    assert_eq!(told(&["--http2"]), Some(certificate));

    // Taken in while it runs.
    place.configure(&config("off"));
    node.process.signal(Signal::HUP);
    wait_for("nobody is told any more", || told(&[]).is_none().then_some(()));
}

#[test]
fn what_is_wrong_with_the_files_is_told_where_they_are_named() {
    let authority = Authority::new();
    authority.pass("soon", "DNS:localhost", "3");
    authority.pass("other", "DNS:localhost", "365");
    let dir = authority.0.path().display();
    let config = |cert: &str, key: &str, ca: &str| {
        format!(
            "listeners:\n  - address: \"127.0.0.1:0\"\n    tls: {{ cert_file: {dir}/{cert}, key_file: {dir}/{key} }}\n    \
             routes: [{{ upstream: up }}]\nupstreams:\n  up: {{ url: \"https://h\", tls: {{ ca_file: {dir}/{ca} }} }}\n"
        )
    };
    let place = Place::new(&config("soon.pem", "soon.key", "ca.pem"));
    let said = place.seawall(&["check"]);
    assert_eq!(said.code, 0, "{said:?}");
    said.shows(&["seawall.yaml:3:", "audit: `", "soon.pem` runs out on ", "in 2 days", "its pin stays sha256/"]);
    std::fs::set_permissions(authority.path("soon.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    place.seawall(&["check"]).shows(&["everybody on this machine can read `", "`chmod 600` it"]);

    place.configure(&config("soon.pem", "other.key", "missing.pem"));
    let said = place.seawall(&["check"]);
    assert_eq!(said.code, 1, "{said:?}");
    said.shows(&[
        "other.key`: the certificate and the key do not go together",
        "missing.pem`: cannot be read: No such file or directory",
    ]);
    let refused = place.refused(&["run"]);
    assert_eq!(refused.code, 1);
    refused.tells(&["cannot use these certificates", "the certificate and the key do not go together", "missing.pem"]);
    assert!(!place.data().exists(), "nothing is left behind by a node that could not begin");
}
