//! The contract, call by call: what is sent, and the answer to the byte.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use seawall_core::fault::{Direction, Fault};
use tokio::time::Instant;

use super::super::routes::{Routed, route};
use super::super::{OpenProxy, ProxyPort, TrafficSeries};
use super::{Answer, Desk, Names, Outcome};
use crate::BoxFuture;

/// Writes down what it is told. Port 1 is taken; port 0 becomes the next from 40000.
#[derive(Default)]
struct Fake(Mutex<(u16, Vec<String>, String)>);

impl Fake {
    fn note(&self, line: String) {
        self.0.lock().unwrap().1.push(line);
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

impl ProxyPort for Fake {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            match host {
                "localhost" => Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]),
                "six" => Ok(vec![Ipv6Addr::LOCALHOST.into()]),
                _ => Err(io::Error::other("no such host")),
            }
        })
    }

    fn open(&self, proxy: OpenProxy) -> BoxFuture<'_, io::Result<SocketAddr>> {
        Box::pin(async move {
            let OpenProxy { name, mut listen, upstream, target, half_close, faults } = proxy;
            let target = target.map_or_else(|told| told, |(host, port)| format!("{host} {port}"));
            let faults: Vec<&str> = faults.iter().map(|fault| &*fault.id.0).collect();
            let half_close = half_close.map(|chosen| format!(" half_close {chosen}")).unwrap_or_default();
            self.note(format!("open {name} {listen} {upstream} {faults:?}{half_close}"));
            self.0.lock().unwrap().2 = target;
            if listen.port() == 1 {
                return Err(io::Error::from_raw_os_error(98));
            }
            let mut state = self.0.lock().unwrap();
            if listen.port() == 0 {
                listen.set_port(40_000 + state.0);
                state.0 += 1;
            }
            if listen.ip().is_unspecified() {
                listen.set_ip(Ipv6Addr::UNSPECIFIED.into());
            }
            Ok(listen)
        })
    }

    fn close<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.note(format!("close {name}"));
        Box::pin(async {})
    }

    fn set_half_close(&self, name: &str, half_close: Option<bool>) {
        self.note(format!("half_close {name} {half_close:?}"));
    }

    fn put(&self, name: &str, fault: Fault) {
        let Fault { id, direction, share, effect } = fault;
        self.note(format!("put {name} {} {} {share:?} {effect:?}", id.0, direction.name()));
    }

    fn lift(&self, name: &str, fault: &str) {
        self.note(format!("lift {name} {fault}"));
    }

    fn traffic(&self) -> Vec<TrafficSeries> {
        vec![TrafficSeries {
            direction: Direction::Upstream,
            listener: SocketAddr::from(([127, 0, 0, 1], 5)),
            proxy: "a\"b\\\n".into(),
            upstream: "u:1".into(),
            received_bytes: 7,
            sent_bytes: 5,
            refused_connections: 3,
        }]
    }
}

