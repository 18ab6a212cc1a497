//! `--html`: one page with plots, drawn here, that opens offline, on a phone, in light and in dark.
//!
//! A lane for each question: what came and went, what was refused and by which rule, how long good answers took, which
//! breakers were not closed, what waited at the dependency. Faults are shaded in all of them. Shapes are SVG that
//! stretches; words are HTML beside it, so that they stay readable at any width. Nothing is fetched and no script runs.

use std::fmt::Write as _;

use seawall_core::guard::Refusal;
use seawall_core::whatif::Row;

use super::Side;
use super::plan::{traffic_words, trouble_words};
use super::words::{differences, sentences, span_headings, span_rows};

/// Steps a plot has at most; longer runs are drawn by means (and worst cases, where the worst is what matters).
const STEPS_MAX: usize = 600;

/// `write!` into a String, which takes everything.
macro_rules! put {
    ($into:expr, $($argument:tt)*) => { write!($into, $($argument)*).expect("a String takes everything") };
}

/// The page for one run, or for two side by side.
pub(super) fn page(sides: &[Side]) -> String {
    let drawn: Vec<Drawn<'_>> = sides.iter().map(Drawn::of).collect();
    let scale = Scale::over(&drawn);
    let title = match sides {
        [a, b] => format!("{} beside {}", a.subject.label, b.subject.label),
        _ => sides.iter().map(|side| side.subject.label.as_str()).collect(),
    };
    let mut body = format!("<h1>What these numbers do</h1>\n<p>{}</p>\n", escape(&subtitle(sides)));
    body += "<div class=\"sides\">\n";
    for (index, drawn) in drawn.iter().enumerate() {
        let name = if sides.len() > 1 { ["A: ", "B: "][index.min(1)] } else { "" };
        put!(body, "<section><h2>{name}{}</h2>\n", escape(&drawn.side.subject.label));
        told(&mut body, drawn.side);
        lanes(&mut body, drawn, &scale, index);
        body += "</section>\n";
    }
    body += "</div>\n";
    if let [a, b] = sides {
        body += "<h2>The difference</h2>\n";
        table(&mut body, "sums", "figures of both, and their difference", &["", "A", "B", "B - A"], &differences(a, b));
    }
    for side in sides {
        put!(body, "<h2>Where something changes: {}</h2>\n", escape(&side.subject.label));
        table(&mut body, "spans", "seconds alike, as one line each", &span_headings(side), &span_rows(side));
    }
    body += MODELLED;
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Seawall simulation: {}</title><style>{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n",
        escape(&title)
    )
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn subtitle(sides: &[Side]) -> String {
    let Some(side) = sides.first() else { return String::new() };
    let troubles: Vec<String> = side.scenario.dependency.troubles.iter().map(trouble_words).collect();
    let ill = if troubles.is_empty() { String::new() } else { format!(" The dependency: {}.", troubles.join("; ")) };
    let lasts = seawall_core::units::format_duration(side.scenario.lasts);
    format!("{} for {lasts} of virtual time, seed {}.{ill}", traffic_words(&side.scenario), side.scenario.seed)
}

fn told(page: &mut String, side: &Side) {
    page.push_str("<dl>");
    for (name, words) in sentences(side) {
        put!(page, "<div><dt>{name}</dt><dd>{}</dd></div>\n", escape(&words));
    }
    page.push_str("</dl>\n");
}

fn table(page: &mut String, class: &str, label: &str, headings: &[&str], rows: &[Vec<String>]) {
    put!(
        page,
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\"><table class=\"{class}\"><thead><tr>"
    );
    for heading in headings {
        put!(page, "<th scope=\"col\">{heading}</th>");
    }
    page.push_str("</tr></thead><tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            put!(page, "<td>{}</td>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

/// Some seconds as one step of a plot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Step {
    offered: f64,
    good: f64,
    reduced: f64,
    sent: f64,
    /// In the order of [`Refusal::RULES`].
    refused: Vec<f64>,
    /// `None` where nothing was answered.
    latency: Option<(f64, f64)>,
    not_closed: f64,
    queued: f64,
    kept: f64,
}

impl Step {
    fn of(rows: &[Row]) -> Self {
        let mean =
            |of: &dyn Fn(&Row) -> u32| rows.iter().map(|row| f64::from(of(row))).sum::<f64>() / rows.len() as f64;
        let most = |of: fn(&Row) -> u32| f64::from(rows.iter().map(of).max().unwrap_or(0));
        let refused = Refusal::RULES.iter().map(|rule| mean(&|row| row.refused.get(rule).copied().unwrap_or(0)));
        let answered: Vec<&Row> = rows.iter().filter(|row| row.good > 0).collect();
        let p50 = answered.iter().map(|row| row.latency_p50_ms).sum::<f64>() / answered.len().max(1) as f64;
        let p99 = answered.iter().map(|row| row.latency_p99_ms).fold(0.0, f64::max);
        Self {
            offered: mean(&|row| row.offered),
            good: mean(&|row| row.good),
            reduced: mean(&|row| row.reduced),
            sent: mean(&|row| row.sent),
            refused: refused.collect(),
            latency: (!answered.is_empty()).then_some((p50, p99)),
            not_closed: most(|row| row.not_closed),
            queued: most(|row| row.queued),
            kept: most(|row| row.kept),
        }
    }
}

struct Drawn<'a> {
    side: &'a Side,
    steps: Vec<Step>,
    /// In the drawing, which is 1000 wide.
    step_width: f64,
    seconds: f64,
}

impl<'a> Drawn<'a> {
    fn of(side: &'a Side) -> Self {
        let rows = &side.report.rows;
        let seconds_per_step = rows.len().div_ceil(STEPS_MAX).max(1);
        let seconds = rows.len().max(1) as f64;
        let steps = rows.chunks(seconds_per_step).map(Step::of).collect();
        Self { side, steps, step_width: WIDTH * seconds_per_step as f64 / seconds, seconds }
    }

    fn seconds_per_step(&self) -> f64 {
        self.step_width * self.seconds / WIDTH
    }

    /// A value in the middle of each step.
    fn points(&self, y: impl Fn(&Step) -> Option<f64>) -> Vec<Vec<(f64, f64)>> {
        let mut lines = vec![Vec::new()];
        for (index, step) in self.steps.iter().enumerate() {
            match y(step) {
                Some(y) => lines.last_mut().expect("one is there").push(((index as f64 + 0.5) * self.step_width, y)),
                None if lines.last().is_some_and(|line| !line.is_empty()) => lines.push(Vec::new()),
                None => {}
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

/// The same for both sides, so that they can be compared by eye.
struct Scale {
    requests: f64,
    refused: f64,
    breakers: f64,
    queued: f64,
    kept: f64,
    /// Of latencies, as powers of ten of a millisecond.
    decades: (f64, f64),
}

impl Scale {
    fn over(drawn: &[Drawn<'_>]) -> Self {
        let most = |of: &dyn Fn(&Step) -> f64| drawn.iter().flat_map(|it| &it.steps).map(of).fold(0.0, f64::max);
        let latencies = drawn.iter().flat_map(|it| &it.steps).filter_map(|step| step.latency);
        let (low, high) = latencies.fold((f64::MAX, 0.0_f64), |(low, high), (p50, p99)| (low.min(p50), high.max(p99)));
        let low = if low == f64::MAX { 1.0 } else { low };
        let nodes = drawn.iter().flat_map(|it| it.side.scenario.layers.last()).map(|layer| f64::from(layer.instances));
        let floor = low.max(0.1).log10().floor();
        Self {
            requests: round_up(most(&|step| step.offered.max(step.good + step.reduced).max(step.sent))),
            refused: round_up(most(&|step| step.refused.iter().sum())),
            breakers: nodes.fold(1.0, f64::max),
            queued: round_up(most(&|step| step.queued)),
            kept: round_up(most(&|step| step.kept)),
            decades: (floor, high.max(1.0).log10().ceil().max(floor + 1.0)),
        }
    }
}

/// A power of ten of milliseconds.
fn decade_words(decade: f64) -> String {
    if decade < 3.0 { format!("{} ms", 10_f64.powf(decade)) } else { format!("{} s", 10_f64.powf(decade - 3.0)) }
}

/// The next round number.
fn round_up(value: f64) -> f64 {
    if value <= 1.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value)
        .unwrap_or(value)
}

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 100.0;

fn lanes(page: &mut String, drawn: &Drawn<'_>, scale: &Scale, place: usize) {
    let lane = |page: &mut String,
                name: &str,
                words: &str,
                legend: &[(&str, &str)],
                scale: &[(f64, String)],
                drawing: &str| {
        put!(page, "<figure><figcaption>{words}");
        for (class, word) in legend {
            put!(page, " <span class=\"key\"><i class=\"{class}\"></i>{word}</span>");
        }
        put!(page, "</figcaption><div class=\"plot\">");
        for (y, word) in scale {
            put!(page, "<span class=\"scale\" style=\"top:{y:.1}%\">{word}</span>");
        }
        let id = format!("{name}-{place}");
        let keys: Vec<&str> = legend.iter().map(|(_, word)| *word).collect();
        put!(
            page,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-labelledby=\"{id}\">\
             <title id=\"{id}\">{words}, over {} s: {}</title>\n",
            drawn.seconds,
            keys.join(", ")
        );
        bands(page, drawn);
        page.push_str(drawing);
        page.push_str("</svg></div>");
        ticks(page, drawn.seconds);
        page.push_str("</figure>\n");
    };
    let up_to = |most: f64| vec![(0.0, super::words::figure(most))];
    let y = |value: f64, most: f64| HEIGHT * (1.0 - (value / most).clamp(0.0, 1.0));

    let mut drawing = String::new();
    area(&mut drawing, "good", &bars(drawn, |step| (0.0, step.good)), scale.requests);
    let reduced = drawn.steps.iter().any(|step| step.reduced > 0.0);
    if reduced {
        area(&mut drawing, "reduced", &bars(drawn, |step| (step.good, step.good + step.reduced)), scale.requests);
    }
    polylines(&mut drawing, "sent", &drawn.points(|step| Some(y(step.sent, scale.requests))));
    polylines(&mut drawing, "offered", &drawn.points(|step| Some(y(step.offered, scale.requests))));
    let mut legend = vec![("offered", "offered"), ("good", "answered well"), ("sent", "sent to the dependency")];
    if reduced {
        legend.insert(2, ("reduced", "reduced"));
    }
    lane(page, "requests", "Requests a second", &legend, &up_to(scale.requests), &drawing);

    let (mut drawing, mut legend) = (String::new(), Vec::new());
    let mut below: Vec<f64> = vec![0.0; drawn.steps.len()];
    for (index, rule) in Refusal::RULES.iter().enumerate() {
        if drawn.steps.iter().all(|step| step.refused[index] <= 0.0) {
            continue;
        }
        let stacked: Vec<(f64, f64)> =
            drawn.steps.iter().zip(&below).map(|(step, below)| (*below, below + step.refused[index])).collect();
        area(&mut drawing, &format!("rule{index}"), &stretch(drawn, &stacked), scale.refused);
        below = stacked.into_iter().map(|(_, top)| top).collect();
        legend.push((format!("rule{index}"), *rule));
    }
    let legend: Vec<(&str, &str)> = legend.iter().map(|(class, rule)| (class.as_str(), *rule)).collect();
    let words = if legend.is_empty() { "Refused a second: none" } else { "Refused a second, by rule" };
    lane(page, "refused", words, &legend, &up_to(scale.refused), &drawing);

    let (low, high) = scale.decades;
    let log = |value: f64| HEIGHT * (1.0 - ((value.max(0.1).log10() - low) / (high - low)).clamp(0.0, 1.0));
    let mut drawing = String::new();
    let mut marks = Vec::new();
    let mut decade = low;
    while decade <= high {
        let mark = log(10_f64.powf(decade));
        put!(drawing, "<line class=\"mark\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{mark:.1}\" y2=\"{mark:.1}\"/>");
        marks.push((mark, decade_words(decade)));
        decade += 1.0;
    }
    polylines(&mut drawing, "p99", &drawn.points(|step| step.latency.map(|(_, p99)| log(p99))));
    polylines(&mut drawing, "p50", &drawn.points(|step| step.latency.map(|(p50, _)| log(p50))));
    let legend = [("p50", "half"), ("p99", "99 of 100")];
    lane(page, "latency", "A good answer takes at most", &legend, &marks, &drawing);

    let mut drawing = String::new();
    area(&mut drawing, "breakers", &bars(drawn, |step| (0.0, step.not_closed)), scale.breakers);
    lane(page, "breakers", "Breakers", &[("breakers", "not closed")], &up_to(scale.breakers), &drawing);

    // Without a capacity nobody ever waits there.
    if drawn.side.scenario.dependency.workers.is_some() {
        let mut drawing = String::new();
        area(&mut drawing, "queued", &bars(drawn, |step| (0.0, step.queued)), scale.queued);
        lane(page, "queued", "At the dependency", &[("queued", "calls waiting")], &up_to(scale.queued), &drawing);
    }
    if drawn.steps.iter().any(|step| step.kept > 0.0) {
        let mut drawing = String::new();
        area(&mut drawing, "kept", &bars(drawn, |step| (0.0, step.kept)), scale.kept);
        lane(page, "kept", "Kept for later", &[("kept", "calls")], &up_to(scale.kept), &drawing);
    }
    if drawn.seconds_per_step() > 1.5 {
        put!(page, "<p class=\"soft\">Each step is {:.0} s.</p>\n", drawn.seconds_per_step());
    }
}

fn bands(page: &mut String, drawn: &Drawn<'_>) {
    for trouble in &drawn.side.scenario.dependency.troubles {
        let x = |seconds: f64| WIDTH * (seconds / drawn.seconds).min(1.0);
        let (left, right) = (x(trouble.from.as_secs_f64()), x(trouble.until.as_secs_f64()));
        put!(
            page,
            "<rect class=\"band\" x=\"{left:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"><title>{}</title></rect>\n",
            (right - left).max(1.0),
            escape(&trouble_words(trouble))
        );
    }
}

/// Each step's bottom and top, where it begins and where it ends.
fn stretch(drawn: &Drawn<'_>, steps: &[(f64, f64)]) -> Vec<(f64, f64, f64)> {
    let ends = steps.iter().enumerate().flat_map(|(index, (low, high))| {
        let x = |index: usize| (index as f64 * drawn.step_width).min(WIDTH);
        [(x(index), *low, *high), (x(index + 1), *low, *high)]
    });
    ends.collect()
}

fn bars(drawn: &Drawn<'_>, of: impl Fn(&Step) -> (f64, f64)) -> Vec<(f64, f64, f64)> {
    stretch(drawn, &drawn.steps.iter().map(of).collect::<Vec<_>>())
}

/// From the bottoms to the tops.
fn area(drawing: &mut String, class: &str, ends: &[(f64, f64, f64)], most: f64) {
    let y = |value: f64| HEIGHT * (1.0 - (value / most).clamp(0.0, 1.0));
    let tops = ends.iter().map(|(x, _, high)| (*x, y(*high)));
    let bottoms = ends.iter().rev().map(|(x, low, _)| (*x, y(*low)));
    let points: Vec<String> = tops.chain(bottoms).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put!(drawing, "<polygon class=\"{class}\" points=\"{}\"/>\n", points.join(" "));
}

fn polylines(drawing: &mut String, class: &str, lines: &[Vec<(f64, f64)>]) {
    for line in lines {
        // A lone point would not be seen.
        let last = line.last().map(|(x, y)| (x + 0.5, *y));
        let points = line.iter().copied().chain(last.filter(|_| line.len() == 1));
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        put!(drawing, "<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" "));
    }
}

fn ticks(page: &mut String, seconds: f64) {
    const STEPS: [u32; 15] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 3_600, 7_200, 21_600, 86_400];
    let step = STEPS.into_iter().find(|step| seconds / f64::from(*step) <= 6.0).unwrap_or(86_400);
    page.push_str("<div class=\"ticks\" aria-hidden=\"true\">");
    let mut at = 0;
    while f64::from(at) <= seconds {
        let words = match (at, step) {
            (0, _) => "0".into(),
            (_, 86_400..) => format!("{} d", at / 86_400),
            (_, 3_600..) => format!("{} h", at / 3_600),
            (_, 60..) => format!("{} min", at / 60),
            _ => format!("{at} s"),
        };
        let left = 100.0 * f64::from(at) / seconds;
        // The last one must not stand out of a small screen.
        let class = if left > 96.0 { " class=\"last\"" } else { "" };
        put!(page, "<span{class} style=\"left:{left:.1}%\">{words}</span>");
        at += step;
    }
    page.push_str("</div>");
}

const MODELLED: &str = "<h2>What is modelled</h2>\n<p>The very guards of the gateway in virtual time; arrivals, callers who \
    retry on their own, a dependency with latency, capacity, a queue that goes on serving callers who have given up, faults \
    and a rate limit, what stands in, and what is kept and delivered later. Not modelled: connections, bytes, the choice \
    between endpoints, health checks, and keys that must stay in order. Shaded: while the dependency is ill.</p>\n";

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--paper:#fff;--soft:#566474;--line:#dde3ea;--good:#2f9e62;--sent:#b35c00;\
--p99:#7a3fd3;--p50:#2f6fd0;--band:#d33f3f;--r0:#d33f3f;--r1:#e0a100;--r2:#7a3fd3;--r3:#2f6fd0;--r4:#9aa5b1;--r5:#5d6b7c;\
--r6:#0b8f9c;--r7:#0b8f9c;--r8:#b35c00;--r9:#c2389a;--r10:#6b8e23}\
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--paper:#12171e;--soft:#9dabbc;--line:#2a333e;--good:#3fbf7a;\
--sent:#f0a050;--p99:#b58cf5;--p50:#79a9f5;--band:#f06464;--r0:#f06464;--r1:#f0bb30;--r2:#b58cf5;--r3:#79a9f5;--r4:#5f6b78;\
--r5:#9dabbc;--r6:#3fc3d0;--r7:#3fc3d0;--r8:#f0a050;--r9:#ee7fcd;--r10:#a9cc5b}}\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\
main{max-width:76rem;margin:auto;padding:1rem}h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.15rem;margin:1.5rem 0 .5rem;\
overflow-wrap:anywhere}.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2.5rem}\
section{min-width:0}dl{margin:0}dl div{display:grid;grid-template-columns:6rem 1fr;gap:.5rem;border-bottom:1px solid var(--line);\
padding:.2rem 0}dt{color:var(--soft)}dd{margin:0}.soft{color:var(--soft)}\
figure{margin:1.2rem 0 0}figcaption{font-size:.9rem;font-weight:600;padding-bottom:.5rem}.key{font-weight:400;color:var(--soft);margin-left:.8em;\
white-space:nowrap}.key i{display:inline-block;width:.9em;height:.7em;margin-right:.3em}\
.plot{position:relative;height:7rem;margin-left:3.6rem;border:solid var(--line);border-width:1px 0}\
.plot svg{display:block;width:100%;height:100%}.scale{position:absolute;right:100%;margin-right:.4rem;transform:translateY(-50%);\
font-size:.75rem;line-height:1;color:var(--soft);white-space:nowrap}\
.ticks{position:relative;height:1.2rem;margin-left:3.6rem;font-size:.75rem;color:var(--soft)}\
.ticks span{position:absolute;transform:translateX(-50%);white-space:nowrap}.ticks .last{transform:translateX(-100%)}\
polyline{fill:none;stroke-width:1.6;vector-effect:non-scaling-stroke}\
.offered{stroke:var(--ink);stroke-dasharray:5 3}.sent{stroke:var(--sent)}.p50{stroke:var(--p50)}\
.p99{stroke:var(--p99);stroke-dasharray:4 2}polygon.good{fill:var(--good);opacity:.55}.band{fill:var(--band);opacity:.13}\
.mark{stroke:var(--line);vector-effect:non-scaling-stroke}.breakers{fill:var(--band)}.queued{fill:var(--p50);opacity:.7}\
.reduced{fill:var(--r1);opacity:.55}.kept{fill:var(--r1);opacity:.7}i.reduced,i.kept{background:var(--r1);opacity:.6}\
i.offered{border-top:2px dashed var(--ink);height:0}i.good{background:var(--good);opacity:.55}i.sent{background:var(--sent);height:2px}\
i.p50{background:var(--p50);height:2px}i.p99{border-top:2px dashed var(--p99);height:0}i.breakers{background:var(--band)}\
i.queued{background:var(--p50);opacity:.7}.key i{vertical-align:middle}\
.rule0{fill:var(--r0);background:var(--r0)}.rule1{fill:var(--r1);background:var(--r1)}.rule2{fill:var(--r2);background:var(--r2)}\
.rule3{fill:var(--r3);background:var(--r3)}.rule4{fill:var(--r4);background:var(--r4)}.rule5{fill:var(--r5);background:var(--r5)}\
.rule6{fill:var(--r6);background:var(--r6)}.rule7{fill:var(--r7);background:var(--r7)}.rule8{fill:var(--r8);background:var(--r8)}\
.rule9{fill:var(--r9);background:var(--r9)}.rule10{fill:var(--r10);background:var(--r10)}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
.sums :first-child,.spans :last-child{text-align:left}";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use seawall_core::whatif::Ailment;

    use super::super::tests::side;
    use super::*;

    fn played() -> Side {
        let mut side = side(Ailment::Down);
        let row = |second: u64| match second {
            20..30 => Row {
                second,
                offered: 100,
                refused: BTreeMap::from([("breaker", 90), ("budget", 4)]),
                not_closed: 1,
                ..Row::default()
            },
            _ => Row {
                second,
                offered: 100,
                good: 100,
                sent: 100,
                latency_p50_ms: 20.0,
                latency_p99_ms: 80.0,
                ..Row::default()
            },
        };
        side.report.rows = (0..60).map(row).collect();
        side
    }

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        for sides in [vec![played()], vec![played(), played()]] {
            let page = page(&sides);
            assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
            for foreign in ["http://", "https://", "<script", "url(", "NaN", "inf\"", "inf,", "@import"] {
                assert!(!page.contains(foreign), "{foreign}");
            }
            for tag in ["svg", "table", "tr", "td", "figure", "p", "div", "dl", "section", "title", "span", "i"] {
                let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
                assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
            }
            let plots = 4 * sides.len();
            assert_eq!(page.matches("role=\"img\" aria-labelledby=").count(), plots);
            assert_eq!(page.matches("<rect class=\"band\"").count(), plots, "the fault is shaded in each");
            assert_eq!(page.matches("<title>20s..30s down</title>").count(), plots);
            assert!(page.contains("</i>breaker</span>") && page.contains("</i>budget</span>"));
            assert_eq!(page.contains("The difference"), sides.len() == 2);
        }
    }

    #[test]
    fn what_is_reduced_and_kept_has_its_place() {
        let mut side = played();
        side.report.rows[25].reduced = 90;
        side.report.rows[25].kept = 90;
        let page = page(&[side]);
        assert!(page.contains("Kept for later") && page.contains("</i>reduced</span>"));
        assert!(page.contains("<polygon class=\"reduced\"") && page.contains("<polygon class=\"kept\""));
    }

    #[test]
    fn text_from_elsewhere_cannot_become_markup() {
        let mut side = played();
        side.subject.label = "<b>\"x\"&'y'.yaml".into();
        let page = page(&[side]);
        assert!(page.contains("&lt;b&gt;&quot;x&quot;&amp;&#39;y&#39;.yaml") && !page.contains("<b>"));
    }

    #[test]
    fn a_long_run_is_drawn_in_few_steps_and_a_gap_breaks_the_line() {
        let mut long = side(Ailment::Down);
        long.report.rows = (0..7_000)
            .map(|second| Row {
                second,
                offered: 10,
                good: 10,
                latency_p50_ms: 1.0,
                latency_p99_ms: second as f64,
                ..Row::default()
            })
            .collect();
        let drawn = Drawn::of(&long);
        assert_eq!((drawn.steps.len(), drawn.seconds_per_step().round()), (584, 12.0));
        assert_eq!(drawn.steps[0].latency, Some((1.0, 11.0)), "the worst of the twelve");
        assert!(page(&[long]).contains("Each step is 12 s."));
        let played = played();
        let drawn = Drawn::of(&played);
        let lines = drawn.points(|step| step.latency.map(|(p50, _)| p50));
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [20, 30]);
        let nothing = side(Ailment::Down);
        assert!(page(&[nothing]).contains("Refused a second: none"));
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.0, 0.5, 1.0, 1.2, 2.1, 50.0, 101.0].map(round_up), [1.0, 1.0, 1.0, 1.5, 3.0, 50.0, 150.0]);
        assert_eq!([-1.0, 0.0, 2.0, 3.0, 4.0].map(decade_words), ["0.1 ms", "1 ms", "100 ms", "1 s", "10 s"]);
    }
}
