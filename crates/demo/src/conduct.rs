//! The conductor: plays the plan twice, once as the company was and once behind Seawall, and gathers what is left.
//!
//! A run: start everything and wait until it is ready; let the scanners begin and play the score; when trouble is over
//! and every event was handed over, wait until nothing is on its way any more (conditions, with a deadline); seal the
//! ledgers; end everything; read what the processes wrote. Nothing is counted while it runs, and nothing is taken from
//! Seawall that the company itself has written down.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::caller::Called;
use crate::clock;
use crate::company::{Company, arguments, free_ports, read_lines};
use crate::figures::{Record, Run, Sample};
use crate::model;
use crate::nodes::{self, Admin, Node, Servers};
use crate::plan::Plan;
use crate::schedule::{Fault, Mood, Schedule, Trouble, ZONES};
use crate::tally::Row;
use crate::tracking::Generator;
use crate::web::{Ask, Client};

/// From everything being ready to the first event.
const LEAD: Duration = Duration::from_millis(400);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Nothing may be on its way for this long before a run counts as drained. Leases whose answer was lost count as on
/// their way until they are worked on again, so this need not wait for the queue's visibility timeout.
const QUIET: Duration = Duration::from_millis(1_500);
/// Training takes a tenth of a second with optimisation, and ten times that without.
const TRAINING_PATIENCE: Duration = Duration::from_secs(30);
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// What `--keep-running` sends afterwards lasts this long.
const ENCORE: Duration = Duration::from_secs(3_600);

/// The programs a run needs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Understands `demo-role`.
    pub company: PathBuf,
    /// Understands `run --config FILE`.
    pub seawall: PathBuf,
}

/// One run on its stage.
pub struct Stage<'a> {
    run: Run,
    plan: &'a Plan,
    programs: &'a Programs,
    dir: PathBuf,
    company: Company,
    client: Client,
    servers: Servers,
    queue_control: String,
    nodes: Vec<Node>,
    samples: Mutex<Vec<Sample>>,
}

