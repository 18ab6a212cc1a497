//! Endpoints, routes and listeners out of service by hand, under traffic, and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use serde_json::{Value, json};

use crate::house::{Client, Node, Place, local, port, post, wait_until};
use crate::process::code;
use crate::server::{Server, ok};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// One upstream with these servers, a route that reads and one that spools.
fn config(servers: &[&Server], listen: u16, more: &str) -> String {
    let endpoints: Vec<String> =
        servers.iter().map(|server| format!("{{ address: \"{}\" }}", server.address)).collect();
    format!(
        "listeners: [{{ address: \"127.0.0.1:{listen}\", routes: [\
         {{ name: events, match: {{ method: POST }}, upstream: queue, policy: writes }}, \
         {{ name: reads, upstream: queue, policy: reads }}] }}]\n\
         upstreams: {{ queue: {{ endpoints: [{}], balance: {{ slow_start: off, panic: 90% }} }} }}\n\
         policies: {{ writes: {{ retry: off, fallback: spool }}, reads: {{ retry: off {more} }} }}\n",
        endpoints.join(", ")
    )
}

fn drain(node: &Node, target: Value) -> Value {
    let answer = node.admin_post("/api/drain", &target);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn resume(node: &Node, target: Value) {
    let answer = node.admin_post("/api/resume", &target);
    assert_eq!((answer.status, &answer.json()["was_draining"]), (200, &json!(true)), "{}", answer.body);
}

fn drains(node: &Node) -> Vec<Value> {
    node.status()["drains"].as_array().unwrap().clone()
}

#[test]
fn an_endpoint_gets_no_new_calls_and_ends_those_it_has() {
    let go_on = Arc::new(AtomicBool::new(false));
    let of_server = Arc::clone(&go_on);
    let first = Server::start(move |seen| {
        wait_until("it may answer", || !seen.line().contains("slow") || of_server.load(Relaxed));
        ok("first")
    });
    let second = Server::start(|_| ok("second"));
    let place = Place::new(&config(&[&first, &second], 0, ""));
    let node = place.node_with(&["run", "--no-watch"], &[]);
    let (name, other) = (format!("queue/{}", first.address), format!("queue/{}", second.address));
    let admin = format!("http://{}", node.admin);
    let said = |words: &[&str]| place.seawall(&[words, &["--admin", &admin]].concat());
    wait_until("both are asked", || {
        node.get("/");
        first.count() > 0 && second.count() > 0
    });
    thread::scope(|scope| {
        // Ask until the first one has a call it does not end.
        let mut slow = Vec::new();
        wait_until("it has a call", || {
            let before = first.count();
            let mut client = node.client();
            client.send(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
            slow.push(scope.spawn(move || client.next().unwrap()));
            wait_until("somebody is asked", || first.count() + second.count() > before);
            first.seen().iter().any(|seen| seen.line().contains("slow"))
        });
        said(&["drain", "--endpoint", &name, "--reason", "new kernel"]).shows(&[&name, "refuses", "new kernel"]);
        let (had, answers) = (first.count(), 40);
        for _ in 0..answers {
            assert_eq!(node.get("/").body, "second");
        }
        assert_eq!(first.count(), had, "no new calls");
        let told = drains(&node);
        assert_eq!((told.len(), &told[0]["name"], &told[0]["last"]), (1, &json!(name), &json!(false)));
        assert!(told[0]["calls"].as_u64().unwrap() >= 1, "{told:?}");
        let left = format!("seawall_drain_left{{kind=\"endpoint\",name=\"{name}\",what=\"calls\"}}");
        assert!(node.metrics().get(&left) >= 1);
        said(&["status"]).shows(&["draining", "DRAINED", "CALLS LEFT", "new kernel"]);

        // Over a reload it stays, also where something else of the upstream changes.
        place.configure(&config(&[&first, &second], 0, ", timeout: 33s").replace("slow_start: off", "slow_start: 1ms"));
        assert_eq!(said(&["reload"]).code, 0);
        assert_eq!((node.get("/").body.as_str(), drains(&node).len()), ("second", 1));

        go_on.store(true, Relaxed);
        slow.into_iter().for_each(|call| assert_eq!(call.join().unwrap().status, 200, "what it had, it ended"));
    });
    wait_until("nothing is left", || {
        let drains = drains(&node);
        (&drains[0]["calls"], &drains[0]["connections"]) == (&json!(0), &json!(0))
    });

    // The only one that was left.
    let last = drain(&node, json!({ "endpoint": other }));
    assert_eq!(last["last"], true);
    node.get("/").is_ours(503, "destination_unavailable");
    assert!(node.get("/").body.contains("is being drained"));
    assert_eq!(node.post("/w", "", "kept").status, 202, "the fallback stands in");
    resume(&node, json!({ "endpoint": name }));
    assert_eq!(node.get("/").body, "first");
    wait_until("what was kept is delivered", || node.spooled() == 0);

    let journal = node.journal();
    let ended = journal.last("drain_ended");
    assert_eq!((&ended["fields"]["why"], &ended["subject"]), (&json!("resumed"), &json!(format!("endpoint:{name}"))));
    assert_eq!(journal.story(ended)[..2], ["drain_ended", "drain_began"]);
    assert_eq!(journal.first("drain_began")["fields"]["reason"], "new kernel");

    // What is not there any more is not drained any more.
    place.configure(&config(&[&first], 0, ""));
    assert_eq!(said(&["reload"]).code, 0);
    assert_eq!(drains(&node), [] as [Value; 0]);
    assert_eq!(node.journal().last("drain_ended")["fields"]["why"], "reconfigured");
    said(&["drain"]).shows(&["nothing is drained"]);
    let unknown = said(&["drain", "--endpoint", &other]);
    assert_eq!(unknown.code, 1);
    unknown.tells(&["there is no endpoint", &format!("(allowed: {name})")]);
}

#[test]
fn a_route_is_refused_or_has_its_fallback_and_others_go_on() {
    let server = Server::start(|_| ok("fine"));
    let echo = port();
    let text = config(&[&server], 0, "").replacen(
        "listeners: [",
        &format!("listeners: [{{ address: \"127.0.0.1:{echo}\", protocol: tcp, name: raw, upstream: queue }}, "),
        1,
    );
    let place = Place::new(&text);
    let node = place.node();
    let mut client = Client::new(node.addresses[1]);
    let mut line = Client::new(local(echo));
    assert_eq!(line.ask(GET).body, "fine", "bytes are carried");
    let seen = server.count();
    drain(&node, json!({ "route": "reads" }));
    let refused = client.ask(GET);
    refused.is_ours(503, "destination_unavailable");
    assert_eq!(refused.json()["rule"], "drain");
    assert_eq!(refused.must("retry-after"), "5");
    assert_eq!(server.count(), seen);
    assert_eq!(client.ask(&post("/w", "", "x")).status, 200, "another route, on the same connection");
    drain(&node, json!({ "route": "events" }));
    assert_eq!(client.ask(&post("/w", "", "y")).status, 202, "its fallback stands in");
    wait_until("and is delivered all the same", || node.spooled() == 0);
    let refused = node.metrics().get("seawall_refused_total{route=\"reads\",rule=\"drain\"}");
    assert_eq!(refused, 1);

    drain(&node, json!({ "route": "raw" }));
    assert_eq!(line.ask(GET).body, "fine", "what stands goes on");
    assert_eq!(Client::new(local(echo)).try_ask(GET).map(|answer| answer.status), None, "no new one");
    let raw = drains(&node).into_iter().find(|it| it["name"] == "raw").unwrap();
    assert_eq!((&raw["connections"], &raw["refuses"]), (&json!(1), &json!(true)));

    for route in ["reads", "events", "raw"] {
        resume(&node, json!({ "route": route }));
    }
    assert_eq!(client.ask(GET).body, "fine");
    assert_eq!(Client::new(local(echo)).ask(GET).body, "fine");
    // A stop ends drains, and says so.
    drop(line);
    drain(&node, json!({ "route": "reads" }));
    assert_eq!(code(node.stop()), 0);
    let said = place.seawall(&["journal", "--data", "data", "--json", "--kind", "drain_ended"]).json();
    assert_eq!(said["entries"].as_array().unwrap().last().unwrap()["fields"]["why"], "stopped");
    let node = place.node();
    assert_eq!((Client::new(node.addresses[1]).ask(GET).body.as_str(), drains(&node).len()), ("fine", 0));
}

#[test]
fn a_listener_moves_its_clients_then_refuses_and_comes_back() {
    let server = Server::start(|_| ok("fine"));
    let listen = port();
    let place = Place::new(&config(&[&server], listen, ""));
    let node = place.node_with(&["run", "--no-watch"], &[]);
    let listener = format!("127.0.0.1:{listen}");
    let admin = format!("http://{}", node.admin);
    let said = |words: &[&str]| {
        let said = place.seawall(&[words, &["--admin", &admin]].concat());
        assert_eq!(said.code, 0, "{said:?}");
        said
    };
    // First everybody is told to come by another connection, and may.
    said(&["drain", "--listener", &listener, "--refuse-after", "1h"]).shows(&[&listener, "moves its clients"]);
    let ready = node.admin_get("/readyz");
    assert_eq!(
        (ready.status, &ready.json()["reason"]),
        (503, &json!(format!("the listener `{listener}` is being drained")))
    );
    assert_eq!(node.get("/").header("connection").as_deref(), Some("close"));
    resume(&node, json!({ "listener": listener }));
    let mut kept = node.client();
    assert_eq!((kept.ask(GET).header("connection"), node.admin_get("/readyz").status), (None, 200));

    // Then nobody is let in.
    let told = drain(&node, json!({ "listener": listener, "refuse_after": "0s" }));
    assert_eq!(told["refuses"], true);
    wait_until("nobody listens", || Client::connect(local(listen)).is_err());
    assert_eq!(kept.rest(), "", "who is idle is let go");
    wait_until("nobody is left", || drains(&node)[0]["connections"] == 0);
    place.configure(&config(&[&server], listen, ", timeout: 33s"));
    said(&["reload"]);
    assert!(Client::connect(local(listen)).is_err(), "a reload opens nothing");
    assert_eq!(node.admin_get("/readyz").status, 503);

    // As long as somebody else has the port it stays closed.
    let held = std::net::TcpListener::bind(local(listen)).unwrap();
    let refused = node.admin_post("/api/resume", &json!({ "listener": listener }));
    assert_eq!((refused.status, &refused.json()["field"]), (409, &json!("listener")), "{}", refused.body);
    assert_eq!(drains(&node).len(), 1);
    drop(held);
    said(&["resume", "--listener", &listener]).shows(&["in service again"]);
    assert_eq!((node.get("/").body.as_str(), node.admin_get("/readyz").status), ("fine", 200));
    said(&["resume", "--listener", &listener]).shows(&["was not drained"]);

    // By itself, after its time.
    drain(&node, json!({ "listener": listener, "refuse_after": "300ms" }));
    wait_until("nobody listens", || Client::connect(local(listen)).is_err());
    let journal = node.journal();
    assert_eq!((journal.count("drain_began"), journal.count("drain_ended")), (3, 2));
    assert_eq!(journal.last("drain_began")["fields"]["refuses_after"], "300ms");
    // In another process too; what is not there any more is told.
    drain(&node, json!({ "route": "reads", "reason": "tired" }));
    drain(&node, json!({ "route": "events" }));
    place.configure(&config(&[&server], listen, "").replace("name: events", "name: others"));
    let new = place.node_with(&["run", "--take-over"], &[]);
    let told: Vec<_> = drains(&new).iter().map(|it| (it["name"].clone(), it["reason"].clone())).collect();
    assert_eq!(told, [(json!("reads"), json!("tired")), (json!(listener), json!("by hand"))]);
    assert!(new.process.lines().iter().any(|line| line.contains("it was drained, and is not there any more")));
    wait_until("nobody listens", || Client::connect(local(listen)).is_err());
    let mut node = node;
    assert_eq!(code(node.process.wait()), 0);
    said(&["resume", "--listener", &listener]);
    new.get("/").is_ours(503, "destination_unavailable");
}
