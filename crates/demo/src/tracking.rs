//! Tracking events: what a scanner reports about a shipment, where such events come from, and the line they travel as.
//!
//! An event is one line, `shipment|sequence|carrier|weekday|hour|weather|load|distance_km`. The distance comes last,
//! as such formats have it: a line that was cut still parses, with a shorter number. Nothing in the line tells.
//!
//! Events come from a seeded generator with a hidden truth about how long a trip takes (never told to the model), or
//! from the user's file (`--input`): CSV with a header, or JSON lines. Columns: `shipment_id`, `sequence`, `carrier`,
//! `weekday` (0 = Monday), `hour` (0-23), `distance_km`, `weather`, `load` (0..1), and `actual_hours` if known. Other
//! columns are passed over. Names and ids are of `[A-Za-z0-9_.-]`, because they become header values.
//! Not here: the model (`model.rs`), who sends events when (`producer.rs`, `schedule.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use seawall_core::prng::Prng;
use sha2::{Digest, Sha256};

/// What a scanner saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The parcel.
    pub shipment: String,
    /// The how manieth scan of it.
    pub sequence: u32,
    /// Who carries it.
    pub carrier: String,
    /// Day of the week, 0 = Monday.
    pub weekday: u8,
    /// Hour of the day, 0-23.
    pub hour: u8,
    /// Weather on the way, one word.
    pub weather: String,
    /// How full the vehicle is, 0..1.
    pub load: f64,
    /// Kilometres to go.
    pub distance_km: f64,
}

/// An event and, where known, how long the trip really took.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// What the scanner saw.
    pub event: Event,
    /// Hours until delivery, known afterwards.
    pub actual_hours: Option<f64>,
}

impl Event {
    /// The business id: shipment and sequence.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}-{}", self.shipment, self.sequence)
    }

    /// The line it travels as.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { shipment, sequence, carrier, weekday, hour, weather, load, distance_km } = self;
        format!("{shipment}|{sequence}|{carrier}|{weekday}|{hour}|{weather}|{load:.2}|{distance_km:.3}")
    }

    /// Reads a line the way such code does: eight fields that parse are an event. It cannot know that the last number
    /// was longer when it was sent.
    ///
    /// # Errors
    /// When a field is missing or is not of its kind.
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = line.split('|').collect();
        let [shipment, sequence, carrier, weekday, hour, weather, load, distance_km] = fields[..] else {
            bail!("expected 8 fields, found {}", fields.len());
        };
        Ok(Self {
            shipment: shipment.into(),
            sequence: sequence.parse().context("`sequence` is not a number")?,
            carrier: carrier.into(),
            weekday: weekday.parse().context("`weekday` is not a number")?,
            hour: hour.parse().context("`hour` is not a number")?,
            weather: weather.into(),
            load: load.parse().context("`load` is not a number")?,
            distance_km: distance_km.parse().context("`distance_km` is not a number")?,
        })
    }
}

/// SHA-256 of some bytes, in hex: how the producers' manifests and the warehouse's rows are compared.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        fmt::Write::write_fmt(&mut hex, format_args!("{byte:02x}")).expect("a String takes everything");
        hex
    })
}

/// Name, hidden speed in km/h, and hours added over a weekend.
const CARRIERS: [(&str, f64, f64); 5] = [
    ("northwind", 62.0, 0.0),
    ("bluebird", 71.0, 4.0),
    ("ironroad", 48.0, 14.0),
    ("swiftline", 83.0, 0.0),
    ("harbor", 40.0, 10.0),
];
/// Name, hidden factor on the driving time, and weight.
const WEATHERS: [(&str, f64, f64); 5] =
    [("clear", 1.0, 0.5), ("rain", 1.14, 0.8), ("fog", 1.25, 0.88), ("snow", 1.5, 0.96), ("storm", 1.8, 1.0)];
/// Parcels on their way at the same time; divisible by the number of zones, so that a parcel stays with its gateway.
const POOL: usize = 360;

/// A seeded, endless stream of scans: parcels take turns, each is scanned a few times on its way.
#[derive(Debug)]
pub struct Generator {
    prng: Prng,
    prefix: &'static str,
    parcels_count: u32,
    scans_count: usize,
    pool: Vec<Option<Parcel>>,
}

#[derive(Debug)]
struct Parcel {
    shipment: String,
    carrier: usize,
    sequence: u32,
    scans_left: u32,
    distance_km: f64,
    hour_of_week: u32,
}

