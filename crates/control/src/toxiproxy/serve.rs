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
use super::{BODY_BYTES_MAX, Toxiproxy};

/// Connections at the same time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 1_024;

/// A connection without a request ends after this long, as the original's does.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A body must be complete after this long.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// A call that is not answered by then is answered 503 without a word.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// After a failed accept (no descriptor left, say) the next is tried after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(api: Toxiproxy, listener: TcpListener, stop: CancellationToken, grace: Duration) {
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
            let service = service_fn(|request| answer(&api, request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .title_case_headers(true)
                .serve_connection(TokioIo::new(stream), service);
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

async fn answer(api: &Toxiproxy, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
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
        match read(request).await {
            Ok(body) => {
                let answered = tokio::time::timeout(CALL_TIMEOUT, api.ask(call, body)).await;
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

async fn read(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let whole = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
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
