//! Events: what gateways without a NATS connection publish.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::AppState;
use crate::http::auth::{Auth, Gateway};
use crate::http::problem::{BODY_TOO_LARGE, INVALID_BODY, NO_VALID_EVENT, Problem, UNSUPPORTED_MEDIA_TYPE};
use crate::http::request::{media_type, read_body};
use crate::metering::{self, Message, Reason, Rejected};
use crate::store::api_keys::Holder;

/// Largest body, before and after decompression.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// What a body of events may be.
const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"];

/// The resource's routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(publish_events))
}

/// What became of a body of events.
#[derive(Debug, Serialize, ToSchema)]
struct Receipt {
    /// Sequence in the stream of the message that holds the accepted events.
    #[schema(example = 18_204)]
    sequence: u64,
    /// How many were accepted.
    #[schema(example = 1)]
    accepted: usize,
    /// How many were refused; they are not kept.
    #[schema(example = 0)]
    refused: usize,
    /// One per event, in the body's order.
    results: Vec<EventResult>,
}

/// What became of one event.
#[derive(Debug, Serialize, ToSchema)]
struct EventResult {
    /// Its position in the body, from 0.
    index: usize,
    /// Its id, where it could be read.
    #[schema(example = "0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d")]
    id: Option<String>,
    /// `accepted` or `refused`.
    #[schema(example = "accepted")]
    status: &'static str,
    /// Why it was refused, as a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    reason: Option<&'static str>,
    /// Why it was refused, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    detail: Option<String>,
}

/// Publish usage events
///
/// One CloudEvents object, or an array of up to 500; at most 64 KiB, `Content-Encoding: zstd` allowed. Events that can be
/// read, are from the key's gateway and within the acceptance window go to the stream as one message, and 202 says
/// that the stream has stored it. Whether customer and price are known shows when they are recorded; what is not, is a
/// rejection. Sending the same events again is safe: an event counts once by its `source` and `id`.
#[utoipa::path(post, path = "/v1/events", operation_id = "publish_events", tag = "events",
    request_body(description = "A usage or task event in CloudEvents 1.0 structured JSON, or an array of them", content(
        (serde_json::Value = "application/json", example = json!({
            "specversion": "1.0", "id": "0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d", "source": "gw-eu-1", "type": "llm.usage.v1",
            "subject": "acme", "time": "2026-11-23T10:00:00.123Z",
            "data": {"provider": "openai", "model": "gpt-5", "task": {"id": "refund-8812", "type": "refund"},
                "usage": {"input": 168, "cache_read": 3328, "output": 1327}}})),
        (serde_json::Value = "application/cloudevents+json"),
        (serde_json::Value = "application/cloudevents-batch+json"))),
    responses((status = 202, description = "Stored in the stream", body = Receipt)))]
async fn publish_events(
    State(state): State<AppState>,
    Auth { caller, .. }: Auth<Gateway>,
    request: Request,
) -> Result<(StatusCode, Json<Receipt>), Problem> {
    let Holder::Gateway { name, backfill_from, .. } = &caller.holder else {
        return Err(Problem::internal("a key without a gateway passed the gateway check"));
    };
    let message = read_message(request).await?;
    let now = state.clock.now();
    let judged: Vec<(&[u8], Result<(), Rejected>)> = message
        .events()
        .map(|raw| {
            let verdict = metering::parse_event(raw)
                .and_then(|event| metering::admit(&event, name, *backfill_from, now));
            (raw, verdict)
        })
        .collect();
    let accepted: Vec<&[u8]> =
        judged.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(raw, _)| *raw).collect();
    if accepted.is_empty() {
        return Err(nothing_valid(&judged));
    }
    let published = state.publisher.publish(name, joined(&accepted)).await.map_err(|error| {
        Problem::unavailable(
            "The stream did not confirm the events; send them again, copies count once.",
            error,
        )
    })?;
    let (accepted, refused) = (accepted.len(), judged.len() - accepted.len());
    let results =
        judged.into_iter().enumerate().map(|(index, (raw, verdict))| result(index, raw, verdict)).collect();
    Ok((StatusCode::ACCEPTED, Json(Receipt { sequence: published.sequence, accepted, refused, results })))
}

async fn read_message(request: Request) -> Result<Message, Problem> {
    let (parts, body) = request.into_parts();
    if !media_type(&parts.headers).is_some_and(|media| MEDIA_TYPES.contains(&media.as_str())) {
        return Err(Problem::new(
            &UNSUPPORTED_MEDIA_TYPE,
            format!("Send the events as {}.", MEDIA_TYPES.join(", ")),
        ));
    }
    let body = read_body(body, BODY_BYTES_MAX).await?;
    let message = metering::split(&body, content_encoding(&parts.headers)).map_err(unusable)?;
    if message.body().len() > BODY_BYTES_MAX {
        return Err(Problem::new(&BODY_TOO_LARGE, "The body is larger than 64 KiB once decompressed."));
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

fn nothing_valid(judged: &[(&[u8], Result<(), Rejected>)]) -> Problem {
    let problem = Problem::new(&NO_VALID_EVENT, "No event of the body can be recorded; see `errors`.");
    judged.iter().enumerate().fold(problem, |problem, (index, (_, verdict))| match verdict {
        Ok(()) => problem,
        Err(rejected) => problem
            .with_error(format!("[{index}]"), format!("{}: {}", rejected.reason.as_str(), rejected.detail)),
    })
}

/// A message of the accepted events, their bytes untouched; never longer than the body they came in.
fn joined(events: &[&[u8]]) -> Bytes {
    if let [event] = events {
        return Bytes::copy_from_slice(event);
    }
    let mut body = Vec::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 1);
    for (index, event) in events.iter().enumerate() {
        body.push(if index == 0 { b'[' } else { b',' });
        body.extend_from_slice(event);
    }
    body.push(b']');
    body.into()
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
    fn accepted_events_travel_as_they_came() {
        assert_eq!(joined(&[b"{\"a\": 1}"]), Bytes::from_static(b"{\"a\": 1}"));
        assert_eq!(joined(&[b"{}", b"{ }"]), Bytes::from_static(b"[{},{ }]"));
    }

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
