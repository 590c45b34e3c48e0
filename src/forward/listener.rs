//! What the gateway talks to: `POST /v1/events` as the API has it, and the probes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use uuid::Uuid;

use super::journal::{Journal, Refusal, Writer};
use super::stamp::{self, STAMP_BYTES_MAX};
use super::way::STREAM;
use super::{MESSAGE_BYTES_MAX, meters};
use crate::clock::Clock;
use crate::health::Health;
use crate::http::edge;
use crate::http::intake::{self, EventResult, Judged};
use crate::http::problem::{DISK_FULL, JOURNAL_FULL, METHOD_NOT_ALLOWED, NO_ROUTE, Problem, UNAVAILABLE};
use crate::ingest::Publisher;
use crate::metering::{self, Reason, Rejected};

/// Largest body, before and after decompression.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Largest event: alone, stamped and without compression it must fit into a message.
const EVENT_BYTES_MAX: usize = MESSAGE_BYTES_MAX - STAMP_BYTES_MAX;
/// The part that says whether events are accepted.
const JOURNAL: &str = "journal";
/// When to try again what is refused for now.
const RETRY_AFTER_SECONDS: u32 = 2;

/// What the listener works with; a clone shares it.
#[derive(Debug, Clone)]
pub struct Local {
    /// Whose events it takes.
    pub gateway: Arc<str>,
    /// Where they are kept.
    pub journal: Journal,
    /// What writes them there.
    pub writer: Arc<Writer>,
    /// The way to the stream.
    pub publisher: Publisher,
    /// What the parts say about themselves.
    pub health: Health,
    /// The time.
    pub clock: Clock,
}

impl Local {
    /// Every part by name, with the reason where it is down; nothing in here waits for the disk.
    pub fn parts(&self) -> BTreeMap<&'static str, Option<String>> {
        let mut parts = self.health.parts();
        parts.insert(JOURNAL, self.writer.refusal().map(|refusal| refusal.to_string()));
        if !self.publisher.connected() {
            parts.insert(STREAM, Some(format!("{}; events are kept", self.publisher.not_connected())));
        } else if !parts.contains_key(STREAM) {
            parts.insert(STREAM, None);
        }
        parts
    }
}

/// What became of a body of events.
#[derive(Debug, Serialize)]
struct Receipt {
    /// Names the count of this journal.
    epoch: Uuid,
    /// The number of the first accepted event; those after it follow without a gap.
    sequence: u64,
    accepted: usize,
    refused: usize,
    /// One per event, in the body's order.
    results: Vec<EventResult>,
}

/// Everything that a gateway may call.
pub fn router(local: Local) -> Router {
    let events = Router::new().route("/v1/events", post(take_events)).with_state(local.clone());
    finish(events.merge(probe_routes(local)))
}

/// The probes alone, for the listener of the metrics.
pub fn probes(local: Local) -> Router {
    probe_routes(local)
}

fn probe_routes(local: Local) -> Router {
    Router::new().route("/livez", get(async || "ok")).route("/readyz", get(readyz)).with_state(local)
}

fn finish(router: Router) -> Router {
    let router = router.fallback(no_route).method_not_allowed_fallback(method_not_allowed);
    edge::surround(router)
}

/// 202 says that every accepted event is on disk for certain.
async fn take_events(
    State(local): State<Local>,
    request: Request,
) -> Result<(StatusCode, Json<Receipt>), Problem> {
    let message = intake::read_message(request, BODY_BYTES_MAX).await?;
    let (mut judged, mut events): (Vec<Judged<'_>>, _) = (Vec::new(), Vec::new());
    for raw in message.events() {
        judged.push((raw, judge(raw, &local.gateway).map(|event| events.push(event))));
    }
    let accepted = events.len();
    let refused = judged.len() - accepted;
    if events.is_empty() {
        meters::accepted(0, refused);
        return Err(intake::nothing_valid(&judged));
    }
    let accepted_ms = local.clock.now().timestamp_millis();
    let appended = local.writer.append(events, accepted_ms).await.map_err(|refusal| {
        meters::accepted(0, judged.len());
        problem(&refusal)
    })?;
    meters::accepted(accepted, refused);
    let (epoch, results) = (local.journal.epoch(), intake::results(judged));
    Ok((StatusCode::ACCEPTED, Json(Receipt { epoch, sequence: appended.first, accepted, refused, results })))
}

/// The event as it is kept, if its envelope is one that can be recorded: what is in its data, whoever records it judges,
/// and keeps what is wrong as a rejection that finance sees.
fn judge(raw: &[u8], gateway: &str) -> Result<Vec<u8>, Rejected> {
    let outline = metering::parse_outline(raw)?;
    metering::admit_source(&outline.identity.source, gateway)?;
    let event = if outline.counted {
        // The count that shows what is lost is the journal's own: from here on nothing gets lost unnoticed.
        stamp::uncounted(raw).ok_or_else(|| Rejected::new(Reason::Json, "the event is not JSON"))?
    } else {
        raw.to_vec()
    };
    if event.len() > EVENT_BYTES_MAX {
        return Err(Rejected::new(
            Reason::TooLarge,
            format_args!("an event has at most {EVENT_BYTES_MAX} bytes; leave out what is not billed by"),
        ));
    }
    Ok(event)
}

fn problem(refusal: &Refusal) -> Problem {
    let kind = match refusal {
        Refusal::Full { .. } => &JOURNAL_FULL,
        Refusal::NoSpace => &DISK_FULL,
        Refusal::Failed(_) | Refusal::Busy | Refusal::Hangs(_) | Refusal::Stopping => &UNAVAILABLE,
    };
    let certain = !matches!(refusal, Refusal::Failed(_));
    let detail =
        if certain { format!("{refusal} Nothing of this body was accepted.") } else { refusal.to_string() };
    Problem::new(kind, detail).retry_after(RETRY_AFTER_SECONDS)
}

/// What works and what does not.
#[derive(Debug, Serialize)]
struct Readiness {
    /// Whether events are accepted: neither the stream nor the API is needed for that.
    ready: bool,
    parts: BTreeMap<&'static str, String>,
}

async fn readyz(State(local): State<Local>) -> (StatusCode, Json<Readiness>) {
    let parts = local.parts();
    let ready = parts.get(JOURNAL).is_none_or(Option::is_none);
    let parts =
        parts.into_iter().map(|(part, wrong)| (part, wrong.unwrap_or_else(|| "ok".to_owned()))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, parts }))
}

async fn no_route() -> Problem {
    Problem::new(&NO_ROUTE, "There is no such path; a forwarder takes POST /v1/events.")
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, format!("{} does not take {method}; see the Allow header.", uri.path()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::forward::EVENT_BYTES_MIN;

    #[test]
    fn no_event_that_is_taken_is_shorter_than_the_journal_supposes() {
        let shortest = r#"{"id":"i","source":"g","subject":"s","time":"2026-11-27T10:00:00Z","specversion":"","type":""}"#;
        let kept = judge(shortest.as_bytes(), "g").unwrap();
        assert!(kept.len() >= EVENT_BYTES_MIN, "{}", kept.len());
        let members: Map<String, Value> = serde_json::from_str(shortest).unwrap();
        for name in members.keys() {
            let mut fewer = members.clone();
            fewer.remove(name);
            assert!(judge(Value::from(fewer).to_string().as_bytes(), "g").is_err(), "without {name}");
        }
    }
}
