//! What a call is answered with: status, content type and body, oddities included.

use super::json::quote;

const JSON: &str = "application/json";
/// Errors are JSON that calls itself text: clients have parsed it so for years.
const TEXT: &str = "text/plain; charset=utf-8";

/// An answer of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The content type, where there is a body.
    pub content_type: Option<&'static str>,
    /// Whether browsers are told not to guess a type: on whatever is an error.
    pub nosniff: bool,
    /// The body.
    pub body: String,
}

impl Answer {
    pub(super) fn json(status: u16, body: String) -> Self {
        Self { status, content_type: Some(JSON), nosniff: false, body }
    }

    pub(super) fn typed(content_type: &'static str, body: String) -> Self {
        Self { status: 200, content_type: Some(content_type), nosniff: false, body }
    }

    /// A status and nothing else.
    pub(super) fn empty(status: u16) -> Self {
        Self { status, content_type: None, nosniff: false, body: String::new() }
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        Self { status, content_type: Some(TEXT), nosniff: true, body: body.to_owned() }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ApiError {
    pub(super) status: u16,
    pub(super) text: String,
}

impl ApiError {
    pub(super) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// With what Go's decoder says.
    pub(super) fn body(told: &str) -> Self {
        Self::new(400, format!("bad request body: {told}"))
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(400, format!("missing required field: {field}"))
    }

    pub(super) fn answer(&self) -> Answer {
        Answer::text(self.status, &format!("{{{}}}\n", self.members()))
    }

    pub(super) fn members(&self) -> String {
        format!("\"error\":{},\"status\":{}", quote(&self.text), self.status)
    }
}

impl From<Result<Answer, ApiError>> for Answer {
    fn from(result: Result<Self, ApiError>) -> Self {
        result.unwrap_or_else(|error| error.answer())
    }
}
