//! Errors as `application/problem+json` (RFC 9457), with stable codes.

use std::borrow::Cow;
use std::fmt;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::edge;
use crate::store::StoreError;

/// A kind of problem; `code` never changes its meaning once published.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// HTTP status.
    pub status: StatusCode,
    /// What programs compare.
    pub code: &'static str,
    /// What people read: the same for every occurrence.
    pub title: &'static str,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal, $title:literal;)+) => {$(
        $(#[$doc])*
        pub static $name: Kind = Kind { status: StatusCode::$status, code: $code, title: $title };
    )+};
}

kinds! {
    /// The request's path, query or headers are not what the operation takes.
    INVALID_REQUEST = BAD_REQUEST, "invalid_request", "The request is not valid";
    /// The body is not JSON, or not of the operation's shape.
    INVALID_BODY = BAD_REQUEST, "invalid_body", "The body is not valid";
    /// A cursor that was edited, or belongs to another list, filter or key.
    INVALID_CURSOR = BAD_REQUEST, "invalid_cursor", "The cursor is not valid here";
    /// No key, or not a valid one.
    UNAUTHENTICATED = UNAUTHORIZED, "unauthenticated", "A valid API key is needed";
    /// The key's role may not call this.
    FORBIDDEN = FORBIDDEN, "forbidden", "The API key may not do this";
    /// No such object, or one of somebody else.
    NOT_FOUND = NOT_FOUND, "not_found", "There is no such object";
    /// No operation at this path.
    NO_ROUTE = NOT_FOUND, "no_route", "There is no such path";
    /// The path exists, the method does not.
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED, "method_not_allowed", "The path does not take this method";
    /// Neither JSON nor CSV would be accepted.
    NOT_ACCEPTABLE = NOT_ACCEPTABLE, "not_acceptable", "The answer cannot be had in this form";
    /// The body did not arrive in time.
    BODY_TIMEOUT = REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time";
    /// The state of an object does not allow this, or it exists already.
    CONFLICT = CONFLICT, "conflict", "The object's state does not allow this";
    /// An object with this name or id exists.
    ALREADY_EXISTS = CONFLICT, "already_exists", "It exists already";
    /// Price books in another currency than the customer is charged in.
    CURRENCY_CHANGE = CONFLICT, "currency_change", "A customer stays with its currency";
    /// A request with the same Idempotency-Key runs right now.
    IDEMPOTENCY_KEY_RUNNING = CONFLICT, "idempotency_key_running", "The first request with this key still runs";
    /// The body is above the limit.
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large";
    /// A Content-Type or Content-Encoding that is not taken here.
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body's form is not supported";
    /// Well formed, but not possible.
    INVALID_VALUE = UNPROCESSABLE_ENTITY, "invalid_value", "A value is not possible";
    /// What was asked for adds up to more than can be stated exactly.
    SUM_TOO_LARGE = UNPROCESSABLE_ENTITY, "sum_too_large", "The sums are too large to state";
    /// An answer with more rows than one may have.
    TOO_MANY_ROWS = UNPROCESSABLE_ENTITY, "too_many_rows", "The answer would have too many rows";
    /// Events, none of which can be recorded.
    NO_VALID_EVENT = UNPROCESSABLE_ENTITY, "no_valid_event", "No event is valid";
    /// The Idempotency-Key was used for another request.
    IDEMPOTENCY_KEY_REUSED = UNPROCESSABLE_ENTITY, "idempotency_key_reused", "The key was used for another request";
    /// A customer has as many requests underway as it may.
    TOO_MANY_REQUESTS = TOO_MANY_REQUESTS, "too_many_requests", "Too many requests at a time";
    /// Our fault.
    INTERNAL = INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side";
    /// The database or the stream does not answer.
    UNAVAILABLE = SERVICE_UNAVAILABLE, "unavailable", "Not available right now";
    /// What was recorded before the request is not in the sums yet.
    POSTING_BEHIND = SERVICE_UNAVAILABLE, "posting_behind", "Recorded usage is not in the sums yet";
    /// A forwarder's journal holds as much as it may.
    JOURNAL_FULL = INSUFFICIENT_STORAGE, "journal_full", "The journal holds as much as it may";
    /// A forwarder's disk takes no more.
    DISK_FULL = INSUFFICIENT_STORAGE, "disk_full", "The disk is full";
    /// The work took longer than a request may.
    TIMEOUT = SERVICE_UNAVAILABLE, "timeout", "The request took too long";
}

/// Seconds after which a client may try again what failed for a moment.
const RETRY_AFTER_SECONDS: u32 = 2;
/// The same of what took too long: not at once, because each try keeps the database as busy as the one before.
const TIMEOUT_RETRY_SECONDS: u32 = 30;

/// One field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field: `rates.input`, `[3].model`, or the name of a query parameter or header.
    pub field: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after_seconds: Option<u32>,
    /// Logged, never sent.
    cause: Option<Box<str>>,
}

/// The body of every error answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `urn:waybill:problem:<code>`
    #[serde(rename = "type")]
    #[schema(example = "urn:waybill:problem:not_found")]
    kind: String,
    /// The same for every problem of this code.
    #[schema(example = "There is no such object")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 404)]
    status: u16,
    /// Stable; what programs compare.
    #[schema(example = "not_found")]
    code: &'static str,
    /// This occurrence in a sentence.
    #[schema(example = "There is no such customer.")]
    detail: String,
    /// The fields that are wrong, where it is about fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Also in the `X-Request-Id` header and in our log.
    request_id: String,
}

