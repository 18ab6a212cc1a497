//! "Did you mean": the closest of a few known words, if it is close enough to be worth saying.

/// The known word closest to what was written, if few letters differ.
pub(super) fn closest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let written = written.to_lowercase();
    let affordable = (written.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|word| (distance(&written, &word.to_lowercase()), word))
        .filter(|(steps, _)| *steps <= affordable)
        .min_by_key(|(steps, _)| *steps)
        .map(|(_, word)| word)
}

/// Letters to add, drop, change or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        (before, above) = (above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_letters_apart_is_close() {
        let known = ["failure_rate", "slow", "window", "open_for"];
        assert_eq!(closest("failure_rat", known), Some("failure_rate"));
        assert_eq!(closest("windwo", known), Some("window"), "two swapped letters are one mistake");
        assert_eq!(closest("Open_For", known), Some("open_for"));
        assert_eq!(closest("sloww", known), Some("slow"));
        assert_eq!(closest("colour", known), None);
        assert_eq!(closest("", known), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
