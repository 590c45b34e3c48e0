//! The wire format as a whole, through the same door as the consumer: bytes in, events or reasons out.

mod captures;
mod hashes;
mod payloads;
mod properties;
mod schema;
mod vectors;
mod wire;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Reason, Rejected, parse_event, redact};
use crate::domain::event::{Report, Usage, UsageEvent, UsagePart};

/// A valid usage event with this data.
fn event_with(data: &Value) -> Value {
    json!({
        "specversion": "1.0", "id": "0198c3a2-6f2e-7c4b-9f1a-0242ac120002", "source": "gw-eu-1/pod-3",
        "type": "llm.usage.v1", "subject": "acme", "time": "2026-11-23T10:00:00.123Z", "data": data,
    })
}

/// A valid usage event with explicit classes.
fn plain_event() -> Value {
    event_with(&json!({
        "provider": "openai", "model": "gpt-5", "usage": {"input": 168, "cache_read": 3328, "output": 1327},
    }))
}

fn parse(event: &Value) -> Result<UsageEvent, Rejected> {
    parse_bytes(event.to_string().as_bytes())
}

/// Reads an event, and proves that it reads the same once its texts are cut.
fn parse_bytes(event: &[u8]) -> Result<UsageEvent, Rejected> {
    let parsed = parse_event(event);
    let redacted = redact(event);
    let reason =
        |result: &Result<UsageEvent, Rejected>| result.as_ref().err().map(|rejected| rejected.reason);
    let again = parse_event(&redacted);
    assert_eq!(again.as_ref().ok(), parsed.as_ref().ok(), "{}", String::from_utf8_lossy(&redacted));
    assert_eq!(reason(&again), reason(&parsed), "{}", String::from_utf8_lossy(&redacted));
    parsed
}

fn reason(event: &Value) -> Result<(), Reason> {
    parse(event).map(|_| ()).map_err(|rejected| rejected.reason)
}

fn usage(event: &UsageEvent) -> &Usage {
    match &event.report {
        Report::Usage(usage) => usage,
        Report::Outcome(_) => panic!("a usage event was read as an outcome"),
    }
}

/// Files that are shared between checkouts: `$WAYBILL_SHARED`, or `shared` beside or above this one. Without them the
/// tests that need them say so and pass; in CI they fail.
fn shared(path: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("WAYBILL_SHARED").map(PathBuf::from);
    let places = named.into_iter().chain([root.join("../shared"), root.join("../../shared")]);
    let found = places.map(|place| place.join(path)).find_map(|file| std::fs::read_to_string(file).ok());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{path} is missing; set WAYBILL_SHARED to where it is");
        eprintln!("SKIPPED: {path} is missing; set WAYBILL_SHARED to where it is");
    }
    found
}

/// The parts of a provider's payload, read through the wire format.
fn parts_of(format: &str, body: &Value) -> Result<Vec<UsagePart>, Rejected> {
    let data = json!({"provider": "p", "model": "m", "provider_usage": {"format": format, "body": body}});
    parse(&event_with(&data)).map(|event| usage(&event).parts.clone())
}
