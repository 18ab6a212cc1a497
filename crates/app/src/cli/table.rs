//! Text in columns.

/// Rows under their headings, columns aligned, two blanks between them; numbers to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let right: Vec<bool> = (0..headings.len()).map(|column| is_numeric(rows, column)).collect();
    let headings: Vec<String> = headings.iter().map(|heading| heading.to_string()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).zip(&right).map(|((cell, width), right)| pad(cell, *width, *right));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn is_numeric(rows: &[Vec<String>], column: usize) -> bool {
    let mut cells = rows.iter().filter_map(|row| row.get(column)).peekable();
    cells.peek().is_some() && cells.all(|cell| cell.is_empty() || cell == "-" || is_number(cell))
}

/// `12`, `3.5ms`, `57%`; not an address, not a date.
fn is_number(cell: &str) -> bool {
    let number = cell.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
    !number.is_empty() && number.parse::<f64>().is_ok()
}

fn pad(cell: &str, width: usize, right: bool) -> String {
    let blanks = " ".repeat(width.saturating_sub(cell.chars().count()));
    if right { blanks + cell } else { cell.to_string() + &blanks }
}

/// `name  value` lines, values aligned.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines = facts.iter().map(|(name, value)| format!("{}  {value}", pad(name, width, false)));
    lines.map(|line| line.trim_end().to_string() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_right() {
        let rows = [vec!["événements".into(), "7".into(), "a".into()], vec!["q".into(), "1200".into(), String::new()]];
        assert_eq!(
            table(&["ROUTE", "N", "WORD"], &rows),
            "ROUTE          N  WORD\névénements     7  a\nq           1200\n"
        );
        assert_eq!(table(&["A", "B"], &[]), "A  B\n");
        assert_eq!(facts(&[("a", "1".into()), ("long", String::new())]), "a     1\nlong\n");
    }
}
