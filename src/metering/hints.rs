//! Who and what a rejected event speaks of, as far as it can be read: for lists, never trusted.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::event::EPOCH_DEFAULT;
use super::fields::{self, TEXT_MAX_BYTES};
use super::values::SEQUENCE_MAX;
use crate::domain::event::SequenceMark;

/// What a rejection shows of an event; every text at most 128 bytes, without control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The `source`.
    pub source: Option<String>,
    /// The `id`.
    pub id: Option<String>,
    /// The `subject`.
    pub customer: Option<String>,
    /// The `time`, where it is well formed.
    pub time: Option<DateTime<Utc>>,
    /// The `data.provider`.
    pub provider: Option<String>,
    /// The `data.model`.
    pub model: Option<String>,
    /// The gateway's own count (`sequence` and `epoch`), where it is well formed.
    pub mark: Option<SequenceMark>,
}

/// The two halves of a mark, as they are met.
#[derive(Default)]
struct MarkHint {
    number: Option<Hint>,
    epoch: Option<Hint>,
}

impl MarkHint {
    fn read(self) -> Option<SequenceMark> {
        let number = match self.number? {
            Hint::Number(number) => number,
            Hint::Text(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Hint::Text(_) | Hint::Other(_) => return None,
        };
        let number = i64::try_from(number).ok().filter(|number| (1..=SEQUENCE_MAX).contains(number))?;
        let epoch = match self.epoch {
            None => EPOCH_DEFAULT.into(),
            Some(Hint::Text(epoch)) => fields::machine_id("epoch", &epoch).ok()?,
            Some(Hint::Number(_) | Hint::Other(_)) => return None,
        };
        Some(SequenceMark { epoch, number })
    }
}

/// Reads as much as it can; broken, truncated and foreign bytes give what stands before the break.
pub fn hints(raw: &[u8]) -> Hints {
    let text = match std::str::from_utf8(raw) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&raw[..error.valid_up_to()]).unwrap_or_default(),
    };
    let (mut hints, mut mark) = (Hints::default(), MarkHint::default());
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // The error is the reason why the event is rejected; what was read before it stays.
    let _ = Level::Envelope(&mut hints, &mut mark).deserialize(&mut deserializer);
    hints.mark = mark.read();
    hints
}

/// The object whose fields are looked at; what they hold goes into the hints.
enum Level<'h> {
    Envelope(&'h mut Hints, &'h mut MarkHint),
    Data(&'h mut Hints),
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match self {
            Self::Envelope(hints, mark) => {
                while let Some(key) = map.next_key::<String>()? {
                    let slot = match key.as_str() {
                        "source" => &mut hints.source,
                        "id" => &mut hints.id,
                        "subject" => &mut hints.customer,
                        "time" => {
                            if let (None, Hint::Text(time)) = (hints.time, map.next_value()?) {
                                hints.time = fields::time(&time).ok();
                            }
                            continue;
                        }
                        "data" => {
                            map.next_value_seed(Level::Data(hints))?;
                            continue;
                        }
                        "sequence" => {
                            mark.number.get_or_insert(map.next_value()?);
                            continue;
                        }
                        "epoch" => {
                            // `null` says that there is none, as on the wire.
                            if let Some(epoch) = map.next_value::<Option<Hint>>()? {
                                mark.epoch.get_or_insert(epoch);
                            }
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    note(slot, map.next_value()?);
                }
            }
            Self::Data(hints) => {
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "provider" => note(&mut hints.provider, map.next_value()?),
                        "model" => note(&mut hints.model, map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The first text given counts, cut and cleaned.
fn note(slot: &mut Option<String>, text: Hint) {
    if let (None, Hint::Text(text)) = (&slot, text) {
        let mut kept = String::new();
        for character in text.chars().map(|character| if character.is_control() { ' ' } else { character }) {
            if kept.len() + character.len_utf8() > TEXT_MAX_BYTES {
                break;
            }
            kept.push(character);
        }
        *slot = Some(kept);
    }
}

/// A text, a count, or anything else, which is no hint.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hint {
    Text(String),
    Number(u64),
    Other(IgnoredAny),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_break_is_read() {
        let whole = br#"{"id":"e1","source":"gw","subject":"acme","time":"2026-11-23T11:00:00+01:00","x":[{}],"data":{"model":"m","provider":"p","usage":{"#;
        let expected = Hints {
            source: Some("gw".into()),
            id: Some("e1".into()),
            customer: Some("acme".into()),
            time: Some("2026-11-23T10:00:00Z".parse().unwrap()),
            provider: Some("p".into()),
            model: Some("m".into()),
            mark: None,
        };
        assert_eq!(hints(whole), expected);
        let invalid = [whole.as_slice(), b"\"\xff"].concat();
        assert_eq!(hints(&invalid), expected);
    }

    #[test]
    fn anything_gives_no_more_than_bounded_text() {
        for raw in [
            b"".as_slice(),
            b"[]",
            b"12",
            b"{\"id\":12}",
            b"\xff\xff",
            b"{\"data\":[1]}",
            b"{\"id\":null}",
            b"{\"time\":7}",
        ] {
            assert_eq!(hints(raw), Hints::default());
        }
        let long =
            format!("{{\"id\":\"{}\",\"source\":\"a\\u0000b\\nc\",\"id\":\"second\"}}", "ä".repeat(1000));
        let read = hints(long.as_bytes());
        assert_eq!(read.id.unwrap(), "ä".repeat(64));
        assert_eq!(read.source.unwrap(), "a b c");
        assert_eq!(hints(&b"[".repeat(100_000)), Hints::default());
    }
    #[test]
    fn a_count_is_read_where_it_is_well_formed_whatever_else_is_wrong() {
        let mark = |json: &str| hints(json.as_bytes()).mark.map(|mark| (mark.epoch, mark.number));
        assert_eq!(mark(r#"{"id":"","sequence":7,"epoch":"e-1","data":null}"#), Some(("e-1".into(), 7)));
        assert_eq!(mark(r#"{"sequence":"42"}"#), Some(("default".into(), 42)));
        assert_eq!(mark(r#"{"sequence":7,"epoch":null}"#), Some(("default".into(), 7)));
        for none in [
            r#"{"epoch":"e"}"#,
            r#"{"sequence":0}"#,
            r#"{"sequence":-1}"#,
            r#"{"sequence":1.0}"#,
            r#"{"sequence":"+1"}"#,
            r#"{"sequence":18446744073709551615}"#,
            r#"{"sequence":1,"epoch":""}"#,
            r#"{"sequence":1,"epoch":"a b"}"#,
            r#"{"sequence":1,"epoch":3}"#,
            r#"{"sequence":null,"epoch":null}"#,
        ] {
            assert_eq!(mark(none), None, "{none}");
        }
    }
}
