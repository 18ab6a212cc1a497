//! A real Redis behind a TCP listener: its own tools in front, many clients, one that only listens, and its death.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::house::{Client, Held, Node, PATIENCE, Place, local, port, wait_until};
use crate::process::{Process, code};

/// On a port of its own that it keeps over restarts.
struct Redis {
    port: u16,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Redis {
    fn start() -> Self {
        let mut redis = Self { port: port(), dir: tempfile::tempdir().unwrap(), process: None };
        redis.run();
        redis
    }

    fn run(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"]);
        self.process = Some(Process::start(command.arg("--dir").arg(self.dir.path())));
        wait_until("redis serves", || {
            assert!(self.process.as_mut().unwrap().ended().is_none(), "redis ended");
            Client::connect(local(self.port)).is_ok()
        });
    }

    fn kill(&mut self) {
        self.process = None;
    }

    /// A node in front of it.
    fn node(&self, policy: &str) -> (Node, Place) {
        let place = Place::new(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\", protocol: tcp, upstream: redis, policy: p, name: cache }}]\n\
             upstreams: {{ redis: {{ url: \"tcp://127.0.0.1:{}\" }} }}\npolicies: {{ p: {{ {policy} }} }}\n",
            self.port
        ));
        (place.node(), place)
    }
}

fn tool(name: &str, address: SocketAddr, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(name);
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start `{name}`: {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(output.status), 0, "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn cli(address: SocketAddr, arguments: &[&str]) -> String {
    tool("redis-cli", address, arguments, b"").trim().to_owned()
}

fn connections(node: &Node, sample: &str) -> u64 {
    node.metrics().get(&format!("seawall_connection{sample}"))
}

/// A client that speaks the protocol itself.
struct Raw(TcpStream);

impl Raw {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, words: &[&str]) {
        let parts: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        self.0.write_all(format!("*{}\r\n{parts}", words.len()).as_bytes()).unwrap();
    }

    fn hears(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        self.0.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }
}

/// Its own benchmark, pipelined and not, and every counter there is tells the same story.
#[test]
fn its_benchmark_and_its_counters_agree_with_ours() {
    const CLIENTS: u64 = 20;
    let redis = Redis::start();
    let (node, _place) = redis.node("");
    let (direct, clients) = (local(redis.port), CLIENTS.to_string());
    for (pipeline, count) in [("1", "4000"), ("16", "40000")] {
        let arguments = ["-q", "-t", "set,get,lpush", "-c", &clients, "-n", count, "-P", pipeline, "-d", "100"];
        let said = tool("redis-benchmark", node.address(), &arguments, b"");
        assert_eq!(said.matches("requests per second").count(), 3, "{said}");
        assert!(!said.contains("rror"), "{said}");
    }
    assert_eq!(cli(node.address(), &["llen", "mylist"]), "44000", "none was lost and none came twice");
    wait_until("all have ended", || connections(&node, "s_open{route=\"cache\"}") == 0);
    let opened = connections(&node, "s_opened_total{route=\"cache\"}");
    assert!(opened > CLIENTS * 6, "{opened}");
    assert_eq!(connections(&node, "_duration_seconds_count{route=\"cache\"}"), opened);
    let metrics = node.metrics();
    let ended = |how: &str| metrics.get(&format!("seawall_connections_ended_total{{route=\"cache\",how=\"{how}\"}}"));
    // The benchmark closes with answers unread, which the kernel turns into a reset.
    assert_eq!(ended("done") + ended("client_reset"), opened);
    assert_eq!(metrics.get("seawall_failures_total{route=\"cache\",kind=\"connect_refused\"}"), 0);
    let of = |text: &str, key: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap().trim().parse().unwrap()
    };
    let stats = cli(direct, &["info", "stats"]);
    // Those asked directly: one to see that it serves, one to ask this.
    assert_eq!(of(&stats, "total_connections_received"), opened + 2);
    let up = connections(&node, "_bytes_total{route=\"cache\",direction=\"up\"}");
    let theirs = of(&stats, "total_net_input_bytes");
    assert!(up <= theirs && theirs < up + 1_000, "{up} {theirs}");
    let status = node.status();
    assert_eq!(status["routes"][0]["connections"]["opened_total"], opened);
    node.stop();
}

/// A hundred thousand commands in one go, and as many answers.
#[test]
fn what_is_piped_in_arrives() {
    let redis = Redis::start();
    let (node, place) = redis.node("");
    let commands: String = (0..100_000).map(|n| format!("SET key:{n} {n:0100}\r\n")).collect();
    let said = tool("redis-cli", node.address(), &["--pipe"], commands.as_bytes());
    assert!(said.contains("errors: 0, replies: 100000"), "{said}");
    assert_eq!(cli(node.address(), &["dbsize"]), "100000");
    assert_eq!(cli(node.address(), &["get", "key:99999"]), format!("{:0100}", 99_999));
    let said = place.seawall(&["status", "--admin", &node.admin.to_string()]);
    said.shows(&["ROUTE (TCP)", "cache", "redis", "closed", "CONNECT P99"]);
    assert!(!said.out.contains("REQUESTS"), "{said:?}");
    place.seawall(&["explain", "cache"]).shows(&["cache: every connection of its listener (TCP), to redis"]);
    let refused = place.seawall(&["simulate", "--fault", "60s..90s down"]);
    refused.tells(&["`cache` carries connections; requests and answers can be played"]);
    assert_eq!(refused.code, 2);
}

