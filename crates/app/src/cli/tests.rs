//! What can be typed, what is asked of a node, and what is printed.

use std::path::Path;

use clap::CommandFactory as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::{CallError, Client, encode};
use super::init::{Answers, ask, render};
use super::show::{self, Paint};
use super::*;
use crate::config;

fn parse(line: &str) -> Result<Command, String> {
    let words = std::iter::once("seawall").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_sound_and_says_what_its_exit_status_means() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("3 the node cannot be reached") || help.contains("3 the node cannot\nbe reached"), "{help}");
    for command in Cli::command().get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        let (name, help) = (command.get_name().to_string(), command.render_long_help().to_string());
        assert!(help.contains("Example") || help.contains("Exit status"), "{name}: {help}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (line, words) in [
        ("run --listen :80", "--upstream"),
        ("run --upstream http://a", "--listen"),
        ("run --config x --listen :80 --upstream http://a", "cannot be used with"),
        ("journal --kind nothing", "there are node_started"),
        ("journal --limit 0", "1..=1000"),
        ("journal --follow --data x", "cannot be used with"),
        ("journal --follow --since 1h", "cannot be used with"),
        ("journal --since yesterday", "how long ago"),
        ("journal --until 1969-01-01T00:00:00Z", "how long ago"),
        ("journal verify --anchor 5:x", "64 hexadecimal digits"),
        ("journal --limit 5 verify", "cannot be used with"),
        ("spool ls --state lost", "possible values: waiting, leased, parked"),
        ("spool discard 1", "--reason"),
        ("spool show x", "invalid digit"),
        ("fault place --route r --refuse --ttl 1m", "--share <PERCENT>"),
        ("fault place --route r --first 1 --ttl 1m", "--latency <DURATION>|--head-latency <DURATION>"),
        ("fault place --route r --refuse --first 1", "--ttl"),
        ("fault place --refuse --first 1 --ttl 1m", "--route"),
        ("fault place --route r --refuse --first 1 --ttl 5", "needs a unit"),
        ("fault place --route r --refuse --hang --first 1 --ttl 1m", "cannot be used with"),
        ("fault place --route r --abort 503 --jitter 1s --first 1 --ttl 1m", "cannot be used with"),
        ("fault place --route r --latency 1s --spread tail --first 1 --ttl 1m", "--jitter"),
        ("fault place --route r --refuse --retry-at -2h --first 1 --ttl 1m", "cannot be used with"),
        ("fault place --route r --refuse --flap 2s --first 1 --ttl 1m", "is not `ON/OFF`"),
        ("fault place --zone-cut --ttl 1m", "--zone"),
        ("fault place --route r --cut --way up --first 1 --ttl 1m", "cannot be used with"),
        ("fault place --route r --cut --pause 1s --first 1 --ttl 1m", "cannot be used with"),
        ("nothing", "unrecognized subcommand"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }
    assert!(matches!(parse("run --listen :80 --upstream http://a"), Ok(Command::Run(_))));
    assert!(matches!(parse("demo --seed 3 --json"), Ok(Command::Demo(_))));
    assert!(matches!(parse("completions bash"), Ok(Command::Completions { .. })));
}

#[test]
fn an_error_becomes_its_exit_status() {
    let unreachable = CallError::Unreachable { url: "http://n".into(), reason: "refused".into() };
    assert_eq!(exit_code(&unreachable.into()), 3);
    assert_eq!(exit_code(&UsageError("no".into()).into()), 2);
    assert_eq!(exit_code(&anyhow::anyhow!("no")), 1);
    let gone: anyhow::Error = io::Error::from(io::ErrorKind::BrokenPipe).into();
    assert!(is_broken_pipe(&gone) && !is_broken_pipe(&anyhow::anyhow!("no")));
}

fn run_args(line: &str) -> run::RunArgs {
    match parse(line) {
        Ok(Command::Run(args)) => args,
        other => panic!("{other:?}"),
    }
}

