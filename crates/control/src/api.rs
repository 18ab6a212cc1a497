//! The JSON endpoints. What the caller got wrong is told with the field and what would be allowed there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query as UrlQuery, RawQuery, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jiff::Timestamp;
use seawall_core::id::RecordId;
use seawall_core::journal::chain::{Anchor, Verified};
use seawall_core::journal::{Draft, Entry, Kind, Seq};
use seawall_core::ledger::{Counted, Place, Receipts};
use seawall_core::spool::State as RecordState;
use seawall_core::spool::index::Outcome;
use seawall_core::time::Wall;
use seawall_core::units::format_size;
use seawall_store::{Account, Query, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::parts::{AdminParts, LedgerRefusal};
use crate::text::rfc3339;
use crate::{Admin, Status};

/// Bytes of a request body: the largest batch of receipts has about 16 MiB.
pub const BODY_BYTES_MAX: usize = 32 << 20;
/// Entries or records in one answer.
pub const LIMIT_MAX: usize = 1_000;
/// A body must be complete after this long.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Characters of a reason somebody gives.
const REASON_CHARS_MAX: usize = 256;
pub(crate) const REASON_ALLOWED: &str = "1 to 256 characters";

/// Endpoints for whoever watches over processes: no token is asked.
pub(crate) fn probes() -> Router<Admin> {
    Router::new()
        .route("/healthz", only(&["GET", "HEAD"], get(healthz)))
        .route("/readyz", only(&["GET", "HEAD"], get(readyz)))
}

pub(crate) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/status", only(&["GET", "HEAD"], get(status)))
        .route("/api/journal", only(&["GET", "HEAD"], get(journal)))
        .route("/api/journal/verify", only(&["GET", "HEAD"], get(journal_verify)))
        .route("/api/spool", only(&["GET", "HEAD"], get(spool)))
        .route("/api/spool/adopt", only(&["POST"], post(crate::adopt::adopt)))
        .route("/api/spool/{id}", only(&["GET", "HEAD"], get(spool_record)))
        .route("/api/spool/{id}/retry", only(&["POST"], post(spool_retry)))
        .route("/api/spool/{id}/discard", only(&["POST"], post(spool_discard)))
        .route("/api/ledger", only(&["GET", "HEAD"], get(ledger)))
        .route("/api/ledger/census", only(&["GET", "HEAD"], get(ledger_census)))
        .route("/api/ledger/receipts", only(&["POST"], post(ledger_receipts)))
        .route("/api/ledger/seal", only(&["POST"], post(ledger_seal)))
}

/// Answers other methods with 405 and the ones there are.
pub(crate) fn only(methods: &'static [&'static str], handler: MethodRouter<Admin>) -> MethodRouter<Admin> {
    handler.fallback(async move |method: Method| {
        let message = format!("`{method}` does not apply here");
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message).allowed(methods.iter().copied());
        let mut response = refusal.into_response();
        if let Ok(allow) = HeaderValue::from_str(&methods.join(", ")) {
            response.headers_mut().insert(ALLOW, allow);
        }
        response
    })
}

pub(crate) async fn no_such_path(uri: Uri) -> Refusal {
    let paths = [
        "/",
        "/events",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/status",
        "/api/journal",
        "/api/spool",
        "/api/ledger",
        "/api/faults",
        "/api/drain",
        "/api/resume",
        "/api/reload",
    ];
    Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at `{}`", uri.path())).allowed(paths)
}