impl Problem {
    /// A problem of a kind with its occurrence in a sentence.
    pub fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), retry_after_seconds: None, cause: None }
    }

    /// The answer for an object that does not exist or is somebody else's: `what` is its word, such as `customer`.
    pub fn not_found(what: &'static str) -> Self {
        Self::new(&NOT_FOUND, format!("There is no such {what}."))
    }

    /// A value of one field that is well formed but not possible.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(&INVALID_VALUE, "See `errors`.").with_error(field, detail)
    }

    /// The state of the object does not allow it.
    pub fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(&CONFLICT, detail)
    }

    /// Our fault: the cause is logged, the client gets a constant answer.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            cause: Some(cause.to_string().into_boxed_str()),
            ..Self::new(&INTERNAL, "The request could not be completed; the request id finds it in our log.")
        }
    }

    /// Usage so large that its sums cannot be stated exactly: never rounded or cut, and the cause is logged.
    pub fn sum_too_large(cause: impl fmt::Display) -> Self {
        Self {
            cause: Some(cause.to_string().into_boxed_str()),
            ..Self::new(
                &SUM_TOO_LARGE,
                "The usage in question adds up to more than 2^63 - 1 units of a class, or to an amount beyond what an \
                 invoice can hold; look for events with absurd quantities and correct them, or ask for less.",
            )
        }
    }

    /// Something we need does not answer: the cause is logged, the client may try again.
    pub fn unavailable(detail: &'static str, cause: impl fmt::Display) -> Self {
        Self {
            cause: Some(cause.to_string().into_boxed_str()),
            retry_after_seconds: Some(RETRY_AFTER_SECONDS),
            ..Self::new(&UNAVAILABLE, detail)
        }
    }

    /// The work took longer than it may; the client may try again later.
    pub fn timeout(detail: &'static str) -> Self {
        Self::new(&TIMEOUT, detail).retry_after(TIMEOUT_RETRY_SECONDS)
    }

    /// Adds a wrong field.
    #[must_use]
    pub fn with_error(mut self, field: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldError { field: field.into(), detail: detail.into() });
        self
    }

    /// Says when to try again.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The stable code.
    pub const fn code(&self) -> &'static str {
        self.kind.code
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// This occurrence in a sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The fields that are wrong.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            _ if error.too_large() => Self::sum_too_large(error),
            _ if error.not_storable() => {
                Self::new(&INVALID_VALUE, "A value holds a character or a time that cannot be stored.")
            }
            // No fault of the request, which is right again once the server has the zone back.
            _ if error.unknown_zone() => {
                Self::unavailable("The database does not know the time zone of a customer; GET /readyz names it.", error)
            }
            _ if error.timed_out() => Self {
                cause: Some(error.to_string().into_boxed_str()),
                ..Self::timeout(
                    "It took longer than it may, and nothing was changed; try again later, or ask for less at a time, \
                     for example a shorter interval.",
                )
            },
            StoreError::ShareTaken => Self::new(
                &TOO_MANY_REQUESTS,
                "The customer has as many requests underway as it may; wait for their answers, and send a few at a time.",
            )
            .retry_after(RETRY_AFTER_SECONDS),
            _ if error.retryable() => Self::unavailable("The database does not answer; try again.", error),
            _ => Self::internal(error),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let request_id = edge::request_id();
        if let Some(cause) = &self.cause {
            tracing::error!(request.id = %request_id, code = self.kind.code, cause = %cause, "request failed");
        }
        let body = ProblemBody {
            kind: format!("urn:waybill:problem:{}", self.kind.code),
            title: self.kind.title,
            status: self.kind.status.as_u16(),
            code: self.kind.code,
            detail: self.detail.into_owned(),
            errors: self.errors,
            request_id,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let content_type = HeaderValue::from_static("application/problem+json");
        let mut response = (self.kind.status, [(header::CONTENT_TYPE, content_type)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Turns a broken constraint into the client's error.
pub trait OnConstraint<T> {
    /// The problem that `problem` makes where exactly this constraint was broken; any other error as it is.
    ///
    /// # Errors
    /// Whatever failed.
    fn on_constraint(self, name: &str, problem: impl FnOnce() -> Problem) -> Result<T, Problem>;
}

impl<T> OnConstraint<T> for Result<T, StoreError> {
    fn on_constraint(self, name: &str, problem: impl FnOnce() -> Problem) -> Result<T, Problem> {
        self.map_err(|error| if error.constraint() == Some(name) { problem() } else { error.into() })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::Value;

    use super::*;

    async fn body(problem: Problem) -> Value {
        let response = problem.into_response();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        serde_json::from_slice(&to_bytes(response.into_body(), 10_000).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_names_its_code_and_fields() {
        let body = body(Problem::invalid("anchor_day", "must be 1 to 28")).await;
        assert_eq!(body["type"], "urn:waybill:problem:invalid_value");
        assert_eq!(body["status"], 422);
        assert_eq!(body["code"], "invalid_value");
        assert_eq!(body["errors"][0]["field"], "anchor_day");
    }

    #[tokio::test]
    async fn a_cause_on_our_side_is_not_shown() {
        let body = body(Problem::internal("relation \"secrets\" does not exist")).await;
        assert!(!body.to_string().contains("secrets"));
        assert_eq!(body["code"], "internal");
    }

    #[test]
    fn a_busy_database_asks_to_try_again() {
        let problem = Problem::from(StoreError::Database(sqlx::Error::PoolTimedOut));
        assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
        let response = problem.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }
}
