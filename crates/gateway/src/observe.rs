//! Counters on the way of a call. Each worker has its own and is the only one who writes them, so that counting is a
//! load and a store and no cache line travels; a snapshot adds the workers up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use seawall_core::balance::assign::ByVersion;
use seawall_core::fault::book::Seen;
use seawall_core::guard::Refusal;
use seawall_core::observation::{
    ConnectionsSnapshot, DURATION_BUCKETS_S, Ended, LATENCY_BUCKETS_S, RouteSnapshot, quantile_s,
};
use seawall_core::outcome::{Failure, Outcome};
use seawall_core::time::Mono;
use seawall_core::traffic::{BUCKETS, Counts, bucket_of};

use crate::clock::Seldom;
use crate::http::gate::Verdict;
use crate::mirror::FATES;

/// A count with a single writer.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The words of fallbacks, by place.
pub(crate) const DEGRADED: [&str; 4] = ["spool", "stale", "static", "upstream"];

/// What one worker counted on one route.
#[derive(Debug, Default)]
pub(crate) struct RouteCounts {
    pub(crate) answers: [Count; 5],
    pub(crate) failures: [Count; Failure::NAMES.len()],
    pub(crate) refused: [Count; Refusal::RULES.len()],
    pub(crate) degraded: [Count; DEGRADED.len()],
    pub(crate) retries: Count,
    pub(crate) hedges: Count,
    pub(crate) hedges_won: Count,
    pub(crate) resends: Count,
    pub(crate) cancelled: Count,
    pub(crate) cut: Count,
    pub(crate) faulted: Count,
    pub(crate) trailers_dropped: Count,
    pub(crate) connections: ConnectionCounts,
    /// Of routes that share out versions alone; by name, as places change with the policy.
    pub(crate) versions: Mutex<ByVersion>,
    pub(crate) mirrored: [Count; FATES.len()],
    latency: [Count; LATENCY_BUCKETS_S.len() + 1],
    latency_nanos: Count,
    calls_failed: Count,
    calls_answered: Answered,
}

/// What one worker counted of a route's connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionCounts {
    pub(crate) opened: Count,
    ended: [Count; Ended::ALL.len()],
    /// Handed on to the upstream.
    pub(crate) bytes_up: Count,
    /// Handed on to clients.
    pub(crate) bytes_down: Count,
    durations: [Count; DURATION_BUCKETS_S.len() + 1],
    duration_nanos: Count,
}

impl ConnectionCounts {
    pub(crate) fn ended(&self, how: Ended) {
        self.ended[how as usize].add(1);
    }

    /// One that had reached the upstream is over.
    pub(crate) fn lasted(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.durations[DURATION_BUCKETS_S.partition_point(|bound| *bound < seconds)].add(1);
        self.duration_nanos.add(nanos(duration));
    }

    fn add_to(&self, sum: &mut ConnectionsSnapshot) {
        let ended: u64 = self.ended.iter().map(Count::get).sum();
        sum.opened_total += self.opened.get();
        sum.open += self.opened.get().saturating_sub(ended);
        add_named(&mut sum.ended, &Ended::ALL.map(Ended::name), &self.ended);
        sum.bytes_up_total += self.bytes_up.get();
        sum.bytes_down_total += self.bytes_down.get();
        sum.duration_counts.resize(self.durations.len(), 0);
        for (total, count) in sum.duration_counts.iter_mut().zip(&self.durations) {
            *total += count.get();
        }
        sum.duration_sum_s += self.duration_nanos.get() as f64 / 1e9;
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Calls to the route's upstream that were answered well, by the time to the answer.
#[derive(Debug)]
struct Answered([Count; BUCKETS]);

impl Default for Answered {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Count::default()))
    }
}

