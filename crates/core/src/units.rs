//! Quantities as people write them, units included: `250ms`, `50%`, `64KiB`. Parsing and printing round-trip.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A share of a whole, 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// Nothing of it.
    pub const ZERO: Self = Self(0.0);
    /// All of it.
    pub const ONE: Self = Self(1.0);

    /// `None` outside 0..1 and for NaN: `Ratio::new(50.0)` is a mistake, 0.5 was meant.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The share `part` of `whole`; `None` of nothing.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Option<Self> {
        if whole == 0 { None } else { Self::new(part as f64 / whole as f64) }
    }

    /// 0.0 to 1.0.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whole parts per million, for integer arithmetic without drift.
    #[must_use]
    pub fn per_million(self) -> u64 {
        (self.0 * 1_000_000.0).round() as u64
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        let rounded = (percent * 1000.0).round() / 1000.0;
        write!(f, "{rounded}%")
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

/// Why a written quantity was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A number without its unit.
    #[error("`{text}` needs a unit, such as `{example}`")]
    Missing {
        /// As written.
        text: String,
        /// What it might have been.
        example: String,
    },
    /// A unit we do not know.
    #[error("unknown unit `{unit}` in `{text}`; {known}")]
    Unknown {
        /// As written.
        text: String,
        /// The part that was not understood.
        unit: String,
        /// The units that would be.
        known: &'static str,
    },
    /// No number at all.
    #[error("`{text}` is not {what}, such as `{example}`")]
    NotANumber {
        /// As written.
        text: String,
        /// What was expected.
        what: &'static str,
        /// What it might have been.
        example: &'static str,
    },
    /// Beyond what the quantity can hold.
    #[error("`{text}` is out of range: {range}")]
    OutOfRange {
        /// As written.
        text: String,
        /// What is allowed.
        range: &'static str,
    },
}

const DURATION_UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
const SIZE_UNITS: &[(&str, u128)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `250ms`, `1.5s`, `1m30s`, `10m`, `2h`, `7d`.
///
/// # Errors
/// [`UnitError`] with what was wrong and an example.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    let mut rest = text;
    let mut nanos: u128 = 0;
    loop {
        let (digits, unit, tail) = split_quantity(rest, text, "a duration", "250ms")?;
        if unit.is_empty() {
            return Err(UnitError::Missing { text: text.into(), example: format!("{text}ms` or `{text}s") });
        }
        nanos = nanos.saturating_add(scaled(digits, unit, text, DURATION_UNITS, "use ns, us, ms, s, m, h or d")?);
        if tail.is_empty() {
            break;
        }
        rest = tail;
    }
    let nanos = u64::try_from(nanos)
        .map_err(|_| UnitError::OutOfRange { text: text.into(), range: "at most about 584 years" })?;
    Ok(Duration::from_nanos(nanos))
}

/// Reads `512B`, `64KiB`, `1.5MB`, `1GiB`.
///
/// # Errors
/// [`UnitError`] with what was wrong and an example.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    let (digits, unit, tail) = split_quantity(text, text, "a size", "64KiB")?;
    if unit.is_empty() {
        return Err(UnitError::Missing { text: text.into(), example: format!("{text}B` or `{text}KiB") });
    }
    if !tail.is_empty() {
        return Err(UnitError::NotANumber { text: text.into(), what: "a size", example: "64KiB" });
    }
    let bytes = scaled(digits, unit, text, SIZE_UNITS, "use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")?;
    u64::try_from(bytes).map_err(|_| UnitError::OutOfRange { text: text.into(), range: "at most 16 EiB" })
}

