//! What is done to a try: the kinds of faults, and what each makes of one try or connection.

use std::fmt;
use std::time::Duration;

use super::{DELAY_MAX, Refused};
use crate::fault::{Direction, Effect, Fault as Toxic, FaultId, Share};
use crate::prng::Prng;
use crate::units::{Ratio, format_duration, format_size};

/// Longest head a fault makes up: beyond it nothing is learned.
pub const HEAD_BYTES_MAX: u64 = 1 << 20;
/// Farthest a made up date may be from now.
pub const DATE_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Bytes are delayed by whole ones of these.
const TICK: Duration = Duration::from_millis(1);

/// What a latency delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The request: the upstream gets it late.
    Request,
    /// The first byte of the answer: the upstream has done it long before.
    Head,
    /// The answer's body: its head comes at once.
    Body,
}

/// How late, between one try and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Up to so much more, each as likely.
    Even,
    /// So much more on average: mostly less, and now and then a lot, at most ten times as much.
    Tail,
}

/// When the caller is told to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// In so many seconds.
    Seconds(u64),
    /// On a date so far ahead.
    Ahead(Duration),
    /// On a date so long ago.
    Ago(Duration),
}

/// Which way something goes that is harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
    /// Both ways.
    Both,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Both];

    /// As the API and the journal write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        }
    }

    pub(super) fn directions(self) -> impl Iterator<Item = Direction> {
        Direction::ALL.into_iter().filter(move |direction| match self {
            Self::Up => *direction == Direction::Upstream,
            Self::Down => *direction == Direction::Downstream,
            Self::Both => true,
        })
    }
}

/// What it is that comes by: not every fault can touch everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// A call.
    Call,
    /// A call of gRPC.
    Grpc,
    /// A connection whose bytes nobody reads.
    Connection,
}

/// What is done to a try.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Something comes later.
    Latency {
        /// What.
        of: Moment,
        /// By so much,
        delay: Duration,
        /// and a random time that follows from this.
        jitter: Duration,
        /// In this way.
        spread: Spread,
    },
    /// The answer's body comes slowly.
    Bandwidth {
        /// At most.
        bytes_per_second: u64,
    },
    /// It is not sent; this status is taken for the upstream's answer.
    Abort {
        /// 400 to 599: anything else would tell a client that something was done.
        status: u16,
        /// With `Retry-After`.
        retry: Option<RetryAfter>,
    },
    /// A call of gRPC is not sent; this status is taken for the upstream's answer. Nothing else is touched.
    Grpc {
        /// 1 to 16.
        code: u8,
    },
    /// It is not sent, as if nobody listened there.
    Refuse,
    /// It is not sent and not answered: its time runs out.
    Hang,
    /// The upstream gets it and does it; its answer is thrown away, as if the connection had been reset.
    Swallow,
    /// The upstream gets it and does it; its answer's body ends early, and shows it.
    Cut,
    /// The upstream gets it and does it; half of its answer's body is missing, and the length that is told hides it.
    Short,
    /// The upstream gets it and does it; its answer's body is twice as long by what is told, and its end never comes.
    Long,
    /// The upstream gets it and does it; bytes of its answer's body are others.
    Corrupt {
        /// Of the bytes.
        share: Ratio,
    },
    /// The upstream gets it and does it; its answer's head has one field more, which is very long.
    HugeHead {
        /// Of that field.
        bytes: u64,
    },
    /// The upstream gets it and does it; its answer's head cannot be read.
    GarbledHead,
    /// The upstream gets it twice, and the caller one answer.
    Duplicate,
    /// The bytes of a connection are harmed, from its beginning or from now on.
    Bytes {
        /// Which of them.
        way: Way,
        /// And how.
        effect: Effect,
    },
    /// Nothing passes between this node's zone and another: neither calls nor bytes, nor health checks.
    ZoneCut {
        /// `Up` is from here to there.
        way: Way,
    },
}

impl Kind {
    /// This status, and nothing more.
    #[must_use]
    pub const fn abort(status: u16) -> Self {
        Self::Abort { status, retry: None }
    }

    /// A request that comes late.
    #[must_use]
    pub const fn late(delay: Duration, jitter: Duration) -> Self {
        Self::Latency { of: Moment::Request, delay, jitter, spread: Spread::Even }
    }

