//! The original's two counters, as Prometheus text.

use std::fmt::Write as _;

use super::TrafficSeries;

pub(super) fn text(all: &[TrafficSeries]) -> String {
    let mut text = String::new();
    let received = "Bytes that came from the sender, by proxy and direction.";
    let sent = "Bytes that went to the receiver, by proxy and direction.";
    counter(&mut text, "received", received, all, |series| series.received_bytes);
    counter(&mut text, "sent", sent, all, |series| series.sent_bytes);
    text
}

fn counter(text: &mut String, way: &str, help: &str, all: &[TrafficSeries], value: fn(&TrafficSeries) -> u64) {
    let name = format!("toxiproxy_proxy_{way}_bytes_total");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for series in all {
        let _ = writeln!(
            text,
            "{name}{{direction=\"{}\",listener=\"{}\",proxy=\"{}\",upstream=\"{}\"}} {}",
            series.direction.name(),
            series.listener,
            label(&series.proxy),
            label(&series.upstream),
            value(series)
        );
    }
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
