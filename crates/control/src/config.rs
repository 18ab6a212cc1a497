//! The configuration from outside: which is in force, and taking in the file anew.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Map, Value, json};

use crate::Admin;
use crate::api::{Refusal, fresh, only, read_body_within};
use crate::parts::{NotReloaded, Reloaded};

const BODY_BYTES_MAX: usize = 4 << 10;

pub(crate) fn router() -> Router<Admin> {
    Router::new().route("/api/reload", only(&["POST"], post(reload)))
}

/// `POST /api/reload`, with `{"dry_run": true}` to be told only what it would change.
async fn reload(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let dry_run = read_dry_run(&read_body_within(body, BODY_BYTES_MAX).await?)?;
    Ok(match admin.parts().config.reload(dry_run).await {
        Ok(Reloaded { digest, changed, warnings }) => {
            fresh(json!({ "dry_run": dry_run, "digest": digest, "changed": changed, "warnings": warnings }))
        }
        Err(NotReloaded { error, report, findings }) => {
            let body = json!({ "error": error, "report": report, "findings": findings });
            (StatusCode::UNPROCESSABLE_ENTITY, fresh(body)).into_response()
        }
    })
}

fn read_dry_run(body: &[u8]) -> Result<bool, Refusal> {
    if body.is_empty() {
        return Ok(false);
    }
    let object: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad("body", format!("the body is not a JSON object: {error}")))?;
    if let Some(unknown) = object.keys().find(|key| *key != "dry_run") {
        return Err(Refusal::bad(unknown.clone(), format!("there is no field `{unknown}`")).allowed(["dry_run"]));
    }
    match object.get("dry_run") {
        None => Ok(false),
        Some(Value::Bool(dry_run)) => Ok(*dry_run),
        Some(other) => {
            Err(Refusal::bad("dry_run", format!("`{other}` is neither true nor false")).allowed(["true", "false"]))
        }
    }
}