    /// One of each, whatever it says.
    const EACH: [Self; 27] = {
        const fn late(of: Moment) -> Kind {
            Kind::Latency { of, delay: TICK, jitter: Duration::ZERO, spread: Spread::Even }
        }
        const fn bytes(effect: Effect) -> Kind {
            Kind::Bytes { way: Way::Down, effect }
        }
        [
            late(Moment::Request),
            late(Moment::Head),
            late(Moment::Body),
            Self::Bandwidth { bytes_per_second: 1 },
            Self::abort(503),
            Self::Grpc { code: 14 },
            Self::Refuse,
            Self::Hang,
            Self::Swallow,
            Self::Cut,
            Self::Short,
            Self::Long,
            Self::Corrupt { share: Ratio::ONE },
            Self::HugeHead { bytes: 1 },
            Self::GarbledHead,
            Self::Duplicate,
            bytes(Effect::Latency { delay_ms: 1, jitter: Duration::ZERO }),
            bytes(Effect::Bandwidth { bytes_per_second: 1 }),
            bytes(Effect::SlowClose { delay: TICK }),
            bytes(Effect::Timeout { after: None }),
            bytes(Effect::ResetPeer { after: TICK }),
            bytes(Effect::HalfClose { after: TICK }),
            bytes(Effect::Slicer { average: 1, variation: 0, delay: Duration::ZERO }),
            bytes(Effect::LimitData { bytes: 1 }),
            bytes(Effect::Corrupt { share: Ratio::ONE }),
            bytes(Effect::Loss { share: Ratio::ONE }),
            Self::ZoneCut { way: Way::Both },
        ]
    };

    /// Every kind by name.
    pub const NAMES: [&'static str; 27] = {
        let (mut names, mut place) = ([""; 27], 0);
        while place < names.len() {
            names[place] = Self::EACH[place].name();
            place += 1;
        }
        names
    };

    /// Those that need nothing more said.
    pub const WORDS: [Self; 8] = [
        Self::Refuse,
        Self::Hang,
        Self::Swallow,
        Self::Cut,
        Self::Short,
        Self::Long,
        Self::GarbledHead,
        Self::Duplicate,
    ];

