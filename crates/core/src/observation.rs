//! What was: counts, latencies and states as one snapshot that goes up from the gateway. Plain values with the field
//! names that `GET /api/status` shows; whoever draws a page or writes metrics needs nothing else.

use std::net::SocketAddr;

use serde::Serialize;

use crate::balance::assign::ByVersion;
use crate::drain::Standing;
use crate::policy::Protocol;

/// Upper bounds of the latency histogram's buckets, in seconds; a last bucket takes the rest.
pub const LATENCY_BUCKETS_S: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Upper bounds of the buckets for how long connections last, in seconds; a last bucket takes the rest.
pub const DURATION_BUCKETS_S: [f64; 9] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0];

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides had said all they wanted.
    Done,
    /// The client broke it off.
    ClientReset,
    /// The upstream broke it off.
    UpstreamReset,
    /// Nobody had said anything for too long.
    Idle,
    /// The node stopped, and its grace was over.
    Cut,
    /// A guard or a limit said no.
    Refused,
    /// No endpoint could be reached.
    Failed,
    /// The client had gone before an endpoint was reached.
    Left,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::ClientReset,
        Self::UpstreamReset,
        Self::Idle,
        Self::Cut,
        Self::Refused,
        Self::Failed,
        Self::Left,
    ];

    /// Its word in metrics and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::ClientReset => "client_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::Idle => "idle",
            Self::Cut => "cut",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }
}

