//! Toxiproxy's API on a real port, before a data path that says what the test wants.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_control::BoxFuture;
use seawall_control::toxiproxy::{OpenProxy, ProxyPort, Toxiproxy, TrafficSeries};
use seawall_core::fault::Fault;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Opens what it is told to, and finds a name when it is let.
struct Slow {
    found: Semaphore,
    asked: mpsc::Sender<String>,
    waiting: AtomicUsize,
    opened: Mutex<BTreeSet<String>>,
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl ProxyPort for Slow {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            self.waiting.fetch_add(1, Relaxed);
            let _waits = Waits(&self.waiting);
            self.asked.send(host.to_owned()).await.unwrap();
            self.found.acquire().await.unwrap().forget();
            Ok(vec![Ipv4Addr::LOCALHOST.into()])
        })
    }

    fn open(&self, proxy: OpenProxy) -> BoxFuture<'_, io::Result<SocketAddr>> {
        self.opened.lock().unwrap().insert(proxy.name);
        Box::pin(async move { Ok(proxy.listen) })
    }

    fn close<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.opened.lock().unwrap().remove(name);
        Box::pin(async {})
    }

    fn set_half_close(&self, _: &str, _: Option<bool>) {}

    fn put(&self, _: &str, _: Fault) {}

    fn lift(&self, _: &str, _: &str) {}

    fn traffic(&self) -> Vec<TrafficSeries> {
        Vec::new()
    }
}

struct Api {
    address: SocketAddr,
    slow: Arc<Slow>,
    asked: mpsc::Receiver<String>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Api {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = mpsc::channel(16);
        let slow =
            Slow { found: Semaphore::new(0), asked: tell, waiting: AtomicUsize::new(0), opened: Mutex::default() };
        let slow = Arc::new(slow);
        let stop = CancellationToken::new();
        let api = Toxiproxy::start(Arc::<Slow>::clone(&slow), false, 1);
        let serving = TaskTracker::new().spawn(api.serve(listener, stop.clone(), Duration::from_secs(60)));
        Self { address, slow, asked, stop, serving }
    }

    /// Sends a call; [`answer`] reads what comes back.
    async fn send(&self, call: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!("{call} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, call: &str, body: &str) -> String {
        answer(self.send(call, body).await).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// The status and the body.
async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    format!("{} {body}", head.get(9..12).unwrap_or_default())
}

fn proxy(name: &str, listen: &str) -> String {
    format!(r#"{{"name":"{name}","listen":"{listen}","upstream":"u:1"}}"#)
}

#[tokio::test]
async fn a_slow_name_keeps_nobody_but_who_asked_for_it() {
    let mut api = Api::start().await;
    let first = api.send("POST /proxies", &proxy("a", "slow:1")).await;
    assert_eq!(api.asked.recv().await.as_deref(), Some("slow"));
    let populating = api.send("POST /populate", &format!("[{},{}]", proxy("p", ":5"), proxy("q", "far:2"))).await;
    assert_eq!(api.asked.recv().await.as_deref(), Some("far"));
    // Meanwhile everybody else is answered, also about the same name; what waits has done nothing yet.
    assert_eq!(api.ask("GET /proxies", "").await, "200 {}");
    assert!(api.ask("POST /proxies", &proxy("a", "127.0.0.1:3")).await.starts_with("201 "));
    assert!(api.ask("PATCH /proxies/a", r#"{"enabled":false}"#).await.starts_with("200 "));
    assert!(api.ask("POST /proxies/a/toxics", r#"{"type":"noop"}"#).await.starts_with("200 "));
    assert!(
        api.ask("POST /proxies", r#"{"name":"b","listen":"later:1","upstream":"u","enabled":false}"#)
            .await
            .starts_with("201 ")
    );
    assert!(api.ask("POST /proxies", &proxy("b", "slow:1")).await.starts_with("409 "), "no name is needed to refuse");
    let resetting = api.send("POST /reset", "").await;
    assert_eq!(api.asked.recv().await.as_deref(), Some("later"));
    assert!(api.slow.opened.lock().unwrap().is_empty());
    // What has changed since then is seen.
    api.slow.found.add_permits(3);
    assert_eq!(answer(first).await, "409 {\"error\":\"proxy already exists\",\"status\":409}\n");
    assert!(answer(populating).await.contains("\"listen\":\"127.0.0.1:2\""));
    assert_eq!(answer(resetting).await, "204 ");
    assert_eq!(api.slow.opened.lock().unwrap().iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "p", "q"]);
    api.stop().await;
}

#[tokio::test]
async fn who_leaves_before_a_name_is_found_has_asked_for_nothing() {
    let mut api = Api::start().await;
    drop(api.send("POST /proxies", &proxy("a", "slow:1")).await);
    assert_eq!(api.asked.recv().await.as_deref(), Some("slow"));
    let ends = async {
        while api.slow.waiting.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ends).await.expect("the lookup ends with its connection");
    api.slow.found.add_permits(1);
    assert!(api.ask("POST /proxies", &proxy("b", "slow:2")).await.starts_with("201 "));
    assert!(!api.ask("GET /proxies", "").await.contains("\"a\""));
    api.stop().await;
}
