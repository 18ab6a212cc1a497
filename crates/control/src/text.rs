//! Words and numbers for people, in one place: times, durations, sizes, and what HTML must not take literally.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use seawall_core::time::Wall;

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn rfc3339(at: Wall) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).map_or_else(|_| Timestamp::MAX.to_string(), |at| format!("{at:.3}"))
}

/// `3.2 s`, `4 min`, `2 h`, `5 d`: as much as a glance needs.
pub(crate) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `17 KiB`: rounded, for people.
pub(crate) fn rough_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    let scaled = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled:.1} {}", units[unit as usize]) }
}

/// Text in HTML: prints with the five characters escaped that could end a text or an attribute.
pub(crate) struct Escaped<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'f, 'b>(&'f mut fmt::Formatter<'b>);

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            self.0.write_str(match from.as_bytes()[0] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                _ => "&#39;",
            })?;
            rest = &from[1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_at_a_glance() {
        assert_eq!(rfc3339(Wall::from_millis(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert!(rfc3339(Wall::from_millis(u64::MAX)).starts_with("9999-"));
        let words: Vec<String> =
            [0.25, 61.0, 600.0, 9_000.0, 1e6].iter().map(|s| rough(Duration::from_secs_f64(*s))).collect();
        assert_eq!(words, ["0.2 s", "61 s", "10 min", "2 h", "11 d"]);
        assert_eq!([0, 1_023, 1_536, 3 << 30].map(rough_size), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(rough_size(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn nothing_ends_the_text_it_stands_in() {
        let text = Escaped(format!("<a href=\"{}\">'&amp;'</a>", 1)).to_string();
        assert_eq!(text, "&lt;a href=&quot;1&quot;&gt;&#39;&amp;amp;&#39;&lt;/a&gt;");
        assert_eq!(Escaped("plain é").to_string(), "plain é");
    }
}