    /// Its word in the API, the journal and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency { of: Moment::Request, .. } => "latency",
            Self::Latency { of: Moment::Head, .. } => "head_latency",
            Self::Latency { of: Moment::Body, .. } => "body_latency",
            Self::Bandwidth { .. } => "bandwidth",
            Self::Abort { .. } => "abort",
            Self::Grpc { .. } => "grpc",
            Self::Refuse => "refuse",
            Self::Hang => "hang",
            Self::Swallow => "swallow",
            Self::Cut => "cut",
            Self::Short => "short_body",
            Self::Long => "long_body",
            Self::Corrupt { .. } => "corrupt",
            Self::HugeHead { .. } => "huge_head",
            Self::GarbledHead => "garbled_head",
            Self::Duplicate => "duplicate",
            Self::Bytes { effect, .. } => match effect {
                Effect::Noop => "noop",
                Effect::Latency { .. } => "tcp_latency",
                Effect::Bandwidth { .. } => "tcp_bandwidth",
                Effect::SlowClose { .. } => "slow_close",
                Effect::Timeout { .. } => "black_hole",
                Effect::ResetPeer { .. } => "reset",
                Effect::HalfClose { .. } => "half_close",
                Effect::Slicer { .. } => "slicer",
                Effect::LimitData { .. } => "limit_data",
                Effect::Corrupt { .. } => "tcp_corrupt",
                Effect::Loss { .. } => "chunk_loss",
            },
            Self::ZoneCut { .. } => "zone_cut",
        }
    }

    /// Whether it can touch such a thing.
    pub(super) const fn fits(self, carries: Carries) -> bool {
        match self {
            Self::Refuse | Self::Hang | Self::ZoneCut { .. } => true,
            Self::Bytes { .. } => matches!(carries, Carries::Connection),
            Self::Grpc { .. } => matches!(carries, Carries::Grpc),
            _ => !matches!(carries, Carries::Connection),
        }
    }

    /// The names of those that can, where a route or an upstream is meant.
    pub(super) fn names_for(carries: Carries) -> Vec<&'static str> {
        let fits = |kind: &Self| match carries {
            Carries::Connection => kind.fits(carries),
            Carries::Call | Carries::Grpc => kind.fits(Carries::Call) || kind.fits(Carries::Grpc),
        };
        let of_routes = Self::EACH.iter().filter(|kind| !matches!(kind, Self::ZoneCut { .. }));
        of_routes.filter(|kind| fits(kind)).map(|kind| kind.name()).collect()
    }

    pub(super) fn check(self) -> Result<(), Refused> {
        let refused = |message: String, allowed: String| Err(Refused::invalid("kind", message, [allowed]));
        match self {
            Self::Latency { delay, jitter, .. }
                if (delay + jitter).is_zero() || delay > DELAY_MAX || jitter > DELAY_MAX =>
            {
                let allowed = format!("a delay or a jitter above 0s, each at most {}", format_duration(DELAY_MAX));
                refused("a latency of nothing, or too long a one".into(), allowed)
            }
            Self::Latency { of: Moment::Body, delay, jitter, .. } if delay < TICK && jitter < TICK => {
                let message = "bodies are delayed by whole milliseconds: it would come to nothing";
                refused(message.into(), format!("a delay or a jitter of {} or more", format_duration(TICK)))
            }
            Self::Bandwidth { bytes_per_second: 0 } => {
                refused("at no bytes a second nothing ever comes".into(), "1B or more; `hang` for none".into())
            }
            Self::Abort { status, .. } if !(400..=599).contains(&status) => refused(
                format!("`{status}` would tell a client that something was done: only a failure is given"),
                "400 to 599".into(),
            ),
            Self::Abort { retry: Some(RetryAfter::Ahead(by) | RetryAfter::Ago(by)), .. } if by > DATE_MAX => refused(
                format!("a date {} from now is too far away", format_duration(by)),
                format!("at most {}", format_duration(DATE_MAX)),
            ),
            Self::Grpc { code } if !(1..=16).contains(&code) => {
                refused(format!("`{code}` is not the status of a call that failed"), "1 to 16".into())
            }
            Self::Corrupt { share } if share <= Ratio::ZERO => {
                refused("none of the bytes would be others".into(), "more than 0%".into())
            }
            Self::HugeHead { bytes } if !(1..=HEAD_BYTES_MAX).contains(&bytes) => refused(
                format!("a field of {} is not allowed", format_size(bytes)),
                format!("1B to {}", format_size(HEAD_BYTES_MAX)),
            ),
            Self::Bytes { effect, .. } => check_effect(effect),
            _ => Ok(()),
        }
    }

    /// What it makes of one try; nothing, if it is about bytes that pass later.
    pub(super) fn act(self, prng: &mut Prng) -> Option<Act> {
        Some(match self {
            Self::Latency { of, delay, jitter, spread } => Act::Delay(of, delay + spread.draw(jitter, prng)),
            Self::Bandwidth { bytes_per_second } => Act::Body(Effect::Bandwidth { bytes_per_second }, prng.next_u64()),
            Self::Abort { status, retry } => Act::Abort(status, retry),
            Self::Grpc { code } => Act::Grpc(code),
            Self::Refuse => Act::Refuse,
            Self::Hang => Act::Hang,
            Self::Swallow => Act::Swallow,
            Self::Cut => Act::Cut,
            Self::Short => Act::Short,
            Self::Long => Act::Long,
            Self::Corrupt { share } => Act::Body(Effect::Corrupt { share }, prng.next_u64()),
            Self::HugeHead { bytes } => Act::HugeHead(bytes),
            Self::GarbledHead => Act::GarbledHead(prng.next_u64()),
            Self::Duplicate => Act::Duplicate,
            Self::ZoneCut { way: Way::Up | Way::Both } => Act::Lost,
            Self::ZoneCut { way: Way::Down } => Act::Mute,
            Self::Bytes { .. } => return None,
        })
    }

    /// What it makes of the bytes of a connection, and which way they go.
    pub(super) const fn on_bytes(self) -> Option<(Way, Effect)> {
        match self {
            Self::Bytes { way, effect } => Some((way, effect)),
            Self::ZoneCut { way } => Some((way, Effect::Timeout { after: None })),
            _ => None,
        }
    }
}

fn check_effect(effect: Effect) -> Result<(), Refused> {
    let refused = |message: &str, allowed: String| Err(Refused::invalid("kind", message, [allowed]));
    let at_most = || format!("at most {}", format_duration(DELAY_MAX));
    let more_than_none = || "more than 0%".to_owned();
    match effect {
        Effect::Latency { delay_ms, jitter } => {
            let max = i64::try_from(DELAY_MAX.as_millis()).unwrap_or(i64::MAX);
            if delay_ms <= 0 && jitter < TICK {
                let message = "bytes are delayed by whole milliseconds: it would come to nothing";
                return refused(message, format!("{} or more, {}", format_duration(TICK), at_most()));
            }
            if !(0..=max).contains(&delay_ms) || jitter > DELAY_MAX {
                return refused("too long a latency", format!("{} or more, {}", format_duration(TICK), at_most()));
            }
            Ok(())
        }
        Effect::SlowClose { delay: wait }
        | Effect::Timeout { after: Some(wait) }
        | Effect::ResetPeer { after: wait }
        | Effect::HalfClose { after: wait }
        | Effect::Slicer { delay: wait, .. }
            if wait > DELAY_MAX =>
        {
            refused("too long a time", at_most())
        }
        Effect::Bandwidth { bytes_per_second: 0 } => {
            refused("at no bytes a second nothing ever comes", "1B or more; `black_hole` for none".into())
        }
        Effect::Slicer { average: 0, .. } => refused("pieces of nothing", "1B or more".into()),
        Effect::Corrupt { share } if share <= Ratio::ZERO => refused("none of the bytes", more_than_none()),
        Effect::Loss { share } if share <= Ratio::ZERO => refused("none of the chunks", more_than_none()),
        _ => Ok(()),
    }
}

