//! A toxic as the API shows it, and the fault that it is to the data path.

use std::time::Duration;

use seawall_core::fault::{Direction, Effect, Fault, Share};
use tokio::time::Instant;

use super::bind::{Binder, Place};
use super::json::{Value, float, quote};

/// A type of toxic: its name, what Go calls it, and its attributes with their Go types.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    name: &'static str,
    go_name: &'static str,
    attributes: &'static [(&'static str, &'static str)],
}

const KINDS: [Kind; 8] = [
    Kind { name: "noop", go_name: "NoopToxic", attributes: &[] },
    Kind { name: "latency", go_name: "LatencyToxic", attributes: &[("latency", "int64"), ("jitter", "int64")] },
    Kind { name: "bandwidth", go_name: "BandwidthToxic", attributes: &[("rate", "int64")] },
    Kind { name: "slow_close", go_name: "SlowCloseToxic", attributes: &[("delay", "int64")] },
    Kind { name: "timeout", go_name: "TimeoutToxic", attributes: &[("timeout", "int64")] },
    Kind { name: "reset_peer", go_name: "ResetToxic", attributes: &[("timeout", "int64")] },
    Kind {
        name: "slicer",
        go_name: "SlicerToxic",
        attributes: &[("average_size", "int"), ("size_variation", "int"), ("delay", "int")],
    },
    Kind { name: "limit_data", go_name: "LimitDataToxic", attributes: &[("bytes", "int64")] },
];

/// Fields of a toxic, in the order it is written. `ttl` is ours: to the original, a key it does not know.
const FIELDS: [&str; 6] = ["attributes", "name", "type", "stream", "toxicity", "ttl"];
/// Those that can be changed.
const CHANGEABLE: [&str; 3] = ["attributes", "toxicity", "ttl"];

/// The longest time that a toxic may be given, in milliseconds: a day. What is to stay longer needs none.
pub(super) const TTL_MS_MAX: i64 = 86_400_000;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Toxic {
    pub(super) name: String,
    kind: &'static Kind,
    /// As sent; echoed so, also where they make no sense. What the data path gets is clamped.
    values: [i64; 3],
    /// As sent, whatever its case.
    stream: String,
    pub(super) direction: Direction,
    toxicity: f32,
    /// In milliseconds. Shown only where it was given: whoever does not know of it reads what the original would write.
    ttl: Option<i64>,
    /// When it goes by itself: so long after it was added or last changed.
    pub(super) until: Option<Instant>,
}

/// What keeps a toxic from being added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Go's message.
    Body(String),
    Stream,
    Kind,
    Exists,
    Ttl,
}

impl Toxic {
    /// From a body, with the checks in the original's order.
    pub(super) fn from_body(value: &Value, exists: impl Fn(&str) -> bool, now: Instant) -> Result<Self, Refusal> {
        let (mut name, mut kind, mut stream) = (String::new(), String::new(), "downstream".to_owned());
        let (mut toxicity, mut attributes, mut ttl, mut binder) = (1.0, Vec::new(), None, Binder::default());
        let place = |field| Place { of: "ToxicWrapper", field };
        for (index, value) in binder.members(value, &FIELDS, (None, "toxics.ToxicWrapper")) {
            match index {
                0 => {
                    // Not knowing the type yet, the original takes any object here.
                    binder.members(value, &[], (Some(place("attributes")), "toxics.NoopToxic"));
                    attributes.push(value);
                }
                1 => binder.text(place("name"), value, &mut name),
                2 => binder.text(place("type"), value, &mut kind),
                3 => binder.text(place("stream"), value, &mut stream),
                4 => binder.float(place("toxicity"), value, &mut toxicity),
                _ => take_ttl(&mut binder, place("ttl"), value, &mut ttl),
            }
        }
        binder.finish().map_err(Refusal::Body)?;
        let direction = Direction::ALL.into_iter().find(|direction| stream.to_lowercase() == direction.name());
        let direction = direction.ok_or(Refusal::Stream)?;
        let kind = KINDS.iter().find(|known| known.name == kind).ok_or(Refusal::Kind)?;
        if name.is_empty() {
            name = format!("{}_{stream}", kind.name);
        }
        if exists(&name) {
            return Err(Refusal::Exists);
        }
        let mut toxic = Self { name, kind, values: [0; 3], stream, direction, toxicity, ttl, until: None };
        let mut binder = Binder::default();
        attributes.into_iter().for_each(|attributes| toxic.take_attributes(&mut binder, attributes));
        binder.finish().map_err(Refusal::Body)?;
        toxic.lasting_from(now)
    }

