//! A client's connection as those see it who speak HTTP on it: bytes that have passed the gate, and a clock that runs.
//!
//! The gate stands in front of every read. A sweep from outside (`listener.rs`) looks at [`ConnState`] now and then
//! and marks a connection overdue; the next read then ends it the right way for where it stands: between requests it
//! just ends, in a head the client is told 408, in a body the request fails.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use seawall_core::fault::book::Client;
use seawall_core::time::Mono;
use tokio::io::{AsyncRead as _, AsyncWrite, ReadBuf};

use super::gate::{Gate, GateLimits, Phase, Verdict};
use super::h2::PREFACE;
use crate::clock::Clock;
use crate::net::{SCRATCH_BYTES, Stream, with_scratch};
use crate::upgrade::Handover;

/// After a refusal the client may still be sending; closing at once would reset the answer away. So we read on, and
/// throw away, for this long.
const LINGER: Duration = Duration::from_secs(1);

/// What others may know and change of a connection.
#[derive(Default)]
pub(crate) struct ConnState {
    /// A [`Phase`] as a number.
    phase: AtomicU8,
    /// Since when it has stood there without progress, in nanoseconds of [`Mono`].
    since: AtomicU64,
    /// Since when a write has waited; zero if none does.
    stalled: AtomicU64,
    /// True from a request's head to the end of its answer.
    in_request: AtomicBool,
    overdue: AtomicBool,
    /// Somebody waits for more of the request's body.
    awaits_body: AtomicBool,
    /// The connection's task is to look around: at what is overdue, an interim answer, whether it is to end.
    is_nudged: AtomicBool,
    task: OnceLock<Waker>,
    body_verdict: Mutex<Option<Verdict>>,
    /// True while everything written has been flushed.
    clean: AtomicBool,
    /// Nobody reads what comes, for as long as it is so.
    is_blind: AtomicBool,
    /// The client did not take what was written for it.
    unread: AtomicBool,
    /// True from the beginning of an answer on: an interim one would cut into it.
    is_answering: AtomicBool,
    /// True if the connection must end in a way that cannot be taken for the end of an answer.
    reset: AtomicBool,
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    /// Requests begun.
    begun: AtomicU64,
    /// Which of them asks for an upgrade and is not answered yet; zero for none.
    asking: AtomicU64,
    /// True once it is known that there is no upgrade.
    released: AtomicBool,
    switch: Mutex<Option<Box<Handover>>>,
    /// Whose it is, as faults ask for it.
    pub(crate) client: OnceLock<Client>,
}

/// Limits of a connection's patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) header: Duration,
    pub(crate) idle: Duration,
    pub(crate) body: Duration,
}

impl ConnState {
    /// A connection that begins now: its client has as long for a first request as for any other.
    pub(crate) fn new(now: Mono) -> Self {
        Self { since: AtomicU64::new(now.as_nanos()), ..Self::default() }
    }

    /// Of one request that asks for an upgrade, and has nothing before it: HTTP/2 carries each by itself.
    pub(crate) fn that_asks() -> Self {
        Self { asking: AtomicU64::new(1), clean: AtomicBool::new(true), ..Self::default() }
    }

    /// Marks the connection overdue if it is, and wakes its task. Called by the sweep.
    pub(crate) fn sweep(&self, now: Mono, patience: Patience) -> bool {
        let since = Mono::from_nanos(self.since.load(Relaxed));
        let allowed = match self.phase.load(Relaxed) {
            PHASE_HEAD => patience.header,
            // Only while somebody waits for it: an upstream that takes it slowly is not the client's doing. Once the
            // answer goes out, a client may be silent for as long as that lasts.
            PHASE_BODY if self.awaits_body.load(Relaxed) && !self.is_answering.load(Relaxed) => patience.body,
            PHASE_BODY => Duration::MAX,
            PHASE_REFUSED => patience.idle,
            _ if self.in_request.load(Relaxed) => Duration::MAX,
            _ => patience.idle,
        };
        let stalled = self.stalled.load(Relaxed);
        let write_overdue = stalled > 0 && now.since(Mono::from_nanos(stalled)) >= patience.body;
        let is_overdue = now.since(since) >= allowed || write_overdue;
        if is_overdue && !self.overdue.swap(true, Relaxed) || self.is_blind.load(Relaxed) {
            self.nudge();
        }
        is_overdue
    }

    /// True while it stands between requests, before the first or in a head.
    pub(crate) fn may_ask(&self) -> bool {
        !self.in_request.load(Relaxed) && matches!(self.phase.load(Relaxed), PHASE_IDLE | PHASE_HEAD)
    }

