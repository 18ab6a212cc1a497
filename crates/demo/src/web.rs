//! HTTP as the company's processes speak it: a small server that can also misbehave on purpose, and a small pooled
//! client, both on hyper's connection APIs.
//!
//! The server reads a request whole, asks a handler, and answers in one of three manners: whole, cut in the middle
//! (a length is promised, a part is sent, the connection closes) or not at all (the connection is reset).
//! The client reads an answer until the peer closes and does **not** compare it with the promised length, as
//! `requests` on urllib3 1.x, Ruby's `Net::HTTP` and much hand-written code do by default. It remembers in
//! [`Got::whole`] whether something was missing; only the measuring looks there, never the company's code.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// No request of the company is longer.
const BODY_MAX: usize = 4 << 20;
/// Between the first part of an answer and the cut, so that the part is on the wire.
const BEFORE_THE_CUT: Duration = Duration::from_millis(5);

/// A request, read whole.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The path, without the query.
    pub path: String,
    query: String,
    headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Call {
    /// A parameter of the query, as it was sent (the company's values need no percent-encoding).
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How an answer goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    #[default]
    Whole,
    /// This many bytes of the body, then the connection closes.
    CutAt(usize),
    /// The connection is reset (RST) and nothing is sent.
    Reset,
}

/// What a handler answers.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers beside `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
    /// How it goes out.
    pub manner: Manner,
}

impl Answer {
    /// A whole answer.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), manner: Manner::Whole }
    }

    /// A whole answer in JSON.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self::new(200, value.to_string()).with("content-type", "application/json")
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Changes how it goes out.
    #[must_use]
    pub fn in_manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}

/// Serves until dropped; its connections end with it.
pub async fn serve<H, F>(listener: TcpListener, handler: H) -> Infallible
where
    H: Fn(Call) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, _)) => drop(connections.spawn(connection(tcp, Arc::clone(&handler)))),
            // Out of file descriptors, or the peer was gone already: neither is the listener's end.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection<H, F>(tcp: TcpStream, handler: Arc<H>)
where
    H: Fn(Call) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let _ = tcp.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request: Request<Incoming>| {
        let (handler, reset) = (Arc::clone(&handler), Arc::clone(&reset));
        async move {
            let call = call(request).await.ok_or("the request did not come whole")?;
            let answer = handler(call).await;
            if answer.manner == Manner::Reset {
                reset.store(true, Ordering::Release);
                return Err("reset on purpose");
            }
            response(answer).ok_or("the handler's answer is no HTTP")
        }
    });
    let line = Line { tcp, reset: Arc::clone(&reset) };
    let mut http = hyper::server::conn::http1::Builder::new();
    // Errors are the peer's going away, or our own doing.
    let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(line), service).await;
}

async fn call(request: Request<Incoming>) -> Option<Call> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.ok()?.to_bytes();
    let query = head.uri.query().unwrap_or_default().to_string();
    Some(Call { method: head.method.to_string(), path: head.uri.path().into(), query, headers: head.headers, body })
}

fn response(answer: Answer) -> Option<Response<AnswerBody>> {
    let mut response = Response::builder().status(StatusCode::from_u16(answer.status).ok()?);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    let cut_at = match answer.manner {
        Manner::CutAt(at) if at < answer.body.len() => Some(at),
        _ => None,
    };
    response.body(AnswerBody { rest: answer.body, cut_at, pause: None }).ok()
}

