//! HTTP/1.1 in the fewest words, for producers and the queue: bytes in the open, so that they can be cut anywhere.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A message: head and whole body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The second word of the first line: a target, or a status.
    pub(crate) fn second_word(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> u16 {
        self.second_word().trim().parse().unwrap_or(0)
    }
}

/// Reads messages from one connection, one after the other.
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
    /// The status of an answer whose body is being read.
    unfinished: Option<u16>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), unfinished: None }
    }

    /// The status of the answer that broke in the middle, after an error.
    pub(crate) fn unfinished(&self) -> Option<u16> {
        self.unfinished
    }

    /// True if nothing has come beyond the last message.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next message; `None` if the connection ended before it began.
    ///
    /// # Errors
    /// If it ended, or broke, in the middle.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            match self.fill().await {
                Ok(()) => {}
                Err(error) if self.buffer.is_empty() && error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        };
        let head = String::from_utf8_lossy(&self.take(end)).into_owned();
        let mut message = Message { head, body: Vec::new() };
        self.unfinished = Some(message.status());
        if message.header("transfer-encoding").is_some() {
            message.body = self.chunks().await?;
        } else {
            let length = message.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            message.body = self.exactly(length).await?;
        }
        self.unfinished = None;
        Ok(Some(message))
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
            let size = size.ok_or(io::ErrorKind::InvalidData)?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            self.line().await?;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = self.take(at + 2);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn exactly(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < bytes {
            self.fill().await?;
        }
        Ok(self.take(bytes))
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(bytes);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<io::Result<Option<Message>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut reader = Reader::new(bytes);
            let mut found = Vec::new();
            loop {
                let next = reader.next().await;
                let is_last = !matches!(next, Ok(Some(_)));
                found.push(next);
                if is_last {
                    return found;
                }
            }
        })
    }

    #[test]
    fn bodies_are_whole_or_an_error() {
        let found =
            read(b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
        let [Ok(Some(first)), Err(_)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((first.second_word(), first.body.as_slice()), ("/a", &b"ab"[..]));
    }

    #[test]
    fn chunks_need_their_end() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let found = read(format!("{head}2\r\nab\r\n1;x\r\nc\r\n0\r\nA: b\r\n\r\n").as_bytes());
        let [Ok(Some(first)), Ok(None)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((first.status(), first.body.as_slice()), (200, &b"abc"[..]));
        assert!(read(format!("{head}2\r\nab\r\n").as_bytes())[0].is_err());
        assert!(read(format!("{head}zz\r\nab\r\n").as_bytes())[0].is_err());
        assert!(read(b"HTTP/1.1 200")[0].is_err());
    }
}