/// Everything seen on the data path of one node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeSnapshot {
    /// One per route, in the policy's order.
    pub routes: Vec<RouteSnapshot>,
    /// One per upstream, in the policy's order.
    pub upstreams: Vec<UpstreamSnapshot>,
    /// Every limit of the node.
    pub limits: Vec<LimitSnapshot>,
    /// Client connections open now.
    pub connections: u64,
    /// Client connections accepted since the start.
    pub connections_total: u64,
    /// Requests that matched no route or never became one, by reason.
    pub rejected: Vec<(&'static str, u64)>,
    /// What is drained by hand.
    pub drains: Vec<Standing>,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateSnapshot {
    /// Who uses it: `listener:0.0.0.0:8443`, `upstream:carrier`.
    pub subject: String,
    /// The file it was read from.
    pub file: String,
    /// For whom it speaks, separated by spaces.
    pub names: String,
    /// Until when it holds, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// The mark of its key, `sha256/BASE64`.
    pub pin: String,
}

/// One route.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RouteSnapshot {
    /// Its name.
    pub name: String,
    /// Its upstream's name.
    pub upstream: String,
    /// What it carries. Of a route of connections, requests and answers are never counted, and latency is the time from
    /// a client's connection to the upstream's.
    pub protocol: Protocol,
    /// True if writes it cannot deliver are kept in the spool, and delivered from there.
    pub spools: bool,
    /// Its breaker.
    pub breaker: BreakerSnapshot,
    /// Since when answers are reduced (milliseconds since the epoch); `None` while they are whole.
    pub degraded_since_ms: Option<u64>,
    /// Requests answered, by class of status: 1xx..5xx at index 0..4.
    pub answers: [u64; 5],
    /// Requests answered.
    pub requests_total: u64,
    /// Tries that failed, by [`crate::outcome::Failure::NAMES`].
    pub failures: Vec<(&'static str, u64)>,
    /// Tries that failed.
    pub failures_total: u64,
    /// Retries sent.
    pub retries_total: u64,
    /// Second copies sent of calls that were slow to answer.
    pub hedges_total: u64,
    /// Of those, answered first.
    pub hedges_won_total: u64,
    /// Retries the budget refused.
    pub retries_refused_total: u64,
    /// Free resends on a stale pooled connection.
    pub resends_total: u64,
    /// Requests refused by a guard, by rule.
    pub refused: Vec<(&'static str, u64)>,
    /// Reduced answers, by the fallback's word.
    pub degraded: Vec<(&'static str, u64)>,
    /// Reduced answers.
    pub degraded_total: u64,
    /// Requests whose client went away first.
    pub cancelled_total: u64,
    /// Answers whose body broke after its head had gone to the client.
    pub cut_total: u64,
    /// Requests that a fault placed on purpose has touched, and deliveries from the spool.
    pub faulted_total: u64,
    /// True if bytes are carried as they come: those of connections, or those that follow an upgrade.
    pub carries_connections: bool,
    /// Connections; of a route of requests, those that were upgraded.
    pub connections: ConnectionsSnapshot,
    /// Answers whose trailers ended here because the answer had not announced them (`Trailer`).
    pub trailers_dropped_total: u64,
    /// What became of copies of requests, by word: a class of status, `failed`, `timed_out`, or why none was sent:
    /// `busy` (too many on their way), `body` (passed on as it comes).
    pub mirrored: Vec<(&'static str, u64)>,
    /// What became of those that were meant for a version, by its name.
    pub versions: ByVersion,
    /// Calls per second that the upstream is thought to allow; `None` without `learned_limit`, or before any was felt.
    pub learned_limit_per_s: Option<f64>,
    /// Calls at once that are thought right; `None` without `concurrency`.
    pub concurrency_limit: Option<u32>,
    /// Calls on their way now.
    pub in_flight: u64,
    /// Calls waiting for the bulkhead now.
    pub waiting: u64,
    /// Latency histogram: counts per bucket of [`LATENCY_BUCKETS_S`] (not cumulative), the rest last.
    pub latency_counts: Vec<u64>,
    /// Sum of latencies, in seconds.
    pub latency_sum_s: f64,
    /// Median latency in milliseconds, to the bucket.
    pub latency_p50_ms: f64,
    /// 99th percentile of latency in milliseconds, to the bucket.
    pub latency_p99_ms: f64,
}

/// Connections whose bytes are carried as they come. All that were opened are open, or have ended in one of the ways.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConnectionsSnapshot {
    /// Accepted.
    pub opened_total: u64,
    /// Open now, those on their way to the upstream included.
    pub open: u64,
    /// Ended, by [`Ended::name`].
    pub ended: Vec<(&'static str, u64)>,
    /// Bytes handed on to the upstream.
    pub bytes_up_total: u64,
    /// Bytes handed on to clients.
    pub bytes_down_total: u64,
    /// How long those lasted that reached the upstream and have ended: counts per bucket of [`DURATION_BUCKETS_S`] (not
    /// cumulative), the rest last.
    pub duration_counts: Vec<u64>,
    /// Sum of how long they lasted, in seconds.
    pub duration_sum_s: f64,
}

/// A breaker at a glance.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BreakerSnapshot {
    /// `closed`, `open`, `half_open` or `off`.
    pub state: &'static str,
    /// Share of failed calls in the window; `None` below the minimum of calls.
    pub failure_rate: Option<f64>,
    /// Share of slow calls in the window; `None` below the minimum of calls.
    pub slow_rate: Option<f64>,
    /// How long it has been in this state, in seconds.
    pub since_s: f64,
    /// How often it opened.
    pub opened_total: u64,
}

/// One upstream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamSnapshot {
    /// Its name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointSnapshot>,
    /// Calls that went elsewhere than to its nearest endpoints (lowest priority, own zone).
    pub spilled_total: u64,
    /// True while so many do that the journal was told.
    pub is_spilling: bool,
}

/// One endpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EndpointSnapshot {
    /// `host:port`.
    pub address: String,
    /// Its zone, if told.
    pub zone: Option<String>,
    /// What runs there, if told.
    pub version: Option<String>,
    /// Its share of the calls beside its peers'.
    pub weight: u32,
    /// Lower ones are asked first.
    pub priority: u32,
    /// False while its health check fails.
    pub healthy: bool,
    /// True while it gets no calls because it did worse than its peers.
    pub ejected: bool,
    /// True while it gets no calls because somebody has taken it out of service.
    pub draining: bool,
    /// The share of the choices it takes part in: below 1 while it has just come (back).
    pub ramp: f64,
    /// Its usual latency, in milliseconds, a peak counting at once; 0 while it is not known.
    pub latency_ms: f64,
    /// Calls sent to it, tries and second copies counted apart.
    pub calls_total: u64,
    /// Calls on their way to it.
    pub in_flight: u64,
    /// Connections open to it.
    pub connections: u64,
    /// The addresses its name has; none before it was asked for, or where it is an address itself.
    pub addresses: Vec<SocketAddr>,
    /// How often its name was asked for in vain.
    pub lookups_failed_total: u64,
}

/// One limit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LimitSnapshot {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What is used of it now, where that can be told.
    pub used: Option<u64>,
    /// How often it was reached.
    pub reached_total: u64,
}

/// The value below which `share` of the counted latencies lie, in seconds: the upper bound of its bucket. Zero when
/// nothing was counted; the last finite bound for what lies beyond it.
#[must_use]
pub fn quantile_s(counts: &[u64], share: f64) -> f64 {
    let total: u64 = counts.iter().sum();
    let rank = (total as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (index, count) in counts.iter().enumerate() {
        seen += count;
        if total > 0 && seen >= rank {
            return LATENCY_BUCKETS_S[index.min(LATENCY_BUCKETS_S.len() - 1)];
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_name_the_bucket() {
        assert_eq!(quantile_s(&[], 0.5), 0.0);
        assert_eq!(quantile_s(&[0; 17], 0.5), 0.0);
        let mut counts = [0; 17];
        counts[1] = 98;
        counts[10] = 2;
        assert_eq!(quantile_s(&counts, 0.5), 0.001);
        assert_eq!(quantile_s(&counts, 0.99), 1.0);
        counts[16] = 1_000;
        assert_eq!(quantile_s(&counts, 0.99), 60.0);
    }
}
