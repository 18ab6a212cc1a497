//! Rows of a file that somebody exported: CSV with a header line, or a JSON object a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Where rows come from. What can be read only once, standard input or a pipe, is kept.
pub(super) enum Source {
    File(PathBuf),
    Kept(String, Arc<[u8]>),
}

impl Source {
    /// `-` is standard input.
    pub(super) fn open(file: &Path) -> anyhow::Result<Self> {
        let (name, mut bytes) = (file.display().to_string(), Vec::new());
        if name == "-" {
            io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
            return Ok(Self::Kept(name, bytes.into()));
        }
        let opened = File::open(file).with_context(|| format!("cannot open `{name}`"));
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return opened.map(|_| Self::File(file.into()));
        }
        opened?.read_to_end(&mut bytes).with_context(|| format!("cannot read `{name}`"))?;
        Ok(Self::Kept(name, bytes.into()))
    }

    /// From the beginning, as often as asked.
    pub(super) fn rows(&self) -> anyhow::Result<Rows> {
        match self {
            Self::File(path) => {
                let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
                Ok(Rows::of(path.display().to_string(), file))
            }
            Self::Kept(name, bytes) => Ok(Rows::of(name.clone(), io::Cursor::new(Arc::clone(bytes)))),
        }
    }
}

/// What some programs put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// CSV and JSON lines are told apart by the first character: JSON lines begin with a brace.
pub(super) struct Rows {
    name: String,
    input: Box<dyn BufRead>,
}

impl Rows {
    fn of(name: String, input: impl Read + 'static) -> Self {
        Self { name, input: Box::new(BufReader::with_capacity(1 << 20, input)) }
    }

    /// Shows the cells of these columns, row by row, with the line the row begins on. One of `optional` is `None` where
    /// there is no such column; the others must be there. Tells how many rows there were.
    pub(super) fn each(
        mut self,
        columns: &[&str],
        optional: &[&str],
        mut row: impl FnMut(u64, &[Option<String>]) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let cannot_read = || format!("cannot read `{}`", self.name);
        if self.input.fill_buf().with_context(cannot_read)?.starts_with(BYTE_ORDER_MARK) {
            self.input.consume(BYTE_ORDER_MARK.len());
        }
        let first = self.input.fill_buf().with_context(cannot_read)?;
        match first.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => bail!("`{}` is empty; expected CSV with a header line, or a JSON object a line", self.name),
            Some(b'{') => self.json(columns, optional, &mut row),
            Some(_) => self.csv(columns, optional, &mut row),
        }
    }

    fn csv(
        self,
        columns: &[&str],
        optional: &[&str],
        row: &mut impl FnMut(u64, &[Option<String>]) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let name = self.name;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(self.input);
        let headers = reader.headers().with_context(|| format!("{name}:1: cannot read the header line"))?.clone();
        let find = |column: &str| headers.iter().position(|header| header == column);
        let mut places = Vec::new();
        for column in columns {
            let Some(place) = find(column) else {
                let known: Vec<&str> = headers.iter().collect();
                bail!("{name}:1: there is no column `{column}`; there are {}", known.join(", "));
            };
            places.push(Some(place));
        }
        places.extend(optional.iter().map(|column| find(column)));
        let (mut record, mut rows) = (csv::StringRecord::new(), 0);
        while reader.read_record(&mut record).map_err(|error| anyhow::anyhow!("{name}: {error}"))? {
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |place: &Option<usize>| place.and_then(|place| record.get(place)).map(str::to_owned);
            let cells: Vec<Option<String>> = places.iter().map(cell).collect();
            row(line, &cells).with_context(|| format!("{name}:{line}"))?;
            rows += 1;
        }
        Ok(rows)
    }

    fn json(
        self,
        columns: &[&str],
        optional: &[&str],
        row: &mut impl FnMut(u64, &[Option<String>]) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let (name, mut rows) = (self.name, 0);
        for (line, text) in (1..).zip(self.input.lines()) {
            let text = text.with_context(|| format!("{name}:{line}: cannot be read"))?;
            if text.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(&text)
                .map_err(|error| anyhow::anyhow!("{name}:{line}: no JSON object: {error}"))?;
            let mut cells = Vec::new();
            for (at, column) in columns.iter().chain(optional).enumerate() {
                match &value[*column] {
                    Value::String(text) => cells.push(Some(text.clone())),
                    Value::Number(number) => cells.push(Some(number.to_string())),
                    Value::Null if at >= columns.len() => cells.push(None),
                    Value::Null => bail!("{name}:{line}: there is no `{column}`"),
                    _ => bail!("{name}:{line}: `{column}` is neither a text nor a number"),
                }
            }
            row(line, &cells).with_context(|| format!("{name}:{line}"))?;
            rows += 1;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str, columns: &[&str], optional: &[&str]) -> Result<Vec<(u64, String)>, String> {
        let mut seen = Vec::new();
        let rows = Rows::of("f".into(), text.as_bytes()).each(columns, optional, |line, cells| {
            let cells: Vec<&str> = cells.iter().map(|cell| cell.as_deref().unwrap_or("-")).collect();
            seen.push((line, cells.join("|")));
            Ok(())
        });
        let count = rows.map_err(|error| format!("{error:#}"))?;
        assert_eq!(count as usize, seen.len());
        Ok(seen)
    }

    #[test]
    fn csv_and_json_lines_give_the_same() {
        let csv = "\u{feff}id, key,body\n1,\"a,\n\"\"b\"\"\",x\n2,c,y\n";
        assert_eq!(read(csv, &["key", "id"], &["tag"]).unwrap(), [(2, "a,\n\"b\"|1|-".into()), (4, "c|2|-".into())]);
        let json = "\u{feff}{\"id\":1,\"key\":\"a\"}\n\n{\"id\":2,\"key\":\"c\",\"tag\":\"t\"}\n";
        assert_eq!(read(json, &["key", "id"], &["tag"]).unwrap(), [(1, "a|1|-".into()), (3, "c|2|t".into())]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        assert_eq!(read("a,b\n1,2\n", &["key"], &[]).unwrap_err(), "f:1: there is no column `key`; there are a, b");
        assert!(read("a,b\n1\n", &["a"], &[]).unwrap_err().contains("line: 2"));
        assert!(read("  \n", &["a"], &[]).unwrap_err().contains("`f` is empty"));
        assert_eq!(read("{\"a\":1}\n{}\n", &["a"], &[]).unwrap_err(), "f:2: there is no `a`");
        assert_eq!(read("{\"a\":[]}\n", &["a"], &[]).unwrap_err(), "f:1: `a` is neither a text nor a number");
        assert!(read("{\"a\":1}\n{\n", &["a"], &[]).unwrap_err().starts_with("f:2: no JSON object"));
        let refused = Rows::of("f".into(), &b"a\n1\n"[..]).each(&["a"], &[], |_, _| bail!("no"));
        assert_eq!(format!("{:#}", refused.unwrap_err()), "f:2: no");
        let missing = Source::open(Path::new("/nowhere")).err().unwrap();
        assert_eq!(missing.to_string(), "cannot open `/nowhere`");
        let twice = Source::Kept("-".into(), b"a\n1\n".as_slice().into());
        for _ in 0..2 {
            assert_eq!(twice.rows().unwrap().each(&["a"], &[], |_, _| Ok(())).unwrap(), 1);
        }
    }
}
