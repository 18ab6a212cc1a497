//! Taking an endpoint, a route or a listener out of service from outside, and back; and what is drained now.
//!
//! Not here: what becomes of calls meanwhile (the gateway), and the words for it (`core::drain`).

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use seawall_core::drain::{REFUSE_AFTER, REFUSE_AFTER_MAX, Refused, Standing, Target};
use seawall_core::units::format_duration;
use serde_json::{Value, json};

use crate::Admin;
use crate::api::{Refusal, fresh, only, reason_of};
use crate::faults::Fields;
use crate::text::rfc3339;

pub(crate) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/drain", only(&["GET", "HEAD", "POST"], get(list).post(drain)))
        .route("/api/resume", only(&["POST"], post(resume)))
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let words = refused.to_string();
        match &refused {
            Refused::Unreadable { kind, example, .. } => Self::bad(*kind, words).allowed([*example]),
            Refused::Unknown { target, known } => {
                Self::new(StatusCode::NOT_FOUND, words).field(target.kind()).allowed(known.iter().map(String::as_str))
            }
            Refused::NotReopened { target, .. } => Self::new(StatusCode::CONFLICT, words).field(target.kind()),
        }
    }
}

async fn list(State(admin): State<Admin>) -> Response {
    let drains = (admin.parts().view)().drains;
    fresh(json!({ "drains": drains.iter().map(standing_json).collect::<Vec<_>>() }))
}

async fn drain(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let fields = Fields::read(body, &["endpoint", "route", "listener", "reason", "refuse_after"]).await?;
    let target = read_target(&fields)?;
    let reason = reason_of(fields.text("reason")?.unwrap_or("by hand"))?;
    let refuse_after = fields.duration("refuse_after")?;
    let is_listener = matches!(target, Target::Listener(_));
    if refuse_after.is_some() && !is_listener {
        let words = "only a listener takes its time: the others refuse at once";
        return Err(Refusal::bad("refuse_after", words).allowed(["with `listener`"]));
    }
    let refuse_after = refuse_after.unwrap_or(REFUSE_AFTER);
    if refuse_after > REFUSE_AFTER_MAX {
        let range = format!("0s to {}", format_duration(REFUSE_AFTER_MAX));
        let words = format!("`{}` is out of range", format_duration(refuse_after));
        return Err(Refusal::bad("refuse_after", words).allowed([range.as_str()]));
    }
    Ok(fresh(standing_json(&admin.parts().drains.drain(&target, reason, refuse_after)?)))
}

async fn resume(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let target = read_target(&Fields::read(body, &Target::KINDS).await?)?;
    let was_draining = admin.parts().drains.resume(&target)?;
    Ok(fresh(json!({ "kind": target.kind(), "name": target.name(), "was_draining": was_draining })))
}

fn read_target(fields: &Fields) -> Result<Target, Refusal> {
    let mut named = Vec::new();
    for kind in Target::KINDS {
        named.extend(fields.text(kind)?.map(|name| (kind, name)));
    }
    match named[..] {
        [(kind, name)] => Ok(Target::read(kind, name)?),
        _ => Err(Refusal::bad("endpoint", "say one thing that is meant").allowed(Target::KINDS)),
    }
}

/// What is drained, as people read it.
pub(crate) fn standing_json(standing: &Standing) -> Value {
    let mut told = json!(standing);
    told["since"] = rfc3339(standing.since).into();
    told
}
