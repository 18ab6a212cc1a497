//! Requests and answers as they pass through: a head and a body.
//!
//! The `http` crate's own keep fields in a table, and room for whatever anybody wants to hang on them; these are small,
//! as they are moved from hand to hand on the way of every call.

use http::{Method, StatusCode, Uri, Version, request, response};
use hyper::ext::ReasonPhrase;

use super::answer::Ours;
use super::fields::Fields;

/// A request's head.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: Fields,
}

impl RequestHead {
    pub(crate) fn new(method: Method, uri: Uri) -> Self {
        Self { method, uri, version: Version::HTTP_11, headers: Fields::new() }
    }
}

impl From<request::Parts> for RequestHead {
    fn from(parts: request::Parts) -> Self {
        Self { method: parts.method, uri: parts.uri, version: parts.version, headers: parts.headers.into() }
    }
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request<B> {
    pub(crate) head: RequestHead,
    pub(crate) body: B,
}

impl<B> Request<B> {
    pub(crate) fn new(method: Method, uri: Uri, body: B) -> Self {
        Self { head: RequestHead::new(method, uri), body }
    }
}

/// An answer's head.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: Fields,
    /// The words beside the status, where they are not the usual ones.
    pub(crate) reason: Option<Box<ReasonPhrase>>,
    /// It is one of our own.
    pub(crate) ours: Option<Box<Ours>>,
}

impl ResponseHead {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, version: Version::HTTP_11, headers: Fields::new(), reason: None, ours: None }
    }
}

impl From<response::Parts> for ResponseHead {
    fn from(parts: response::Parts) -> Self {
        Self { version: parts.version, headers: parts.headers.into(), ..Self::new(parts.status) }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response<B> {
    pub(crate) head: ResponseHead,
    pub(crate) body: B,
}

impl<B> Response<B> {
    pub(crate) fn new(status: StatusCode, body: B) -> Self {
        Self { head: ResponseHead::new(status), body }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.head.status
    }

    pub(crate) fn headers(&self) -> &Fields {
        &self.head.headers
    }

    pub(crate) fn headers_mut(&mut self) -> &mut Fields {
        &mut self.head.headers
    }

    /// With another body.
    pub(crate) fn map<C>(self, make: impl FnOnce(B) -> C) -> Response<C> {
        Response { head: self.head, body: make(self.body) }
    }
}
