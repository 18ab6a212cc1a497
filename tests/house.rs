//! What every test needs: a folder with a configuration, a node that runs in it, and a client that sees bytes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::Process;

/// The program under test.
pub const SEAWALL: &str = env!("CARGO_BIN_EXE_seawall");

/// How long a test waits for what must happen; only a broken build, or a very busy machine, ever waits that long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is yes.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    wait_for(what, || done().then_some(()));
}

/// Asks until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// For a test's choices: `E2E_SEED`, or a fresh one.
pub fn seed() -> u64 {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    std::env::var("E2E_SEED").map_or_else(|_| fresh(), |seed| seed.parse().expect("a number"))
}

/// A port nobody has, for servers that must come back on the same one. Below the range the kernel hands out, so that
/// it stays free while nobody listens there.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 2_000).unwrap_or(0) * 10;
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (first + offset) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A folder of its own with a configuration in it.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn empty() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// With `seawall.yaml`. Store and admin port are the folder's own unless the text says something else.
    pub fn new(config: &str) -> Self {
        let place = Self::empty();
        place.configure(config);
        place
    }

    pub fn configure(&self, config: &str) {
        let mut text = config.to_owned();
        if !config.contains("store:") {
            text += "\nstore: { path: ./data }\n";
        }
        if !config.contains("admin:") {
            text += "\nadmin: { address: \"127.0.0.1:0\" }\n";
        }
        self.write("seawall.yaml", &text);
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// `seawall` with these arguments, in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SEAWALL);
        command.args(arguments).current_dir(self.path()).env_remove("SEAWALL_LOG").stdin(Stdio::null());
        command
    }

    /// Runs `seawall` to its end.
    pub fn seawall(&self, arguments: &[&str]) -> Said {
        Said::of(&self.command(arguments).output().expect("the binary runs"))
    }

    /// Runs `seawall` that is expected to refuse; one that runs on is ended and told.
    pub fn refused(&self, arguments: &[&str]) -> Said {
        let mut process = Process::start(&mut self.command(arguments));
        let status = process.wait();
        Said { code: crate::process::code(status), out: String::new(), err: process.lines().join("\n") }.calm()
    }

    /// Starts a node here and waits until it serves.
    pub fn node(&self) -> Node {
        self.node_with(&["run"], &[])
    }

    pub fn node_with(&self, arguments: &[&str], environment: &[(&str, String)]) -> Node {
        let mut node = self.spawn(arguments, environment);
        assert!(node.wait_ready(), "the node ended before it served:\n{}", node.process.lines().join("\n"));
        node
    }

    /// Starts a node here and does not wait.
    pub fn spawn(&self, arguments: &[&str], environment: &[(&str, String)]) -> Node {
        let mut command = self.command(arguments);
        command.args(["--log", "json"]).envs(environment.iter().map(|(name, value)| (name, value)));
        Node::of(Process::start(&mut command))
    }
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: crate::process::code(output.status), out: text(&output.stdout), err: text(&output.stderr) }.calm()
    }

    /// No command panics, whatever it is asked.
    fn calm(self) -> Self {
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Panics unless all is in its standard output.
    pub fn shows(&self, wanted: &[&str]) {
        wanted.iter().for_each(|text| assert!(self.out.contains(text), "no `{text}` in\n{}{}", self.out, self.err));
    }

    /// Panics unless all is in its standard error.
    pub fn tells(&self, wanted: &[&str]) {
        wanted.iter().for_each(|text| assert!(self.err.contains(text), "no `{text}` in\n{}", self.err));
    }
}

/// What a process holds, as the kernel says.
#[derive(Debug)]
pub struct Held {
    pub sockets: u64,
    /// Whatever else has a descriptor.
    pub files: u64,
    pub threads: u64,
    /// Resident.
    pub memory_kib: u64,
    /// Of that, its own and not a file's.
    pub own_memory_kib: u64,
    /// The most there was of it.
    pub most_memory_kib: u64,
}

impl Held {
    pub fn by(process: &Process) -> Self {
        let proc = format!("/proc/{}", process.pid());
        let descriptors = std::fs::read_dir(format!("{proc}/fd")).unwrap();
        let targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
        let (sockets, files): (Vec<_>, Vec<_>) =
            targets.partition(|target| target.to_string_lossy().starts_with("socket:"));
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let of = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            sockets: sockets.len() as u64,
            files: files.len() as u64,
            threads: of("Threads:"),
            memory_kib: of("VmRSS:"),
            own_memory_kib: of("RssAnon:"),
            most_memory_kib: of("VmHWM:"),
        }
    }

    pub fn descriptors(&self) -> u64 {
        self.sockets + self.files
    }
}

