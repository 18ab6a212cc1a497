//! The overview: one page, drawn here, that works without scripts, on a phone, with a keyboard, in light and dark, and
//! without a network beyond this node. With scripts it is kept up to date by `events`: the same functions draw the
//! first page and every later part of it, so the two cannot disagree.
//!
//! Colours never speak alone: every state is also a word. A ledger that does not know is never shown as good.

mod page;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::Admin;
use crate::api::{asset, only};

pub(crate) use page::{entry_html, fragments};

/// Nothing but our own files, and nobody may frame us.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn router() -> Router<Admin> {
    let style = || async { asset("text/css; charset=utf-8", include_str!("overview.css")) };
    let script = || async { asset("text/javascript; charset=utf-8", include_str!("overview.js")) };
    let icon = || async { asset("image/svg+xml", include_str!("icon.svg")) };
    Router::new()
        .route("/", only(&["GET", "HEAD"], get(overview)))
        .route("/assets/overview.css", only(&["GET", "HEAD"], get(style)))
        .route("/assets/overview.js", only(&["GET", "HEAD"], get(script)))
        .route("/assets/icon.svg", only(&["GET", "HEAD"], get(icon)))
}

async fn overview(State(admin): State<Admin>) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, page::render(admin.parts())).into_response()
}