impl RouteCounts {
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.answers[usize::from(status / 100).clamp(1, 5) - 1].add(1);
        self.took(took);
    }

    /// Takes in how long an answer took, or a connection to come about.
    pub(crate) fn took(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BUCKETS_S.partition_point(|bound| *bound < seconds);
        self.latency[bucket].add(1);
        self.latency_nanos.add(nanos(took));
    }

    /// Counts a call to the route's own upstream, not a fallback's: one place for it each. An upstream that asks us to
    /// slow down is neither well nor ill.
    pub(crate) fn called(&self, outcome: Outcome, took: Duration) {
        match outcome.of_health() {
            Outcome::Success => self.calls_answered.0[bucket_of(took)].add(1),
            Outcome::Failure(_) => self.calls_failed.add(1),
            Outcome::Ignored => {}
        }
    }

    /// Adds what passed: for whoever tells when it changes.
    pub(crate) fn add_traffic_to(&self, sum: &mut Counts) {
        sum.requests += self.answers.iter().map(Count::get).sum::<u64>() + self.cancelled.get();
        sum.failed += self.calls_failed.get();
        for (total, count) in sum.answered.iter_mut().zip(&self.calls_answered.0) {
            *total += count.get();
        }
    }

    /// What clients have seen of it: answers and those that say that it failed, or connections and those that came to
    /// nothing.
    pub(crate) fn seen(&self) -> Seen {
        let connections = &self.connections.ended;
        let requests = self.answers.iter().chain(connections).map(Count::get).sum();
        let ill = [Ended::Refused, Ended::Failed, Ended::UpstreamReset].map(|how| connections[how as usize].get());
        Seen { requests, failed: self.answers[4].get() + ill.iter().sum::<u64>() }
    }

    pub(crate) fn failed(&self, failure: Failure) {
        if let Some(place) = Failure::NAMES.iter().position(|name| *name == failure.name()) {
            self.failures[place].add(1);
        }
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(place) = Refusal::RULES.iter().position(|rule| *rule == refusal.rule()) {
            self.refused[place].add(1);
        }
    }

    pub(crate) fn degraded(&self, how: &str) {
        if let Some(place) = DEGRADED.iter().position(|word| *word == how) {
            self.degraded[place].add(1);
        }
    }

    /// Adds this worker's counts to a snapshot.
    pub(crate) fn add_to(&self, sum: &mut RouteSnapshot) {
        for (total, count) in sum.answers.iter_mut().zip(&self.answers) {
            *total += count.get();
        }
        add_named(&mut sum.failures, &Failure::NAMES, &self.failures);
        add_named(&mut sum.refused, &Refusal::RULES, &self.refused);
        add_named(&mut sum.degraded, &DEGRADED, &self.degraded);
        add_named(&mut sum.mirrored, &FATES, &self.mirrored);
        sum.retries_total += self.retries.get();
        sum.hedges_total += self.hedges.get();
        sum.hedges_won_total += self.hedges_won.get();
        sum.resends_total += self.resends.get();
        sum.cancelled_total += self.cancelled.get();
        sum.cut_total += self.cut.get();
        sum.faulted_total += self.faulted.get();
        sum.trailers_dropped_total += self.trailers_dropped.get();
        self.connections.add_to(&mut sum.connections);
        for (version, counts) in self.versions.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sum.versions.entry(version.clone()).or_default().add(counts);
        }
        sum.latency_counts.resize(self.latency.len(), 0);
        for (total, count) in sum.latency_counts.iter_mut().zip(&self.latency) {
            *total += count.get();
        }
        sum.latency_sum_s += self.latency_nanos.get() as f64 / 1e9;
    }
}

/// Fills in what follows from the sums.
pub(crate) fn finish(sum: &mut RouteSnapshot) {
    let total = |named: &[(&str, u64)]| named.iter().map(|(_, count)| count).sum();
    sum.requests_total = sum.answers.iter().sum();
    sum.failures_total = total(&sum.failures);
    sum.degraded_total = total(&sum.degraded);
    sum.retries_refused_total = sum.refused.iter().find(|(rule, _)| *rule == "budget").map_or(0, |(_, count)| *count);
    sum.latency_p50_ms = quantile_s(&sum.latency_counts, 0.5) * 1e3;
    sum.latency_p99_ms = quantile_s(&sum.latency_counts, 0.99) * 1e3;
}