struct Api {
    desk: Desk,
    port: Arc<Fake>,
    now: Instant,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    fn new() -> Self {
        let port = Arc::new(Fake::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { desk: Desk::new(Arc::<Fake>::clone(&port)), port, now: Instant::now(), runtime }
    }

    /// With a proxy `p`.
    fn with_proxy() -> Self {
        let mut api = Self::new();
        api.is("POST /proxies", r#"{"name":"p","listen":"127.0.0.1:9","upstream":"u:1"}"#, 201, P);
        api.port.told();
        api
    }

    fn ask(&mut self, call: &str, body: &str) -> Answer {
        let (method, path) = call.split_once(' ').unwrap();
        let Routed::Call(call) = route(method, path, true) else { panic!("{call} is no call") };
        let (body, mut names) = (Bytes::copy_from_slice(body.as_bytes()), Names::new());
        self.runtime.block_on(async {
            loop {
                let hosts = match self.desk.answer(call.clone(), &body, &names, self.now).await {
                    Outcome::Done(answer) => return answer,
                    Outcome::Names(hosts) => hosts,
                };
                for host in hosts {
                    let found = self.port.resolve(&host).await.unwrap_or_default();
                    assert!(names.insert(host, found).is_none(), "none is looked up twice");
                }
            }
        })
    }

    fn is(&mut self, call: &str, body: &str, status: u16, answer: &str) {
        let told = self.ask(call, body);
        assert_eq!((told.status, told.body.as_str()), (status, answer), "{call} {body}");
        let is_error = status >= 400 && !call.ends_with("/populate");
        let expected = if is_error { Some("text/plain; charset=utf-8") } else { Some("application/json") };
        let expected = expected.filter(|_| status != 204);
        assert_eq!((told.content_type, told.nosniff), (expected, is_error), "{call}");
    }

    /// An error of this text.
    fn fails(&mut self, call: &str, body: &str, status: u16, error: &str) {
        let error = error.replace('"', "\\\"");
        self.is(call, body, status, &format!("{{\"error\":\"{error}\",\"status\":{status}}}\n"));
    }
}

const P: &str = r#"{"name":"p","listen":"127.0.0.1:9","upstream":"u:1","enabled":true,"Logger":{},"toxics":[]}"#;

#[test]
fn the_version_is_a_text_of_its_own() {
    let answer = Api::new().ask("GET /version", "");
    assert_eq!(answer.body, "{\"version\": \"2.12.0\"}\n");
    assert_eq!((answer.status, answer.content_type), (200, Some("application/json;charset=utf-8")));
}

#[test]
fn a_proxy_is_created_shown_and_deleted() {
    let mut api = Api::with_proxy();
    api.is("GET /proxies/p", "", 200, P);
    api.is("GET /proxies", "", 200, &format!("{{\"p\":{P}}}"));
    api.is("DELETE /proxies/p", "", 204, "");
    assert_eq!(api.port.told(), ["close p"]);
    api.is("GET /proxies", "", 200, "{}");
    for call in ["GET /proxies/p", "POST /proxies/p", "PATCH /proxies/p", "DELETE /proxies/p", "GET /proxies/p/toxics"]
    {
        api.fails(call, "", 404, "proxy not found");
    }
    for call in
        ["POST /proxies/p/toxics", "GET /proxies/p/toxics/t", "POST /proxies/p/toxics/t", "DELETE /proxies/p/toxics/t"]
    {
        api.fails(call, "", 404, "proxy not found");
    }
}

#[test]
fn listening_is_resolved_and_told() {
    let mut api = Api::new();
    for (name, listen, told) in [
        ("a", "", "[::]:40000"),
        ("b", ":0", "[::]:40001"),
        ("c", "localhost:0", "127.0.0.1:40002"),
        ("d", "six:70", "[::1]:70"),
        ("e", "[::1]:http", "[::1]:80"),
        ("f", "0.0.0.0:0", "[::]:40003"),
    ] {
        let body = format!(r#"{{"name":"{name}","listen":"{listen}","upstream":"http://x y"}}"#);
        let answer = api.ask("POST /proxies", &body);
        assert_eq!(answer.status, 201);
        assert!(answer.body.contains(&format!("\"listen\":\"{told}\"")), "{}", answer.body);
    }
    let names: Vec<_> = api.ask("GET /proxies", "").body.match_indices("\"name\"").map(|(at, _)| at).collect();
    assert_eq!(names.len(), 6);
    // What does not listen yet is shown as sent.
    let off = r#"{"name":"off","listen":"localhost:0","upstream":"u:1","enabled":false}"#;
    let shown = r#"{"name":"off","listen":"localhost:0","upstream":"u:1","enabled":false,"Logger":{},"toxics":[]}"#;
    api.is("POST /proxies", off, 201, shown);
}

#[test]
fn an_upstream_is_shown_as_sent_and_called_as_go_would() {
    let mut api = Api::new();
    for (upstream, target) in
        [(":6379", "127.0.0.1 6379"), ("h:http", "h 80"), ("http://x y", "lookup tcp///x y: unknown port")]
    {
        let body = format!(r#"{{"name":"p","listen":":0","upstream":"{upstream}"}}"#);
        let answer = api.ask("POST /proxies", &body);
        assert!(answer.body.contains(&format!("\"upstream\":\"{upstream}\"")), "{}", answer.body);
        assert_eq!(api.port.0.lock().unwrap().2, target);
        api.ask("DELETE /proxies/p", "");
    }
}

#[test]
fn creating_is_checked_in_order() {
    let mut api = Api::with_proxy();
    let create = "POST /proxies";
    api.fails(create, "", 400, "bad request body: EOF");
    api.fails(create, "{", 400, "bad request body: unexpected EOF");
    api.fails(create, "null", 400, "missing required field: name");
    api.fails(create, r#"{"upstream":"u"}"#, 400, "missing required field: name");
    api.fails(create, r#"{"name":"x"}"#, 400, "missing required field: upstream");
    api.fails(create, r#"{"name":"p","upstream":"u","listen":"nope"}"#, 409, "proxy already exists");
    let listen = |listen: &str| format!(r#"{{"name":"x","upstream":"u","listen":"{listen}"}}"#);
    api.fails(create, &listen("nope"), 500, "listen tcp: address nope: missing port in address");
    api.fails(create, &listen("nope:1"), 500, "listen tcp: lookup nope: no such host");
    api.fails(create, &listen("127.0.0.1:1"), 500, "listen tcp 127.0.0.1:1: bind: address already in use");
    api.fails(create, &listen(":1"), 500, "listen tcp :1: bind: address already in use");
    api.is("GET /proxies", "", 200, &format!("{{\"p\":{P}}}"));
    let of = |rest: &str| format!("bad request body: json: cannot unmarshal {rest}");
    api.fails(create, "[]", 400, &of("array into Go value of type toxiproxy.Proxy"));
    api.fails(create, r#"{"name":1}"#, 400, &of("number into Go struct field Proxy.name of type string"));
    api.fails(create, r#"{"enabled":"no"}"#, 400, &of("string into Go struct field Proxy.enabled of type bool"));
    api.fails(create, r#"{"logger":1}"#, 400, &of("number into Go struct field Proxy.Logger of type zerolog.Logger"));
    // Cases differ, what is unknown is ignored, what comes later wins, what follows is not read.
    let odd = r#"{"NAME":"y","Upstream":"u:1","x":[{}],"LISTEN":"127.0.0.1:7","listen":null,"Logger":{},"name":"z"}, rubbish"#;
    let shown = r#"{"name":"z","listen":"127.0.0.1:7","upstream":"u:1","enabled":true,"Logger":{},"toxics":[]}"#;
    api.is(create, odd, 201, shown);
    let answer = api.ask(create, r#"{"name":"<&>\u2028","upstream":"u"}"#);
    assert!(answer.body.starts_with(r#"{"name":"\u003c\u0026\u003e\u2028""#), "{}", answer.body);
}

#[test]
fn a_proxy_is_updated_and_keeps_its_toxics() {
    let mut api = Api::with_proxy();
    api.ask("POST /proxies/p/toxics", r#"{"type":"noop"}"#);
    api.port.told();
    let shown = |listen: &str, upstream: &str, enabled: bool| {
        let noop = r#"{"attributes":{},"name":"noop_downstream","type":"noop","stream":"downstream","toxicity":1}"#;
        format!(
            r#"{{"name":"p","listen":"{listen}","upstream":"{upstream}","enabled":{enabled},"Logger":{{}},"toxics":[{noop}]}}"#
        )
    };
    // Nothing changes, nothing is dropped.
    api.is("POST /proxies/p", r#"{"name":"other","listen":"127.0.0.1:9"}"#, 200, &shown("127.0.0.1:9", "u:1", true));
    assert!(api.port.told().is_empty());
    api.is("PATCH /proxies/p", r#"{"upstream":"v:2"}"#, 200, &shown("127.0.0.1:9", "v:2", true));
    assert_eq!(api.port.told(), ["close p", r#"open p 127.0.0.1:9 v:2 ["noop_downstream"]"#]);
    api.is("POST /proxies/p", r#"{"listen":"localhost:0"}"#, 200, &shown("127.0.0.1:40000", "v:2", true));
    for _ in 0..2 {
        api.is("POST /proxies/p", r#"{"enabled":false}"#, 200, &shown("127.0.0.1:40000", "v:2", false));
    }
    api.port.told();
    api.is("POST /proxies/p", r#"{"listen":"127.0.0.1:8"}"#, 200, &shown("127.0.0.1:8", "v:2", false));
    assert!(api.port.told().is_empty(), "what is off stays off");
    api.is("POST /proxies/p", r#"{"enabled":true}"#, 200, &shown("127.0.0.1:8", "v:2", true));
    api.fails("POST /proxies/p", r#"{"listen":"nope"}"#, 500, "address nope: missing port in address");
    api.fails("POST /proxies/p", "x", 400, "bad request body: invalid character 'x' looking for beginning of value");
    api.is("GET /proxies/p", "", 200, &shown("127.0.0.1:8", "v:2", true));
    let taken = "listen tcp 127.0.0.1:1: bind: address already in use";
    api.fails("POST /proxies/p", r#"{"listen":"127.0.0.1:1"}"#, 500, taken);
    api.is("GET /proxies/p", "", 200, &shown("127.0.0.1:1", "v:2", false));
}

#[test]
fn half_close_is_chosen_by_each_proxy_and_shown_only_then() {
    let mut api = Api::with_proxy();
    let chosen = |choice: &str| P.replace("[]}", &format!("[],\"half_close\":{choice}}}"));
    api.is("PATCH /proxies/p", r#"{"half_close":true}"#, 200, &chosen("true"));
    assert_eq!(api.port.told(), ["half_close p Some(true)"], "nobody's connection is touched");
    api.is("PATCH /proxies/p", r#"{"upstream":"u:1"}"#, 200, &chosen("true"));
    api.is("PATCH /proxies/p", r#"{"HALF_CLOSE":false}"#, 200, &chosen("false"));
    api.port.told();
    let wrong = "bad request body: json: cannot unmarshal number into Go struct field Proxy.half_close of type bool";
    api.fails("PATCH /proxies/p", r#"{"half_close":1}"#, 400, wrong);
    assert!(api.port.told().is_empty());
    api.is("GET /proxies", "", 200, &format!("{{\"p\":{}}}", chosen("false")));
    // It survives a stop, and `null` takes it back.
    api.ask("PATCH /proxies/p", r#"{"enabled":false}"#);
    api.ask("POST /reset", "");
    assert_eq!(api.port.told(), ["close p", "open p 127.0.0.1:9 u:1 [] half_close false"]);
    api.is("PATCH /proxies/p", r#"{"half_close":null}"#, 200, P);
    assert_eq!(api.port.told(), ["half_close p None"]);
    let made = r#"[{"name":"q","listen":"127.0.0.1:8","upstream":"u:1","half_close":true}]"#;
    let q = r#"{"name":"q","listen":"127.0.0.1:8","upstream":"u:1","enabled":true,"Logger":{},"toxics":[],"half_close":true}"#;
    api.is("POST /populate", made, 201, &format!("{{\"proxies\":[{q}]}}"));
    assert_eq!(api.port.told(), ["open q 127.0.0.1:8 u:1 [] half_close true"]);
    api.is("POST /proxies", &made[1..made.len() - 1].replace("\"q\"", "\"r\""), 201, &q.replace("\"q\"", "\"r\""));
}

#[test]
fn toxics_are_added_with_their_defaults() {
    let mut api = Api::with_proxy();
    let add = "POST /proxies/p/toxics";
    for (body, shown) in [
        (
            r#"{"type":"latency"}"#,
            r#"{"attributes":{"latency":0,"jitter":0},"name":"latency_downstream","type":"latency","stream":"downstream","toxicity":1}"#,
        ),
        (
            r#"{"type":"latency","stream":"UPSTREAM","toxicity":0.123456789,"attributes":{"LATENCY":-5,"x":1}}"#,
            r#"{"attributes":{"latency":-5,"jitter":0},"name":"latency_UPSTREAM","type":"latency","stream":"UPSTREAM","toxicity":0.12345679}"#,
        ),
        (
            r#"{"type":"slicer","name":"s","toxicity":5,"attributes":{"average_size":1,"size_variation":2,"delay":3}}"#,
            r#"{"attributes":{"average_size":1,"size_variation":2,"delay":3},"name":"s","type":"slicer","stream":"downstream","toxicity":5}"#,
        ),
        (
            r#"{"type":"bandwidth","name":"b","toxicity":-1,"attributes":null}"#,
            r#"{"attributes":{"rate":0},"name":"b","type":"bandwidth","stream":"downstream","toxicity":-1}"#,
        ),
    ] {
        api.is(add, body, 200, shown);
    }
    let told = api.port.told();
    assert_eq!(told[0], "put p latency_downstream downstream Share(1.0) Latency { delay_ms: 0, jitter: 0ns }");
    assert!(told[1].starts_with("put p latency_UPSTREAM upstream Share(0.12345"), "{told:?}");
    assert_eq!(told[2], "put p s downstream Share(1.0) Slicer { average: 1, variation: 2, delay: 3µs }");
    assert_eq!(told[3], "put p b downstream Share(0.0) Bandwidth { bytes_per_second: 0 }");
    // Upstream first, then in the order they were added.
    let list = api.ask("GET /proxies/p/toxics", "").body;
    let order: Vec<_> = ["latency_UPSTREAM", "latency_downstream", "\"s\"", "\"b\""].map(|name| list.find(name)).into();
    assert!(order.is_sorted() && order[0].is_some(), "{list}");
    assert_eq!(api.ask("GET /proxies/p/toxics/s", "").status, 200);
}

#[test]
fn every_type_becomes_a_fault() {
    let mut api = Api::with_proxy();
    for (body, effect) in [
        (r#"{"type":"noop"}"#, "Noop"),
        (r#"{"type":"slow_close","attributes":{"delay":700}}"#, "SlowClose { delay: 700ms }"),
        (r#"{"type":"timeout","attributes":{"timeout":500}}"#, "Timeout { after: Some(500ms) }"),
        (r#"{"type":"timeout","name":"t0"}"#, "Timeout { after: None }"),
        (r#"{"type":"reset_peer","attributes":{"timeout":-1}}"#, "ResetPeer { after: 0ns }"),
        (r#"{"type":"limit_data","attributes":{"bytes":100}}"#, "LimitData { bytes: 100 }"),
        (r#"{"type":"bandwidth","attributes":{"rate":3}}"#, "Bandwidth { bytes_per_second: 3000 }"),
    ] {
        assert_eq!(api.ask("POST /proxies/p/toxics", body).status, 200, "{body}");
        let told = api.port.told();
        assert!(told[0].ends_with(effect), "{told:?}");
    }
}

#[test]
fn adding_a_toxic_is_checked_in_order() {
    let mut api = Api::with_proxy();
    let add = "POST /proxies/p/toxics";
    api.ask(add, r#"{"type":"noop","name":"n","stream":"upstream"}"#);
    api.port.told();
    let stream = "stream was invalid, can be either upstream or downstream";
    api.fails(add, "", 400, "bad request body: EOF");
    api.fails(add, r#"{"stream":"","type":"nope"}"#, 400, stream);
    api.fails(add, r#"{"stream":"sideways"}"#, 400, stream);
    api.fails(add, "null", 400, "invalid toxic type");
    api.fails(add, r#"{"type":"down"}"#, 400, "invalid toxic type");
    api.fails(add, r#"{"type":"Latency"}"#, 400, "invalid toxic type");
    api.fails(add, r#"{"type":"packet_loss"}"#, 400, "invalid toxic type");
    api.fails(add, r#"{"type":"latency","name":"n","attributes":{"latency":"x"}}"#, 409, "toxic already exists");
    let of = |rest: &str| format!("bad request body: json: cannot unmarshal {rest}");
    for number in ["10.5", "1e3", "99999999999999999999"] {
        let body = format!(r#"{{"type":"latency","attributes":{{"latency":{number}}}}}"#);
        let field = "into Go struct field LatencyToxic.attributes.latency of type int64";
        api.fails(add, &body, 400, &of(&format!("number {number} {field}")));
    }
    for (body, told) in [
        (
            r#"{"type":"slicer","attributes":{"delay":"10"}}"#,
            "string into Go struct field SlicerToxic.attributes.delay of type int",
        ),
        (
            r#"{"type":"reset_peer","attributes":{"timeout":[]}}"#,
            "array into Go struct field ResetToxic.attributes.timeout of type int64",
        ),
        (
            r#"{"type":"latency","attributes":5}"#,
            "number into Go struct field ToxicWrapper.attributes of type toxics.NoopToxic",
        ),
        (r#"{"type":"latency","toxicity":"1"}"#, "string into Go struct field ToxicWrapper.toxicity of type float32"),
        (r#"{"type":5}"#, "number into Go struct field ToxicWrapper.type of type string"),
        ("[]", "array into Go value of type toxics.ToxicWrapper"),
    ] {
        api.fails(add, body, 400, &of(told));
    }
    assert!(api.port.told().is_empty(), "what is refused changes nothing");
    api.fails("GET /proxies/p/toxics/x", "", 404, "toxic not found");
    api.fails("POST /proxies/p/toxics/x", "nonsense", 404, "toxic not found");
    api.fails("DELETE /proxies/p/toxics/x", "", 404, "toxic not found");
}

#[test]
fn a_toxic_changes_wholly_or_not_at_all() {
    let mut api = Api::with_proxy();
    api.ask("POST /proxies/p/toxics", r#"{"type":"latency","name":"l","attributes":{"latency":100,"jitter":10}}"#);
    api.port.told();
    let path = "POST /proxies/p/toxics/l";
    let shown = |latency: u32, toxicity: &str| {
        format!(
            r#"{{"attributes":{{"latency":{latency},"jitter":10}},"name":"l","type":"latency","stream":"downstream","toxicity":{toxicity}}}"#
        )
    };
    let half = r#"{"attributes":{"latency":7,"jitter":"x"},"toxicity":0.5}"#;
    let told = "bad request body: json: cannot unmarshal string into Go struct field LatencyToxic.attributes.jitter of type int64";
    api.fails(path, half, 400, told);
    assert!(api.port.told().is_empty());
    api.is("GET /proxies/p/toxics/l", "", 200, &shown(100, "1"));
    let ignored = r#"{"name":"x","type":"noop","stream":"upstream","attributes":{"latency":200},"toxicity":0.2}"#;
    api.is(path, ignored, 200, &shown(200, "0.2"));
    assert_eq!(api.port.told().len(), 1);
    api.is("PATCH /proxies/p/toxics/l", "null", 200, &shown(200, "0.2"));
    let of = |rest: &str| format!("bad request body: json: cannot unmarshal {rest}");
    api.fails(path, r#"{"toxicity":"1"}"#, 400, &of("string into Go struct field .toxicity of type float32"));
    api.fails(
        path,
        r#"{"attributes":1}"#,
        400,
        &of("number into Go struct field .attributes of type toxics.LatencyToxic"),
    );
    let go_type = r#"struct { Attributes interface {} "json:\"attributes\""; Toxicity float32 "json:\"toxicity\"" }"#;
    let answer = api.ask(path, "5");
    let told = of(&format!("number into Go value of type {go_type}"));
    assert_eq!(answer.body, format!("{{\"error\":{},\"status\":400}}\n", super::quote(&told)));
    api.is("DELETE /proxies/p/toxics/l", "", 204, "");
    assert_eq!(api.port.told().last().map(String::as_str), Some("lift p l"));
    api.is("GET /proxies/p/toxics", "", 200, "[]");
}

#[test]
fn a_toxic_with_a_time_goes_by_itself_and_a_change_renews_it() {
    let mut api = Api::with_proxy();
    let shown = |latency: u32, ttl: &str| {
        let attributes = format!(r#"{{"latency":{latency},"jitter":0}}"#);
        format!(r#"{{"attributes":{attributes},"name":"l","type":"latency","stream":"downstream","toxicity":1{ttl}}}"#)
    };
    let toxics = "POST /proxies/p/toxics";
    api.is(toxics, r#"{"type":"latency","name":"l","ttl":1000}"#, 200, &shown(0, ",\"ttl\":1000"));
    api.ask(toxics, r#"{"type":"noop","name":"stays"}"#);
    let begin = api.now;
    assert_eq!(api.desk.next_expiry(), Some(begin + Duration::from_secs(1)));
    // A change begins its time anew, whatever it changes; one that is refused does not.
    api.now = begin + Duration::from_millis(600);
    api.is("PATCH /proxies/p/toxics/l", r#"{"attributes":{"latency":5}}"#, 200, &shown(5, ",\"ttl\":1000"));
    api.now = begin + Duration::from_millis(1_200);
    api.ask("PATCH /proxies/p/toxics/l", r#"{"toxicity":"x"}"#);
    api.port.told();
    api.now = begin + Duration::from_millis(1_599);
    api.is("GET /proxies/p/toxics/l", "", 200, &shown(5, ",\"ttl\":1000"));
    assert!(api.port.told().is_empty());
    api.now = begin + Duration::from_millis(1_600);
    api.fails("GET /proxies/p/toxics/l", "", 404, "toxic not found");
    assert_eq!(api.port.told(), ["lift p l"]);
    assert_eq!(api.desk.next_expiry(), None);
    // Its name is free again; a time may be given later, changed, and taken away.
    api.is(toxics, r#"{"type":"latency","name":"l","TTL":null}"#, 200, &shown(0, ""));
    api.is("POST /proxies/p/toxics/l", r#"{"ttl":86400000}"#, 200, &shown(0, ",\"ttl\":86400000"));
    api.is("POST /proxies/p/toxics/l", r#"{"ttl":2}"#, 200, &shown(0, ",\"ttl\":2"));
    assert_eq!(api.desk.next_expiry(), Some(api.now + Duration::from_millis(2)));
    api.is("POST /proxies/p/toxics/l", r#"{"ttl":null}"#, 200, &shown(0, ""));
    assert_eq!(api.desk.next_expiry(), None);
    // A proxy that is off loses its toxics in time too.
    api.ask("POST /proxies/p/toxics/l", r#"{"ttl":2}"#);
    api.ask("POST /proxies/p", r#"{"enabled":false}"#);
    api.now += Duration::from_millis(2);
    assert!(!api.ask("GET /proxies/p/toxics", "").body.contains("\"l\""));
    assert!(api.ask("GET /proxies/p/toxics", "").body.contains("\"stays\""));
}

#[test]
fn a_time_that_is_none_is_refused() {
    let mut api = Api::with_proxy();
    api.ask("POST /proxies/p/toxics", r#"{"type":"noop","name":"n","ttl":5}"#);
    api.port.told();
    for ttl in ["0", "-1", "86400001", "9223372036854775807"] {
        let told = "ttl was invalid, can be 1 to 86400000 milliseconds or null";
        api.fails("POST /proxies/p/toxics", &format!(r#"{{"type":"noop","ttl":{ttl}}}"#), 400, told);
        api.fails("PATCH /proxies/p/toxics/n", &format!(r#"{{"ttl":{ttl}}}"#), 400, told);
    }
    let of = |rest: &str| format!("bad request body: json: cannot unmarshal {rest}");
    let told = of("number 0.5 into Go struct field ToxicWrapper.ttl of type int64");
    api.fails("POST /proxies/p/toxics", r#"{"type":"noop","ttl":0.5}"#, 400, &told);
    let told = of("string into Go struct field .ttl of type int64");
    api.fails("PATCH /proxies/p/toxics/n", r#"{"ttl":"5s"}"#, 400, &told);
    assert!(api.port.told().is_empty());
    assert!(api.ask("GET /proxies/p/toxics/n", "").body.ends_with(r#""ttl":5}"#));
}

#[test]
fn populate_looks_at_all_before_it_creates_any() {
    let mut api = Api::with_proxy();
    let populate = "POST /populate";
    let refused = |error: &str| format!("{{\"error\":\"{error}\",\"status\":400,\"proxies\":null}}");
    api.is(populate, "[]", 201, r#"{"proxies":null}"#);
    api.is(populate, "null", 201, r#"{"proxies":null}"#);
    api.is(populate, "", 400, &refused("bad request body: EOF"));
    let bad = r#"[{"name":"q","upstream":"u:1"},{"upstream":"u"}]"#;
    api.is(populate, bad, 400, &refused("missing required field: name at proxy 2"));
    api.is(populate, r#"[{"name":"q"}]"#, 400, &refused("missing required field: upstream at proxy 1"));
    let of = |rest: &str| refused(&format!("bad request body: json: cannot unmarshal {rest}"));
    api.is(populate, r#"[{"name":1}]"#, 400, &of("number into Go struct field .name of type string"));
    let answer = api.ask(populate, "{}").body;
    assert!(answer.contains("object into Go value of type []struct { toxiproxy.Proxy; Enabled *bool"), "{answer}");
    assert!(api.port.told().is_empty());
}

#[test]
fn a_later_null_takes_enabled_back_where_go_has_a_pointer() {
    let mut api = Api::new();
    let body = |rest: &str| format!(r#"{{"name":"p","listen":"127.0.0.1:9","upstream":"u:1","enabled":false,{rest}}}"#);
    let off = P.replace("true", "false");
    api.is("POST /proxies", &body(r#""enabled":null"#), 201, &off);
    api.is("PATCH /proxies/p", r#"{"enabled":true,"Enabled":null}"#, 200, P);
    api.ask("DELETE /proxies/p", "");
    api.is("POST /populate", &format!("[{}]", body(r#""ENABLED":null"#)), 201, &format!("{{\"proxies\":[{P}]}}"));
    api.ask("DELETE /proxies/p", "");
    let again = format!("[{}]", body(r#""enabled":null,"enabled":false"#));
    api.is("POST /populate", &again, 201, &format!("{{\"proxies\":[{off}]}}"));
}

#[test]
fn populate_leaves_what_is_there_and_replaces_what_differs() {
    let mut api = Api::with_proxy();
    api.ask("POST /proxies/p/toxics", r#"{"type":"noop"}"#);
    api.port.told();
    let same = r#"[{"name":"p","listen":"127.0.0.1:9","upstream":"u:1","enabled":false,"toxics":[{"type":"x"}]}]"#;
    let answer = api.ask("POST /populate", same);
    assert_eq!(answer.status, 201);
    assert!(answer.body.contains(r#""enabled":true"#) && answer.body.contains("noop_downstream"), "{}", answer.body);
    assert!(api.port.told().is_empty(), "untouched");
    let other = r#"[{"name":"p","listen":"127.0.0.1:9","upstream":"v:2"},{"name":"q","upstream":"u","enabled":false}]"#;
    let q = r#"{"name":"q","listen":"","upstream":"u","enabled":false,"Logger":{},"toxics":[]}"#;
    api.is("POST /populate", other, 201, &format!("{{\"proxies\":[{},{q}]}}", P.replace("u:1", "v:2")));
    assert_eq!(api.port.told(), ["close p", "open p 127.0.0.1:9 v:2 []"]);
    // A port that is taken ends it: what came before stays and is told.
    let taken = r#"[{"name":"r","listen":"127.0.0.1:6","upstream":"u"},{"name":"p","listen":"127.0.0.1:1","upstream":"u"},{"name":"s","upstream":"u"}]"#;
    let r = r#"{"name":"r","listen":"127.0.0.1:6","upstream":"u","enabled":true,"Logger":{},"toxics":[]}"#;
    let error = "listen tcp 127.0.0.1:1: bind: address already in use";
    api.is("POST /populate", taken, 500, &format!("{{\"error\":\"{error}\",\"status\":500,\"proxies\":[{r}]}}"));
    assert_eq!(api.ask("GET /proxies/s", "").status, 404);
    assert!(api.ask("GET /proxies/p", "").body.contains(r#""enabled":false"#));
    let nowhere = r#"[{"name":"p","listen":"nope","upstream":"u"}]"#;
    assert_eq!(api.ask("POST /populate", nowhere).status, 500);
}

#[test]
fn reset_starts_everything_and_lifts_everything() {
    let mut api = Api::with_proxy();
    api.ask("POST /proxies/p/toxics", r#"{"type":"noop","name":"n"}"#);
    api.ask("POST /proxies/p", r#"{"enabled":false}"#);
    api.ask("POST /proxies", r#"{"name":"a","listen":"127.0.0.1:1","upstream":"u","enabled":false}"#);
    api.ask("POST /proxies/a/toxics", r#"{"type":"noop","name":"kept"}"#);
    api.port.told();
    // One that cannot start keeps its toxics, and nobody else from being reset.
    api.fails("POST /reset", "", 500, "listen tcp 127.0.0.1:1: bind: address already in use");
    let told = ["open a 127.0.0.1:1 u [\"kept\"]", "open p 127.0.0.1:9 u:1 [\"n\"]", "lift p n"];
    assert_eq!(api.port.told(), told);
    assert!(api.ask("GET /proxies/a", "").body.contains("kept"));
    api.is("GET /proxies/p", "", 200, P);
    api.ask("DELETE /proxies/a", "");
    api.is("POST /reset", "ignored", 204, "");
    api.runtime.block_on(api.desk.close());
    assert_eq!(api.port.told(), ["close a", "close p"]);
}

#[test]
fn metrics_name_every_label() {
    let text = Api::new().ask("GET /metrics", "").body;
    let labels = r#"{direction="upstream",listener="127.0.0.1:5",proxy="a\"b\\\n",upstream="u:1"}"#;
    for (way, value) in [("received", 7), ("sent", 5)] {
        assert!(text.contains(&format!("\ntoxiproxy_proxy_{way}_bytes_total{labels} {value}\n")), "{text}");
    }
    let refused = r#"refused_connections_total{listener="127.0.0.1:5",proxy="a\"b\\\n",upstream="u:1"} 3"#;
    assert!(text.ends_with(&format!("\ntoxiproxy_proxy_{refused}\n")), "{text}");
}

/// A value that may or may not be what a field wants.
fn any_value() -> impl Strategy<Value = String> {
    let known = [
        "\"p\"",
        "\"q\"",
        "\"\"",
        "\"latency\"",
        "\"slicer\"",
        "\"upstream\"",
        "\"127.0.0.1:9\"",
        "\"nope\"",
        "{}",
        "[]",
    ];
    prop_oneof![
        proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        (-9_i32..9).prop_map(|number| format!("{number}.5")),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("{\"latency\":5,\"jitter\":\"x\"}".to_owned()),
        Just("{\"latency\":7,\"average_size\":2}".to_owned()),
    ]
}

fn any_body() -> impl Strategy<Value = String> {
    let keys = [
        "name",
        "LISTEN",
        "upstream",
        "enabled",
        "type",
        "stream",
        "toxicity",
        "attributes",
        "Logger",
        "half_close",
        "ttl",
        "x",
    ];
    let member = (proptest::sample::select(keys.to_vec()), any_value());
    let object = proptest::collection::vec(member, 0..5).prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    });
    let object = object.boxed();
    prop_oneof![8 => object.clone(), 1 => object.prop_map(|object| format!("[{object}]")), 1 => ".{0,9}"]
}

proptest! {
    /// Whatever is called: what is refused has changed nothing, neither here nor on the data path, and what is shown is
    /// JSON.
    #[test]
    fn what_is_refused_changes_nothing(calls in proptest::collection::vec((0..9_usize, any_body()), 1..20)) {
        let mut api = Api::with_proxy();
        let all = [
            "POST /proxies", "POST /proxies/p", "PATCH /proxies/q", "DELETE /proxies/q", "POST /proxies/p/toxics",
            "POST /proxies/p/toxics/p", "DELETE /proxies/p/toxics/p", "POST /populate", "POST /reset",
        ];
        for (which, body) in calls {
            let before = api.ask("GET /proxies", "").body;
            api.port.told();
            let answer = api.ask(all[which], &body);
            prop_assert!([200, 201, 204, 400, 404, 409, 500].contains(&answer.status), "{answer:?}");
            let after = api.ask("GET /proxies", "").body;
            let whole: Result<serde_json::Value, _> = serde_json::from_str(&after);
            prop_assert!(whole.is_ok(), "{after}");
            if (400..500).contains(&answer.status) {
                prop_assert_eq!(before, after, "{} {}", all[which], body);
                prop_assert!(api.port.told().is_empty());
                let error: Result<serde_json::Value, _> = serde_json::from_str(&answer.body);
                prop_assert!(error.is_ok_and(|error| error["status"] == answer.status), "{}", answer.body);
            }
        }
    }
}