/// A bad call: the answer is a 4xx or 5xx with the rule, the field and what would be allowed.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: String,
    field: Option<Cow<'static, str>>,
    allowed: Vec<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), field: None, allowed: Vec::new() }
    }

    pub(crate) fn bad(field: impl Into<Cow<'static, str>>, error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error).field(field)
    }

    pub(crate) fn field(self, field: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    pub(crate) fn allowed<'a>(self, allowed: impl IntoIterator<Item = &'a str>) -> Self {
        Self { allowed: allowed.into_iter().map(Into::into).collect(), ..self }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.error });
        if let Some(field) = self.field {
            body["field"] = field.into();
        }
        if !self.allowed.is_empty() {
            body["allowed"] = self.allowed.into();
        }
        let mut response = (self.status, fresh(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::NotFound { .. } => StatusCode::NOT_FOUND,
            StoreError::NotHere { .. } | StoreError::NotParked { .. } => StatusCode::CONFLICT,
            StoreError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Read { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            StoreError::Stopped { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        Self::new(status, format!("{error}{hint}"))
    }
}

impl From<LedgerRefusal> for Refusal {
    fn from(refusal: LedgerRefusal) -> Self {
        match refusal {
            LedgerRefusal::Invalid { field, message } => Self::bad(field, message),
            LedgerRefusal::Gap { expected } => {
                let message = format!("a batch is missing: batch {expected} comes next");
                Self::new(StatusCode::CONFLICT, message).field("batch").allowed([expected.to_string().as_str()])
            }
            LedgerRefusal::Unavailable { message } => Self::new(StatusCode::SERVICE_UNAVAILABLE, message),
        }
    }
}

/// JSON that nobody may keep: the next moment says something else.
pub(crate) fn fresh(body: impl Serialize) -> Response {
    ([(CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

/// The parameters of a URL: each known, each once, each of its kind.
pub(crate) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    pub(crate) fn read(query: RawQuery, known: &[&'static str]) -> Result<Self, Refusal> {
        let uri: Uri = format!("/?{}", query.0.unwrap_or_default())
            .parse()
            .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the query of the URL cannot be read"))?;
        let pairs: Vec<(String, String)> = UrlQuery::try_from_uri(&uri)
            .map(|UrlQuery(pairs)| pairs)
            .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the query of the URL cannot be read"))?;
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let refusal = Refusal::new(StatusCode::BAD_REQUEST, format!("unknown parameter `{name}`"));
                return Err(refusal.allowed(known.iter().copied()));
            }
            if parameters.insert(name.clone(), value).is_some() {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("`{name}` is given twice")));
            }
        }
        Ok(Self(parameters))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Refusal::bad(name, format!("`{text}` is not a whole number")))
    }

    fn time(&self, name: &'static str) -> Result<Option<Wall>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let millis = text.parse::<Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
        let example = || Refusal::bad(name, format!("`{text}` is no time")).allowed(["2026-11-25T13:00:00Z"]);
        millis.map(|millis| Some(Wall::from_millis(millis))).ok_or_else(example)
    }

    fn limit(&self, default: usize) -> Result<usize, Refusal> {
        match self.number("limit")? {
            None => Ok(default),
            Some(limit) if (1..=LIMIT_MAX as u64).contains(&limit) => Ok(limit as usize),
            Some(limit) => {
                let range = format!("1 to {LIMIT_MAX}");
                Err(Refusal::bad("limit", format!("`{limit}` is out of range")).allowed([range.as_str()]))
            }
        }
    }

    /// A value out of a few, told when it is none of them.
    fn one_of<T: FromStr>(&self, name: &'static str, allowed: &[&str]) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let unknown = |_| Refusal::bad(name, format!("`{text}` is not known")).allowed(allowed.iter().copied());
        text.parse().map(Some).map_err(unknown)
    }
}

async fn healthz() -> Response {
    fresh(json!({ "status": "ok" }))
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match (admin.parts().ready)() {
        Ok(()) => fresh(json!({ "ready": true })),
        Err(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, fresh(json!({ "ready": false, "reason": reason }))).into_response()
        }
    }
}

async fn status(State(admin): State<Admin>) -> Response {
    fresh(Status::of(admin.parts()))
}

/// An entry as people read it: what `/api/journal` lists.
#[must_use]
pub fn entry_json(entry: &Entry) -> Value {
    json!({
        "seq": entry.seq, "at": rfc3339(entry.at), "kind": entry.kind, "subject": entry.subject, "cause": entry.cause,
        "fields": entry.fields,
    })
}

/// With `after` or `since`, the entries that follow, so that a reader misses none; without, the newest.
async fn journal(State(admin): State<Admin>, query: RawQuery) -> Result<Response, Refusal> {
    let parameters = Parameters::read(query, &["after", "limit", "kind", "subject", "cause", "since", "until"])?;
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let wanted = Query {
        after: parameters.number("after")?.unwrap_or(0),
        kind: parameters.one_of("kind", &kinds)?,
        subject: parameters.text("subject").map(Into::into),
        cause: parameters.number("cause")?.map(Seq),
        since: parameters.time("since")?,
        until: parameters.time("until")?,
        limit: parameters.limit(100)?,
        newest: parameters.text("after").is_none() && parameters.text("since").is_none(),
    };
    let found = admin.parts().journal.query(wanted).await?;
    let entries: Vec<Value> = found.iter().map(entry_json).collect();
    Ok(fresh(json!({ "entries": entries })))
}

