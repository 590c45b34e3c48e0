//! Packing events into messages: many per message is what makes the stream fast and durable at once.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

/// Most events of one message.
pub const EVENTS_PER_MESSAGE: usize = 100;
/// Longest time that an event waits for its message to fill.
const LINGER: Duration = Duration::from_millis(10);
/// zstd level of compressed messages.
const ZSTD_LEVEL: i32 = 1;
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

/// How many events of a steady stream one message takes: no event waits longer than the linger for its message.
pub fn per_message(events_per_second: u32) -> usize {
    let made = u128::from(events_per_second) * LINGER.as_millis() / 1_000;
    usize::try_from(made).unwrap_or(usize::MAX).clamp(1, EVENTS_PER_MESSAGE)
}

/// A message as it travels with `Content-Encoding: zstd`: an eighth of its size for about a microsecond an event.
///
/// # Errors
/// Whatever the compressor says.
pub fn compressed(body: &[u8]) -> std::io::Result<Bytes> {
    Ok(zstd::bulk::compress(body, ZSTD_LEVEL)?.into())
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

    #[test]
    fn no_event_waits_longer_than_the_linger() {
        for (rate, packed) in [(1, 1), (100, 1), (1_000, 10), (9_999, 99), (10_000, 100), (u32::MAX, 100)] {
            assert_eq!(per_message(rate), packed, "{rate} events per second");
        }
    }

    #[test]
    fn a_compressed_message_reads_back() {
        let (body, _) = pack((0..100).map(|number| json!({"number": number})), 100).next().unwrap();
        assert_eq!(zstd::decode_all(&compressed(&body).unwrap()[..]).unwrap(), body);
    }
}
