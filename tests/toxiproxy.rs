//! `seawall toxiproxy` in the place of Toxiproxy: the API byte by byte. What becomes of connections is in `toxics.rs`.

use std::net::SocketAddr;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::house::{Answer, Client, Place, SEAWALL, local, port, wait_for};
use crate::process::{Process, code};

/// A running `seawall toxiproxy`.
pub struct Tox {
    pub process: Process,
    pub api: SocketAddr,
}

impl Tox {
    pub fn start(arguments: &[&str]) -> Self {
        Self::by(Command::new(SEAWALL), arguments)
    }

    /// By another program that starts it.
    pub fn by(mut command: Command, arguments: &[&str]) -> Self {
        command
            .arg("toxiproxy")
            .args(arguments)
            .args(["--log", "json"])
            .env_remove("LOG_LEVEL")
            .env_remove("SEAWALL_LOG");
        Self::of(Process::start(&mut command))
    }

    /// A process that is, or becomes, a server of this API.
    pub fn of(process: Process) -> Self {
        let mut tox = Self { process, api: local(0) };
        tox.api = wait_for("the API listens", || {
            assert!(tox.process.ended().is_none(), "{}", tox.process.lines().join("\n"));
            tox.started()["address"].as_str()?.parse().ok()
        });
        tox
    }

    /// On any port, with metrics.
    pub fn new() -> Self {
        Self::start(&["--port", "0", "--proxy-metrics"])
    }

    /// The line that tells it is ready.
    pub fn started(&self) -> Value {
        let lines = self.process.lines();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == "Toxiproxy's API").unwrap_or_default()
    }

    pub fn raw(&self, request: &str) -> String {
        Client::new(self.api).send(request.as_bytes()).rest()
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        Client::new(self.api)
            .ask(&format!("{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    pub fn must(&self, method: &str, path: &str, body: &Value, status: u16) -> Answer {
        let answer = self.call(method, path, &if body.is_null() { String::new() } else { body.to_string() });
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        answer
    }

    /// A proxy on any port; tells where it listens.
    pub fn proxy(&self, name: &str, upstream: SocketAddr) -> SocketAddr {
        let body = json!({"name": name, "listen": "127.0.0.1:0", "upstream": upstream.to_string()});
        self.must("POST", "/proxies", &body, 201).json()["listen"].as_str().unwrap().parse().unwrap()
    }

    pub fn toxic(&self, proxy: &str, toxic: &Value) {
        self.must("POST", &format!("/proxies/{proxy}/toxics"), toxic, 200);
    }

    pub fn update(&self, proxy: &str, name: &str, attributes: &Value) {
        self.must("POST", &format!("/proxies/{proxy}/toxics/{name}"), &json!({"attributes": attributes}), 200);
    }

    pub fn lift(&self, proxy: &str, name: &str) {
        self.must("DELETE", &format!("/proxies/{proxy}/toxics/{name}"), &Value::Null, 204);
    }

    /// Bytes that have come in from a proxy's senders of one direction.
    pub fn received(&self, proxy: &str, direction: &str) -> u64 {
        self.passed("received", proxy, direction)
    }

    /// Bytes `received` from a proxy's senders of one direction, or `sent` to its receivers.
    pub fn passed(&self, way: &str, proxy: &str, direction: &str) -> u64 {
        let text = self.call("GET", "/metrics", "").body;
        let is_it = |line: &&str| {
            line.starts_with(&format!("toxiproxy_proxy_{way}_bytes_total{{direction=\"{direction}\""))
                && line.contains(&format!("proxy=\"{proxy}\""))
        };
        text.lines().filter(is_it).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Tox {
    /// Whatever a test did to it: it stops when told, in order.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if self.process.ended().is_none() {
            self.process.signal(Signal::TERM);
        }
        assert_eq!(code(self.process.wait()), 0);
        let lines = self.process.lines();
        assert!(!lines.iter().any(|line| line.contains("panicked")), "{lines:?}");
    }
}

/// Without what differs from call to call.
fn masked(raw: &str) -> String {
    let keep = |line: &&str| !line.starts_with("Date: ") && !line.starts_with("Connection: ");
    let mask = |line: &str| match line.strip_prefix("X-Toxiproxy-Request-Id: ") {
        Some(id) => {
            assert!(
                id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'v').contains(&byte)),
                "{id}"
            );
            "X-Toxiproxy-Request-Id: ID".to_owned()
        }
        None => line.to_owned(),
    };
    raw.split("\r\n").filter(keep).map(mask).collect::<Vec<_>>().join("|")
}