fn add_named(sums: &mut Vec<(&'static str, u64)>, names: &[&'static str], counts: &[Count]) {
    if sums.is_empty() {
        sums.extend(names.iter().map(|name| (*name, 0)));
    }
    for ((_, total), count) in sums.iter_mut().zip(counts) {
        *total += count.get();
    }
}

/// What one worker counted of requests that never reached a route.
#[derive(Debug)]
pub(crate) struct Rejections {
    verdicts: Vec<Count>,
    pub(crate) no_route: Count,
    pub(crate) looped: Count,
    /// Handshakes of TLS that came to nothing.
    pub(crate) handshakes: Count,
    /// Those that took too long.
    pub(crate) handshakes_slow: Count,
    /// Clients that spoke plainly where TLS is spoken.
    pub(crate) plain: Count,
    /// Answers that their clients do not take: HTTP/1 connections, and streams of HTTP/2.
    pub(crate) unread: Count,
    /// That there are such clients.
    unread_told: Seldom,
    /// HTTP/2 connections of clients that mostly take back what they ask for.
    pub(crate) taken_back: Count,
    /// HTTP/2 connections of clients that take nothing of what they asked for.
    pub(crate) stalled: Count,
    /// HTTP/2 connections of clients that mostly send frames that carry nothing.
    pub(crate) flooded: Count,
    /// HTTP/2 connections whose client broke the protocol.
    pub(crate) connections_broken: Count,
    /// Streams of HTTP/2 that ended because their client broke the protocol, or asked for more than it may at once.
    pub(crate) streams_broken: Count,
    /// Connections that were to be announced and were not, or wrongly.
    pub(crate) unannounced: Count,
    /// Connections of clients that have as many as they may.
    pub(crate) per_source: Count,
}

impl Default for Rejections {
    fn default() -> Self {
        let verdicts = Verdict::ALL.iter().map(|_| Count::default()).collect();
        Self {
            verdicts,
            no_route: Count::default(),
            looped: Count::default(),
            handshakes: Count::default(),
            handshakes_slow: Count::default(),
            plain: Count::default(),
            unread: Count::default(),
            unread_told: Seldom::default(),
            taken_back: Count::default(),
            stalled: Count::default(),
            flooded: Count::default(),
            connections_broken: Count::default(),
            streams_broken: Count::default(),
            unannounced: Count::default(),
            per_source: Count::default(),
        }
    }
}

/// The names of what is counted beside the gate's verdicts.
const OTHERS: [&str; 13] = [
    "no_route",
    "loop",
    "tls_handshake",
    "tls_handshake_timeout",
    "plain_on_tls",
    "unread",
    "h2_resets",
    "h2_stalled",
    "h2_flood",
    "h2_connection",
    "h2_stream",
    "proxy_protocol",
    "connections_per_source",
];

