//! The wire format as a whole, through the same door as the consumer: bytes in, events or reasons out.

mod payloads;
mod wire;

use serde_json::{Value, json};

use super::{Reason, Rejected, parse_event};
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
    parse_event(event.to_string().as_bytes())
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

/// The parts of a provider's payload, read through the wire format.
fn parts_of(format: &str, body: &Value) -> Result<Vec<UsagePart>, Rejected> {
    let data = json!({"provider": "p", "model": "m", "provider_usage": {"format": format, "body": body}});
    parse(&event_with(&data)).map(|event| usage(&event).parts.clone())
}
