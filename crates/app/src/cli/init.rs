//! `seawall init`: four questions, then a commented configuration that passes its own check.

use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{CONFIG_FILE, Ended};
use crate::config;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall init
  seawall init --yes --config prod.yaml

Exit status: 0 written; 1 not written (an existing file is never touched).";

#[derive(Args, Clone, Debug)]
pub(super) struct InitArgs {
    /// Ask nothing, take the defaults
    #[arg(long)]
    yes: bool,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
}

pub(super) fn run(args: &InitArgs) -> anyhow::Result<Ended> {
    let file = args.config.display();
    if args.config.exists() {
        bail!("`{file}` is there already and stays as it is; `--config FILE` writes another one");
    }
    let answers = match args.yes {
        true => Answers::default(),
        false => ask(&mut io::stdin().lock(), &mut io::stdout())?,
    };
    let text = render(&answers);
    // What somebody answered may not fit: then it is told as for any configuration, and nothing is written.
    if let Err(report) = config::check(&file.to_string(), text.as_bytes(), &|_| None).into_result() {
        bail!("these answers do not make a configuration\n{report}");
    }
    let mut out = OpenOptions::new().write(true).create_new(true).open(&args.config);
    let write = out.as_mut().map_err(|error| io::Error::new(error.kind(), error.to_string()));
    write.and_then(|out| out.write_all(text.as_bytes())).with_context(|| format!("cannot write `{file}`"))?;
    super::print(&format!("wrote `{file}`; next: `seawall check`, then `seawall run`\n"))
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    listen: String,
    upstream: String,
    zone: String,
    keeps_writes: bool,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            upstream: "http://127.0.0.1:3000".into(),
            zone: "local".into(),
            keeps_writes: true,
        }
    }
}

/// Asks; an empty line, or no more input, takes the default.
pub(super) fn ask(input: &mut impl BufRead, out: &mut impl Write) -> io::Result<Answers> {
    let default = Answers::default();
    let mut question = |words: &str, default: &str| -> io::Result<String> {
        write!(out, "{words} [{default}]: ")?;
        out.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            writeln!(out)?;
        }
        let answer = line.trim();
        Ok(if answer.is_empty() { default.into() } else { answer.into() })
    };
    let listen = question("Where should Seawall listen?", &default.listen)?;
    let upstream = question("Where is the service it protects?", &default.upstream)?;
    let zone = question("In which zone does this node run?", &default.zone)?;
    let keeps = question("Keep writes when that service falters, and deliver them later? (yes or no)", "yes")?;
    let keeps_writes = !keeps.to_ascii_lowercase().starts_with('n');
    Ok(Answers { listen, upstream, zone, keeps_writes })
}

/// A value that stands for itself, whatever it is made of.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "$${"))
}

const KEEP_WRITES: &str = "    fallback: spool                   # accepted, durable, delivered later, in order per key
    # order_by: header:Order-Id       # records with the same value are delivered in the order they came
";
const KEEP_NOTHING: &str = "    # fallback: spool                 # accept a write, make it durable, deliver it later
";

/// The configuration with its comments.
pub(super) fn render(answers: &Answers) -> String {
    let (listen, upstream, zone) = (quote(&answers.listen), quote(&answers.upstream), quote(&answers.zone));
    let writes = if answers.keeps_writes { KEEP_WRITES } else { KEEP_NOTHING };
    format!(
        "\
# Seawall. Check with `seawall check`, run with `seawall run`.
# ${{NAME}} and ${{NAME:-default}} are filled in from the environment, anywhere.

zone: {zone}                         # where this node runs
# zones: [us-east, us-west]           # every zone of the fleet
# node: us-east-1                     # this node's name, unique in the fleet; the zone's unless said otherwise

store:
  path: ./seawall-data                # spool, journal and ledger; nothing else to install
  spool_max: 1GiB                     # writes beyond this are refused with 507 until some are delivered

listeners:
  - address: {listen}
    routes:                           # the first match wins
      - name: writes
        match: {{ method: [POST, PUT, PATCH, DELETE] }}
        upstream: service
        policy: writes
      - name: reads
        upstream: service
        policy: reads

upstreams:
  service:
    url: {upstream}
    # endpoints: [{{ address: \"10.0.1.5:80\", zone: us-east }}, {{ address: \"10.1.1.5:80\", zone: us-west }}]
    # health: {{ path: /healthz, every: 2s }}

policies:
  writes:
    timeout: 5s                       # for everything: tries, waits, backoff
    try_timeout: 1500ms
    retry: {{ attempts: 3, backoff: 50ms..1s }}   # only where it is safe; at most 20 % of traffic
    breaker: {{ failure_rate: 50%, slow: 60% over 1s, window: 100 calls, open_for: 10s }}
{writes}  reads:
    timeout: 2s
    try_timeout: 800ms
    breaker: {{ failure_rate: 50%, slow: 60% over 500ms, window: 100 calls, open_for: 10s }}
    fallback: {{ stale: 10m }}          # the last good answer, marked as such

admin:
  address: 127.0.0.1:9900             # overview page, API, metrics; keep it on loopback or set a token
  # token_file: /run/secrets/seawall

# faults: on                                    # `seawall fault`: break calls on purpose, held by leases
# toxiproxy: {{ listen: \"127.0.0.1:8474\" }}   # faults by Toxiproxy's API; it knows no token, keep it on loopback
"
    )
}
