//! Events: what gateways without a NATS connection publish.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::AppState;
use crate::http::auth::{Auth, Gateway};
use crate::http::intake::{self, EventResult, Judged};
use crate::http::problem::Problem;
use crate::metering;
use crate::store::api_keys::Holder;

/// Largest body, before and after decompression.
const BODY_BYTES_MAX: usize = 64 * 1024;

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

/// Publish usage events
///
/// One CloudEvents object, or an array of up to 500; at most 64 KiB, also once decompressed, where it is sent with
/// `Content-Encoding: zstd`. Events that can be read, are from the key's gateway and within the acceptance window go to the
/// stream as one message, and 202 says that the stream has stored it. Whether customer and price are known shows when they are
/// recorded; what is not, is a rejection. Sending the same events again is safe: an event counts once by its `source` and
/// `id`.
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
    let message = intake::read_message(request, BODY_BYTES_MAX).await?;
    let now = state.clock.now();
    let judged: Vec<Judged<'_>> = message
        .events()
        .map(|raw| {
            let verdict = metering::parse_event(raw)
                .and_then(|event| metering::admit(&event, name, *backfill_from, now, now));
            (raw, verdict)
        })
        .collect();
    let accepted: Vec<&[u8]> =
        judged.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(raw, _)| *raw).collect();
    if accepted.is_empty() {
        return Err(intake::nothing_valid(&judged));
    }
    if !state.publisher.connected() {
        // The client would keep it and send it later, for a caller who was told that it is not stored.
        return Err(Problem::unavailable(
            "The stream cannot be reached: nothing was stored; send the events again.",
            state.publisher.not_connected(),
        ));
    }
    let published = state.publisher.publish(name, joined(&accepted)).await.map_err(|error| {
        Problem::unavailable(
            "The stream did not confirm the events; send them again, copies count once.",
            error,
        )
    })?;
    let (accepted, refused) = (accepted.len(), judged.len() - accepted.len());
    let results = intake::results(judged);
    Ok((StatusCode::ACCEPTED, Json(Receipt { sequence: published.sequence, accepted, refused, results })))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_events_travel_as_they_came() {
        assert_eq!(joined(&[b"{\"a\": 1}"]), Bytes::from_static(b"{\"a\": 1}"));
        assert_eq!(joined(&[b"{}", b"{ }"]), Bytes::from_static(b"[{},{ }]"));
    }
}