#[test]
fn who_only_listens_hears_everything_until_redis_dies() {
    let mut redis = Redis::start();
    let quick = "timeout: 2s, retry: { attempts: 2, backoff: 5ms }, \
                 breaker: { window: 10 calls, calls_min: 4, open_for: 300ms, open_for_max: 300ms }";
    let (node, _place) = redis.node(quick);
    let (mut subscriber, mut publisher) = (Raw::new(node.address()), Raw::new(node.address()));
    subscriber.say(&["SUBSCRIBE", "news"]);
    subscriber.hears("*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    for n in 100..400 {
        publisher.say(&["PUBLISH", "news", &n.to_string()]);
    }
    for n in 100..400 {
        subscriber.hears(&format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\n{n}\r\n"));
    }
    redis.kill();
    // It had nothing unread of the subscriber's, so its kernel ends the connection in order, and so it is passed on.
    assert!(matches!(subscriber.0.read(&mut [0]), Ok(0) | Err(_)));
    let refused =
        |how: &str| node.metrics().get(&format!("seawall_connections_ended_total{{route=\"cache\",how=\"{how}\"}}"));
    wait_until("the breaker refuses", || {
        let mut client = Raw::new(node.address());
        assert!(client.0.read(&mut [0]).is_err(), "whoever is refused is reset");
        refused("refused") > 0
    });
    assert!(refused("failed") > 0);
    assert_eq!(node.breaker("cache"), "open");
    assert!(node.journal().has("breaker_opened") && node.journal().has("calls_failing"));
    redis.run();
    let is_answered = || {
        let (mut client, mut answer) = (Raw::new(node.address()), [0; 7]);
        // Refused, it is reset at once.
        client.0.write_all(b"PING\r\n").is_ok() && client.0.read_exact(&mut answer).is_ok() && answer == *b"+PONG\r\n"
    };
    wait_until("it is well again", || is_answered() && node.breaker("cache") == "closed");
}

/// The most memory the node has had, in bytes.
fn most_memory(node: &Node) -> u64 {
    Held::by(&node.process).most_memory_kib << 10
}

/// A reader that is slow makes its sender wait, and nobody holds what is between them.
#[test]
fn a_slow_reader_costs_no_memory() {
    const VALUE: usize = 48 << 20;
    const TIMES: usize = 5;
    let redis = Redis::start();
    let (node, _place) = redis.node("");
    let mut client = Raw::new(node.address());
    let value: String = (0..VALUE / 8).map(|n| format!("{n:07} ")).collect();
    client.say(&["SET", "large", &value]);
    client.hears("+OK\r\n");
    let before = most_memory(&node);
    (0..TIMES).for_each(|_| client.say(&["GET", "large"]));
    let answer = format!("${VALUE}\r\n{value}\r\n");
    let mut piece = vec![0; 64 << 10];
    for _ in 0..TIMES {
        for expected in answer.as_bytes().chunks(piece.len()) {
            let piece = &mut piece[..expected.len()];
            client.0.read_exact(piece).unwrap();
            assert!(piece == expected, "changed on the way");
        }
    }
    let more = most_memory(&node).saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes more for {} that passed", VALUE * TIMES);
    // Counted once it has been written, which may be a moment after it was read.
    let passed = (answer.len() * TIMES + "+OK\r\n".len()) as u64;
    wait_until("what has passed is counted", || {
        connections(&node, "_bytes_total{route=\"cache\",direction=\"down\"}") == passed
    });
}

#[test]
fn without_a_file() {
    let redis = Redis::start();
    let place = Place::empty();
    let upstream = format!("tcp://127.0.0.1:{}", redis.port);
    let arguments = ["run", "--listen", "tcp://127.0.0.1:0", "--upstream", &upstream, "--admin", "127.0.0.1:0"];
    let node = place.node_with(&arguments, &[]);
    assert_eq!(cli(node.address(), &["ping"]), "PONG");
    assert_eq!(node.status()["routes"][0]["name"], "default");
}

/// A stop lets a session end, and cuts it when the grace is over.
#[test]
fn a_stop_waits_for_sessions_and_then_cuts_them() {
    let redis = Redis::start();
    for (grace, cut_off) in [("60s", 0), ("50ms", 1)] {
        let place = Place::new(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\", protocol: tcp, upstream: redis }}]\n\
             upstreams: {{ redis: {{ endpoints: [\"127.0.0.1:{}\"] }} }}\nlimits: {{ grace: {grace} }}\n",
            redis.port
        ));
        let node = place.node();
        let mut client = Raw::new(node.address());
        client.say(&["PING"]);
        client.hears("+PONG\r\n");
        node.process.signal(rustix::process::Signal::TERM);
        wait_until("nobody is taken on any more", || TcpStream::connect(node.address()).is_err());
        if cut_off == 0 {
            client.say(&["PING"]);
            client.hears("+PONG\r\n");
            drop(client);
        } else {
            assert!(client.0.read(&mut [0]).is_err(), "cut off is no orderly end");
        }
        let mut node = node;
        assert_eq!(code(node.process.wait()), 0);
        let journal = place.seawall(&["journal", "--data", "data", "--json", "--kind", "node_stopped"]);
        assert!(journal.out.contains(&format!("\"cut_off\": \"{cut_off}\"")), "{journal:?}");
    }
}