const CONFIG: &str = "listeners: [{ address: \"127.0.0.1:8080\", routes: [{ upstream: a }] }]\n\
                      upstreams: { a: { url: \"http://127.0.0.1:1\" } }\n";

#[test]
fn run_takes_its_configuration_from_a_file_or_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("seawall.yaml");
    let missing = run::configure(&run_args("run"), &file).unwrap_err();
    assert!(missing.to_string().contains("`seawall init` writes one"), "{missing}");
    std::fs::write(&file, CONFIG).unwrap();
    let config = run::configure(&run_args("run --admin :9999 --data /d"), &file).unwrap();
    assert_eq!((config.admin.address.port(), config.store.path.as_path()), (9_999, Path::new("/d")));
    for (admin, words) in [(":x", "is not a port"), ("127.0.0.1:8080", "is taken by the listener on `127.0.0.1:8080`")]
    {
        let error = run::configure(&run_args(&format!("run --admin {admin}")), &file).unwrap_err();
        assert!(error.to_string().contains(words) && exit_code(&error) == 2, "{error}");
    }
    std::fs::write(&file, "zone: a b").unwrap();
    let error = run::configure(&run_args("run"), &file).unwrap_err().to_string();
    assert!(error.contains("cannot run with") && error.contains("`zone`: `a b` is not a name"), "{error}");
    let quick = run::configure(&run_args("run --listen :1 --upstream http://b --data /q"), &file).unwrap();
    assert_eq!((quick.policy.routes[0].name.as_str(), quick.store.path.as_path()), ("default", Path::new("/q")));
    let sealed = run::configure(&run_args("run --listen :1 --upstream https://B:444"), &file).unwrap();
    assert!(sealed.tls.upstreams[0].as_ref().is_some_and(|tls| tls.verifies));
    assert_eq!(sealed.policy.upstreams[0].host.as_deref(), Some("b:444"));
    let error = run::configure(&run_args("run --listen :1 --upstream ftp://b"), &file).unwrap_err();
    assert!(error.to_string().contains("`ftp` is not supported") && exit_code(&error) == 2, "{error}");
}

#[test]
fn four_answers_make_a_configuration_that_passes_its_own_check() {
    let check = |answers: &Answers| {
        let text = render(answers);
        let checked = config::check("seawall.yaml", text.as_bytes(), &|_| None);
        assert_eq!(checked.report.to_string(), "", "{text}");
        checked.config.unwrap().policy
    };
    let policy = check(&Answers::default());
    assert!(policy.routes[0].spools() && policy.routes[1].stale_for().is_some());
    let mut asked = Vec::new();
    let answers = ask(&mut ":9000\nhttp://10.0.0.1:80\neu\nno\n".as_bytes(), &mut asked).unwrap();
    let policy = check(&answers);
    assert_eq!((policy.zone.as_str(), policy.upstreams[0].endpoints[0].address.as_str()), ("eu", "10.0.0.1:80"));
    assert!(!policy.routes[0].spools());
    assert_eq!(String::from_utf8(asked).unwrap().matches('?').count(), 4);
    assert_eq!(ask(&mut "".as_bytes(), &mut Vec::new()).unwrap(), Answers::default(), "no terminal, no answer");
    let odd = ask(&mut "\n\n\"${HOME}\\\n\n".as_bytes(), &mut Vec::new()).unwrap();
    let report = config::check("f", render(&odd).as_bytes(), &|_| None).report;
    assert!(report.to_string().contains("is not a name"), "a value stays a value: {report}");
}

