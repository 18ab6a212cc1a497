//! `seawall reload`: a running node takes in its configuration anew, or says what that would change.

use clap::Args;
use serde_json::{Value, json};

use super::Ended;
use super::read::Reader;

pub(super) const EXAMPLES: &str = "\
Examples:
  seawall reload --dry-run         what it would change
  seawall reload

SIGHUP does the same, and so does the node by itself within seconds after its file has changed (unless it runs with
`--no-watch`). What cannot be used changes nothing.
Exit status: 0 it is in force, or could be; 1 refused; 3 the node cannot be reached.";

#[derive(Args, Clone, Debug)]
pub(super) struct ReloadArgs {
    /// Only say what it would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reader: Reader,
}

pub(super) async fn run(args: &ReloadArgs) -> anyhow::Result<Ended> {
    let body = json!({ "dry_run": args.dry_run });
    let answer = args.reader.client()?.post("/api/reload", &body).await?;
    args.reader.print(&answer, |_| words(&answer, args.dry_run))?;
    Ok(Ended::Well)
}

fn words(answer: &Value, dry_run: bool) -> String {
    let texts = |key: &str| answer[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut text: String = texts("warnings").collect();
    let changed: Vec<_> = texts("changed").collect();
    let digest: String = answer["digest"].as_str().unwrap_or_default().chars().take(12).collect();
    text += &match (changed.len(), dry_run) {
        (0, _) => format!("nothing that a running node goes by is different; digest {digest}\n"),
        (1, true) => format!("digest {digest}, would change:\n"),
        (_, true) => format!("digest {digest}, would change {} things:\n", changed.len()),
        (_, false) => format!("digest {digest} is in force, changed:\n"),
    };
    for change in changed {
        text += &format!("  {change}\n");
    }
    text
}