/// Reads `50%` or `0.5%` as a share of a whole.
///
/// # Errors
/// [`UnitError`]; a bare number is refused because nobody can tell `0.5` from `0.5%`.
pub fn parse_ratio(text: &str) -> Result<Ratio, UnitError> {
    let text = text.trim();
    let Some(number) = text.strip_suffix('%') else {
        if let Ok(number) = text.parse::<f64>() {
            let share = Ratio::new(number).filter(|_| number > 0.0);
            let example = share.map_or_else(|| format!("{text}%"), |share| format!("{share}` or `{text}%"));
            return Err(UnitError::Missing { text: text.into(), example });
        }
        return Err(UnitError::NotANumber { text: text.into(), what: "a percentage", example: "50%" });
    };
    let percent: f64 = number.trim().parse().map_err(|_| UnitError::NotANumber {
        text: text.into(),
        what: "a percentage",
        example: "50%",
    })?;
    Ratio::new(percent / 100.0).ok_or(UnitError::OutOfRange { text: text.into(), range: "0% to 100%" })
}

/// Reads `100/s`, `30/m`, `5/h` as events per second.
///
/// # Errors
/// [`UnitError`] with what was wrong and an example.
pub fn parse_rate(text: &str) -> Result<f64, UnitError> {
    let text = text.trim();
    let not_a_rate = || UnitError::NotANumber { text: text.into(), what: "a rate", example: "10/s" };
    let Some((number, unit)) = text.split_once('/') else {
        if text.parse::<f64>().is_ok() {
            return Err(UnitError::Missing { text: text.into(), example: format!("{text}/s") });
        }
        return Err(not_a_rate());
    };
    let number: f64 = number.trim().parse().map_err(|_| not_a_rate())?;
    let per_second = match unit.trim() {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => {
            return Err(UnitError::Unknown { text: text.into(), unit: other.into(), known: "use /s, /m or /h" });
        }
    };
    if !number.is_finite() || number < 0.0 {
        return Err(UnitError::OutOfRange { text: text.into(), range: "0/s or more" });
    }
    Ok(number / per_second)
}

/// Writes a duration in its largest exact unit: `1500ms` reads `1.5s`, never `1.499999s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    for (unit, scale) in DURATION_UNITS.iter().rev() {
        // Hours and days only when whole; smaller units may carry up to three decimals.
        let decimals = if *scale > 1_000_000_000 { 1 } else { 1_000 };
        if nanos >= *scale && (nanos * decimals).is_multiple_of(*scale) {
            let thousandths = nanos * 1_000 / scale;
            return format!("{}{unit}", trim_decimals(thousandths));
        }
    }
    format!("{nanos}ns")
}

/// Writes a size in its largest exact binary unit.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

fn trim_decimals(thousandths: u128) -> String {
    let (whole, rest) = (thousandths / 1_000, thousandths % 1_000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_string() }
}

/// Digits, unit, what follows.
fn split_quantity<'a>(
    rest: &'a str,
    text: &str,
    what: &'static str,
    example: &'static str,
) -> Result<(&'a str, &'a str, &'a str), UnitError> {
    let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(rest.len());
    let (digits, tail) = rest.split_at(digits_end);
    if exact(digits, 1).is_none() {
        return Err(UnitError::NotANumber { text: text.into(), what, example });
    }
    let tail = tail.trim_start();
    let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
    let (unit, tail) = tail.split_at(unit_end);
    Ok((digits, unit.trim(), tail))
}

fn scaled(
    digits: &str,
    unit: &str,
    text: &str,
    units: &[(&str, u128)],
    known: &'static str,
) -> Result<u128, UnitError> {
    let (_, scale) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| UnitError::Unknown {
        text: text.into(),
        unit: unit.into(),
        known,
    })?;
    Ok(exact(digits, *scale).unwrap_or(u128::MAX))
}

/// `1.5` times a scale in integers: floating point would round what was written. What lies below one is cut off.
fn exact(digits: &str, scale: u128) -> Option<u128> {
    let digits = digits.replace('_', "");
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, "0"));
    let whole: u64 = whole.parse().ok()?;
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(15)];
    let part = fraction.parse::<u128>().ok()? * scale / 10_u128.pow(fraction.len() as u32);
    Some(u128::from(whole).saturating_mul(scale).saturating_add(part))
}