    /// Has the connection's task look around.
    pub(crate) fn nudge(&self) {
        self.is_nudged.store(true, Relaxed);
        // Either the task is seen here, or the task sees that it is nudged.
        fence(SeqCst);
        self.task.get().into_iter().for_each(Waker::wake_by_ref);
    }

    /// True if it is to look around; its task is woken for that from now on.
    pub(crate) fn is_nudged(&self, cx: &Context<'_>) -> bool {
        if self.task.get().is_none() {
            let _ = self.task.set(cx.waker().clone());
            fence(SeqCst);
        }
        self.is_nudged.load(Relaxed) && self.is_nudged.swap(false, Relaxed)
    }

    /// A request has begun or its answer has ended.
    pub(crate) fn set_in_request(&self, now: Mono, in_request: bool) {
        self.in_request.store(in_request, Relaxed);
        self.since.store(now.as_nanos(), Relaxed);
    }

    /// Notes why it broke.
    pub(crate) fn break_body(&self, verdict: Verdict) {
        *self.body_verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    /// Why the body of the present request broke, if it was the client's doing.
    pub(crate) fn body_verdict(&self) -> Option<Verdict> {
        *self.body_verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an interim (1xx) answer on its way, before the final one. False if that is not possible any more.
    pub(crate) fn send_interim(&self, bytes: &[u8]) -> bool {
        if !self.clean.load(Relaxed) || self.is_answering.load(Relaxed) {
            return false;
        }
        self.interim.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        self.has_interim.store(true, Relaxed);
        self.nudge();
        true
    }

    /// Interim answers that wait to be written.
    pub(crate) fn take_interim(&self, out: &mut Vec<u8>) {
        if self.has_interim.swap(false, Relaxed) {
            out.append(&mut self.interim.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// True if there are any.
    pub(crate) fn has_interim(&self) -> bool {
        self.has_interim.load(Relaxed)
    }

    /// The answer begins: no interim one can come before it any more.
    pub(crate) fn begin_answer(&self) {
        self.is_answering.store(true, Relaxed);
    }

    /// Somebody waits for more of the body, or not any more.
    pub(crate) fn await_body(&self, clock: &Clock, awaits: bool) {
        if awaits != self.awaits_body.load(Relaxed) {
            self.awaits_body.store(awaits, Relaxed);
            self.since.store(clock.now().as_nanos(), Relaxed);
        }
    }

    /// Nobody reads what comes, so that no read tells of a client that breaks off: its task looks whenever the sweep
    /// comes by.
    pub(crate) fn set_blind(&self, is_blind: bool) {
        if is_blind != self.is_blind.load(Relaxed) {
            self.is_blind.store(is_blind, Relaxed);
        }
    }

    pub(crate) fn is_blind(&self) -> bool {
        self.is_blind.load(Relaxed)
    }

    /// True if the sweep has found that it waits too long.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Relaxed)
    }

    /// True while the client does not take what is written for it.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed) != 0
    }

    /// True if it was ended because the client did not take what was written for it.
    pub(crate) fn was_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Ends the connection with a reset: to a client whose answer ends with its connection, a plain close would say
    /// that a broken answer is whole.
    pub(crate) fn end_with_reset(&self) {
        self.reset.store(true, Relaxed);
    }

    /// A request begins. True if it is the one that asks for an upgrade.
    pub(crate) fn begin(&self) -> bool {
        let number = self.begun.load(Relaxed) + 1;
        self.begun.store(number, Relaxed);
        self.is_answering.store(false, Relaxed);
        self.asking.load(Relaxed) == number
    }

    /// The request that asked for an upgrade is answered without one.
    pub(crate) fn release(&self) {
        self.asking.store(0, Relaxed);
        self.released.store(true, Relaxed);
        self.nudge();
    }

    /// Once the answer has been written, the connection is this one's.
    pub(crate) fn switch_to(&self, switch: Box<Handover>) {
        *self.switch.lock().unwrap_or_else(PoisonError::into_inner) = Some(switch);
    }

    /// Whose connection it is, now that it is no HTTP any more. None if it was not, or if not all of the answer has
    /// been written.
    pub(crate) fn take_switch(&self) -> Option<Box<Handover>> {
        let switch = self.switch.lock().unwrap_or_else(PoisonError::into_inner).take();
        switch.filter(|_| self.clean.load(Relaxed))
    }

    fn enter(&self, phase: Phase, clock: &Clock) {
        let number = match phase {
            Phase::Idle | Phase::Held => PHASE_IDLE,
            Phase::Head => PHASE_HEAD,
            Phase::Body => PHASE_BODY,
            Phase::Refused => PHASE_REFUSED,
        };
        // Between requests and in a head the clock runs on whatever trickles in; only a body's progress is progress.
        if self.phase.swap(number, Relaxed) != number || number == PHASE_BODY {
            self.since.store(clock.now().as_nanos(), Relaxed);
        }
    }
}

const PHASE_IDLE: u8 = 0;
const PHASE_HEAD: u8 = 1;
const PHASE_BODY: u8 = 2;
const PHASE_REFUSED: u8 = 3;

/// What a client speaks.
enum Speech {
    /// HTTP/1, or HTTP/2 at once: what has come so far may be the beginning of either.
    Unknown(Vec<u8>),
    /// HTTP/1.
    Lines,
    /// HTTP/2.
    Frames,
}

fn pinned(stream: &mut Option<Stream>) -> Pin<&mut Stream> {
    Pin::new(stream.as_mut().expect("whoever took it out took the whole of this"))
}

/// The connection.
pub(crate) struct ClientIo {
    /// Gone only when it is taken out at the end.
    stream: Option<Stream>,
    gate: Gate,
    /// Bytes that may pass and have not been asked for yet.
    passed: Vec<u8>,
    /// A verdict on a body, told once what passed before it has been handed over.
    broken: Option<Verdict>,
    speech: Speech,
    pub(crate) clock: Clock,
    state: Arc<ConnState>,
    linger: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl ClientIo {
    pub(crate) fn new(stream: Stream, limits: GateLimits, clock: Clock, state: Arc<ConnState>) -> Self {
        state.enter(Phase::Idle, &clock);
        state.clean.store(true, Relaxed);
        Self {
            stream: Some(stream),
            gate: Gate::new(limits),
            passed: Vec::new(),
            broken: None,
            speech: Speech::Unknown(Vec::new()),
            clock,
            state,
            linger: None,
        }
    }

    /// The connection, and what the client has said after its last request.
    pub(crate) fn into_parts(mut self) -> (Option<Stream>, Vec<u8>) {
        let early = [&self.passed, self.gate.held()].concat();
        (self.stream.take(), early)
    }

    /// Ends an overdue connection in the way of its phase. True if reading shall go on (there is something to hand
    /// over).
    fn end_overdue(&mut self) -> io::Result<bool> {
        if let Speech::Unknown(held) = &mut self.speech {
            // Half of what may have been HTTP/2's beginning is half a head.
            let held = std::mem::take(held);
            self.speech = Speech::Lines;
            let _ = self.gate.feed(&held, &mut self.passed);
        }
        match self.gate.phase() {
            Phase::Head => {
                self.gate.refuse(Verdict::HeadTooSlow, &mut self.passed);
                self.state.overdue.store(false, Relaxed);
                self.state.enter(Phase::Refused, &self.clock);
                Ok(true)
            }
            Phase::Body => Err(self.break_body(Verdict::BodyTooSlow)),
            Phase::Idle | Phase::Held | Phase::Refused => Ok(false),
        }
    }

    fn break_body(&self, verdict: Verdict) -> io::Error {
        self.state.break_body(verdict);
        io::Error::new(io::ErrorKind::InvalidData, verdict.words())
    }

    fn note_write<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Pending if self.state.stalled.load(Relaxed) == 0 => {
                self.state.stalled.store(self.clock.now().as_nanos().max(1), Relaxed);
            }
            Poll::Ready(_) if self.state.stalled.load(Relaxed) != 0 => self.state.stalled.store(0, Relaxed),
            _ => {}
        }
        if polled.is_pending() && self.state.overdue.load(Relaxed) {
            self.state.unread.store(true, Relaxed);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl ClientIo {
    /// After a head that asks for an upgrade: false if nothing more may be read until it is answered.
    fn go_on_held(&mut self) -> bool {
        if self.state.released.swap(false, Relaxed) {
            self.broken = self.gate.release(&mut self.passed).err();
            self.note_gate();
        }
        self.gate.held().len() < SCRATCH_BYTES
    }

    fn note_gate(&self) {
        if self.gate.phase() == Phase::Held {
            self.state.asking.store(self.gate.heads(), Relaxed);
        }
        self.state.enter(self.gate.phase(), &self.clock);
    }

    /// What has come through the gate: whole heads, and bodies as they come. `None` at the end.
    ///
    /// # Errors
    /// If a body broke, the connection did, or it has turned out to be HTTP/2.
    pub(crate) fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if !self.passed.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.passed).into())));
            }
            if let Some(verdict) = self.broken {
                return Poll::Ready(Err(self.break_body(verdict)));
            }
            if self.state.overdue.load(Relaxed) && !self.end_overdue()? {
                return Poll::Ready(Ok(None));
            }
            if self.gate.phase() == Phase::Refused && self.passed.is_empty() {
                // Nothing more is read. The answer on its way, or the sweep, ends the connection.
                return Poll::Pending;
            }
            if self.gate.phase() == Phase::Held && !self.go_on_held() {
                return Poll::Pending;
            }
            if self.passed.is_empty() && !ready!(self.poll_fill(cx))? {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Reads from the kernel through the gate. False at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(pinned(&mut self.stream).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(false));
            }
            match &mut self.speech {
                Speech::Lines | Speech::Frames => {}
                Speech::Unknown(held) if held.is_empty() && bytes[0] != PREFACE[0] => self.speech = Speech::Lines,
                Speech::Unknown(held) => {
                    held.extend_from_slice(bytes);
                    let seen = held.len().min(PREFACE.len());
                    if held[..seen] != PREFACE[..seen] {
                        let held = std::mem::take(held);
                        self.speech = Speech::Lines;
                        self.broken = self.gate.feed(&held, &mut self.passed).err();
                        self.state.enter(self.gate.phase(), &self.clock);
                    } else if seen == PREFACE.len() {
                        return Poll::Ready(Err(io::Error::other("HTTP/2")));
                    } else {
                        // The clock of a head runs, whichever it will be.
                        self.state.enter(Phase::Head, &self.clock);
                    }
                    return Poll::Ready(Ok(true));
                }
            }
            self.broken = self.gate.feed(bytes, &mut self.passed).err();
            self.note_gate();
            Poll::Ready(Ok(true))
        })
    }

    /// Reads what comes of HTTP/2.
    pub(crate) fn poll_read_frames(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.passed.is_empty() {
            return pinned(&mut self.stream).poll_read(cx, buffer);
        }
        let take = self.passed.len().min(buffer.remaining());
        buffer.put_slice(&self.passed[..take]);
        self.passed.drain(..take);
        Poll::Ready(Ok(()))
    }

    /// True if the client has broken off, whatever of it has not been read.
    pub(crate) fn is_broken(&self) -> bool {
        self.stream.as_ref().is_none_or(Stream::is_broken)
    }

    pub(crate) fn state(&self) -> Arc<ConnState> {
        Arc::clone(&self.state)
    }

    /// Puts back what has come and was not looked at.
    pub(crate) fn unread(&mut self, come: Bytes) {
        self.passed.splice(..0, come);
    }

    /// True between two requests, while nothing of the next has come.
    pub(crate) fn is_idle(&self) -> bool {
        let has_begun = matches!(&self.speech, Speech::Unknown(held) if !held.is_empty());
        self.gate.phase() == Phase::Idle && self.passed.is_empty() && !has_begun
    }
}