const ID: &str = "X-Toxiproxy-Request-Id: ID";
const TEXT: &str = "Content-Type: text/plain; charset=utf-8|X-Content-Type-Options: nosniff";

#[test]
fn heads_are_the_originals() {
    let tox = Tox::new();
    let ask = |method: &str, path: &str, headers: &str, body: &str| {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}{length}\r\n{body}");
        masked(&tox.raw(&request))
    };
    let json = "HTTP/1.1 200 OK|Content-Type: application/json";
    assert_eq!(
        ask("GET", "/version", "", ""),
        format!("{json};charset=utf-8|{ID}|Content-Length: 22||{{\"version\": \"2.12.0\"}}\n")
    );
    assert_eq!(ask("GET", "/proxies", "", ""), format!("{json}|{ID}|Content-Length: 2||{{}}"));
    let body = r#"{"name":"p","listen":"127.0.0.1:0","upstream":"127.0.0.1:1"}"#;
    let created = ask("POST", "/proxies", "Content-Type: text/nonsense\r\n", body);
    assert!(created.starts_with(&format!("HTTP/1.1 201 Created|Content-Type: application/json|{ID}|")), "{created}");
    let error = "{\"error\":\"proxy already exists\",\"status\":409}\n";
    assert_eq!(
        ask("POST", "/proxies", "", body),
        format!("HTTP/1.1 409 Conflict|{TEXT}|{ID}|Content-Length: 46||{error}")
    );
    let refused = r#"{"error":"bad request body: EOF","status":400,"proxies":null}"#;
    assert_eq!(
        ask("POST", "/populate", "", ""),
        format!("HTTP/1.1 400 Bad Request|Content-Type: application/json|{ID}|Content-Length: 61||{refused}")
    );
    assert_eq!(ask("DELETE", "/proxies/p", "", ""), format!("HTTP/1.1 204 No Content|{ID}||"));
    assert_eq!(ask("POST", "/reset", "", ""), format!("HTTP/1.1 204 No Content|{ID}||"));
    let missing = format!("HTTP/1.1 404 Not Found|{TEXT}|Content-Length: 19||");
    for path in ["/nope", "/proxies/", "/proxies/a%2Fb"] {
        assert_eq!(ask("GET", path, "", ""), format!("{missing}404 page not found\n"), "{path}");
    }
    assert_eq!(ask("HEAD", "/nope", "", ""), missing);
    assert_eq!(ask("HEAD", "/proxies", "", ""), "HTTP/1.1 405 Method Not Allowed||");
    for method in ["OPTIONS", "PUT"] {
        assert_eq!(ask(method, "/proxies", "", ""), "HTTP/1.1 405 Method Not Allowed|Content-Length: 0||", "{method}");
    }
    let moved = "HTTP/1.1 301 Moved Permanently|Location: /proxies?a=b|Content-Length: 0||";
    assert_eq!(ask("GET", "//proxies?a=b", "", ""), moved);
    let browser = "User-Agent: Mozilla/5.0\r\n";
    assert_eq!(
        ask("GET", "/proxies", browser, ""),
        format!("HTTP/1.1 403 Forbidden|{TEXT}|{ID}|Content-Length: 23||User agent not allowed\n")
    );
    assert_eq!(ask("GET", "/nope", browser, ""), format!("{missing}404 page not found\n"));
    assert!(ask("GET", "/%zz", "", "").starts_with("HTTP/1.1 400 Bad Request|"));
    let no_host = tox.raw("GET /version HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(no_host.starts_with("HTTP/1.1 400 ") && no_host.ends_with("missing required Host header"), "{no_host}");
    assert!(tox.raw("GET /version HTTP/1.0\r\n\r\n").ends_with("{\"version\": \"2.12.0\"}\n"));
}