/// A number to the four digits that people read of it: `0.01667`, `12.35`, `123500`.
#[must_use]
pub fn four_digits(number: f64) -> f64 {
    let scale = 10_f64.powi(3 - number.abs().max(1e-9).log10().floor() as i32);
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_are_read() {
        assert_eq!([0.0, 1.0 / 60.0, 12.34567, 123_456.7].map(four_digits), [0.0, 0.01667, 12.35, 123_500.0]);
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, millis) in [
            ("250ms", 250),
            ("1.5s", 1_500),
            ("1m30s", 90_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            (" 5 s ", 5_000),
            ("1_000ms", 1_000),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        assert_eq!(parse_duration("7us").unwrap(), Duration::from_micros(7));
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text| parse_duration(text).unwrap_err().to_string();
        assert_eq!(message("30"), "`30` needs a unit, such as `30ms` or `30s`");
        assert_eq!(message("3 weeks"), "unknown unit `weeks` in `3 weeks`; use ns, us, ms, s, m, h or d");
        assert_eq!(message("soon"), "`soon` is not a duration, such as `250ms`");
        assert_eq!(message("99999999999d"), "`99999999999d` is out of range: at most about 584 years");
        assert_eq!(parse_size("64").unwrap_err().to_string(), "`64` needs a unit, such as `64B` or `64KiB`");
        assert!(parse_size("64KiB1B").is_err());
        assert!(parse_size("64kb").unwrap_err().to_string().contains("unknown unit `kb`"));
        assert!(parse_size("99999999999TiB").unwrap_err().to_string().contains("16 EiB"));
        assert_eq!(parse_ratio("0.5").unwrap_err().to_string(), "`0.5` needs a unit, such as `50%` or `0.5%`");
        assert_eq!(parse_ratio("20").unwrap_err().to_string(), "`20` needs a unit, such as `20%`");
        assert_eq!(parse_ratio("150%").unwrap_err().to_string(), "`150%` is out of range: 0% to 100%");
        assert!(parse_ratio("half").is_err());
        assert!(parse_ratio("x%").is_err());
        assert_eq!(parse_rate("10").unwrap_err().to_string(), "`10` needs a unit, such as `10/s`");
        assert!(parse_rate("10/week").unwrap_err().to_string().contains("use /s, /m or /h"));
        assert!(parse_rate("fast").is_err());
        assert!(parse_rate("x/s").is_err());
        assert!(parse_rate("-1/s").unwrap_err().to_string().contains("0/s or more"));
    }

    #[test]
    fn sizes_ratios_and_rates() {
        assert_eq!(parse_size("64KiB").unwrap(), 65_536);
        assert_eq!(parse_size("1.5MB").unwrap(), 1_500_000);
        assert_eq!(parse_ratio("12.5%").unwrap(), Ratio::new(0.125).unwrap());
        assert_eq!(parse_ratio("12.5%").unwrap().per_million(), 125_000);
        assert!((parse_rate("30/m").unwrap() - 0.5).abs() < 1e-12);
        assert!((parse_rate("3600/h").unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(Ratio::new(50.0), None);
        assert_eq!(Ratio::new(f64::NAN), None);
        assert_eq!(Ratio::of(1, 0), None);
        assert_eq!(Ratio::of(1, 4).unwrap().to_string(), "25%");
        assert_eq!(serde_json::to_string(&Ratio::ONE).unwrap(), "1.0");
    }

    #[test]
    fn printing_uses_the_largest_exact_unit() {
        for (text, printed) in
            [("1500ms", "1.5s"), ("90s", "90s"), ("120s", "2m"), ("1d", "1d"), ("0ms", "0s"), ("1001ns", "1.001us")]
        {
            assert_eq!(format_duration(parse_duration(text).unwrap()), printed);
        }
        assert_eq!(format_size(65_536), "64KiB");
        assert_eq!(format_size(1_000), "1000B");
        assert_eq!(format_size(3 << 40), "3TiB");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(nanos: u64, bytes: u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
            prop_assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_ratio(&text), parse_rate(&text));
        }
    }
}