/// A body that may end before its promised length.
struct AnswerBody {
    rest: Bytes,
    cut_at: Option<usize>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if let Some(pause) = &mut self.pause {
            return pause.as_mut().poll(context).map(|()| Some(Err("cut on purpose")));
        }
        let part = match self.cut_at {
            Some(at) => {
                self.pause = Some(Box::pin(tokio::time::sleep(BEFORE_THE_CUT)));
                self.rest.split_to(at)
            }
            None => std::mem::take(&mut self.rest),
        };
        if part.is_empty() && self.pause.is_some() {
            return self.poll_frame(context);
        }
        Poll::Ready((!part.is_empty()).then(|| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.cut_at.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// A connection that ends with RST instead of FIN when told so.
struct Line {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Acquire) {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// What a client asks.
#[derive(Clone, Debug)]
pub struct Ask {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Ask {
    /// A GET of a path with its query.
    #[must_use]
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: "GET", target: target.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// A POST.
    #[must_use]
    pub fn post(target: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: "POST", target: target.into(), headers: Vec::new(), body: body.into() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn request(&self, host: &str) -> Result<Request<Full<Bytes>>, Lost> {
        let mut request = Request::builder().method(self.method).uri(&self.target).header(header::HOST, host);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(self.body.clone())).map_err(|error| Lost(format!("not a request: {error}")))
    }
}

/// An answer as it was read: until the peer closed.
#[derive(Clone, Debug)]
pub struct Got {
    /// The status.
    pub status: u16,
    headers: HeaderMap,
    /// What came of the body.
    pub body: Bytes,
    /// False if less came than was promised. For measuring only: the company's code does not look.
    pub whole: bool,
}

impl Got {
    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// True for 2xx.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// The connection could not be made, or broke before an answer's head was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost(String);

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

/// Idle connections, by `host:port`.
type Idle = BTreeMap<String, Vec<SendRequest<Full<Bytes>>>>;

/// A client that keeps connections alive, as sessions of common libraries do.
#[derive(Clone, Debug, Default)]
pub struct Client {
    idle: Arc<Mutex<Idle>>,
    connections: TaskTracker,
}

impl Client {
    /// Sends one request to `host:port` and reads the answer until its end, promised or not.
    ///
    /// # Errors
    /// [`Lost`] when no answer's head came, or the connection broke (not merely ended) within the body.
    pub async fn send(&self, host: &str, ask: &Ask) -> Result<Got, Lost> {
        let mut request = ask.request(host)?;
        while let Some(mut sender) = self.pooled(host) {
            match sender.try_send_request(request).await {
                Ok(response) => return self.read(host, sender, response).await,
                // The peer had closed this idle connection: nothing was sent on it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Lost(error.into_error().to_string())),
                },
            }
        }
        let mut sender = self.connect(host).await?;
        let response = sender.send_request(request).await.map_err(|error| Lost(error.to_string()))?;
        self.read(host, sender, response).await
    }

    /// [`Client::send`] within a time.
    ///
    /// # Errors
    /// [`Lost`] also when the time is over.
    pub async fn send_within(&self, time: Duration, host: &str, ask: &Ask) -> Result<Got, Lost> {
        match tokio::time::timeout(time, self.send(host, ask)).await {
            Ok(result) => result,
            Err(_) => Err(Lost(format!("no answer within {} ms", time.as_millis()))),
        }
    }

    fn pooled(&self, host: &str) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().expect("no panic under this lock");
        let senders = idle.get_mut(host)?;
        while let Some(sender) = senders.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self, host: &str) -> Result<SendRequest<Full<Bytes>>, Lost> {
        let tcp = TcpStream::connect(host).await.map_err(|error| Lost(format!("cannot connect to {host}: {error}")))?;
        let _ = tcp.set_nodelay(true);
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|error| Lost(error.to_string()))?;
        self.connections.spawn(connection);
        Ok(sender)
    }

    async fn read(
        &self,
        host: &str,
        sender: SendRequest<Full<Bytes>>,
        response: Response<Incoming>,
    ) -> Result<Got, Lost> {
        let (head, mut incoming) = response.into_parts();
        let (mut body, mut whole) = (Vec::new(), true);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) if is_early_end(&error) => {
                    whole = false;
                    break;
                }
                Err(error) => return Err(Lost(error.to_string())),
            }
        }
        if whole {
            self.keep(host, sender);
        }
        Ok(Got { status: head.status.as_u16(), headers: head.headers, body: body.into(), whole })
    }

    fn keep(&self, host: &str, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().expect("no panic under this lock");
        idle.entry(host.into()).or_default().push(sender);
    }
}

/// True when the peer closed in the middle of a body: common clients take what came for the answer.
fn is_early_end(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_incomplete_message() || cause.is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof)
}

/// Binds a loopback address for a role.
///
/// # Errors
/// When the port is taken.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    use anyhow::Context as _;
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
