//! Two connections joined: what one peer says is handed on to the other, both ways, until both have said all they
//! wanted.
//!
//! Picture two buckets between two people. What fits into the other's hands goes there at once, by way of one large cup
//! that a whole thread shares; only what a slow receiver leaves is kept in its bucket, and while a bucket is not empty
//! nothing more is taken from the sender. So a connection that is silent holds no buffer, and one whose receiver is
//! slow holds what one read takes each way.
//! An end is passed on as an end, after the last byte, and the other direction goes on. A reset is passed on as a
//! reset. A peer that cannot be written to any more may have said its last word before that: it is heard to the end
//! first.
//! Not here: who is joined to whom and why, guards, counters. (Tokio's own copy of both directions knows neither
//! silence nor who broke off.)

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use seawall_core::time::Mono;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::time::Sleep;

use crate::clock::Clock;
use crate::net::{Stream, with_scratch};

/// So many reads of one direction, then it is the other's turn.
const CHUNKS_A_TURN: usize = 16;
/// A peer that is not being read, because it has ended or because nobody takes what it says, is asked this often
/// whether it has broken off: the runtime does not tell.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// One of the two, and the direction of what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Says what goes up.
    Client,
    /// Says what goes down.
    Upstream,
}

impl Peer {
    const BOTH: [Self; 2] = [Self::Client, Self::Upstream];

    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// What became of something a peer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes were handed on.
    Bytes(usize),
    /// It has said all it wanted, and the other has been told.
    End,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both have said all they wanted.
    Done,
    /// One has broken off.
    Reset(Peer),
    /// Neither has said anything for too long.
    Idle,
}

/// The two connections and what is between them.
pub(crate) struct Duplex {
    clock: Clock,
    /// The client's and the upstream's.
    streams: [Stream; 2],
    /// What each of them says.
    flows: [Flow; 2],
    broken: Option<Peer>,
    idle_timeout: Option<Duration>,
    moved_at: Mono,
    asked_at: Mono,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What is left to be carried.
pub(crate) struct Rest {
    /// The client's and the upstream's.
    pub(crate) streams: [Stream; 2],
    /// What each of them says.
    pub(crate) flows: [RestOf; 2],
    pub(crate) idle_timeout: Option<Duration>,
}

/// Of one direction.
pub(crate) struct RestOf {
    /// What has been read and not been passed on.
    pub(crate) held: Vec<u8>,
    /// The sender has said all.
    pub(crate) has_ended: bool,
    /// Nothing more will be done.
    pub(crate) is_over: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// What the receiver has not taken yet, from `held_at` on.
    held: Vec<u8>,
    held_at: usize,
    /// The sender has said all.
    has_ended: bool,
    /// Nothing more will be done.
    is_over: bool,
}

impl Duplex {
    /// Joins two connections. `early` has been read already of what each of them said.
    pub(crate) fn new(clock: Clock, streams: [Stream; 2], early: [Vec<u8>; 2], idle_timeout: Option<Duration>) -> Self {
        streams.iter().for_each(Stream::keep_alive);
        let now = clock.now();
        Self {
            clock,
            streams,
            flows: early.map(|held| Flow { held, ..Flow::default() }),
            broken: None,
            idle_timeout,
            moved_at: now,
            asked_at: now,
            timer: None,
        }
    }

    /// Hands on until the end. `moved` hears what came of what which peer said.
    ///
    /// # Cancel safety
    /// Nothing is lost: called again, it goes on where it was.
    pub(crate) async fn run(&mut self, mut moved: impl FnMut(Peer, Moved)) -> End {
        std::future::poll_fn(|cx| self.poll(cx, &mut moved)).await
    }

    /// Ends in a way that neither can take for an orderly end.
    pub(crate) fn reset(self) {
        self.streams.iter().for_each(Stream::reset_on_close);
    }

    /// Leaves the rest to somebody else.
    pub(crate) fn into_rest(self) -> Rest {
        let rest = |flow: Flow| RestOf {
            held: flow.held.get(flow.held_at..).unwrap_or_default().to_vec(),
            has_ended: flow.has_ended,
            is_over: flow.is_over,
        };
        Rest { streams: self.streams, flows: self.flows.map(rest), idle_timeout: self.idle_timeout }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &mut impl FnMut(Peer, Moved)) -> Poll<End> {
        let mut has_moved = false;
        for peer in Peer::BOTH {
            let flow = &mut self.flows[peer as usize];
            if flow.is_over {
                continue;
            }
            // After a reset there is no orderly end.
            let tells_end = self.broken != Some(peer);
            let [client, upstream] = &mut self.streams;
            let (from, to) = if peer == Peer::Client { (client, upstream) } else { (upstream, client) };
            let mut handed_on = |what| {
                has_moved = true;
                moved(peer, what);
            };
            match flow.poll(cx, (from, to), tells_end, &mut handed_on) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => flow.is_over = true,
                Poll::Ready(Err(Broken::Sender)) => return Poll::Ready(End::Reset(peer)),
                Poll::Ready(Err(Broken::Receiver)) => {
                    flow.is_over = true;
                    self.broken = Some(peer.other());
                }
            }
        }
        if self.flows.iter().all(|flow| flow.is_over) {
            return Poll::Ready(self.broken.map_or(End::Done, End::Reset));
        }
        if has_moved && self.idle_timeout.is_some() {
            self.moved_at = self.clock.now();
        }
        self.poll_timer(cx)
    }

