//! One POST to a node's admin API, blocking, over a connection of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use serde_json::Value;

/// How long a node may take to connect, and to answer.
const WITHIN: Duration = Duration::from_secs(10);
/// An answer is a number, or a sentence.
const ANSWER_BYTES_MAX: u64 = 1 << 16;

/// A node of Seawall.
#[derive(Clone)]
pub struct Node {
    name: String,
    address: String,
    token: Option<String>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Node {
    /// By its name, as records bear it, and the `host:port` of its admin API. What belongs to a node that is gone for
    /// good is reported to the one that took its records in: the name of the first, the address of the second.
    #[must_use]
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        let address = address.into();
        let address = address.strip_prefix("http://").unwrap_or(&address).trim_end_matches('/').to_owned();
        Self { name: name.into(), address, token: None }
    }

    /// With the token that its admin API asks for.
    #[must_use]
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why a batch was not signed for.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No answer that can be read. The batch may have been taken; sent again it is taken once.
    #[error("no answer from `{address}`")]
    NoAnswer {
        /// Where it was asked.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// It knows another next number than we do: this outbox is older or younger than what the node remembers of the
    /// sink. A person must say which is right.
    #[error("it expects another batch: {detail}")]
    Number {
        /// In its words.
        detail: String,
    },
    /// It said no.
    #[error("it answers with status {status}: {detail}")]
    Refused {
        /// As it said.
        status: u16,
        /// In its words.
        detail: String,
    },
}

pub(crate) fn post(node: &Node, body: &str) -> Result<(), SendError> {
    let (status, answer) =
        exchange(node, body).map_err(|source| SendError::NoAnswer { address: node.address.clone(), source })?;
    let said: Value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
    let detail = || match said["error"].as_str() {
        Some(error) => error.to_owned(),
        None => String::from_utf8_lossy(&answer).trim().to_owned(),
    };
    match status {
        200 => Ok(()),
        409 => Err(SendError::Number { detail: detail() }),
        status => Err(SendError::Refused { status, detail: detail() }),
    }
}

fn exchange(node: &Node, body: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut addresses = node.address.to_socket_addrs()?;
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut stream = TcpStream::connect_timeout(&addresses.next().ok_or_else(none)?, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let token = node.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /api/ledger/receipts HTTP/1.1\r\nHost: {}\r\n{token}Content-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        node.address,
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not an answer of HTTP/1.1, or not whole"))
}

/// Status and body of a whole answer.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1;
    let body = &answer[end + 4..];
    let length: usize = length.trim().parse().ok()?;
    Some((status, body.get(..length)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole), Some((200, b"{}".to_vec())));
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n"), None, "of unknown length");
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"), None);
    }

    #[test]
    fn a_token_is_not_printed() {
        let node = Node::new("a", "http://127.0.0.1:9900/").with_token("secret");
        assert_eq!(format!("{node:?}"), "Node { name: \"a\", address: \"127.0.0.1:9900\", .. }");
    }
}
