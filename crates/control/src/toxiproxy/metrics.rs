//! The original's two counters and one of ours, as Prometheus text.

use std::fmt::Write as _;

use seawall_core::fault::Direction;

use super::TrafficSeries;

pub(super) fn text(all: &[TrafficSeries]) -> String {
    let mut text = String::new();
    let received = "Bytes that came from the sender, by proxy and direction.";
    let sent = "Bytes that went to the receiver, by proxy and direction.";
    counter(&mut text, "received", received, all, |series| series.received_bytes);
    counter(&mut text, "sent", sent, all, |series| series.sent_bytes);
    refused(&mut text, all);
    text
}

fn refused(text: &mut String, all: &[TrafficSeries]) {
    let name = "toxiproxy_proxy_refused_connections_total";
    let help = "Connections closed unserved because there were too many, by proxy.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for series in all.iter().filter(|series| series.direction == Direction::Upstream) {
        let labels = labels(series);
        let _ = writeln!(text, "{name}{{{labels}}} {}", series.refused_connections);
    }
}

fn counter(text: &mut String, way: &str, help: &str, all: &[TrafficSeries], value: fn(&TrafficSeries) -> u64) {
    let name = format!("toxiproxy_proxy_{way}_bytes_total");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for series in all {
        let _ =
            writeln!(text, "{name}{{direction=\"{}\",{}}} {}", series.direction.name(), labels(series), value(series));
    }
}

fn labels(series: &TrafficSeries) -> String {
    let (proxy, upstream) = (label(&series.proxy), label(&series.upstream));
    format!("listener=\"{}\",proxy=\"{proxy}\",upstream=\"{upstream}\"", series.listener)
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
