//! The world of a test: upstreams that do as they are told, a gateway in front of them, and a client that sees bytes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use seawall_core::drain::{Refused, Target};
use seawall_core::fault::book::{Book, Caps};
use seawall_core::guard::breaker::{BreakerConfig, HalfOpen, OpenWait};
use seawall_core::guard::budget::BudgetConfig;
use seawall_core::guard::bulkhead::BulkheadConfig;
use seawall_core::guard::retry::{Backoff, RetryConfig};
use seawall_core::id::{RouteId, UpstreamId};
use seawall_core::journal::Kind;
use seawall_core::observation::{NodeSnapshot, RouteSnapshot};
use seawall_core::policy::{
    Delivery, Endpoint, Fallback, Guards, Limits, Listener, Match, PathMatch, Policy, Protocol, Resolver, Route,
    Upstream,
};
use seawall_core::time::Wall;
use seawall_core::units::Ratio;
use seawall_gateway::fault::CallFaults;
use seawall_gateway::net::Net;
use seawall_gateway::tls::Tls;
use seawall_gateway::{Clock, Drains, Fate, Gateway, Parts, Prepared, Records, StartError, TRAFFIC_EVERY};
use seawall_store::{ClockFn, EngineThreads, RealDisk, Store, StoreOptions};

/// How long a test waits for what must happen; only a broken build ever waits that long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until the answer is yes.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection it came by, from 0.
    pub connection: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

pub fn header(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// What an upstream does with a request.
#[derive(Clone, Debug)]
pub enum Do {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    SendAndClose(Vec<u8>),
    /// Waits first.
    Wait(Duration, Box<Do>),
    /// Closes without a word.
    Close,
    /// Resets the connection.
    Reset,
    /// Says nothing until the other side goes away.
    Hang,
}

pub fn answer(status: &str, headers: &str, body: &str) -> Do {
    Do::Send(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

pub fn ok(body: &str) -> Do {
    answer("200 OK", "", body)
}

type Script = Arc<dyn Fn(&Seen, usize) -> Do + Send + Sync>;

/// An upstream on a real socket.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<Mutex<bool>>,
}

impl Server {
    /// `script` is asked with each request and its number, from 0.
    pub fn start(script: impl Fn(&Seen, usize) -> Do + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    pub fn start_at(address: SocketAddr, script: impl Fn(&Seen, usize) -> Do + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(false)));
        let (of_server, stopped, script): (_, _, Script) = (Arc::clone(&seen), Arc::clone(&stop), Arc::new(script));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if *stopped.lock().unwrap() {
                    return;
                }
                let (seen, script) = (Arc::clone(&of_server), Arc::clone(&script));
                let Ok(stream) = stream else { continue };
                thread::spawn(move || serve(stream, number, &seen, &script));
            }
        });
        Self { address, seen, stop }
    }

    /// Does these in turn, the last one for ever.
    pub fn playing(steps: Vec<Do>) -> Self {
        let steps = Mutex::new(VecDeque::from(steps));
        Self::start(move |_, _| {
            let mut steps = steps.lock().unwrap();
            if steps.len() > 1 { steps.pop_front().unwrap() } else { steps[0].clone() }
        })
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, connection: usize, seen: &Mutex<Vec<Seen>>, script: &Script) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_message(&mut stream, &mut buffer, false) {
        let (request, number) = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { head, body, connection });
            (seen.last().unwrap().clone(), seen.len() - 1)
        };
        if !act(&mut stream, script(&request, number)) {
            return;
        }
    }
}

/// True if the connection goes on.
fn act(stream: &mut TcpStream, what: Do) -> bool {
    match what {
        Do::Send(bytes) => stream.write_all(&bytes).is_ok(),
        Do::SendAndClose(bytes) => {
            let _ = stream.write_all(&bytes);
            false
        }
        Do::Wait(wait, next) => {
            thread::sleep(wait);
            act(stream, *next)
        }
        Do::Close => false,
        Do::Reset => {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            false
        }
        Do::Hang => {
            let mut sink = [0; 1024];
            while stream.read(&mut sink).is_ok_and(|read| read > 0) {}
            false
        }
    }
}

/// Head and decoded body of the next message; `None` at the end.
pub fn read_message(stream: &mut impl Read, buffer: &mut Vec<u8>, bodiless: bool) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if bodiless || (100..200).contains(&status) || status == 204 || status == 304 {
        return Some((head, Vec::new()));
    }
    let mut body = Vec::new();
    if header(&head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let line = read_line(stream, buffer)?;
            let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).ok()?;
            if size == 0 {
                while !read_line(stream, buffer)?.is_empty() {}
                return Some((head, body));
            }
            while buffer.len() < size + 2 {
                fill(stream, buffer)?;
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
        }
    }
    let length: usize = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        fill(stream, buffer)?;
    }
    body.extend(buffer.drain(..length));
    Some((head, body))
}

fn read_line(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 2);
            return Some(line);
        }
        fill(stream, buffer)?;
    }
}

fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = [0; 64 << 10];
    match stream.read(&mut chunk) {
        Ok(0) | Err(_) => None,
        Ok(read) => {
            buffer.extend_from_slice(&chunk[..read]);
            Some(())
        }
    }
}

/// The account as a test sees it.
#[derive(Default)]
pub struct Account {
    pub fates: Mutex<Vec<(String, Fate)>>,
}

impl Records for Account {
    fn stamp(&self, stream: &str, _: &str, digest: [u8; 32]) -> Option<String> {
        Some(format!("{stream}.node.1.{}", u32::from_le_bytes(digest[..4].try_into().unwrap())))
    }

    fn settle(&self, stamp: &str, fate: Fate) {
        self.fates.lock().unwrap().push((stamp.to_owned(), fate));
    }
}

/// A route to an upstream, with guards that let tests end quickly.
pub fn route(name: &str, upstream: u32) -> Route {
    Route {
        name: name.into(),
        protocol: Protocol::Http,
        upgrades: Vec::new(),
        matcher: Match::default(),
        upstream: UpstreamId(upstream),
        guards: Guards {
            timeout: Duration::from_secs(5),
            try_timeout: Duration::from_secs(5),
            retry: RetryConfig {
                attempts_max: 3,
                backoff: Backoff::Exponential { base: Duration::from_millis(1), multiplier: 2.0 },
                wait_max: Duration::from_millis(5),
                ..RetryConfig::default()
            },
            budget: BudgetConfig { ratio: Ratio::new(0.2).unwrap(), floor_per_s: 100.0, ..BudgetConfig::default() },
            breaker: None,
            bulkhead: BulkheadConfig::default(),
            replay_bytes_max: 64 << 10,
            answer_bytes_max: 64 << 10,
            ..Guards::default()
        },
        fallbacks: Vec::new(),
        order_by: None,
        delivery: Delivery::default(),
        placement: seawall_core::policy::Placement::default(),
    }
}

pub fn on_path(mut route: Route, path: &str) -> Route {
    route.matcher.path = PathMatch::Exact(path.into());
    route
}

pub fn spooling(name: &str, upstream: u32) -> Route {
    Route { fallbacks: vec![Fallback::Spool], order_by: Some("shipment-id".into()), ..route(name, upstream) }
}

pub fn fixed_wait(wait: Duration) -> OpenWait {
    OpenWait { first: wait, multiplier: 1.0, max: Some(wait), ..OpenWait::default() }
}

pub fn breaker() -> BreakerConfig {
    BreakerConfig {
        calls_min: 4,
        wait: fixed_wait(Duration::from_millis(300)),
        half_open: HalfOpen { calls: 1, ..HalfOpen::default() },
        ..BreakerConfig::default()
    }
}

pub fn upstream(name: &str, endpoints: &[SocketAddr]) -> Upstream {
    Upstream {
        name: name.into(),
        endpoints: endpoints
            .iter()
            .map(|address| Endpoint { zone: Some("here".into()), ..Endpoint::at(address.to_string()) })
            .collect(),
        health: None,
        outlier: None,
        balance: seawall_core::balance::BalanceConfig::default(),
        connections_max: 64,
        idle_timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(1),
        announce: None,
        http2: false,
        host: None,
        resolver: Resolver::default(),
    }
}

pub fn policy(routes: Vec<Route>, upstreams: Vec<Upstream>) -> Policy {
    Policy {
        node: "node".into(),
        zone: "here".into(),
        zones: vec!["here".into()],
        listeners: vec![Listener::new(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            (0..routes.len() as u32).map(RouteId).collect(),
        )],
        routes,
        upstreams,
        limits: Limits { grace: Duration::from_secs(5), ..Limits::default() },
        digest: "test".into(),
    }
}

