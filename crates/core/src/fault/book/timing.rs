//! When a fault is at work while it lies there: later, for a while, on and off.
//!
//! All of it counts from the moment the fault was placed, on the monotonic clock: a renewal shifts nothing.

use std::fmt;
use std::time::Duration;

use super::{DELAY_MAX, Refused};
use crate::units::format_duration;

/// On for a while, off for a while, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// At work for so long,
    pub on: Duration,
    /// and then not for so long.
    pub off: Duration,
}

/// When a fault is at work: always, unless something else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Not before so much time has passed.
    pub after: Duration,
    /// And for so long.
    pub lasts: Option<Duration>,
    /// And within that on and off, beginning with on.
    pub flap: Option<Flap>,
}

impl Timing {
    /// For how long it is at work from now on, `passed` after it was placed; `None` while it is not. Always is
    /// [`Duration::MAX`].
    #[must_use]
    pub fn left(&self, passed: Duration) -> Option<Duration> {
        let passed = passed.checked_sub(self.after)?;
        let lasts = match self.lasts {
            None => Duration::MAX,
            Some(lasts) => lasts.checked_sub(passed).filter(|left| !left.is_zero())?,
        };
        let Some(Flap { on, off }) = self.flap else { return Some(lasts) };
        let place = passed.as_nanos() % (on + off).as_nanos().max(1);
        let left = on.as_nanos().checked_sub(place).filter(|left| *left > 0)?;
        Some(lasts.min(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))))
    }

    /// How long it stays as it is now, at work or not; `None` if for ever.
    #[must_use]
    pub fn turns(&self, passed: Duration) -> Option<Duration> {
        if let Some(left) = self.left(passed) {
            return Some(left).filter(|left| *left < Duration::MAX);
        }
        let Some(passed) = passed.checked_sub(self.after) else { return Some(self.after - passed) };
        let Flap { on, off } = self.flap.filter(|_| self.lasts.is_none_or(|lasts| passed < lasts))?;
        let place = passed.as_nanos() % (on + off).as_nanos().max(1);
        let left = (on + off).as_nanos() - place;
        Some(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        let refused = |field, message: &str| {
            let allowed = format!("more than 0s, at most {}", format_duration(DELAY_MAX));
            Err(Refused::invalid(field, message, [allowed]))
        };
        let is_fit = |duration: Duration| !duration.is_zero() && duration <= DELAY_MAX;
        if self.after > DELAY_MAX {
            return refused("after", "it would begin too late");
        }
        if self.lasts.is_some_and(|lasts| !is_fit(lasts)) {
            return refused("lasts", "it would be at work for no time, or for too long");
        }
        match self.flap {
            Some(Flap { on, off }) if !is_fit(on) || !is_fit(off) => {
                refused("flap", "it would be on or off for no time, or for too long")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = (!self.after.is_zero()).then(|| format!("after {}", format_duration(self.after)));
        let lasts = self.lasts.map(|lasts| format!("for {}", format_duration(lasts)));
        let flap = self.flap.map(|Flap { on, off }| {
            let (on, off) = (format_duration(on), format_duration(off));
            format!("{on} on, {off} off")
        });
        let parts: Vec<String> = [after, lasts, flap].into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "always" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}
