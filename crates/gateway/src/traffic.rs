//! Tells the journal what passes a route when that has changed: requests a second, the share of calls that fail, and
//! how long the good ones take. Once a minute at most, and once more at the end: whoever stops says what it saw last.
//!
//! A request is what a client asked for, whatever became of it; a call is a try sent to the route's own upstream that
//! came to something, the forwarder's and the probes' included. Its time runs to the head of the answer, or to the end
//! of a short one, as the guards measure it; a call outrun by its second copy counts with the time until then. Not
//! among the calls: refusals, fallbacks, answers of our own, and a 429, which tells of a limit. Not here: whether it
//! has changed (`core::traffic`), the counting (`observe.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use seawall_core::journal::{Draft, Kind};
use seawall_core::traffic::{Counts, Flow, Watch};
use seawall_core::units::{Ratio, format_duration, four_digits};
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::seat::Seat;

/// How often a node looks whether the traffic of its routes has changed.
pub const TRAFFIC_EVERY: Duration = Duration::from_secs(60);

/// Looks until stopped, and then once more.
pub(crate) async fn watch_traffic(seat: Arc<Seat>, stop: CancellationToken) {
    let mut watches = BTreeMap::new();
    loop {
        let stopped = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = tokio::time::sleep(seat.worker().node.traffic_every) => false,
        };
        look(&seat.worker().node, &mut watches);
        if stopped {
            return;
        }
    }
}

fn look(node: &Node, watches: &mut BTreeMap<String, Watch>) {
    let now = node.clock.now();
    watches.retain(|name, _| node.routes.iter().any(|route| route.policy.name == *name));
    for (route, counts) in node.routes.iter().zip(node.traffic()) {
        // Since there is the route, not since somebody looks: another worker may have answered before the first look.
        let begin = || Watch::new(node.since, Counts::default());
        let watch = watches.entry(route.policy.name.clone()).or_insert_with(begin);
        if let Some(flow) = watch.look(now, counts) {
            node.journal.record(draft(route.subject(), &flow).because(route.cause()));
        }
    }
}

fn draft(subject: &str, flow: &Flow) -> Draft {
    let mut draft = Draft::new(Kind::TrafficChanged, subject)
        .with("per_second", four_digits(flow.per_second()))
        .with("calls", flow.calls())
        .with("seconds", flow.span.as_millis() as f64 / 1_000.0);
    if let Some(failed) = flow.failed() {
        draft = draft.with("failed", failed);
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        if let Some(latency) = Ratio::new(share).and_then(|share| flow.latency(share)) {
            draft = draft.with(name, format_duration(three_digits(latency)));
        }
    }
    draft
}

/// What the counts can tell, and no more.
fn three_digits(duration: Duration) -> Duration {
    let nanos = duration.as_nanos().max(1);
    let unit = 10_u128.pow(nanos.ilog10().saturating_sub(2));
    Duration::from_nanos(u64::try_from((nanos + unit / 2) / unit * unit).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use seawall_core::time::Mono;
    use seawall_core::traffic::bucket_of;

    use super::*;

    #[test]
    fn an_entry_says_what_was_seen_and_leaves_out_what_was_not() {
        let mut counts = Counts { requests: 2_475, ..Counts::default() };
        let told = |counts: &Counts| {
            let flow = Watch::new(Mono::ZERO, Counts::default()).look(Mono::from_millis(60_000), counts.clone());
            let fields = draft("route:r", &flow.unwrap()).fields;
            fields.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(&counts), "calls=0 per_second=41.25 seconds=60");
        counts.failed = 3;
        assert_eq!(told(&counts), "calls=3 failed=100% per_second=41.25 seconds=60");
        counts.answered[bucket_of(Duration::from_millis(20))] = 997;
        assert_eq!(told(&counts), "calls=1000 failed=0.3% p50=19.9ms p99=21ms per_second=41.25 seconds=60");
    }

    #[test]
    fn numbers_have_as_many_digits_as_they_are_worth() {
        let rounded = |nanos| format_duration(three_digits(Duration::from_nanos(nanos)));
        assert_eq!([7, 19_234_567, 1_234_567_890, 119_999_000_000].map(rounded), ["7ns", "19.2ms", "1.23s", "2m"]);
    }
}