impl ClientIo {
    /// The same connection for HTTP/2, if that is what has come: from here on nothing of it is read by the gate.
    pub(crate) fn into_frames(mut self) -> Option<Self> {
        if let (true, Speech::Unknown(held)) = (self.has_frames(), &mut self.speech) {
            self.passed = std::mem::take(held);
            return Some(self.for_frames());
        }
        None
    }

    /// True once it has turned out to be HTTP/2 and nobody has taken it on yet.
    pub(crate) fn has_frames(&self) -> bool {
        matches!(&self.speech, Speech::Unknown(held) if held.starts_with(PREFACE))
    }

    /// For a client that has agreed on HTTP/2 beforehand.
    pub(crate) fn for_frames(mut self) -> Self {
        self.speech = Speech::Frames;
        self.state.enter(Phase::Idle, &self.clock);
        // Patience with its requests is kept elsewhere.
        self.state.set_in_request(self.clock.now(), true);
        self
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if let (Some(stream), true) = (&self.stream, self.state.reset.load(Relaxed)) {
            stream.reset_on_close();
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.clean.store(false, Relaxed);
        let polled = pinned(&mut this.stream).poll_write(cx, bytes);
        this.note_write(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.clean.store(false, Relaxed);
        let polled = pinned(&mut this.stream).poll_write_vectored(cx, slices);
        this.note_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Called only when all there was has been written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.state.clean.store(true, Relaxed);
        pinned(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_frames() {
            // It goes on, in other hands.
            return Poll::Ready(Ok(()));
        }
        if this.linger.is_none() {
            ready!(pinned(&mut this.stream).poll_shutdown(cx))?;
            if this.gate.phase() == Phase::Idle {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        with_scratch(|scratch| {
            loop {
                let mut buffer = ReadBuf::new(scratch);
                match pinned(&mut this.stream).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            linger.as_mut().poll(cx).map(Ok)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_to_a_node_that_is_up_for_long_has_as_long_as_any() {
        let seconds = |seconds: u64| Mono::from_millis(seconds * 1_000);
        let patience =
            Patience { header: Duration::from_secs(10), idle: Duration::from_secs(75), body: Duration::from_secs(30) };
        let state = ConnState::new(seconds(1_000));
        assert!(!state.sweep(seconds(1_074), patience));
        assert!(state.sweep(seconds(1_075), patience));
    }
}