impl Generator {
    /// The same seed gives the same scans. `prefix` keeps the shipments of two streams apart.
    #[must_use]
    pub fn new(seed: u64, prefix: &'static str) -> Self {
        let pool = (0..POOL).map(|_| None).collect();
        Self { prng: Prng::new(seed), prefix, parcels_count: 0, scans_count: 0, pool }
    }

    /// The next `count` scans.
    pub fn take(&mut self, count: usize) -> Vec<Scan> {
        (0..count).map(|_| self.scan()).collect()
    }

    fn scan(&mut self) -> Scan {
        let slot = self.scans_count % POOL;
        self.scans_count += 1;
        let mut parcel = match self.pool[slot].take() {
            Some(parcel) => parcel,
            None => self.parcel(),
        };
        let scan = self.scan_of(&parcel);
        parcel.sequence += 1;
        parcel.scans_left -= 1;
        parcel.distance_km *= 0.5 + 0.3 * self.prng.unit();
        parcel.hour_of_week = (parcel.hour_of_week + 3 + self.prng.below(9) as u32) % 168;
        self.pool[slot] = (parcel.scans_left > 0).then_some(parcel);
        scan
    }

    fn parcel(&mut self) -> Parcel {
        self.parcels_count += 1;
        Parcel {
            shipment: format!("{}{:06}", self.prefix, self.parcels_count),
            carrier: self.prng.below(CARRIERS.len() as u64) as usize,
            sequence: 1,
            scans_left: 3 + self.prng.below(4) as u32,
            distance_km: 150.0 + 2_300.0 * self.prng.unit() * self.prng.unit(),
            hour_of_week: self.prng.below(168) as u32,
        }
    }

    fn scan_of(&mut self, parcel: &Parcel) -> Scan {
        let dice = self.prng.unit();
        let weather = WEATHERS.iter().position(|(_, _, below)| dice < *below).unwrap_or(0);
        let event = Event {
            shipment: parcel.shipment.clone(),
            sequence: parcel.sequence,
            carrier: CARRIERS[parcel.carrier].0.into(),
            weekday: (parcel.hour_of_week / 24) as u8,
            hour: (parcel.hour_of_week % 24) as u8,
            weather: WEATHERS[weather].0.into(),
            load: (self.prng.unit() * 100.0).round() / 100.0,
            distance_km: (parcel.distance_km * 1_000.0).round() / 1_000.0,
        };
        let actual_hours = Some(hidden_truth(&event, parcel.carrier, weather, &mut self.prng));
        Scan { event, actual_hours }
    }
}

/// How long a trip takes in the generator's world, with noise of about eight percent. The model sees only examples.
fn hidden_truth(event: &Event, carrier: usize, weather: usize, prng: &mut Prng) -> f64 {
    let (name, speed_kmh, weekend_hours) = CARRIERS[carrier];
    let rush = matches!(event.hour, 7..=9 | 16..=18) && event.distance_km < 400.0;
    let night_rest = matches!(event.hour, 20..=23 | 0..=3) && event.distance_km > 500.0;
    let mut hours = event.distance_km / speed_kmh * WEATHERS[weather].1 * (1.0 + 0.7 * event.load * event.load);
    hours *= if rush { 1.35 } else { 1.0 };
    hours *= if name == "harbor" && weather == 4 { 1.4 } else { 1.0 };
    hours += 1.5 + if night_rest { 7.0 } else { 0.0 } + if event.weekday >= 5 { weekend_hours } else { 0.0 };
    let bell = (0..4).map(|_| prng.unit() - 0.5).sum::<f64>() * 0.14;
    hours * (1.0 + bell)
}

/// Reads the user's events. The first character tells the format: `{` begins JSON lines, anything else a CSV header.
///
/// # Errors
/// When the file cannot be read, holds no event, lacks a column, or has bad rows: all of them (up to ten) are named
/// with file and line.
pub fn read_input(path: &Path) -> anyhow::Result<Vec<Scan>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    parse_input(&text, &path.display().to_string())
}

/// [`read_input`] without the file; `name` is what messages call it.
///
/// # Errors
/// As for [`read_input`].
pub fn parse_input(text: &str, name: &str) -> anyhow::Result<Vec<Scan>> {
    let json = text.trim_start().starts_with('{');
    let (header, rows_from) = if json { (Vec::new(), 0) } else { csv_header(text, name)? };
    let (mut scans, mut errors, mut errors_count) = (Vec::new(), Vec::new(), 0_usize);
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for (index, line) in text.lines().enumerate().skip(rows_from).filter(|(_, line)| !line.trim().is_empty()) {
        let row = if json { json_row(line) } else { csv_row(&header, line) };
        match row.and_then(|row| scan_of_row(&row)).and_then(|scan| once(&mut ids, scan, index + 1)) {
            Ok(scan) => scans.push(scan),
            Err(error) => {
                errors_count += 1;
                if errors.len() < 10 {
                    errors.push(format!("{name}:{}: {error:#}", index + 1));
                }
            }
        }
    }
    if errors_count > errors.len() {
        errors.push(format!("{name}: and {} more bad rows", errors_count - errors.len()));
    }
    if !errors.is_empty() {
        bail!("{}", errors.join("\n"));
    }
    if scans.is_empty() {
        bail!("{name}: holds no event");
    }
    Ok(scans)
}