/// Walks along the journal's chain on the disk; with `anchor`, also holds it against an entry's tag kept elsewhere.
async fn journal_verify(State(admin): State<Admin>, query: RawQuery) -> Result<Response, Refusal> {
    let parameters = Parameters::read(query, &["anchor"])?;
    let anchor = parameters.text("anchor").map(str::parse::<Anchor>).transpose();
    let anchor = anchor.map_err(|error| Refusal::bad("anchor", error.to_string()))?;
    Ok(fresh(verified_json(&admin.parts().journal.verify(anchor).await?)))
}

/// What a walk along the chain found, as `/api/journal/verify` tells it.
pub fn verified_json(verified: &Verified) -> Value {
    let mut json = json!(verified);
    json["holds"] = verified.holds().into();
    json
}

struct ListedState(RecordState);

impl FromStr for ListedState {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let listed = [RecordState::Waiting, RecordState::Leased, RecordState::Parked];
        listed.into_iter().find(|state| state.name() == name).map(Self).ok_or(())
    }
}

async fn spool(State(admin): State<Admin>, query: RawQuery) -> Result<Response, Refusal> {
    let parameters = Parameters::read(query, &["state", "limit", "after"])?;
    let after = RecordId(parameters.number("after")?.unwrap_or(0));
    let state = parameters.one_of::<ListedState>("state", &["waiting", "leased", "parked"])?;
    let (parts, limit) = (admin.parts(), parameters.limit(100)?);
    let accounts = parts.spool.list_above(after, state.map(|state| state.0), limit).await?;
    let now = (parts.wall)();
    let records: Vec<Value> = accounts.iter().map(|account| account_json(account, now)).collect();
    Ok(fresh(json!({ "records": records })))
}

/// Everything about a record but its payload and the values of its headers, which may be secrets: what `/api/spool`
/// lists.
#[must_use]
pub fn account_json(account: &Account, now: Wall) -> Value {
    let mut body = json!({
        "id": account.id, "state": account.state, "attempts": account.record.as_ref().map(|_| account.attempts), "last_error": account.last_error,
        "parked": null, "settled": null,
    });
    if let Some(parked) = &account.parked {
        body["parked"] = json!({ "reason": parked.reason, "last_words": parked.last_words, "at": rfc3339(parked.at) });
    }
    if let Some(settled) = &account.settled {
        body["settled"] = match &settled.outcome {
            Outcome::Delivered { status } => json!({ "status": status, "at": rfc3339(settled.at) }),
            Outcome::Discarded { reason } => json!({ "reason": reason, "at": rfc3339(settled.at) }),
            Outcome::Expired => json!({ "reason": "expired", "at": rfc3339(settled.at) }),
            Outcome::HandedOver { to } => json!({ "handed_over": to, "at": rfc3339(settled.at) }),
        };
    }
    if let Some(record) = &account.record {
        let order_key = record.order_key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        let headers: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
        // What keeps the keys of routes and callers apart stands before it, on lines of its own.
        let key = record.idempotency_key.rsplit('\n').next();
        let facts = json!({
            "upstream": record.upstream, "route": record.route, "order_key": order_key,
            "idempotency_key": key, "method": record.method, "target": record.target,
            "headers": headers, "body_bytes": record.body.len(), "accepted": rfc3339(record.accepted),
            "age_s": now.since(record.accepted).as_secs_f64(), "first_failure": record.first_failure,
            "record": record.ledger,
        });
        if let (Value::Object(body), Value::Object(facts)) = (&mut body, facts) {
            body.extend(facts);
        }
    }
    body
}

fn parse_id(text: &str) -> Result<RecordId, Refusal> {
    let number = text.parse::<u64>().ok().filter(|number| *number > 0);
    number.map(RecordId).ok_or_else(|| Refusal::bad("id", format!("`{text}` is not the number of a record")))
}

async fn find(parts: &AdminParts, id: &str) -> Result<Account, Refusal> {
    let id = parse_id(id)?;
    Ok(parts.spool.get(id).await?.ok_or(StoreError::NotFound { id })?)
}

async fn spool_record(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let account = find(parts, &id).await?;
    Ok(fresh(account_json(&account, (parts.wall)())))
}