impl Rejections {
    pub(crate) fn count(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].add(1);
    }

    /// An answer was taken back from a client who does not take it.
    pub(crate) fn untaken(&self, client: &HeaderValue, now: Mono) {
        self.unread.add(1);
        if self.unread_told.is_due(now) {
            let client = client.to_str().unwrap_or_default();
            tracing::warn!(client, "a slow reader: its answer was ended after `body_idle_timeout`");
        }
    }

    pub(crate) fn get(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize].get()
    }

    pub(crate) fn add_to(&self, sums: &mut Vec<(&'static str, u64)>) {
        let names: Vec<&'static str> = Verdict::ALL.iter().map(|verdict| verdict.name()).chain(OTHERS).collect();
        if sums.is_empty() {
            sums.extend(names.iter().map(|name| (*name, 0)));
        }
        let others = [
            &self.no_route,
            &self.looped,
            &self.handshakes,
            &self.handshakes_slow,
            &self.plain,
            &self.unread,
            &self.taken_back,
            &self.stalled,
            &self.flooded,
            &self.connections_broken,
            &self.streams_broken,
            &self.unannounced,
            &self.per_source,
        ];
        let counts = self.verdicts.iter().chain(others);
        for ((_, total), count) in sums.iter_mut().zip(counts) {
            *total += count.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up() {
        let (one, two) = (RouteCounts::default(), RouteCounts::default());
        one.answered(200, Duration::from_millis(3));
        one.failed(Failure::Timeout);
        two.answered(503, Duration::from_secs(100));
        two.refused(&Refusal::DeadlineSpent { timeout: Duration::ZERO });
        two.degraded("stale");
        let mut sum = RouteSnapshot::default();
        one.add_to(&mut sum);
        two.add_to(&mut sum);
        finish(&mut sum);
        assert_eq!((sum.answers, sum.requests_total), ([0, 1, 0, 0, 1], 2));
        assert_eq!((sum.failures_total, sum.degraded_total), (1, 1));
        assert_eq!(sum.refused.iter().find(|(rule, _)| *rule == "deadline"), Some(&("deadline", 1)));
        assert_eq!((sum.latency_p50_ms, sum.latency_p99_ms), (5.0, 60_000.0));
        assert!((sum.latency_sum_s - 100.003).abs() < 1e-9);
    }

    #[test]
    fn calls_are_counted_apart_from_requests() {
        let counts = [RouteCounts::default(), RouteCounts::default()];
        counts[0].answered(200, Duration::from_secs(9));
        counts[0].cancelled.add(1);
        counts[0].called(Outcome::Failure(Failure::Timeout), Duration::from_secs(1));
        counts[0].called(Outcome::Failure(Failure::Throttled), Duration::from_millis(1));
        counts[1].called(Outcome::Success, Duration::from_millis(3));
        counts[1].called(Outcome::Ignored, Duration::from_millis(3));
        let mut sum = Counts::default();
        counts.iter().for_each(|counts| counts.add_traffic_to(&mut sum));
        assert_eq!((sum.requests, sum.failed, sum.answered.iter().sum::<u64>()), (2, 1, 1));
        assert_eq!(sum.answered[bucket_of(Duration::from_millis(3))], 1);
    }

    #[test]
    fn connections_are_open_or_have_ended() {
        let counts = [RouteCounts::default(), RouteCounts::default()];
        counts[0].connections.opened.add(3);
        counts[1].connections.opened.add(1);
        counts[1].connections.ended(Ended::Refused);
        counts[0].connections.ended(Ended::Done);
        counts[0].connections.lasted(Duration::from_secs(2));
        counts[0].connections.bytes_up.add(7);
        counts[1].connections.bytes_down.add(9);
        let mut sum = RouteSnapshot::default();
        counts.iter().for_each(|counts| counts.add_to(&mut sum));
        let seen = sum.connections;
        assert_eq!((seen.opened_total, seen.open, seen.bytes_up_total, seen.bytes_down_total), (4, 2, 7, 9));
        let ended: Vec<_> = seen.ended.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(ended, [&("done", 1), &("refused", 1)]);
        assert_eq!((seen.duration_counts, seen.duration_sum_s), (vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0], 2.0));
    }

    #[test]
    fn rejections_are_counted_by_name() {
        let rejections = Rejections::default();
        rejections.count(Verdict::Chunk);
        rejections.no_route.add(2);
        let mut sums = Vec::new();
        rejections.add_to(&mut sums);
        rejections.add_to(&mut sums);
        assert!(sums.contains(&("chunk", 2)) && sums.contains(&("no_route", 4)) && sums.contains(&("loop", 0)));
        assert_eq!(rejections.get(Verdict::Chunk), 1);
    }
}