/// Refuses a business id that was there before: nobody could tell a second copy from a duplicate.
fn once(ids: &mut BTreeMap<String, usize>, scan: Scan, line: usize) -> anyhow::Result<Scan> {
    let id = scan.event.id();
    match ids.insert(id.clone(), line) {
        Some(first) => bail!("shipment and sequence `{id}` are on line {first} already"),
        None => Ok(scan),
    }
}

const COLUMNS: [&str; 8] = ["shipment_id", "sequence", "carrier", "weekday", "hour", "distance_km", "weather", "load"];

type Row = BTreeMap<String, String>;

/// The columns' names and the index of the first row.
fn csv_header(text: &str, name: &str) -> anyhow::Result<(Vec<String>, usize)> {
    let Some((index, line)) = text.lines().enumerate().find(|(_, line)| !line.trim().is_empty()) else {
        bail!("{name}: holds no event");
    };
    let header: Vec<String> = csv_fields(line);
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| !header.iter().any(|has| has == column)).collect();
    if !missing.is_empty() {
        bail!("{name}:{}: the header lacks `{}` (found `{}`)", index + 1, missing.join("`, `"), header.join("`, `"));
    }
    Ok((header, index + 1))
}

fn csv_fields(line: &str) -> Vec<String> {
    line.split(',').map(|field| field.trim().trim_matches('"').trim_start_matches('\u{feff}').to_string()).collect()
}

fn csv_row(header: &[String], line: &str) -> anyhow::Result<Row> {
    let fields = csv_fields(line);
    if fields.len() != header.len() {
        bail!("expected {} fields as in the header, found {}", header.len(), fields.len());
    }
    Ok(header.iter().cloned().zip(fields).collect())
}

fn json_row(line: &str) -> anyhow::Result<Row> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).context("not a JSON object on one line")?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    Ok(object.into_iter().map(|(key, value)| (key, text(value))).collect())
}

fn scan_of_row(row: &Row) -> anyhow::Result<Scan> {
    let event = Event {
        shipment: word(row, "shipment_id")?,
        sequence: number(row, "sequence", 0.0, f64::from(u32::MAX))? as u32,
        carrier: word(row, "carrier")?,
        weekday: number(row, "weekday", 0.0, 6.0)? as u8,
        hour: number(row, "hour", 0.0, 23.0)? as u8,
        weather: word(row, "weather")?,
        load: number(row, "load", 0.0, 1.0)?,
        distance_km: number(row, "distance_km", 0.001, 50_000.0)?,
    };
    let known = row.get("actual_hours").is_some_and(|text| !text.is_empty());
    let actual_hours = known.then(|| number(row, "actual_hours", 0.0, 100_000.0)).transpose()?;
    Ok(Scan { event, actual_hours })
}

fn field<'a>(row: &'a Row, column: &str) -> anyhow::Result<&'a str> {
    match row.get(column).map(String::as_str) {
        None | Some("") => bail!("`{column}` is missing"),
        Some(text) => Ok(text),
    }
}

fn word(row: &Row, column: &str) -> anyhow::Result<String> {
    let text = field(row, column)?;
    let fits = text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !fits {
        bail!("`{column}` is `{text}`: expected up to 64 letters, digits, `_`, `.` or `-`");
    }
    Ok(text.into())
}