impl<'a> Stage<'a> {
    /// An empty stage with its addresses chosen.
    ///
    /// # Errors
    /// When there are not enough ports or the folder cannot be made.
    pub fn new(run: Run, plan: &'a Plan, programs: &'a Programs, dir: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        let ports = free_ports(4 + 2 * ZONES.len())?;
        let at = |index: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, ports[index])).to_string();
        let node = |(index, zone): (usize, &&str)| Node {
            zone: (*zone).into(),
            listen: at(4 + 2 * index),
            admin: at(5 + 2 * index),
        };
        let nodes = match run {
            Run::Before => Vec::new(),
            Run::After => ZONES.iter().enumerate().map(node).collect(),
        };
        Ok(Self {
            run,
            plan,
            programs,
            company: Company::new(programs.company.clone(), dir.clone()),
            dir,
            client: Client::default(),
            servers: Servers { queue: at(0), carrier: at(2), warehouse: at(3) },
            queue_control: at(1),
            nodes,
            samples: Mutex::default(),
        })
    }

    /// The whole run up to the counting. The company is still up afterwards: [`Stage::stop`] ends it.
    ///
    /// # Errors
    /// When something does not start, or what it left cannot be read.
    pub async fn play(&self) -> anyhow::Result<Record> {
        self.begin().await?;
        let start_ms = clock::now_ms() + LEAD.as_millis() as u64;
        self.start_scanners(&self.plan.by_zone(), start_ms, "")?;
        let playing = async {
            let faults = self.play_score(start_ms).await?;
            self.end_scanners(start_ms).await?;
            self.all_ready().await?;
            anyhow::Ok((faults, self.drain().await))
        };
        let (faults, drained_after_s) = tokio::select! {
            played = playing => played?,
            () = self.watch() => unreachable!("watching has no end"),
        };
        self.gather(start_ms, faults, drained_after_s).await
    }

    /// Ends every process.
    pub async fn stop(&self) {
        self.company.stop().await;
    }

    /// The nodes' dashboards.
    #[must_use]
    pub fn dashboards(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}/", node.admin)).collect()
    }

    /// Fresh events for whoever wants to watch; trouble is over.
    ///
    /// # Errors
    /// When the scanners cannot be started.
    pub fn encore(&self) -> anyhow::Result<()> {
        let count = (self.plan.rate * ENCORE.as_secs_f64()) as usize;
        let calm = Schedule { faults: Vec::new(), length_ms: ENCORE.as_millis() as u64 };
        let scans = Generator::new(self.plan.seed.wrapping_add(1), "E").take(count);
        let encore = Plan { schedule: calm, scans, ..self.plan.clone() };
        self.start_scanners(&encore.by_zone(), clock::now_ms(), "encore-")
    }

    async fn begin(&self) -> anyhow::Result<()> {
        model::write_history(&self.dir.join("history.json"), &self.plan.history)?;
        for node in &self.nodes {
            let data = self.dir.join(format!("data-{}", node.zone));
            let text = nodes::config(node, &ZONES, &self.servers, &data);
            std::fs::write(self.config_path(node), text)?;
            self.start_node(node)?;
        }
        self.start_servers()?;
        self.all_ready().await?;
        if self.run == Run::Before {
            let log = self.dir.join("monitor.calls");
            self.company.start("monitor", arguments!["monitor", "--target", &self.servers.queue, "--log", log])?;
        }
        ZONES.iter().try_for_each(|zone| self.start_predictor(zone))?;
        self.predictors_at_work().await
    }

    /// A predictor has trained when it has asked for its first events.
    async fn predictors_at_work(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TRAINING_PATIENCE;
        for name in ZONES.map(predictor_name) {
            while !std::fs::metadata(self.calls_path(&name)).is_ok_and(|log| log.len() > 0) {
                let words = || self.company.last_words(&name);
                anyhow::ensure!(Instant::now() < deadline, "{name} is not at work\n{}", words());
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    fn start_servers(&self) -> anyhow::Result<()> {
        let Servers { queue, carrier, warehouse } = &self.servers;
        let seed = self.plan.seed.to_string();
        let queue = arguments!["queue", "--listen", queue, "--control", &self.queue_control, "--seed", seed];
        self.company.start("queue", queue)?;
        let limit = format!("{:.1}", self.plan.carrier_limit());
        self.company.start("carrier", arguments!["carrier", "--listen", carrier, "--limit", limit])?;
        let mut arguments = arguments!["warehouse", "--listen", warehouse, "--rows", self.dir.join("warehouse.rows")];
        for node in &self.nodes {
            arguments.extend(arguments!["--admin", format!("{}=http://{}", node.zone, node.admin)]);
        }
        self.company.start("warehouse", arguments)
    }

    fn config_path(&self, node: &Node) -> PathBuf {
        self.dir.join(format!("seawall-{}.yaml", node.zone))
    }

    fn start_node(&self, node: &Node) -> anyhow::Result<()> {
        let seawall = &self.programs.seawall;
        self.company
            .start(&node_name(&node.zone), arguments!["keep", "--", seawall, "run", "--config", self.config_path(node)])
    }

    fn start_predictor(&self, zone: &str) -> anyhow::Result<()> {
        let Servers { queue, carrier, warehouse } = &self.servers;
        let mut arguments = arguments!["predictor", "--zone", zone, "--seed", self.plan.seed.to_string()];
        arguments.extend(self.bases("--queue", zone, queue));
        arguments.extend(self.bases("--carrier", zone, carrier));
        arguments.extend(self.bases("--warehouse", zone, warehouse));
        arguments.extend(arguments!["--history", self.dir.join("history.json")]);
        arguments.extend(arguments!["--log", self.calls_path(&predictor_name(zone))]);
        arguments.extend(self.keyed());
        self.company.start(&predictor_name(zone), arguments)
    }

    fn start_scanners(
        &self,
        by_zone: &std::collections::BTreeMap<&str, Vec<crate::producer::Due>>,
        start_ms: u64,
        prefix: &str,
    ) -> anyhow::Result<()> {
        for (zone, due) in by_zone {
            let name = format!("{prefix}{}", producer_name(zone));
            let events = self.dir.join(format!("{name}.events"));
            let lines: Result<Vec<String>, _> = due.iter().map(serde_json::to_string).collect();
            std::fs::write(&events, lines?.join("\n"))?;
            let mut arguments = arguments!["producer", "--events", events, "--start-ms", start_ms.to_string()];
            arguments.extend(self.bases("--target", zone, &self.servers.queue));
            arguments.extend(arguments!["--manifest", self.dir.join(format!("{name}.manifest"))]);
            arguments.extend(arguments!["--log", self.calls_path(&name)]);
            arguments.extend(self.keyed());
            self.company.start(&name, arguments)?;
        }
        Ok(())
    }

    /// The only two differences between the runs, as the company's processes see them: whom to call,
    fn bases(&self, flag: &str, zone: &str, direct: &str) -> Vec<OsString> {
        let own_first = self.nodes.iter().filter(|node| node.zone == zone);
        let others = self.nodes.iter().filter(|node| node.zone != zone);
        let bases: Vec<&str> = match self.run {
            Run::Before => vec![direct],
            Run::After => own_first.chain(others).map(|node| node.listen.as_str()).collect(),
        };
        bases.into_iter().flat_map(|base| arguments![flag, format!("http://{base}")]).collect()
    }

    /// and the business id as `Idempotency-Key`.
    fn keyed(&self) -> Vec<OsString> {
        match self.run {
            Run::Before => Vec::new(),
            Run::After => arguments!["--keyed"],
        }
    }

    fn calls_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.calls"))
    }

    async fn all_ready(&self) -> anyhow::Result<()> {
        let Servers { queue, carrier, warehouse } = &self.servers;
        for (name, address) in [("queue", queue), ("carrier", carrier), ("warehouse", warehouse)] {
            self.company.ready(&self.client, name, address, "/healthz").await?;
        }
        for node in &self.nodes {
            self.company.ready(&self.client, &node_name(&node.zone), &node.admin, "/readyz").await?;
        }
        Ok(())
    }

    /// Plays every cue at its time, and says when it really happened.
    async fn play_score(&self, start_ms: u64) -> anyhow::Result<Vec<Fault>> {
        let mut played = self.plan.schedule.faults.clone();
        for cue in self.plan.schedule.cues() {
            clock::until_ms(start_ms + cue.at_ms).await;
            let trouble = &cue.fault.trouble;
            let now_ms = clock::now_ms().saturating_sub(start_ms);
            if cue.begins {
                say(start_ms, &format!("{trouble}{}", if self.run.feels(trouble) { "" } else { " (no node here)" }));
                played[cue.index].at_ms = now_ms;
                self.inflict(trouble).await?;
            } else {
                played[cue.index].for_ms = now_ms.saturating_sub(played[cue.index].at_ms);
                self.relieve(trouble).await?;
            }
        }
        Ok(played)
    }

    async fn inflict(&self, trouble: &Trouble) -> anyhow::Result<()> {
        match trouble {
            Trouble::Queue(mood) => self.mood(*mood).await,
            // The scanners' own pace; the carrier's limit is always there.
            Trouble::Surge => Ok(()),
            Trouble::PredictorKilled(zone) => self.company.kill(&predictor_name(zone)).await,
            Trouble::NodeKilled(zone) => {
                self.company.close(&node_name(zone)).await;
                Ok(())
            }
            Trouble::ZoneGone(zone) => {
                self.company.close(&node_name(zone)).await;
                self.company.kill(&predictor_name(zone)).await
            }
        }
    }

    async fn relieve(&self, trouble: &Trouble) -> anyhow::Result<()> {
        match trouble {
            Trouble::Queue(_) => self.mood(Mood::Calm).await,
            Trouble::Surge => Ok(()),
            Trouble::PredictorKilled(zone) => self.start_predictor(zone),
            Trouble::NodeKilled(zone) => self.bring_back(zone),
            Trouble::ZoneGone(zone) => {
                self.bring_back(zone)?;
                self.start_predictor(zone)
            }
        }
    }

    fn bring_back(&self, zone: &str) -> anyhow::Result<()> {
        self.nodes.iter().filter(|node| node.zone == zone).try_for_each(|node| self.start_node(node))
    }

    async fn mood(&self, mood: Mood) -> anyhow::Result<()> {
        let ask = Ask::post("/mood", serde_json::to_vec(&mood)?);
        let got = self.client.send_within(Duration::from_secs(2), &self.queue_control, &ask).await?;
        anyhow::ensure!(got.is_success(), "the queue's control port answered {}", got.status);
        Ok(())
    }

    async fn end_scanners(&self, start_ms: u64) -> anyhow::Result<()> {
        for zone in ZONES {
            let name = producer_name(zone);
            let status = self.company.wait(&name).await?;
            anyhow::ensure!(status.success(), "{name} ended with {status}\n{}", self.company.last_words(&name));
        }
        say(start_ms, "every event was handed over; waiting for what is on its way");
        Ok(())
    }

    /// Waits until nothing is on its way; how long that took, in seconds, if it came to that.
    async fn drain(&self) -> Option<f64> {
        let (started, mut quiet_since, mut rows_before) = (Instant::now(), Instant::now(), None);
        while started.elapsed() < DRAIN_PATIENCE {
            let rows = self.on_its_way().await;
            if rows.is_none() || rows != rows_before {
                quiet_since = Instant::now();
                rows_before = rows;
            } else if quiet_since.elapsed() >= QUIET {
                return Some((quiet_since - started).as_secs_f64());
            }
            sleep(Duration::from_millis(100)).await;
        }
        None
    }

    /// The warehouse's rows if nothing is on its way to it, else `None`.
    async fn on_its_way(&self) -> Option<u64> {
        let queue = self.ask(&self.queue_control, "/depth").await?;
        let stats = self.ask(&self.servers.warehouse, "/stats").await?;
        let mut waiting = queue["ready"].as_u64()? + queue["leased"].as_u64()? + stats["receipts_pending"].as_u64()?;
        for node in &self.nodes {
            waiting += Admin::new(self.client.clone(), node.clone()).sample().await?.spooled;
        }
        let rows = stats["rows_total"].as_u64()? + stats["doubled_total"].as_u64()?;
        (waiting == 0).then_some(rows)
    }

    async fn ask(&self, address: &str, path: &str) -> Option<Value> {
        self.client.send_within(Duration::from_secs(1), address, &Ask::get(path)).await.ok()?.json().ok()
    }

    /// Looks at everything, for ever.
    async fn watch(&self) {
        loop {
            let at_ms = clock::now_ms();
            let depth = self.ask(&self.queue_control, "/depth").await.unwrap_or_default();
            let queued = depth["ready"].as_u64().unwrap_or(0) + depth["leased"].as_u64().unwrap_or(0);
            let mut nodes = Vec::with_capacity(self.nodes.len());
            for node in &self.nodes {
                let sample = Admin::new(self.client.clone(), node.clone()).sample().await;
                nodes.push((node.zone.clone(), sample));
            }
            self.samples.lock().expect("no panic under this lock").push(Sample { at_ms, queued, nodes });
            sleep(SAMPLE_EVERY).await;
        }
    }

    async fn gather(&self, start_ms: u64, faults: Vec<Fault>, drained_after_s: Option<f64>) -> anyhow::Result<Record> {
        let (mut accounts, mut journal) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            let admin = Admin::new(self.client.clone(), node.clone());
            journal.extend(admin.journal().await);
            accounts.push(admin.seal().await);
        }
        let (mut handed, mut calls) = (Vec::new(), read_lines::<Called>(&self.calls_path("monitor"))?);
        for zone in ZONES {
            let producer = producer_name(zone);
            handed.extend(read_lines(&self.dir.join(format!("{producer}.manifest")))?);
            calls.extend(read_lines::<Called>(&self.calls_path(&producer))?);
            calls.extend(read_lines::<Called>(&self.calls_path(&predictor_name(zone)))?);
        }
        calls.sort_by_key(|called| called.at_ms);
        let rows = read_rows(&self.dir.join("warehouse.rows"))?;
        let samples = std::mem::take(&mut *self.samples.lock().expect("no panic under this lock"));
        Ok(Record { run: self.run, start_ms, handed, rows, calls, samples, faults, accounts, journal, drained_after_s })
    }
}

fn node_name(zone: &str) -> String {
    format!("node-{zone}")
}

fn predictor_name(zone: &str) -> String {
    format!("predictor-{zone}")
}

fn producer_name(zone: &str) -> String {
    format!("producer-{zone}")
}

fn read_rows(path: &Path) -> anyhow::Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// A line of progress.
pub(crate) fn say(start_ms: u64, what: &str) {
    let seconds = clock::now_ms().saturating_sub(start_ms) as f64 / 1_000.0;
    eprintln!("  {seconds:5.1} s  {what}");
}