    /// Silence, and peers nobody reads.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let is_unread = [&self.flows[0], &self.flows[1]].map(Flow::is_unread);
            let idle_at = self.idle_timeout.map(|idle| self.moved_at + idle);
            let ask_at = is_unread.contains(&true).then(|| self.asked_at + ASK_EVERY);
            let Some(at) = idle_at.into_iter().chain(ask_at).min() else { return Poll::Pending };
            let instant = self.clock.instant(at);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(instant)));
            // One that rings too early is let be: to wake once in vain is cheaper than to wind it at every byte.
            if timer.deadline() > instant || timer.is_elapsed() {
                timer.as_mut().reset(instant);
            }
            ready!(timer.as_mut().poll(cx));
            let now = self.clock.now();
            if idle_at.is_some_and(|at| at <= now) {
                return Poll::Ready(End::Idle);
            }
            if ask_at.is_some_and(|at| at <= now) {
                self.asked_at = now;
                let has_gone = |peer: &Peer| is_unread[*peer as usize] && self.streams[*peer as usize].is_broken();
                if let Some(gone) = Peer::BOTH.into_iter().find(has_gone) {
                    return Poll::Ready(End::Reset(gone));
                }
            }
        }
    }
}

/// Who broke off.
enum Broken {
    Sender,
    Receiver,
}

impl Flow {
    /// True while the sender is not asked for more.
    fn is_unread(&self) -> bool {
        self.is_over || self.has_ended || !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.held_at == self.held.len()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&mut Stream, &mut Stream),
        tells_end: bool,
        moved: &mut impl FnMut(Moved),
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..CHUNKS_A_TURN {
            while !self.is_empty() {
                let written = ready!(write(cx, to, &self.held[self.held_at..]))?;
                self.held_at += written;
                moved(Moved::Bytes(written));
            }
            self.held.clear();
            self.held_at = 0;
            if self.has_ended {
                if tells_end {
                    ready!(Pin::new(to).poll_shutdown(cx)).map_err(|_| Broken::Receiver)?;
                    moved(Moved::End);
                }
                return Poll::Ready(Ok(()));
            }
            if self.pass_on(cx, from, to, moved)?.is_pending() {
                // Whoever is silent needs no bucket.
                self.held = Vec::new();
                ready!(Pin::new(to).poll_flush(cx)).map_err(|_| Broken::Receiver)?;
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes one cup from the sender, gives the receiver what it takes, and keeps the rest.
    fn pass_on(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        moved: &mut impl FnMut(Moved),
    ) -> Result<Poll<()>, Broken> {
        with_scratch(|cup| {
            let mut cup = ReadBuf::new(cup);
            match Pin::new(from).poll_read(cx, &mut cup) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(_)) => return Err(Broken::Sender),
                Poll::Ready(Ok(())) => {}
            }
            let mut rest = cup.filled();
            self.has_ended = rest.is_empty();
            while !rest.is_empty() {
                let Poll::Ready(written) = write(cx, to, rest) else { break };
                let written = written?;
                rest = &rest[written..];
                moved(Moved::Bytes(written));
            }
            self.held.extend_from_slice(rest);
            Ok(Poll::Ready(()))
        })
    }
}

fn write(cx: &mut Context<'_>, to: &mut Stream, bytes: &[u8]) -> Poll<Result<usize, Broken>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(written) if written > 0 => Poll::Ready(Ok(written)),
        Ok(_) | Err(_) => Poll::Ready(Err(Broken::Receiver)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seawall_core::time::Wall;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Somebody, and our end of the connection.
    async fn peer() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (theirs, Stream::Real(listener.accept().await.unwrap().0))
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Who has ended waits for its answer as long as it takes; whether it is still there is asked meanwhile.
    #[tokio::test(start_paused = true)]
    async fn who_has_ended_may_wait() {
        let ((mut client, ours), (mut server, far)) = (peer().await, peer().await);
        let clock = Clock::new(Instant::now(), Arc::new(|| Wall::from_millis(0)));
        let mut duplex = Duplex::new(clock, [ours, far], [Vec::new(), Vec::new()], None);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        while !duplex.flows[Peer::Client as usize].is_over {
            assert!(timeout(Duration::from_millis(1), duplex.run(|_, _| {})).await.is_err(), "it has no answer yet");
        }
        assert_eq!(rest(&mut server).await, "question");
        for _ in 0..3 {
            let asked_at = duplex.asked_at;
            assert!(timeout(ASK_EVERY * 2, duplex.run(|_, _| {})).await.is_err(), "it waits");
            assert!(duplex.asked_at > asked_at, "it is asked whether it is still there");
        }
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(duplex.run(|_, _| {}).await, End::Done);
        drop(duplex);
        assert_eq!(rest(&mut client).await, "answer");
    }
}