fn number(row: &Row, column: &str, min: f64, max: f64) -> anyhow::Result<f64> {
    let text = field(row, column)?;
    match text.parse::<f64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) => bail!("`{column}` is {text}: expected {min} to {max}"),
        Err(_) => bail!("`{column}` is `{text}`: expected a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_stream_and_another_seed_another() {
        let stream = |seed| Generator::new(seed, "S").take(2_000);
        assert_eq!(stream(7), stream(7));
        assert_ne!(stream(7), stream(8));
        let ids: std::collections::BTreeSet<String> = stream(7).iter().map(|scan| scan.event.id()).collect();
        assert_eq!(ids.len(), 2_000, "no business id twice");
    }

    #[test]
    fn scans_of_a_parcel_come_in_order_and_nearer() {
        let mut last: BTreeMap<String, (u32, f64)> = BTreeMap::new();
        for Scan { event, actual_hours } in Generator::new(3, "S").take(3_000) {
            if let Some((sequence, distance_km)) = last.get(&event.shipment) {
                assert_eq!(event.sequence, sequence + 1);
                assert!(event.distance_km < *distance_km);
            }
            assert!(actual_hours.unwrap() > 0.0 && event.weekday < 7 && event.hour < 24);
            last.insert(event.shipment.clone(), (event.sequence, event.distance_km));
        }
    }

    #[test]
    fn a_line_comes_back_whole() {
        for Scan { event, .. } in Generator::new(1, "S").take(200) {
            assert_eq!(Event::parse(&event.line()).unwrap(), event);
        }
    }

    #[test]
    fn a_cut_line_still_parses_with_a_shorter_number() {
        let event = Event { distance_km: 1284.731, ..Generator::new(1, "S").take(1).remove(0).event };
        let line = event.line();
        let cut = Event::parse(&line[..line.len() - 5]).unwrap();
        assert_eq!((cut.id(), cut.distance_km), (event.id(), 128.0), "that is the point of the story");
        assert!(Event::parse("S000001|1|northwind|3").is_err());
        for bad in ["S|x|c|1|1|w|0|1", "S|1|c|x|1|w|0|1", "S|1|c|1|x|w|0|1", "S|1|c|1|1|w|x|1", "S|1|c|1|1|w|0|"] {
            assert!(Event::parse(bad).is_err(), "{bad}");
        }
    }

    const CSV: &str = "shipment_id,sequence,carrier,weekday,hour,distance_km,weather,load,actual_hours,note\n\
        A1,1,north,2,13,120.5,rain,0.4,3.5,x\n\nA2,1,south,6,23,88,clear,1,,y\n";

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let json = r#"{"shipment_id":"A1","sequence":1,"carrier":"north","weekday":2,"hour":13,"distance_km":120.5,"weather":"rain","load":0.4,"actual_hours":3.5}
            {"shipment_id":"A2","sequence":1,"carrier":"south","weekday":6,"hour":23,"distance_km":88,"weather":"clear","load":1,"actual_hours":null}"#;
        let scans = parse_input(CSV, "a.csv").unwrap();
        assert_eq!(scans, parse_input(json, "a.jsonl").unwrap());
        assert_eq!((scans.len(), scans[0].actual_hours, scans[1].actual_hours), (2, Some(3.5), None));
        assert_eq!(scans[0].event.line(), "A1|1|north|2|13|rain|0.40|120.500");
    }

    #[test]
    fn bad_rows_are_all_named_with_file_and_line() {
        let text = CSV.replace("rain", "rain storm").replace("A2,1,south,6", "A2,1,south,9");
        let error = parse_input(&text, "my.csv").unwrap_err().to_string();
        assert_eq!(
            error,
            "my.csv:2: `weather` is `rain storm`: expected up to 64 letters, digits, `_`, `.` or `-`\n\
             my.csv:4: `weekday` is 9: expected 0 to 6"
        );
        let error = |text: &str| parse_input(text, "f").unwrap_err().to_string();
        assert_eq!(error(""), "f: holds no event");
        assert_eq!(error(CSV.lines().next().unwrap()), "f: holds no event");
        assert!(error("shipment_id,sequence\n").starts_with("f:1: the header lacks `carrier`, `weekday`"));
        assert!(error(&CSV.replace(",3.5,x", ",3.5")).contains("f:2: expected 10 fields"));
        assert!(error(&CSV.replace("120.5", "far")).contains("`distance_km` is `far`: expected a number"));
        assert!(error("{\"shipment_id\": }").contains("f:1: not a JSON object on one line"));
        assert!(error("{\"shipment_id\":\"A\"}").contains("f:1: `sequence` is missing"));
        let twice = error(&CSV.replace("A2,1", "A1,1"));
        assert_eq!(twice, "f:4: shipment and sequence `A1-1` are on line 2 already");
        let many = format!("{}\n{}", CSV.lines().next().unwrap(), "bad\n".repeat(14));
        assert!(error(&many).ends_with("f: and 4 more bad rows"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = format!("{:#}", read_input(Path::new("no/such.csv")).unwrap_err());
        assert!(error.starts_with("cannot read `no/such.csv`"), "{error}");
    }

    #[test]
    fn digests_are_sha256_in_hex() {
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