    /// As a body changes it: all of it or nothing. Whatever is changed, its time begins anew.
    pub(super) fn changed_by(&self, value: &Value, now: Instant) -> Result<Self, Refusal> {
        let (mut changed, mut binder) = (self.clone(), Binder::default());
        let go_type = format!(
            "struct {{ Attributes interface {{}} \"json:\\\"{}\\\"\"; Toxicity float32 \"json:\\\"{}\\\"\" }}",
            CHANGEABLE[0], CHANGEABLE[1]
        );
        for (index, value) in binder.members(value, &CHANGEABLE, (None, &go_type)) {
            match index {
                0 => changed.take_attributes(&mut binder, value),
                1 => binder.float(Place { of: "", field: "toxicity" }, value, &mut changed.toxicity),
                _ => take_ttl(&mut binder, Place { of: "", field: "ttl" }, value, &mut changed.ttl),
            }
        }
        binder.finish().map_err(Refusal::Body)?;
        changed.lasting_from(now)
    }

    fn lasting_from(mut self, now: Instant) -> Result<Self, Refusal> {
        self.until = match self.ttl {
            Some(ttl @ 1..=TTL_MS_MAX) => Some(now + Duration::from_millis(ttl.unsigned_abs())),
            Some(_) => return Err(Refusal::Ttl),
            None => None,
        };
        Ok(self)
    }

    fn take_attributes(&mut self, binder: &mut Binder, value: &Value) {
        let Kind { go_name, attributes, .. } = self.kind;
        let names: Vec<&str> = attributes.iter().map(|(name, _)| *name).collect();
        let whole = Place { of: "", field: "attributes" };
        for (index, value) in binder.members(value, &names, (Some(whole), &format!("toxics.{go_name}"))) {
            let (name, go_type) = attributes[index];
            let field = format!("attributes.{name}");
            binder.int(Place { of: go_name, field: &field }, value, go_type, &mut self.values[index]);
        }
    }

    pub(super) fn json(&self) -> String {
        let attributes: Vec<String> = std::iter::zip(self.kind.attributes, self.values)
            .map(|((name, _), value)| format!("\"{name}\":{value}"))
            .collect();
        let ttl = self.ttl.map(|ttl| format!(",\"ttl\":{ttl}")).unwrap_or_default();
        format!(
            "{{\"attributes\":{{{}}},\"name\":{},\"type\":\"{}\",\"stream\":{},\"toxicity\":{}{ttl}}}",
            attributes.join(","),
            quote(&self.name),
            self.kind.name,
            quote(&self.stream),
            float(self.toxicity),
        )
    }

    /// For the data path, with every number where it makes sense: below zero is zero.
    pub(super) fn fault(&self) -> Fault {
        let [first, second, third] = self.values.map(|value| u64::try_from(value).unwrap_or(0));
        let millis = Duration::from_millis;
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let effect = match self.kind.name {
            // A negative latency takes from what the jitter adds.
            "latency" => Effect::Latency { delay_ms: self.values[0], jitter: millis(second) },
            // Kilobytes of 1,000 bytes.
            "bandwidth" => Effect::Bandwidth { bytes_per_second: first.saturating_mul(1_000) },
            "slow_close" => Effect::SlowClose { delay: millis(first) },
            "timeout" => Effect::Timeout { after: (first > 0).then(|| millis(first)) },
            "reset_peer" => Effect::ResetPeer { after: millis(first) },
            "slicer" => {
                Effect::Slicer { average: size(first), variation: size(second), delay: Duration::from_micros(third) }
            }
            "limit_data" => Effect::LimitData { bytes: first },
            _ => Effect::Noop,
        };
        let share = Share::clamped(f64::from(self.toxicity));
        Fault { id: self.name.as_str().into(), direction: self.direction, share, effect }
    }
}

fn take_ttl(binder: &mut Binder, place: Place<'_>, value: &Value, ttl: &mut Option<i64>) {
    binder.choice(value, ttl, |binder, value, ttl| binder.int(place, value, "int64", ttl));
}