/// A node that gives one answer and tells what it was asked.
async fn node(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = tokio_util::task::TaskTracker::new().spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (address, asked)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{\"ready\":true";

#[tokio::test]
async fn a_call_carries_the_token_and_brings_json_back() {
    let (address, asked) = node("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"ready\":true}").await;
    let client = Client::new(&format!("http://{address}/"), Some("s3cret".into())).unwrap();
    let answer = client.post("/api/x?a=b", &json!({"reason": "r"})).await.unwrap();
    assert_eq!(answer, json!({"ready": true}));
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("POST /api/x?a=b HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("authorization: Bearer s3cret\r\n") && asked.ends_with("{\"reason\":\"r\"}"), "{asked}");
}

#[tokio::test]
async fn every_way_a_call_can_fail_is_told_apart() {
    let call = async |answer: &'static str| {
        let (address, _asked) = node(answer).await;
        Client::new(&address, None).unwrap().get("/api/status").await.unwrap_err()
    };
    let refused =
        call("HTTP/1.1 400 B\r\nContent-Length: 34\r\n\r\n{\"error\":\"no\",\"allowed\":[\"a\",\"b\"]}").await;
    assert_eq!(refused.to_string(), "the node refused: no (allowed: a, b)");
    let refused = call("HTTP/1.1 404 N\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}").await;
    assert_eq!(refused.to_string(), "the node refused: no");
    let stranger = call("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.to_string();
    assert!(stranger.contains("is not a node of Seawall: it answers `/api/status` with status 200"), "{stranger}");
    let stranger = call("HTTP/1.1 500 E\r\nContent-Length: 2\r\n\r\n{}").await.to_string();
    assert!(stranger.contains("it answers with status 500"), "{stranger}");
    assert!(matches!(call("garbage\r\n\r\n").await, CallError::Unreachable { .. }));
    let cut = call(OK).await.to_string();
    assert!(cut.contains("is not a node") || cut.contains("cannot reach"), "{cut}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let nobody = Client::new(&address, None).unwrap().get("/").await.unwrap_err().to_string();
    assert!(nobody.starts_with(&format!("cannot reach a node at `http://{address}`: ")), "{nobody}");
    assert!(nobody.contains("--data DIR"), "{nobody}");
}

#[test]
fn addresses_of_nodes() {
    let url = |address: &str| Client::new(address, None).map(|client| client.url());
    assert_eq!(url("http://n:9900/").unwrap(), "http://n:9900");
    assert_eq!(url("[::1]:9900").unwrap(), "http://[::1]:9900");
    assert_eq!(url(":9900").unwrap(), "http://127.0.0.1:9900");
    for wrong in ["https://n:1", "n", "n:x", "http://a@n:1", "n:99999", "a/b:1"] {
        assert!(url(wrong).is_err(), "{wrong}");
    }
    let of = |address: &str| Client::of(address.parse().unwrap(), None).url();
    assert_eq!((of("0.0.0.0:1"), of("[::]:1"), of("10.0.0.1:1")).0, "http://127.0.0.1:1");
    assert_eq!(of("[::]:1"), "http://[::1]:1");
    assert_eq!(encode("route:a b/é"), "route%3Aa%20b%2F%C3%A9");
}

fn status_answer() -> Value {
    json!({
        "node": "us-east-1", "zone": "us-east", "version": "0.1.0", "config_digest": "abcdef0123456789",
        "started_at": "2023-11-14T22:13:20.000Z", "uptime_s": 61.4, "ready": true,
        "routes": [{
            "name": "events", "upstream": "queue",
            "breaker": {"state": "open", "failure_rate": 0.57, "slow_rate": null, "since_s": 3.0, "opened_total": 2},
            "degraded_since": "2023-11-14T22:13:20.500Z", "requests_total": 100, "failures_total": 5, "retries_total": 3,
            "degraded_total": 6, "in_flight": 0, "waiting": 0, "latency_p50_ms": 2.5, "latency_p99_ms": 60000.0,
            "learned_limit_per_s": 49.53, "concurrency_limit": null,
        }],
        "upstreams": [{"name": "queue", "endpoints": [
            {"address": "10.0.0.1:80", "zone": "us-east", "version": "v2", "weight": 3, "priority": 0, "healthy": true, "ramp": 0.4, "calls_total": 9, "in_flight": 1, "connections": 4},
            {"address": "10.0.0.2:80", "zone": null, "healthy": false, "in_flight": 0, "connections": 0},
            {"address": "10.0.0.3:80", "zone": null, "healthy": true, "ejected": true, "in_flight": 0, "connections": 0},
        ]}],
        "spool": {"waiting": 3, "leased": 1, "parked": 0, "bytes": 1536, "bytes_max": 1 << 30, "oldest_s": 7200.0, "disk_full": true},
        "limits": [{"name": "connections", "value": 10, "used": 4, "reached_total": 2}, {"name": "pending", "value": 9, "used": 0, "reached_total": 0}],
    })
}

#[test]
fn status_is_one_screen() {
    assert_eq!(
        show::status(&status_answer(), Paint(false)),
        "\
node     us-east-1 in us-east
ready    yes
version  0.1.0
config   abcdef012345
started  2023-11-14T22:13:20.000Z (61s ago)

ROUTE   UPSTREAM  BREAKER  FAILED  SLOW  REDUCED SINCE             REQUESTS  FAILURES  RETRIES  REDUCED    P50        P99
events  queue     open        57%     -  2023-11-14T22:13:20.500Z       100         5        3        6  2.5ms  60000.0ms

ROUTE   UPSTREAM  SEEMS TO ALLOW  CALLS AT ONCE
events  queue     49.5/s                      -

UPSTREAM  ENDPOINT     ZONE     VERSION  WEIGHT  PRIORITY  HEALTH      CALLS  IN FLIGHT  CONNECTIONS
queue     10.0.0.1:80  us-east  v2            3         0  slow_start      9          1            4
queue     10.0.0.2:80  -        -             -         -  unhealthy       -          0            0
queue     10.0.0.3:80  -        -             -         -  ejected         -          0            0

spool waiting    3
being delivered  1
dead letters     0
oldest           2h
size             1.5KiB of 1.0GiB, the disk is full

LIMIT REACHED  VALUE  USED  TIMES
connections       10     4      2
"
    );
    let mut unready = status_answer();
    unready["not_ready_because"] = "draining".into();
    unready["limits"] = json!([]);
    unready["upstreams"][0]["endpoints"][0]["ramp"] = json!(1.0);
    let painted = show::status(&unready, Paint(true));
    assert!(painted.contains("ready    \u{1b}[31mno\u{1b}[0m, draining"), "{painted}");
    assert!(painted.contains("\u{1b}[31mopen\u{1b}[0m") && painted.contains("\u{1b}[32mhealthy\u{1b}[0m"), "{painted}");
    assert!(!painted.contains("LIMIT"), "{painted}");
}

#[test]
fn an_entry_is_one_line_with_its_cause() {
    let entries = json!({"entries": [
        {"seq": 7, "at": "2023-11-14T22:13:20.000Z", "kind": "breaker_opened", "subject": "route:events", "cause": null,
         "fields": {"failure_rate": "57%", "why": "no answer\nin time", "x": ""}},
        {"seq": 8, "at": "2023-11-14T22:13:20.001Z", "kind": "degraded_started", "subject": "route:events", "cause": 7, "fields": {}},
    ]});
    assert_eq!(
        show::journal(&entries),
        "     7  2023-11-14T22:13:20.000Z  breaker_opened        route:events  failure_rate=57%  why=\"no answer\\nin time\"  x=\"\"\n     \
         8  2023-11-14T22:13:20.001Z  degraded_started      route:events  because of 7\n"
    );
}

#[test]
fn a_chain_that_does_not_hold_says_where() {
    let tag = "ab".repeat(32);
    let well = json!({"holds": true, "linked": 3, "unlinked": 0, "first": 1, "starts_late": false, "numbers_missing": 0,
                      "head": {"seq": 3, "tag": tag}, "breaks": [], "breaks_total": 0});
    assert_eq!(show::verified(&well), format!("the chain holds\nentries   3\nfirst     1\nhead      3:{tag}\n"));
    let ill = json!({"holds": false, "linked": 2, "unlinked": 4, "first": 5, "starts_late": true, "numbers_missing": 1, "anchor_too_old": true,
                     "head": null, "breaks": [{"seq": 6, "flaw": "changed"}], "breaks_total": 1});
    assert_eq!(
        show::verified(&ill),
        "THE CHAIN DOES NOT HOLD, in 1 places\n  entry 6 is not as it was written\nentries   2\n\
         unlinked  4, written without a link: nothing vouches for them\n\
         first     5, older ones went by retention or were taken away\n\
         missing   1 numbers: not written, as the journal says itself where it could\n\
         anchor    older than the first entry left: it could not be compared\n"
    );
    let empty = json!({"holds": true, "linked": 0, "breaks": []});
    assert!(show::verified(&empty).starts_with("there is nothing to vouch for"), "not the same as well");
}

#[test]
fn records_say_why_they_are_there() {
    let record = |state: &str, parked: Value, last_error: &str| {
        json!({"id": 1, "state": state, "upstream": "queue", "order_key": null, "age_s": 3.25, "attempts": 2,
               "last_error": last_error, "first_failure": "the breaker is open", "parked": parked, "settled": null,
               "headers": ["a", "b"], "method": "POST", "target": "/events"})
    };
    let parked = json!({"reason": "answered 422", "last_words": "no\u{1b}[31m", "at": "2023-11-14T22:13:20.000Z"});
    let listed = json!({"records": [record("parked", parked.clone(), "x"), record("waiting", Value::Null, "timeout"), record("waiting", Value::Null, "")]});
    assert_eq!(
        show::spool(&listed),
        "ID  STATE    UPSTREAM  ORDER KEY   AGE  TRIES  BECAUSE\n \
          1  parked   queue             -  3.2s      2  answered 422\n \
          1  waiting  queue             -  3.2s      2  timeout\n \
          1  waiting  queue             -  3.2s      2  the breaker is open\n"
    );
    assert_eq!(show::spool(&json!({"records": []})), "nothing\n");
    let shown = show::record(&record("parked", parked, "x"));
    assert!(shown.contains("parked because  answered 422\n") && shown.contains("last words      no [31m\n"), "{shown}");
    assert!(shown.contains("headers         a, b\n") && !shown.contains("order_key"), "{shown}");
    let mut settled = record("delivered", Value::Null, "");
    settled["settled"] = json!({"status": 201, "at": "t"});
    assert!(show::record(&settled).contains("answered with  201\n"), "{}", show::record(&settled));
    settled["settled"] = json!({"reason": "a test", "at": "t"});
    assert!(show::record(&settled).contains("given up because  a test\n"));
}

#[test]
fn the_verdict_is_never_better_than_it_is() {
    let answer = |verdict: &str| {
        json!({"verdict": verdict, "streams": [{"stream": "events", "producer": "n", "epoch": 2, "state": "open", "accepted": 9}],
               "totals": {"accepted": 9}})
    };
    let text = show::ledger(&answer("unknown"), Paint(false));
    assert!(text.ends_with("unknown: no sink has reported yet, or records are still on their way\n"), "{text}");
    assert!(text.starts_with("STREAM  PRODUCER  EPOCH  STATE  ACCEPTED"), "{text}");
    assert!(text.lines().nth(2).unwrap().starts_with("total"), "{text}");
    let painted = |verdict: &str| show::ledger(&answer(verdict), Paint(true)).lines().last().unwrap().to_string();
    assert!(painted("unknown").starts_with("\u{1b}[33munknown"), "neither good nor bad");
    assert!(painted("balanced").starts_with("\u{1b}[32mbalanced") && painted("imbalanced").starts_with("\u{1b}[31m"));
}