/// A gateway with everything it stands on.
pub struct World {
    pub address: SocketAddr,
    pub account: Arc<Account>,
    pub store: Store,
    pub view: Arc<dyn Fn() -> NodeSnapshot + Send + Sync>,
    pub faults: CallFaults,
    gateway: Option<Gateway>,
    threads: Option<EngineThreads>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl World {
    pub fn new(policy: Policy) -> Self {
        Self::with_store(policy, |_| {})
    }

    pub fn with_store(policy: Policy, tune: impl FnOnce(&mut StoreOptions)) -> Self {
        Self::with(policy, Tls::default(), TRAFFIC_EVERY, tune)
    }

    /// Whose journal may hear of its traffic this often.
    pub fn watched(policy: Policy, traffic_every: Duration) -> Self {
        Self::with(policy, Tls::default(), traffic_every, |_| {})
    }

    /// Whose connections are sealed like this.
    pub fn sealed(policy: Policy, tls: Tls) -> Self {
        Self::with(policy, tls, TRAFFIC_EVERY, |_| {})
    }

    fn with(policy: Policy, tls: Tls, traffic_every: Duration, tune: impl FnOnce(&mut StoreOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let origin = tokio::time::Instant::now();
        let clock = Clock::new(origin, Arc::new(wall));
        let mut options = StoreOptions::new(dir.path().join("data"), "node");
        tune(&mut options);
        let of_store = clock.clone();
        let opened = Store::open(RealDisk, options, ClockFn(move || of_store.now(), wall), || [7; 32]).unwrap();
        let (store, threads) = (opened.store, opened.engine.spawn_threads().unwrap());
        let account = Arc::new(Account::default());
        let caps = Caps { share_max: Ratio::ONE, ..Caps::default() };
        let book = Book::new(caps, &policy, 1);
        let faults = CallFaults::new(book, clock.clone(), store.journal.clone(), None, 1);
        let parts = Parts {
            policy: Arc::new(policy),
            spool: store.spool.clone(),
            journal: store.journal.clone(),
            records: Arc::clone(&account) as Arc<dyn Records>,
            clock,
            seed: 1,
            net: Net::Real,
            cause: None,
            traffic_every,
            tls,
            faults: Some(faults.clone()),
        };
        let gateway = runtime.block_on(Gateway::start(parts, 2)).unwrap();
        Self {
            address: gateway.addresses()[0],
            account,
            store,
            view: gateway.view(),
            faults,
            gateway: Some(gateway),
            threads: Some(threads),
            runtime,
            _dir: dir,
        }
    }

    /// One route to one upstream.
    pub fn simple(server: &Server) -> Self {
        Self::new(policy(vec![route("r", 0)], vec![upstream("u", &[server.address])]))
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub fn get(&self, target: &str) -> Answer {
        self.client().ask(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    pub fn post(&self, target: &str, headers: &str, body: &str) -> Answer {
        self.client().ask(&post(target, headers, body))
    }

    pub fn route(&self, index: usize) -> RouteSnapshot {
        (self.view)().routes.remove(index)
    }

    pub fn entries(&self, kind: Kind) -> Vec<seawall_core::journal::Entry> {
        let entries = self.store.journal.recent(1_000);
        entries.iter().filter(|entry| entry.kind == kind).map(|entry| (**entry).clone()).collect()
    }

    pub fn fates(&self) -> Vec<Fate> {
        self.account.fates.lock().unwrap().iter().map(|(_, fate)| *fate).collect()
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Puts another policy in force.
    pub fn change(&self, policy: Policy) {
        self.try_change(policy).unwrap();
    }

    pub fn try_change(&self, policy: Policy) -> Result<(), StartError> {
        self.put_in_force(self.prepare(policy)?);
        Ok(())
    }

    pub fn prepare(&self, policy: Policy) -> Result<Prepared, StartError> {
        let _runtime = self.runtime.enter();
        self.gateway.as_ref().unwrap().changer().prepare(Arc::new(policy))
    }

    pub fn put_in_force(&self, prepared: Prepared) {
        let _runtime = self.runtime.enter();
        self.gateway.as_ref().unwrap().changer().change(prepared, Tls::default(), None, 2);
    }

    pub fn drains(&self) -> Drains {
        self.gateway.as_ref().unwrap().drains()
    }

    pub fn resume(&self, target: &Target) -> Result<bool, Refused> {
        let _runtime = self.runtime.enter();
        self.drains().resume(target, 3)
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateway.as_ref().unwrap().addresses()
    }

    /// Stops the gateway and tells how many connections were cut off.
    pub fn stop(&mut self, hurry: bool) -> u64 {
        let gateway = self.gateway.take().unwrap();
        self.runtime.block_on(async {
            if hurry { gateway.stop(async {}).await } else { gateway.stop(std::future::pending()).await }
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.gateway.is_some() {
            self.stop(true);
        }
        self.runtime.block_on(self.store.close());
        if let Some(threads) = self.threads.take() {
            threads.join();
        }
    }
}

fn wall() -> Wall {
    Wall::from_millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

pub fn post(target: &str, headers: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A client that sees bytes.
pub struct Client<S = TcpStream> {
    pub stream: S,
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
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: &str) -> &mut Self {
        // A gateway that has refused may close before we have sent everything.
        let _ = self.stream.write_all(bytes.as_bytes());
        self
    }

    /// The next answer; `None` if the connection ended without a whole one.
    pub fn next(&mut self) -> Option<Answer> {
        self.next_of(false)
    }

    pub fn next_of(&mut self, bodiless: bool) -> Option<Answer> {
        let (head, body) = read_message(&mut self.stream, &mut self.buffer, bodiless)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }

    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request).next().unwrap_or_else(|| panic!("no whole answer to {request:?}"))
    }

    /// Whatever comes until the connection ends.
    pub fn rest(&mut self) -> String {
        let mut bytes = std::mem::take(&mut self.buffer);
        let _ = self.stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One line that has arrived, without its end.
    pub fn line(&mut self) -> Option<String> {
        read_line(&mut self.stream, &mut self.buffer)
    }

    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}
