//! A body of usage events: reading it, judging each event of it, and saying what became of each. What `POST /v1/events` takes,
//! here and at a forwarder beside a gateway.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::{BODY_TOO_LARGE, INVALID_BODY, NO_VALID_EVENT, Problem, UNSUPPORTED_MEDIA_TYPE};
use super::request::{media_type, read_body};
use crate::metering::{self, Message, Reason, Rejected};

/// What a body of events may be.
const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"];

/// One event of a body: its bytes, and whether it is taken.
pub type Judged<'a> = (&'a [u8], Result<(), Rejected>);

/// What became of one event.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventResult {
    /// Its position in the body, from 0.
    pub index: usize,
    /// Its id, where it could be read.
    #[schema(example = "0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d")]
    pub id: Option<String>,
    /// `accepted` or `refused`.
    #[schema(example = "accepted")]
    pub status: &'static str,
    /// Why it was refused, as a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub reason: Option<&'static str>,
    /// Why it was refused, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub detail: Option<String>,
}

/// Reads a body of at most `bytes_max` bytes, before and after decompression, and finds its events.
///
/// # Errors
/// A problem where it is of another form, too large, too slow, or cannot be taken apart.
pub async fn read_message(request: Request<Body>, bytes_max: usize) -> Result<Message, Problem> {
    let (parts, body) = request.into_parts();
    if !media_type(&parts.headers).is_some_and(|media| MEDIA_TYPES.contains(&media.as_str())) {
        return Err(Problem::new(
            &UNSUPPORTED_MEDIA_TYPE,
            format!("Send the events as {}.", MEDIA_TYPES.join(", ")),
        ));
    }
    let body = read_body(body, bytes_max).await?;
    let message = metering::split(&body, content_encoding(&parts.headers)).map_err(unusable)?;
    if message.body().len() > bytes_max {
        let detail = format!("The body is larger than {} KiB once decompressed.", bytes_max / 1024);
        return Err(Problem::new(&BODY_TOO_LARGE, detail));
    }
    Ok(message)
}

/// The header's text; one that is no text names no encoding that is known.
fn content_encoding(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"))
}

/// A body that could not be taken apart.
fn unusable(rejected: Rejected) -> Problem {
    let kind = match rejected.reason {
        Reason::TooLarge | Reason::TooMany => &BODY_TOO_LARGE,
        Reason::Encoding => &UNSUPPORTED_MEDIA_TYPE,
        _ => &INVALID_BODY,
    };
    Problem::new(kind, rejected.detail)
}

/// The problem with a body none of whose events is taken; it names each.
pub fn nothing_valid(judged: &[Judged<'_>]) -> Problem {
    let problem = Problem::new(&NO_VALID_EVENT, "No event of the body can be recorded; see `errors`.");
    judged.iter().enumerate().fold(problem, |problem, (index, (_, verdict))| match verdict {
        Ok(()) => problem,
        Err(rejected) => problem
            .with_error(format!("[{index}]"), format!("{}: {}", rejected.reason.as_str(), rejected.detail)),
    })
}

/// What became of each event, in the body's order.
pub fn results(judged: Vec<Judged<'_>>) -> Vec<EventResult> {
    judged.into_iter().enumerate().map(|(index, (raw, verdict))| result(index, raw, verdict)).collect()
}

fn result(index: usize, raw: &[u8], verdict: Result<(), Rejected>) -> EventResult {
    let id = metering::hints(raw).id;
    match verdict {
        Ok(()) => EventResult { index, id, status: "accepted", reason: None, detail: None },
        Err(rejected) => EventResult {
            index,
            id,
            status: "refused",
            reason: Some(rejected.reason.as_str()),
            detail: Some(rejected.detail),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_cannot_be_taken_apart_has_a_fitting_status() {
        for (body, encoding, code) in [
            (b"".as_slice(), None, "invalid_body"),
            (b"[{},", None, "invalid_body"),
            (b"{}", Some("gzip"), "unsupported_media_type"),
        ] {
            let problem = unusable(metering::split(body, encoding).unwrap_err());
            assert_eq!(problem.code(), code);
        }
    }
}
