//! Packing events into messages: many per message is what makes the stream fast and durable at once.

use bytes::Bytes;
use serde_json::Value;

/// Most events of one message.
pub const EVENTS_PER_MESSAGE: usize = 100;
/// Most bytes of one message: below the stream's limit of 64 KiB, with room for the brackets.
const MESSAGE_BYTES_MAX: usize = 60_000;

/// Packs events into JSON arrays, at most `per_message` and 60 kB each.
pub fn pack(events: impl Iterator<Item = Value>, per_message: usize) -> impl Iterator<Item = (Bytes, usize)> {
    let mut events = events.map(|event| event.to_string()).peekable();
    std::iter::from_fn(move || {
        let mut body = events.next()?;
        body.insert(0, '[');
        let mut count = 1;
        while count < per_message {
            let Some(next) = events.next_if(|next| body.len() + next.len() < MESSAGE_BYTES_MAX) else {
                break;
            };
            body.push(',');
            body.push_str(&next);
            count += 1;
        }
        body.push(']');
        Some((Bytes::from(body), count))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_is_packed_once_and_no_message_is_too_long() {
        let events = (0..1_000).map(|number| json!({"number": number, "text": "x".repeat(number)}));
        let mut numbers = Vec::new();
        for (body, count) in pack(events, 100) {
            assert!(body.len() <= 65_536);
            let message: Vec<Value> = serde_json::from_slice(&body).unwrap();
            assert_eq!(message.len(), count);
            numbers.extend(message.iter().map(|event| event["number"].as_u64().unwrap()));
        }
        assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
    }
}
