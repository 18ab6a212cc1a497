//! Two sockets and the two pipes between them, which know nothing of each other: when one has ended, its receiver's
//! socket is closed, which is the end of what comes in to the other; what the other holds still goes its way.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use seawall_core::fault::Ending;

use super::Traffic;
use super::flow::{Flow, Line, Means, end_half, finish, poll_discard};
use crate::net::Stream;

/// Upstream, downstream: what comes from one socket goes to the other.
pub(super) struct Pipes<'a> {
    /// The client's and the upstream's.
    sockets: [Option<Stream>; 2],
    flows: [Option<Flow<'a>>; 2],
    /// Directions that a fault has ended before their senders: what these still say is read and thrown away, so that
    /// they can go on listening.
    are_unheard: [bool; 2],
    lines: &'a [Arc<Line>; 2],
    means: &'a Means,
}

impl<'a> Pipes<'a> {
    pub(super) fn new(
        means: &'a Means,
        sockets: [Stream; 2],
        lines: &'a [Arc<Line>; 2],
        traffic: [&'a Traffic; 2],
        held_bytes: &'a AtomicUsize,
    ) -> Self {
        let flows = [0, 1].map(|way| Some(Flow::new(means, &lines[way], traffic[way], held_bytes)));
        Self { sockets: sockets.map(Some), flows, are_unheard: [false; 2], lines, means }
    }

    /// True until both directions have ended.
    pub(super) fn is_open(&self) -> bool {
        self.flows.iter().any(Option::is_some)
    }

    /// The next direction that ends, by its place, and how. One that a fault has ended may end again: its sender broke
    /// off.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Ending)> {
        for way in [0, 1] {
            if self.are_unheard[way]
                && let Some(from) = &mut self.sockets[way]
                && let Poll::Ready(ended) = poll_discard(cx, from)
            {
                self.are_unheard[way] = false;
                if ended.is_err() {
                    return Poll::Ready((way, self.means.on_broken));
                }
            }
        }
        let ([up, down], [client, upstream]) = (&mut self.flows, &mut self.sockets);
        if let (Some(flow), Some(to)) = (up, &mut *upstream)
            && let Poll::Ready(ending) = flow.poll(cx, client.as_mut(), to)
        {
            return Poll::Ready((0, ending));
        }
        if let (Some(flow), Some(to)) = (down, client)
            && let Poll::Ready(ending) = flow.poll(cx, upstream.as_mut(), to)
        {
            return Poll::Ready((1, ending));
        }
        Poll::Pending
    }

    /// Does what a direction's end means for the sockets. With `half_close` a side that has no more to say may still be
    /// answered. False if nothing is left to be carried.
    pub(super) async fn end(&mut self, way: usize, ending: Ending, half_close: bool) -> bool {
        self.flows[way] = None;
        let receiver = 1 - way;
        if ending == Ending::Reset {
            for socket in self.sockets.iter_mut().filter_map(Option::take) {
                finish(socket, ending).await;
            }
            return false;
        }
        if ending == Ending::Half
            && half_close
            && let Some(to) = &mut self.sockets[receiver]
            && end_half(to).await
        {
            self.are_unheard[way] = self.lines[way].is_sender_unheard();
            return true;
        }
        if let Some(to) = self.sockets[receiver].take() {
            finish(to, self.or_reset()).await;
        }
        self.lines[receiver].change(|link| link.end(Ending::Half));
        true
    }

    /// A direction had ended before it came here.
    pub(super) fn is_over(&mut self, way: usize) {
        self.flows[way] = None;
    }

    /// Closes what is left.
    pub(super) async fn close(self) {
        let how = self.or_reset();
        for socket in self.sockets.into_iter().flatten() {
            finish(socket, how).await;
        }
    }

    /// Resets what is left.
    pub(super) fn reset(self) {
        self.sockets.iter().flatten().for_each(Stream::reset_on_close);
    }

    fn or_reset(&self) -> Ending {
        if self.lines.iter().any(|line| line.arms_reset()) { Ending::Reset } else { Ending::Close }
    }
}
