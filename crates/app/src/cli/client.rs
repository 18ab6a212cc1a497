//! A small client for the admin API: one connection a call, JSON both ways.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A node answers at once or not at all; sealing a large ledger may take a while.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A call that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody there.
    #[error(
        "cannot reach a node at `{url}`: {reason}\n\
         is it running? `--admin URL` names another one; `--data DIR` reads the journal, spool or ledger of a stopped one"
    )]
    Unreachable {
        /// Where we looked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It said no.
    #[error(
        "the node refused: {error}{}{}",
        allowed.as_ref().map(|it| format!(" (allowed: {it})")).unwrap_or_default(),
        report.as_ref().map(|it| format!("\n{it}")).unwrap_or_default()
    )]
    Refused {
        /// What it said.
        error: String,
        /// What it would have taken.
        allowed: Option<String>,
        /// What is wrong in a configuration, place by place.
        report: Option<String>,
    },
    /// Somebody else is there.
    #[error("what answers at `{url}` is not a node of Seawall: {reason}")]
    NotANode {
        /// Where we looked.
        url: String,
        /// What is odd.
        reason: String,
    },
}

/// Where a node's admin API is, and what opens it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    authority: String,
    token: Option<String>,
}

impl Client {
    /// `address` like `http://127.0.0.1:9900`, `127.0.0.1:9900` or `:9900`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn new(address: &str, token: Option<String>) -> Result<Self, String> {
        let rest = match address.split_once("://") {
            None => address,
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("`{scheme}` is not supported: the admin API speaks `http`")),
        };
        let authority = rest.trim_end_matches('/');
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or_else(|| format!("`{address}` has no port; write it like `http://127.0.0.1:9900`"))?;
        let valid = port.parse::<u16>().is_ok() && !host.contains(['/', '?', '#', '@', ' ']);
        if !valid {
            return Err(format!("`{address}` is not an address like `http://127.0.0.1:9900`"));
        }
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Ok(Self { authority: format!("{host}:{port}"), token })
    }

    /// Of the node that listens there: an address that means every interface is reached by the loopback one.
    pub(super) fn of(address: SocketAddr, token: Option<String>) -> Self {
        let loopback = |ip: IpAddr| {
            if ip.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) }
        };
        let ip = if address.ip().is_unspecified() { loopback(address.ip()) } else { address.ip() };
        Self { authority: SocketAddr::new(ip, address.port()).to_string(), token }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// # Errors
    /// [`CallError`].
    pub(super) async fn get(&self, target: &str) -> Result<Value, CallError> {
        self.call(Method::GET, target, Bytes::new()).await
    }

    /// # Errors
    /// [`CallError`].
    pub(super) async fn post(&self, target: &str, body: &Value) -> Result<Value, CallError> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.call(Method::POST, target, body).await
    }

    /// # Errors
    /// [`CallError`].
    pub(super) async fn post_bytes(&self, target: &str, body: Bytes) -> Result<Value, CallError> {
        self.call(Method::POST, target, body).await
    }

    /// # Errors
    /// [`CallError`].
    pub(super) async fn delete(&self, target: &str) -> Result<Value, CallError> {
        self.call(Method::DELETE, target, Bytes::new()).await
    }

    async fn call(&self, method: Method, target: &str, body: Bytes) -> Result<Value, CallError> {
        let (status, text) = match tokio::time::timeout(CALL_TIMEOUT, self.exchange(method, target, body)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return Err(CallError::Unreachable { url: self.url(), reason }),
            Err(_) => {
                let reason = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
                return Err(CallError::Unreachable { url: self.url(), reason });
            }
        };
        let not_a_node = |reason: String| CallError::NotANode { url: self.url(), reason };
        let value: Value = serde_json::from_slice(&text)
            .map_err(|_| not_a_node(format!("it answers `{target}` with status {status} and no JSON")))?;
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let error = value["error"].as_str().ok_or_else(|| not_a_node(format!("it answers with status {status}")))?;
        let allowed = value["allowed"].as_array().map(|allowed| {
            let words: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            words.join(", ")
        });
        let report = value["report"].as_str().filter(|report| !report.is_empty()).map(|it| it.trim_end().to_owned());
        Err(CallError::Refused { error: error.into(), allowed, report })
    }

    async fn exchange(&self, method: Method, target: &str, body: Bytes) -> Result<(u16, Bytes), String> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority));
        let stream = stream.await.map_err(|_| "no connection in time".to_string())?.map_err(words)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
        let exchange = async {
            let answer = sender.send_request(self.request(method, target, body)?).await.map_err(words)?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(connection, exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            // The whole answer may be here already; if not, the connection knows better than the request why.
            ended = &mut connection => exchange.await.map_err(|error| ended.err().map_or(error, words)),
        }
    }

    fn request(&self, method: Method, target: &str, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder().method(method).uri(target).header(HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.header(CONTENT_TYPE, "application/json").body(Full::new(body)).map_err(words)
    }
}

/// What a port that speaks HTTP says there, as JSON.
///
/// # Errors
/// Why not, in words.
pub(crate) async fn get_json(authority: &str, target: &str) -> Result<Value, String> {
    let client = Client { authority: authority.into(), token: None };
    let (status, text) = client.exchange(Method::GET, target, Bytes::new()).await?;
    if status != 200 {
        return Err(format!("it answers `{target}` with status {status}"));
    }
    serde_json::from_slice(&text).map_err(|_| format!("it answers `{target}` with no JSON"))
}

/// The error and what led to it.
fn words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A value in the query of a URL.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
