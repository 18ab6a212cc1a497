//! The API's port: a bounded number of connections, each with an owner; heads as the original writes them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, LOCATION, USER_AGENT, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use seawall_core::prng::Prng;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Answer, ApiError};
use super::routes::{Routed, route};
use super::wire::Wire;
use super::{BODY_BYTES_MAX, Toxiproxy};

/// Connections at the same time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 1_024;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// A connection without a request ends after this long.
    idle: Duration,
    /// A head must be complete so long after it began; the first one, after the connection did.
    head: Duration,
    /// And a body so long after its head.
    body: Duration,
    /// A call that is not answered by then is answered 503 without a word.
    call: Duration,
    /// An answer must be taken within this.
    answer: Duration,
}

impl Limits {
    /// The original's, which counts 15 seconds for head and body together.
    pub(super) const ORIGINAL: Self = Self {
        idle: Duration::from_secs(60),
        head: Duration::from_secs(15),
        body: Duration::from_secs(15),
        call: Duration::from_secs(25),
        answer: Duration::from_secs(30),
    };
}

/// After a failed accept (no descriptor left, say) the next is tried after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(
    api: Toxiproxy,
    listener: TcpListener,
    stop: CancellationToken,
    grace: Duration,
    limits: Limits,
) {
    let (places, tasks) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    let now = CancellationToken::new();
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>((place, listener.accept().await?.0))
        };
        let (place, stream) = match stop.run_until_cancelled(accept).await {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept on the API's port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            None => break,
        };
        let (api, stop, now) = (api.clone(), stop.clone(), now.clone());
        tasks.spawn(async move {
            let (wire, calls) = Wire::new(stream, limits.head, limits.answer);
            let service = service_fn(|request| {
                calls.begin();
                let answering = answer(&api, request, limits);
                let calls = &calls;
                async move {
                    let answer = answering.await;
                    calls.end();
                    answer
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.idle)
                .title_case_headers(true)
                .serve_connection(TokioIo::new(wire), service);
            let mut connection = std::pin::pin!(connection);
            // A client that goes away or talks nonsense has had its answer, or will not read one.
            let _ = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    now.run_until_cancelled(connection).await.unwrap_or(Ok(()))
                }
            };
            drop(place);
        });
    }
    // Who comes now is refused instead of left waiting.
    drop(listener);
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "calls did not end in time");
        now.cancel();
        tasks.wait().await;
    }
}

async fn answer(
    api: &Toxiproxy,
    request: Request<Incoming>,
    limits: Limits,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
        return Ok(response(Answer::text(400, "400 Bad Request: missing required Host header")));
    }
    let call = match route(request.method().as_str(), request.uri().path(), api.has_metrics) {
        Routed::Call(call) => call,
        Routed::NotFound => return Ok(response(Answer::text(404, "404 page not found\n"))),
        Routed::WrongMethod => return Ok(response(Answer::empty(405))),
        Routed::Nonsense => return Ok(response(Answer::text(400, "400 Bad Request"))),
        Routed::Elsewhere(path) => {
            let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            let mut response = response(Answer::empty(301));
            if let Ok(location) = HeaderValue::try_from(path + &query) {
                response.headers_mut().insert(LOCATION, location);
            }
            return Ok(response);
        }
    };
    let agent = request.headers().get(USER_AGENT).map_or(&[][..], HeaderValue::as_bytes);
    let answer = if agent.starts_with(b"Mozilla/") {
        // A page in a browser must not be able to move anything here.
        Answer::text(403, "User agent not allowed\n")
    } else {
        let body = if call.takes_a_body() { read(request, limits.body).await } else { Ok(Bytes::new()) };
        match body {
            Ok(body) => {
                let answered = tokio::time::timeout(limits.call, api.ask(call, body)).await;
                answered.unwrap_or_else(|_| Answer::empty(503))
            }
            Err(error) => error.answer(),
        }
    };
    let mut response = response(answer);
    if let Ok(id) = HeaderValue::try_from(api.ids.next()) {
        response.headers_mut().insert("x-toxiproxy-request-id", id);
    }
    Ok(response)
}

async fn read(request: Request<Incoming>, within: Duration) -> Result<Bytes, ApiError> {
    let whole = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(within, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::body(&format!("http: request body too large, at most {BODY_BYTES_MAX} bytes are read")))
        }
        Ok(Err(_)) => Err(ApiError::body("unexpected EOF")),
        Err(_) => Err(ApiError::body("i/o timeout")),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Some(content_type) = answer.content_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if answer.nosniff {
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    response
}

/// Ids of 20 letters and digits, each once.
#[derive(Debug)]
pub(super) struct RequestIds {
    seed: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let mut prng = Prng::new(self.seed.wrapping_add(self.next.fetch_add(1, Relaxed)));
        let digit = |_| b"0123456789abcdefghijklmnopqrstuv"[prng.below(32) as usize];
        (0..20).map(digit).map(char::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write as _};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use seawall_core::fault::Fault;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::BoxFuture;
    use crate::toxiproxy::{OpenProxy, ProxyPort, TrafficSeries};

    /// Longer than any test waits.
    const NEVER: Duration = Duration::from_secs(3_600);
    const SOON: Duration = Duration::from_millis(30);
    const PATIENCE: Duration = Duration::from_secs(20);
    const PATIENT: Limits = Limits { idle: NEVER, head: NEVER, body: NEVER, call: NEVER, answer: NEVER };