async fn spool_retry(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let parts = admin.parts();
    let account = find(parts, &id).await?;
    parts.spool.retry(account.id).await?;
    note(parts, &account, Kind::RecordRetried, Place::Waiting, None);
    Ok(fresh(json!({ "id": account.id, "state": RecordState::Waiting })))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Discard {
    reason: String,
}

async fn spool_discard(State(admin): State<Admin>, Path(id): Path<String>, body: Body) -> Result<Response, Refusal> {
    let Discard { reason } = read_json(body, "reason").await?;
    let reason = reason_of(&reason)?;
    let parts = admin.parts();
    let account = find(parts, &id).await?;
    parts.spool.discard(account.id, reason).await?;
    note(parts, &account, Kind::RecordDiscarded, Place::Discarded, Some(reason));
    Ok(fresh(json!({ "id": account.id, "state": RecordState::Discarded })))
}

/// Why somebody does something: not nothing, and not a novel.
pub(crate) fn reason_of(text: &str) -> Result<&str, Refusal> {
    let reason = text.trim();
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        let message = format!("say why, in {REASON_CHARS_MAX} characters at most: the journal keeps it");
        return Err(Refusal::bad("reason", message).allowed([REASON_ALLOWED]));
    }
    Ok(reason)
}

/// A person moved a record: the ledger and the journal learn of it.
fn note(parts: &AdminParts, account: &Account, kind: Kind, to: Place, reason: Option<&str>) {
    let record = account.record.as_ref();
    if let Some(stamp) = record.and_then(|record| record.ledger.as_deref()) {
        parts.ledger.moved(stamp, to);
    }
    let mut draft = Draft::new(kind, format!("record:{}", account.id)).with("attempts", account.attempts);
    if let Some(record) = record {
        draft = draft.with("upstream", &record.upstream).with("route", &record.route);
    }
    if let Some(reason) = reason {
        draft = draft.with("reason", reason);
    }
    parts.journal.record(draft);
}

async fn ledger(State(admin): State<Admin>) -> Response {
    fresh(admin.parts().ledger.summary())
}

/// Which keys a stream accepted in a time, to be compared with what a sink holds: `seawall ledger reconcile`.
async fn ledger_census(State(admin): State<Admin>, query: RawQuery) -> Result<Response, Refusal> {
    let parameters = Parameters::read(query, &["stream", "since", "until"])?;
    let required = |name: &'static str| Refusal::bad(name, format!("`{name}` is missing"));
    let stream = parameters.text("stream").ok_or_else(|| required("stream"))?;
    let second = |name| {
        let at = parameters.time(name)?.ok_or_else(|| required(name))?;
        Ok::<u64, Refusal>(at.as_millis() / 1000)
    };
    let ledger = &admin.parts().ledger;
    let Some(counted) = ledger.census(stream, second("since")?, second("until")?) else {
        let message = format!("no record of a stream `{stream}` was accepted here in the last day");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message).field("stream"));
    };
    let Counted { since, until, is_complete, census } = counted;
    let time = |second: u64| rfc3339(Wall::from_millis(second.saturating_mul(1000)));
    let salt: String = ledger.salt().0.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(fresh(json!({
        "stream": stream, "since": time(since), "until": time(until), "is_complete": is_complete, "salt": salt,
        "census": census,
    })))
}

async fn ledger_receipts(State(admin): State<Admin>, body: Body) -> Result<Response, Refusal> {
    let batch: Receipts = read_json(body, "receipts").await?;
    let accepted = admin.parts().ledger.receipts(batch).await?;
    Ok(fresh(json!({ "accepted": accepted })))
}

async fn ledger_seal(State(admin): State<Admin>) -> Result<Response, Refusal> {
    Ok(fresh(admin.parts().ledger.seal().await?))
}

/// A body as JSON of the kind wanted. The media type is not asked: whoever sends JSON means JSON.
async fn read_json<T: DeserializeOwned>(body: Body, field: &'static str) -> Result<T, Refusal> {
    let bytes = read_body(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = error.to_string();
        // serde names the field between backticks: "missing field `batch`".
        let named = |name: &&str| message.contains(&format!("`{name}`"));
        let field = ["sink", "batch", "receipts", "reason"].into_iter().find(named).unwrap_or(field);
        Refusal::bad(field, format!("the body is not what was expected: {message}"))
    })
}

async fn read_body(body: Body) -> Result<Bytes, Refusal> {
    read_body_within(body, BODY_BYTES_MAX).await
}

pub(crate) async fn read_body_within(body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body has more than {bytes_max} bytes");
            let allowed = format!("at most {}", format_size(bytes_max as u64));
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message).field("body").allowed([allowed.as_str()]))
        }
        Ok(Err(error)) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// A fixed text with its media type, for assets.
pub(crate) fn asset(content_type: &'static str, text: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache")];
    (headers, text).into_response()
}
