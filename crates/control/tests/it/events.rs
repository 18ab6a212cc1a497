//! The stream of events, as a browser would read it.

use std::time::Duration;

use seawall_control::STREAMS_MAX;
use seawall_core::journal::{Draft, Kind};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use crate::world::{World, world};

struct Reader {
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Dropped, the connection would end.
    _writer: tokio::net::tcp::OwnedWriteHalf,
}

#[derive(Debug)]
struct Event {
    name: String,
    id: Option<u64>,
    data: Value,
}

impl Reader {
    async fn new(world: &World, target: &str, headers: &str) -> Self {
        let (reader, mut writer) = TcpStream::connect(&world.address).await.unwrap().into_split();
        let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", world.address);
        writer.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        assert_eq!(status, "HTTP/1.1 200 OK");
        let mut is_stream = false;
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            is_stream |= line == "content-type: text/event-stream";
            if line.is_empty() {
                break;
            }
        }
        assert!(is_stream);
        Self { lines, _writer: writer }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let (mut name, mut id) = (String::new(), None);
        let deadline = Duration::from_secs(20);
        loop {
            let line = tokio::time::timeout(deadline, self.lines.next_line()).await.expect("an event").ok()??;
            // Chunk sizes stand on lines of their own.
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.into();
            } else if let Some(number) = line.strip_prefix("id: ") {
                id = number.parse().ok();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some(Event { name, id, data: serde_json::from_str(data).unwrap() });
            }
        }
    }

    async fn next_of(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.name == name {
                return event;
            }
        }
    }
}

fn fact(subject: &str) -> Draft {
    Draft::new(Kind::BreakerOpened, subject)
}

#[tokio::test]
async fn snapshots_come_at_once_and_again_with_what_has_changed() {
    let world = world().await;
    let mut reader = Reader::new(&world, "/events", "").await;
    let first = reader.next().await.unwrap();
    assert_eq!((first.name.as_str(), &first.data["at"]), ("snapshot", &json!("2023-11-14T22:13:20.000Z")));
    let html = first.data["html"].as_object().unwrap();
    let parts: Vec<&str> = html.keys().map(String::as_str).collect();
    assert_eq!(parts.len(), 5);
    let page = world.get("/").await.body;
    for (id, part) in html {
        assert!(page.contains(part.as_str().unwrap()), "the first page and the events draw `{id}` alike");
        assert!(page.contains(&format!("id=\"{id}\"")), "`{id}` has its place on the page");
    }
    world.snapshot.lock().unwrap().routes[0].breaker.state = "open";
    let mut routes = String::new();
    while !routes.contains(r#"data-breaker-state="open""#) {
        routes = reader.next_of("snapshot").await.data["html"]["routes"].as_str().unwrap().into();
    }
    world.end().await;
}

#[tokio::test]
async fn entries_come_as_they_are_recorded() {
    let world = world().await;
    let old = world.store.journal.record(fact("route:old"));
    let mut reader = Reader::new(&world, "/events", "").await;
    reader.next_of("snapshot").await;
    let new = world.store.journal.record(fact("route:new").because(Some(old)));
    let event = reader.next_of("journal").await;
    assert_eq!((event.id, &event.data["entry"]["subject"]), (Some(new.0), &json!("route:new")));
    assert!(event.data["html"].as_str().unwrap().contains(&format!(r#"data-cause="{old}""#)));
    world.end().await;
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_what_it_missed() {
    let world = world().await;
    let first = world.store.journal.record(fact("route:1")).0;
    world.store.journal.record(fact("route:2"));
    world.store.journal.record(fact("route:3"));
    let mut page = Reader::new(&world, &format!("/events?after={first}"), "").await;
    assert_eq!(page.next_of("journal").await.id, Some(first + 1));
    assert_eq!(page.next_of("journal").await.id, Some(first + 2));
    let mut again = Reader::new(&world, "/events?after=0", &format!("Last-Event-ID: {}\r\n", first + 1)).await;
    assert_eq!(again.next_of("journal").await.id, Some(first + 2), "the header is newer than the page's address");
    let mut future = Reader::new(&world, "/events?after=999999", "").await;
    future.next_of("snapshot").await;
    world.store.journal.record(fact("route:4"));
    assert_eq!(future.next_of("journal").await.id, Some(first + 3), "a number from another journal hides nothing");
    world.end().await;
}

#[tokio::test]
async fn a_reader_far_behind_gets_the_newest_and_one_that_lags_misses_nothing_after() {
    let world = world().await;
    for number in 0..700 {
        world.store.journal.record(fact(&format!("route:{number}")));
    }
    let last = world.store.journal.last().unwrap().0;
    let mut reader = Reader::new(&world, "/events?after=0", "").await;
    let first = reader.next_of("journal").await.id.unwrap();
    assert_eq!(first, last - 500 + 1);
    // More than the channel to a subscriber holds, without giving the follower a turn: it must look back.
    for number in 0..1_500 {
        world.store.journal.record(fact(&format!("late:{number}")));
    }
    let newest = world.store.journal.last().unwrap().0;
    let mut seen = first;
    while seen < newest {
        let id = reader.next_of("journal").await.id.unwrap();
        assert!(id > seen, "in order and never twice");
        seen = id;
    }
    world.end().await;
}

#[tokio::test]
async fn readers_are_counted_and_end_with_the_node() {
    let world = world().await;
    let mut readers = Vec::new();
    for _ in 0..STREAMS_MAX {
        readers.push(Reader::new(&world, "/events", "").await);
    }
    let refused = world.get("/events").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"], format!("{STREAMS_MAX} readers follow the events already"));
    let mut last = readers.pop().unwrap();
    last.next_of("snapshot").await;
    drop(readers);
    // Their places are free as soon as the node has noticed.
    loop {
        let mut stream = TcpStream::connect(&world.address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let line = BufReader::new(stream).lines().next_line().await.unwrap().unwrap();
        if line == "HTTP/1.1 200 OK" {
            break;
        }
        tokio::task::yield_now().await;
    }
    world.stop.cancel();
    while last.next().await.is_some() {}
    world.end().await;
}