#[test]
fn a_body_that_is_too_long_or_never_comes_whole_is_told() {
    let tox = Tox::new();
    let mut client = Client::new(tox.api);
    client.send(format!("POST /proxies HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 5 << 20).as_bytes());
    client.send(&vec![b' '; 5 << 20]);
    let answer = client.rest();
    assert!(answer.contains("400 Bad Request") && answer.contains("request body too large"), "{answer}");
    let mut client = Client::new(tox.api);
    client.send(b"POST /proxies HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
    let answer = client.rest();
    assert!(answer.is_empty() || answer.contains("400 Bad Request"), "{answer}");
}

#[test]
fn addresses_are_bound_and_told() {
    let tox = Tox::new();
    let create = |name: &str, listen: &str| {
        tox.call("POST", "/proxies", &json!({"name": name, "listen": listen, "upstream": "h:1"}).to_string())
    };
    let listen = |answer: &Answer| answer.json()["listen"].as_str().unwrap().to_owned();
    let any = listen(&create("any", ""));
    assert!(any.starts_with("[::]:"), "{any}");
    let number: u16 = any.trim_start_matches("[::]:").parse().unwrap();
    assert!(Client::connect(local(number)).is_ok(), "both families");
    let named = listen(&create("named", "localhost:0"));
    assert!(named.starts_with("127.0.0.1:") && !named.ends_with(":0"), "{named}");
    let taken = create("taken", &named);
    let text = format!("{{\"error\":\"listen tcp {named}: bind: address already in use\",\"status\":500}}\n");
    assert_eq!((taken.status, taken.body), (500, text));
    let lost = create("lost", "no-such-host.invalid:1");
    assert_eq!(lost.body, "{\"error\":\"listen tcp: lookup no-such-host.invalid: no such host\",\"status\":500}\n");
    let six = create("six", "[::1]:0");
    assert!(six.status == 500 || listen(&six).starts_with("[::1]:"), "{six:?}");
}

#[test]
fn metrics_exist_only_when_asked_for() {
    let tox = Tox::start(&["-port", "0", "-host=127.0.0.1"]);
    assert_eq!(tox.call("GET", "/metrics", "").body, "404 page not found\n");
    assert_eq!(Tox::start(&["-port=0", "-runtime-metrics"]).call("GET", "/metrics", "").status, 200);
}

#[test]
fn a_config_creates_proxies_and_a_bad_one_is_only_told() {
    let place = Place::empty();
    let good = place.write(
        "good.json",
        r#"[{"name":"web","listen":"127.0.0.1:0","upstream":"h:1"},{"name":"off","upstream":"h:2","enabled":false}]"#,
    );
    let tox = Tox::start(&["-port", "0", "-config", good.to_str().unwrap()]);
    let all = tox.must("GET", "/proxies", &Value::Null, 200).json();
    assert_eq!((&all["web"]["enabled"], &all["off"]["enabled"]), (&json!(true), &json!(false)));
    let bad = place.write("bad.json", r#"[{"name":"web"}]"#);
    for file in [bad.to_str().unwrap(), "/no/such/file"] {
        let tox = Tox::start(&["--port", "0", "--config", file]);
        assert_eq!(tox.call("GET", "/proxies", "").body, "{}");
        let lines = tox.process.lines().join("\n");
        assert!(lines.contains("cannot create the proxies of this file") && lines.contains(file), "{lines}");
    }
}

#[test]
fn a_node_speaks_it_where_its_configuration_says_so() {
    let config = |listen: &str| {
        format!(
            "toxiproxy: {{ listen: \"{listen}\" }}\n\
             listeners: [{{ address: \"127.0.0.1:0\", routes: [{{ upstream: api }}] }}]\n\
             upstreams: {{ api: {{ url: \"http://127.0.0.1:1\", health: off }} }}\n"
        )
    };
    let place = Place::new(&config("127.0.0.1:0"));
    let mut command = Command::new(SEAWALL);
    command.args(["run", "--log", "json"]).current_dir(place.path()).env_remove("SEAWALL_LOG");
    let tox = Tox::of(Process::start(&mut command));
    assert_eq!(tox.started()["version"], "2.12.0");
    // Its own listener through a proxy of it: what a test of a client's guards does.
    let lines = wait_for("the node serves", || {
        let lines = tox.process.lines();
        lines.iter().any(|line| line.contains("overview and admin API")).then_some(lines)
    });
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let address =
        lines.filter(|line| line["message"] == "listening").find_map(|line| line["address"].as_str()?.parse().ok());
    let listen = tox.proxy("p", address.unwrap());
    let get = |target| Client::new(target).ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").status;
    assert_eq!(get(listen), 502);
    tox.toxic("p", &json!({"type": "limit_data", "attributes": {"bytes": 0}}));
    assert_eq!(Client::new(listen).send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").rest(), "");
    assert!(tox.received("p", "upstream") > 0, "its metrics are there");
    let other = Place::new(&config(&tox.api.to_string()));
    let said = other.refused(&["run"]);
    assert_eq!(said.code, 1);
    said.tells(&[&format!("cannot listen on `{}` for Toxiproxy's API", tox.api), "choose another `toxiproxy.listen`"]);
}

#[test]
fn it_says_what_it_speaks_and_stops_when_told() {
    let said = Place::empty().seawall(&["toxiproxy", "-version"]);
    assert_eq!(said.out, "toxiproxy-server version 2.12.0\n", "{said:?}");
    let mut tox = Tox::start(&["--port", "0", "--seed", "-7"]);
    assert_eq!((tox.started()["seed"].as_i64(), tox.started()["version"].as_str()), (Some(-7), Some("2.12.0")));
    let listen = tox.proxy("p", local(port()));
    tox.process.signal(Signal::TERM);
    assert_eq!(code(tox.process.wait()), 0);
    assert!(Client::connect(listen).is_err());
    // A connection that is open to the API keeps nobody: idle ones end, and a second signal ends all.
    let mut tox = Tox::new();
    let mut half = Client::new(tox.api);
    half.send(b"POST /proxies HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{");
    let mut idle = Client::new(tox.api);
    assert_eq!(idle.ask("GET /version HTTP/1.1\r\nHost: h\r\n\r\n").status, 200);
    tox.process.signal(Signal::TERM);
    wait_for("the API stops listening", || Client::connect(tox.api).is_err().then_some(()));
    assert_eq!(idle.rest(), "");
    tox.process.signal(Signal::INT);
    assert_eq!(code(tox.process.wait()), 0);
}

#[test]
fn an_address_that_cannot_be_had_is_told() {
    let tox = Tox::new();
    let place = Place::empty();
    let taken = tox.api.port().to_string();
    let said = place.refused(&["toxiproxy", "--host", "127.0.0.1", "--port", &taken]);
    assert_eq!(said.code, 1);
    said.tells(&[&format!("cannot listen on `127.0.0.1:{taken}`"), "choose another --host or --port"]);
    let said = place.refused(&["toxiproxy", "--host", "no-such-host.invalid", "--port", "0"]);
    assert_eq!(said.code, 1);
    assert_eq!(place.refused(&["toxiproxy", "--port", "x"]).code, 2);
    let all = Tox::start(&["--host", "", "--port", "0"]);
    assert!(all.api.ip().is_unspecified(), "{}", all.api);
    std::net::TcpStream::connect(local(all.api.port())).unwrap();
    assert!(all.process.lines().iter().any(|line| line.contains("there is no token")));
}