impl Spread {
    pub(super) fn draw(self, jitter: Duration, prng: &mut Prng) -> Duration {
        let nanos = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX);
        match self {
            Self::Even => Duration::from_nanos(prng.below(nanos.saturating_add(1))),
            // One minus the draw is never zero.
            Self::Tail => jitter.mul_f64((-(1.0 - prng.unit()).ln()).min(10.0)),
        }
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => f.write_str(&format_duration(Duration::from_secs(*seconds))),
            Self::Ahead(by) => write!(f, "a date {} ahead", format_duration(*by)),
            Self::Ago(by) => write!(f, "a date {} ago", format_duration(*by)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Latency { delay, jitter: Duration::ZERO, .. } => write!(f, " {}", format_duration(*delay)),
            Self::Latency { delay, jitter, spread: Spread::Even, .. } => {
                write!(f, " {} to {}", format_duration(*delay), format_duration(*delay + *jitter))
            }
            Self::Latency { delay, jitter, spread: Spread::Tail, .. } => {
                write!(f, " {} and a tail of {}", format_duration(*delay), format_duration(*jitter))
            }
            Self::Bandwidth { bytes_per_second } => write!(f, " {}/s", format_size(*bytes_per_second)),
            Self::Abort { status, retry: None } => write!(f, " {status}"),
            Self::Abort { status, retry: Some(retry) } => write!(f, " {status}, Retry-After {retry}"),
            Self::Grpc { code } => write!(f, " {code}"),
            Self::Corrupt { share } => write!(f, " {share} of the bytes"),
            Self::HugeHead { bytes } => write!(f, " {}", format_size(*bytes)),
            Self::ZoneCut { way } => write!(f, " {}", way.name()),
            Self::Bytes { way, effect } => {
                match effect {
                    Effect::Latency { delay_ms, jitter } => {
                        write!(f, " {delay_ms}ms give or take {}", format_duration(*jitter))?;
                    }
                    Effect::Bandwidth { bytes_per_second } => write!(f, " {}/s", format_size(*bytes_per_second))?,
                    Effect::SlowClose { delay: wait }
                    | Effect::Timeout { after: Some(wait) }
                    | Effect::ResetPeer { after: wait }
                    | Effect::HalfClose { after: wait } => write!(f, " {}", format_duration(*wait))?,
                    Effect::Slicer { average, .. } => write!(f, " {}", format_size(*average as u64))?,
                    Effect::LimitData { bytes } => write!(f, " {}", format_size(*bytes))?,
                    Effect::Corrupt { share } | Effect::Loss { share } => write!(f, " {share}")?,
                    Effect::Noop | Effect::Timeout { after: None } => {}
                }
                write!(f, ", {}", way.name())
            }
            _ => Ok(()),
        }
    }
}

/// What is done to one try.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// Let this come so much later.
    Delay(Moment, Duration),
    /// Send it, and do this to the bytes of the answer's body, with this seed.
    Body(Effect, u64),
    /// Answer with this status, and when to come back.
    Abort(u16, Option<RetryAfter>),
    /// Answer with this status of gRPC.
    Grpc(u8),
    /// Refuse the connection.
    Refuse,
    /// Say nothing.
    Hang,
    /// Send it and throw the answer away.
    Swallow,
    /// Send it and end the answer early.
    Cut,
    /// Send it and leave half of the answer out, unseen.
    Short,
    /// Send it and let the answer be longer than it is.
    Long,
    /// Send it and make one field of the answer's head this long.
    HugeHead(u64),
    /// Send it and garble the answer's head, in the way this number chooses.
    GarbledHead(u64),
    /// Send it, and before that a copy.
    Duplicate,
    /// Nothing comes there: connecting takes too long.
    Lost,
    /// Send it, and let no answer come.
    Mute,
}

/// An effect on the body of one answer: whatever has been chosen is touched.
#[must_use]
pub fn on_body(effect: Effect) -> Toxic {
    toxic("body".into(), Direction::Downstream, effect)
}

pub(super) const fn toxic(id: FaultId, direction: Direction, effect: Effect) -> Toxic {
    Toxic { id, direction, share: Share::ALL, effect }
}