/// A running node of Seawall.
pub struct Node {
    pub process: Process,
    /// Where it listens for clients, in the configuration's order.
    pub addresses: Vec<SocketAddr>,
    pub admin: SocketAddr,
}

impl Node {
    /// A process that is, or becomes, a node with `--log json`.
    pub fn of(process: Process) -> Self {
        Self { process, addresses: Vec::new(), admin: local(0) }
    }

    /// True once it serves, false if it ended before that.
    pub fn wait_ready(&mut self) -> bool {
        let ready = wait_for("the node serves", || {
            let ended = self.process.ended().is_some();
            let lines = self.process.lines();
            let address = |line: &str, message: &str| {
                let line: Value = serde_json::from_str(line).ok()?;
                let address = (line["message"] == message).then(|| line["address"].as_str())??.to_owned();
                address.trim_start_matches("http://").trim_end_matches('/').parse().ok()
            };
            let admin = lines.iter().find_map(|line| address(line, "overview and admin API"));
            self.addresses = lines.iter().filter_map(|line| address(line, "listening")).collect();
            admin.map(Some).or(ended.then_some(None))
        });
        self.admin = ready.unwrap_or(self.admin);
        ready.is_some()
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn client(&self) -> Client {
        Client::new(self.address())
    }

    pub fn get(&self, target: &str) -> Answer {
        self.client().ask(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    pub fn post(&self, target: &str, headers: &str, body: &str) -> Answer {
        self.client().ask(&post(target, headers, body))
    }

    /// Of the admin API.
    pub fn admin_get(&self, target: &str) -> Answer {
        Client::new(self.admin).ask(&format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.admin))
    }

    pub fn api(&self, target: &str) -> Value {
        let answer = self.admin_get(target);
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
        answer.json()
    }

    pub fn admin_post(&self, target: &str, body: &Value) -> Answer {
        Client::new(self.admin).ask(&post(target, "Content-Type: application/json\r\n", &body.to_string()))
    }

    pub fn status(&self) -> Value {
        self.api("/api/status")
    }

    /// Records that wait or are being delivered.
    pub fn spooled(&self) -> u64 {
        let spool = &self.status()["spool"];
        spool["waiting"].as_u64().unwrap() + spool["leased"].as_u64().unwrap()
    }

    /// The first answer of Seawall's own breaker.
    pub fn refused_by_breaker(&self, target: &str) -> Answer {
        let refused = |answer: &Answer| answer.body.contains("the breaker is open");
        wait_for("the breaker refuses", || Some(self.get(target)).filter(refused))
    }

    pub fn breaker(&self, route: &str) -> String {
        let status = self.status();
        let routes = status["routes"].as_array().unwrap();
        let route = routes.iter().find(|it| it["name"] == route).unwrap();
        route["breaker"]["state"].as_str().unwrap().to_owned()
    }

    pub fn journal(&self) -> Journal {
        Journal::of(&self.api("/api/journal?limit=1000"))
    }

    pub fn metrics(&self) -> Metrics {
        let answer = self.admin_get("/metrics");
        assert_eq!(answer.status, 200);
        Metrics(answer.body)
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

impl Drop for Node {
    /// Whatever a test did to it: a node does not panic, and what it logs is one JSON object a line.
    fn drop(&mut self) {
        self.process.kill();
        if thread::panicking() {
            return;
        }
        let lines = self.process.lines();
        for line in &lines {
            assert!(!line.contains("panicked"), "the node panicked:\n{}", lines.join("\n"));
            let is_object = serde_json::from_str::<Value>(line).is_ok_and(|line| line["message"].is_string());
            assert!(is_object || line.starts_with("seawall: "), "not a log line: {line}");
        }
    }
}

/// Journal entries, oldest first.
#[derive(Debug)]
pub struct Journal(pub Vec<Value>);

impl Journal {
    pub fn of(answer: &Value) -> Self {
        Self(answer["entries"].as_array().expect("entries").clone())
    }

    pub fn kinds(&self) -> Vec<&str> {
        self.0.iter().map(|entry| entry["kind"].as_str().unwrap()).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|entry| entry["kind"] == kind).count()
    }

    pub fn has(&self, kind: &str) -> bool {
        self.count(kind) > 0
    }

    pub fn first(&self, kind: &str) -> &Value {
        self.0.iter().find(|entry| entry["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {self:#?}"))
    }

    pub fn last(&self, kind: &str) -> &Value {
        self.0.iter().rfind(|entry| entry["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {self:#?}"))
    }

    /// Of every start of the node, how many epochs after the first.
    pub fn epochs(&self) -> Vec<u64> {
        let starts = self.0.iter().filter(|entry| entry["kind"] == "node_started");
        let epochs: Vec<u64> =
            starts.map(|entry| entry["fields"]["epoch"].as_str().unwrap().parse().expect("a number")).collect();
        epochs.iter().map(|epoch| epoch - epochs[0]).collect()
    }

    /// The kinds of an entry and of what led to it, back to where nothing did.
    pub fn story(&self, entry: &Value) -> Vec<&str> {
        let by_seq: BTreeMap<u64, &Value> = self.0.iter().map(|it| (it["seq"].as_u64().unwrap(), it)).collect();
        let (mut story, mut at) = (Vec::new(), entry["seq"].as_u64());
        while let Some(entry) = at.and_then(|seq| by_seq.get(&seq)) {
            story.push(entry["kind"].as_str().unwrap());
            at = entry["cause"].as_u64();
            assert!(at < entry["seq"].as_u64(), "a cause comes first: {entry}");
        }
        story
    }
}

/// Prometheus text.
pub struct Metrics(pub String);

impl Metrics {
    /// The sample written exactly so, labels included.
    pub fn get(&self, sample: &str) -> u64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no sample `{sample}` in\n{}", self.0));
        value.parse::<f64>().unwrap_or_else(|_| panic!("`{sample}` is `{value}`")) as u64
    }

    pub fn answers(&self, route: &str, class: &str) -> u64 {
        self.get(&format!("seawall_requests_total{{route=\"{route}\",class=\"{class}\"}}"))
    }

    pub fn all_answers(&self, route: &str) -> u64 {
        ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().map(|class| self.answers(route, class)).sum()
    }
}

pub fn post(target: &str, headers: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A client that sees bytes.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// Panics if there is none.
    pub fn must(&self, name: &str) -> String {
        self.header(name).unwrap_or_else(|| panic!("no `{name}` in {}", self.head))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// An answer of Seawall's own, with this RFC 9209 error; 429, 503 and 507 say when to come back.
    pub fn is_ours(&self, status: u16, error: &str) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        let told = self.must("proxy-status");
        assert!(told.starts_with(&format!("seawall; error={error}; details=")), "{told}");
        if matches!(status, 429 | 503 | 507) {
            assert!(self.must("retry-after").parse::<u64>().unwrap() >= 1, "{self:?}");
        }
        self
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// One whose address is another than 127.0.0.1.
    pub fn from(source: [u8; 4], address: SocketAddr) -> Self {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) -> &mut Self {
        // Who has refused may close before we have sent everything.
        let _ = self.stream.write_all(bytes);
        self
    }

    /// The next answer; `None` if the connection ended without a whole one.
    pub fn next(&mut self) -> Option<Answer> {
        let (head, body) = read_message(&mut self.stream, &mut self.buffer)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }

    pub fn try_ask(&mut self, request: &str) -> Option<Answer> {
        self.send(request.as_bytes()).next()
    }

    pub fn ask(&mut self, request: &str) -> Answer {
        self.try_ask(request).unwrap_or_else(|| panic!("no whole answer to {request:?}"))
    }

    /// Whatever comes until the connection ends.
    pub fn rest(&mut self) -> String {
        let mut bytes = std::mem::take(&mut self.buffer);
        let _ = self.stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub fn header(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Head and decoded body of the next message; `None` at the end.
pub fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if (100..200).contains(&status) || status == 204 || status == 304 {
        return Some((head, Vec::new()));
    }
    if header(&head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return read_chunks(stream, buffer).map(|body| (head, body));
    }
    let length: usize = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        fill(stream, buffer)?;
    }
    Some((head, buffer.drain(..length).collect()))
}

fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, buffer)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).ok()?;
        if size == 0 {
            while !read_line(stream, buffer)?.is_empty() {}
            return Some(body);
        }
        while buffer.len() < size + 2 {
            fill(stream, buffer)?;
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
    }
}

fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 2);
            return Some(line);
        }
        fill(stream, buffer)?;
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = [0; 64 << 10];
    match stream.read(&mut chunk) {
        Ok(0) | Err(_) => None,
        Ok(read) => {
            buffer.extend_from_slice(&chunk[..read]);
            Some(())
        }
    }
}
