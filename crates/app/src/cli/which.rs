//! Which route somebody means: of a configuration file, or of none.

use std::io::Write as _;
use std::path::Path;

use anyhow::bail;
use seawall_core::policy::{Match, PathMatch, Policy, Route};

use super::UsageError;
use crate::config::{self, hint_of};

/// What a file says should be; its warnings go to standard error.
pub(super) fn load(file: &Path) -> anyhow::Result<Policy> {
    match config::load(file, &|name| std::env::var(name).ok())?.into_result() {
        Ok((config, warnings)) => {
            let _ = write!(std::io::stderr(), "{}", warnings.without_audit());
            Ok(config.policy)
        }
        Err(report) => bail!("cannot use `{}`\n{report}", file.display(), report = report.without_audit()),
    }
}

/// The route of that name.
pub(super) fn find<'p>(policy: &'p Policy, name: &str, file: &Path) -> anyhow::Result<&'p Route> {
    let found = policy.routes.iter().find(|route| route.name == name);
    found.ok_or_else(|| {
        let hint = hint_of(name, policy.routes.iter().map(|route| route.name.as_str()));
        UsageError(format!("`{}` has no route `{name}`; {hint}{}", file.display(), all_of(policy, &hint))).into()
    })
}

/// The route of that name, or the only one there is.
pub(super) fn find_or_only<'p>(policy: &'p Policy, name: Option<&str>, file: &Path) -> anyhow::Result<&'p Route> {
    match (name, policy.routes.as_slice()) {
        (Some(name), _) => find(policy, name, file),
        (None, [only]) => Ok(only),
        (None, _) => {
            let message =
                format!("`{}` has several routes; say which with `--route`: {}", file.display(), names(policy));
            Err(UsageError(message).into())
        }
    }
}

/// A suggestion alone hides the others.
fn all_of(policy: &Policy, hint: &str) -> String {
    if hint.starts_with("did you mean") { format!(" There are {}", names(policy)) } else { String::new() }
}

fn names(policy: &Policy) -> String {
    policy.routes.iter().map(|route| format!("`{}`", route.name)).collect::<Vec<_>>().join(", ")
}

/// Which requests, in words: `POST /events`, `any method, /quotes and below`.
pub(super) fn matched(matcher: &Match) -> String {
    let methods = if matcher.methods.is_empty() { "any method".into() } else { matcher.methods.join(" or ") };
    let path = match &matcher.path {
        PathMatch::Any => "any path".into(),
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(path) => format!("{path} and below"),
    };
    let host = matcher.host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
    format!("{methods}, {path}{host}")
}
