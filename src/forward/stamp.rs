//! The gateway's own count in an event: taken out where an event brings one, put in when it is published.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::journal::Record;

/// zstd level: level 1 gives eight to one on packed events.
const ZSTD_LEVEL: i32 = 1;
/// Messages below this length stay as they are.
const COMPRESS_FROM_BYTES: usize = 1024;
/// What the count adds to an event at most, in bytes.
pub const STAMP_BYTES_MAX: usize = 96;

/// A message as it is published.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Its body.
    pub body: Bytes,
    /// Whether it is compressed with zstd.
    pub zstd: bool,
}

/// An event without its `sequence` and `epoch`; everything else keeps its bytes. `None` where it is no JSON object.
pub fn uncounted(event: &[u8]) -> Option<Vec<u8>> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an event")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<u8>, A::Error> {
            let mut out = vec![b'{'];
            while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                if name == "sequence" || name == "epoch" {
                    continue;
                }
                if out.len() > 1 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut out, &name).map_err(serde::de::Error::custom)?;
                out.push(b':');
                out.extend_from_slice(value.get().as_bytes());
            }
            out.push(b'}');
            Ok(out)
        }
    }

    serde_json::Deserializer::from_slice(event).deserialize_map(Members).ok()
}

/// Records as one message: each with its number and the epoch, packed into an array where there are several.
///
/// # Errors
/// Whatever the compressor says.
pub fn packed(records: &[Record], epoch: Uuid) -> std::io::Result<Packed> {
    let length: usize = records.iter().map(|record| record.event.len() + STAMP_BYTES_MAX).sum();
    let mut body = Vec::with_capacity(length + 2);
    let several = records.len() > 1;
    for (index, Record { sequence, event, .. }) in records.iter().enumerate() {
        if several {
            body.push(if index == 0 { b'[' } else { b',' });
        }
        body.extend_from_slice(format!(r#"{{"sequence":{sequence},"epoch":"{epoch}","#).as_bytes());
        // An event is an object with an `id` at least, so something follows its brace.
        body.extend_from_slice(event.get(1..).unwrap_or_default());
    }
    if several {
        body.push(b']');
    }
    if body.len() >= COMPRESS_FROM_BYTES {
        let compressed = zstd::bulk::compress(&body, ZSTD_LEVEL)?;
        if compressed.len() < body.len() {
            return Ok(Packed { body: compressed.into(), zstd: true });
        }
    }
    Ok(Packed { body: body.into(), zstd: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::SequenceMark;
    use crate::metering;

    const EVENT: &str = r#"{"specversion":"1.0","id":"e","source":"gw-1","type":"llm.usage.v1","subject":"acme",
        "time":"2026-11-23T10:00:00Z","data":{"provider":"p","model":"m","usage":{"input":1}}}"#;

    fn record(sequence: u64) -> Record {
        Record { sequence, accepted_ms: 0, event: EVENT.as_bytes().to_vec() }
    }

    #[test]
    fn a_stamped_event_is_the_same_event_with_a_number() {
        let epoch = Uuid::now_v7();
        for count in [1, 3, 100] {
            let records: Vec<Record> = (1..=count).map(record).collect();
            let packed = packed(&records, epoch).unwrap();
            let message = metering::split(&packed.body, packed.zstd.then_some("zstd")).unwrap();
            let marks: Vec<_> = message
                .events()
                .map(|raw| {
                    let event = metering::parse_event(raw).unwrap();
                    let unstamped = metering::parse_event(EVENT.as_bytes()).unwrap();
                    assert_eq!(metering::content_hash(&event), metering::content_hash(&unstamped));
                    event.sequence.unwrap()
                })
                .collect();
            let expected: Vec<_> = (1..=count)
                .map(|number| SequenceMark { epoch: epoch.to_string().into(), number: number.cast_signed() })
                .collect();
            assert_eq!(marks, expected);
        }
    }

    #[test]
    fn the_stamp_is_as_long_as_reserved_at_most() {
        let one =
            packed(&[Record { sequence: u64::MAX, accepted_ms: 0, event: b"{}".to_vec() }], Uuid::now_v7());
        assert!(one.unwrap().body.len() <= STAMP_BYTES_MAX + 2);
    }

    #[test]
    fn a_count_of_the_events_own_is_taken_out_and_nothing_else_changes() {
        let own = r#"{ "id" : "e\u0031", "s\u0065quence": "7", "data":{"sequence": 1e2 , "epoch":"x"},"epoch":"mine" }"#;
        let kept = uncounted(own.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(kept).unwrap(),
            r#"{"id":"e1","data":{"sequence": 1e2 , "epoch":"x"}}"#.replace("\"e1\"", r#""e\u0031""#)
        );
        assert_eq!(uncounted(b"[]"), None);
    }
}