    /// Nothing listens.
    struct Nothing;

    impl ProxyPort for Nothing {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn open(&self, proxy: OpenProxy) -> BoxFuture<'_, io::Result<SocketAddr>> {
            Box::pin(async move { Ok(proxy.listen) })
        }

        fn close<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
            Box::pin(async {})
        }

        fn set_half_close(&self, _: &str, _: Option<bool>) {}

        fn put(&self, _: &str, _: Fault) {}

        fn lift(&self, _: &str, _: &str) {}

        fn traffic(&self) -> Vec<TrafficSeries> {
            Vec::new()
        }
    }

    /// A server with these limits, and what a test does to it; it ends in order afterwards, and only then what is left
    /// goes.
    fn with<T>(limits: Limits, test: impl AsyncFnOnce(SocketAddr, &Toxiproxy) -> T) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
            let api = Toxiproxy::start(Arc::new(Nothing), false, 1);
            let serving = run(api.clone(), listener, stop.clone(), NEVER, limits);
            let testing = async {
                let left = test(address, &api).await;
                stop.cancel();
                left
            };
            let left = timeout(PATIENCE, async { tokio::join!(serving, testing) }).await.expect("it ends");
            drop(left);
        });
    }

    /// Without giving way: what is sent lies there when the server sees the connection.
    fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_nonblocking(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    }

    /// Until the end.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        String::from_utf8(all).unwrap()
    }

    /// An answer with this end.
    async fn answered(stream: &mut TcpStream, end: &str) {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            assert!(stream.read_buf(&mut all).await.unwrap() > 0, "{}", String::from_utf8_lossy(&all));
        }
    }

    const VERSION: &[u8] = b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n";
    const VERSION_END: &str = "{\"version\": \"2.12.0\"}\n";

    #[test]
    fn a_head_that_does_not_end_ends_its_connection_and_one_without_a_head_does_not() {
        with(Limits { head: SOON, ..PATIENT }, async |address, _: &Toxiproxy| {
            let mut idle = send(address, VERSION);
            answered(&mut idle, VERSION_END).await;
            for begun in ["", "GET /version HT"] {
                assert_eq!(rest(&mut send(address, begun.as_bytes())).await, "", "{begun:?}");
            }
            // Long after its last call: not a byte of a head has come yet.
            idle.write_all(VERSION).await.unwrap();
            answered(&mut idle, VERSION_END).await;
            idle.write_all(b"GET /ver").await.unwrap();
            assert_eq!(rest(&mut idle).await, "", "a later head is a head too");
        });
        with(Limits { idle: SOON, ..PATIENT }, async |address, _: &Toxiproxy| {
            let mut idle = send(address, VERSION);
            answered(&mut idle, VERSION_END).await;
            assert_eq!(rest(&mut idle).await, "");
        });
    }

    #[test]
    fn a_body_may_take_its_own_time_after_its_head() {
        with(Limits { head: SOON, ..PATIENT }, async |address, _: &Toxiproxy| {
            let head = b"POST /proxies HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
            let mut slow = send(address, head);
            answered(&mut slow, "100 Continue\r\n\r\n").await;
            slow.write_all(b"{").await.unwrap();
            assert_eq!(rest(&mut send(address, b"GET")).await, "", "longer than a head may take");
            slow.write_all(b"}").await.unwrap();
            answered(&mut slow, "{\"error\":\"missing required field: name\",\"status\":400}\n").await;
        });
        with(Limits { body: SOON, ..PATIENT }, async |address, _: &Toxiproxy| {
            let mut slow = send(address, b"POST /proxies HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{");
            answered(&mut slow, "{\"error\":\"bad request body: i/o timeout\",\"status\":400}\n").await;
        });
    }

    #[test]
    fn a_body_that_says_nothing_is_not_waited_for() {
        with(PATIENT, async |address, _: &Toxiproxy| {
            for call in ["GET /version", "GET /proxies", "DELETE /proxies/p", "POST /reset"] {
                let head = format!("{call} HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
                let all = rest(&mut send(address, head.as_bytes())).await;
                assert!(all.starts_with("HTTP/1.1 "), "{call}: {all}");
                // One that is there disturbs nobody.
                let mut stream = send(address, (head + "{\"a\":\"b\"}").as_bytes());
                let mut first = [0; 9];
                stream.read_exact(&mut first).await.unwrap();
                stream.write_all(VERSION).await.unwrap();
                answered(&mut stream, VERSION_END).await;
            }
        });
    }

    #[test]
    fn an_answer_that_nobody_reads_ends_its_connection() {
        with(Limits { answer: SOON, ..PATIENT }, async |address, api: &Toxiproxy| {
            // More than all buffers of a connection hold.
            let upstream = "u".repeat(20 << 20);
            let body = format!(r#"[{{"name":"p","upstream":"{upstream}","enabled":false}}]"#);
            api.populate(body.into()).await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(16 << 10).unwrap();
            let mut deaf = socket.connect(address).await.unwrap();
            deaf.write_all(b"GET /proxies HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            deaf.read_exact(&mut [0; 9]).await.unwrap();
            // What is in work is waited for, an hour if need be: it ends because the answer does.
            deaf
        });
    }
}
