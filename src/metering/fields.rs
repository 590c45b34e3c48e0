//! What each text of an event may hold.

use std::fmt;

use chrono::{DateTime, FixedOffset, SubsecRound, Timelike, Utc};
use compact_str::CompactString;

use super::json::Text;
use super::reason::{Reason, Rejected};
use crate::domain::names::{self, is_id_byte};

/// Longest text of an event, in bytes of UTF-8.
pub(super) const TEXT_MAX_BYTES: usize = names::NAME_BYTES_MAX;
/// Texts that programs write when they have no id.
const NO_IDS: [&str; 5] = ["undefined", "null", "none", "nil", "nan"];

/// A machine id: 1 to 128 of `[A-Za-z0-9._:-]`.
pub(super) fn machine_id(field: &'static str, text: &str) -> Result<CompactString, Rejected> {
    sized(field, text)?;
    if !names::is_machine_id(text) {
        return Err(charset(field, "letters, digits and . _ : -"));
    }
    Ok(text.into())
}

/// A provider: a machine id in lower case, as price books name it.
pub(super) fn provider(text: &str) -> Result<CompactString, Rejected> {
    sized("provider", text)?;
    if !names::is_provider(text) {
        return Err(charset("provider", "lower-case letters, digits and . _ : -"));
    }
    Ok(text.into())
}

/// A model: 1 to 128 printable ASCII characters, no blank at either end. A model is a key of the price book, so
/// characters that cannot be told apart on a page are refused.
pub(super) fn model(text: &str) -> Result<CompactString, Rejected> {
    sized("model", text)?;
    if !names::is_model(text) {
        return Err(charset("model", "printable ASCII characters, without blanks at its ends"));
    }
    Ok(text.into())
}

/// A text for people and reports: 1 to 128 bytes, stored as given; whoever shows it escapes it.
pub(super) fn label(field: &'static str, text: &str) -> Result<CompactString, Rejected> {
    sized(field, text)?;
    Ok(text.into())
}

/// The gateway's name, alone or followed by `/` and a path of its own in which `/` separates machine ids.
pub(super) fn source(text: &str) -> Result<CompactString, Rejected> {
    sized("source", text)?;
    let segment = |segment: &str| !segment.is_empty() && segment.bytes().all(is_id_byte);
    if !text.split('/').all(segment) {
        return Err(charset("source", "letters, digits and . _ : - in segments separated by one /"));
    }
    Ok(text.into())
}

/// An event id: opaque, compared byte for byte, as design section 3 has it.
pub(super) fn event_id(field: &'static str, text: Option<&str>) -> Result<CompactString, Rejected> {
    let id = text.unwrap_or_default();
    let names_nothing = id.trim().is_empty() || NO_IDS.iter().any(|word| word.eq_ignore_ascii_case(id));
    if names_nothing {
        return Err(Rejected::new(
            Reason::NoId,
            format_args!("`{field}` names no event; send a unique id per event, best a UUIDv7"),
        ));
    }
    sized(field, id)?;
    if !id.bytes().all(is_id_byte) {
        return Err(Rejected::new(
            Reason::Charset,
            format_args!("`{field}` may hold letters, digits and . _ : - only"),
        ));
    }
    Ok(id.into())
}

/// An RFC 3339 time with an offset, in UTC and cut to the microsecond, so that no event moves into a later period.
pub(super) fn time(text: &str) -> Result<DateTime<Utc>, Rejected> {
    let wrong = || {
        Rejected::new(
            Reason::Time,
            "`time` is not an RFC 3339 time with an offset; write it like 2026-11-23T10:00:00.123Z, without leap second",
        )
    };
    let separated = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    if !separated || !text.is_ascii() {
        return Err(wrong());
    }
    let time: DateTime<FixedOffset> = DateTime::parse_from_rfc3339(text).map_err(|_| wrong())?;
    // A leap second has no microsecond of its own in the database.
    if time.nanosecond() >= 1_000_000_000 {
        return Err(wrong());
    }
    Ok(time.to_utc().trunc_subsecs(6))
}

/// A condition of the call: a machine id, brought to lower case.
pub(super) fn condition(
    field: &'static str,
    text: Option<&Text<'_>>,
) -> Result<Option<CompactString>, Rejected> {
    let Some(text) = text else { return Ok(None) };
    let mut value = machine_id(field, text)?;
    value.make_ascii_lowercase();
    Ok(Some(value))
}

/// The text within its length, which is 1 to 128 bytes: an empty text is a mistake of the sender, `null` says "none".
pub(super) fn sized(field: &str, text: &str) -> Result<(), Rejected> {
    if text.is_empty() {
        return Err(Rejected::new(
            Reason::Length,
            format_args!("`{field}` is empty; leave it out or send null where there is none"),
        ));
    }
    if text.len() > TEXT_MAX_BYTES {
        return Err(Rejected::new(
            Reason::Length,
            format_args!("`{field}` has {} bytes; it may have {TEXT_MAX_BYTES}", text.len()),
        ));
    }
    Ok(())
}

fn charset(field: &str, allowed: impl fmt::Display) -> Rejected {
    Rejected::new(Reason::Charset, format_args!("`{field}` may hold {allowed} only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: fmt::Debug>(result: Result<T, Rejected>) -> Reason {
        result.unwrap_err().reason
    }

    #[test]
    fn b19_b20_b21_ids() {
        for id in [None, Some(""), Some(" "), Some("undefined"), Some("NULL")] {
            assert_eq!(reason(event_id("id", id)), Reason::NoId, "{id:?}");
        }
        // Spellings of a UUID are ids of their own, the nil UUID included.
        for id in [
            "00000000-0000-0000-0000-000000000000",
            "0198C3A2-6F2E-7C4B-9F1A-0242AC120002",
            "0198c3a2-6f2e-7c4b-9f1a-0242ac120002",
            "urn:uuid:0198c3a2-6f2e-7c4b-9f1a-0242ac120002",
        ] {
            assert_eq!(event_id("id", Some(id)).unwrap(), id);
        }
        for id in
            ["chatcmpl-abc", "a", "trace:span.1_2", "0161f132dde4c35cb5993327bf872b9x", &"x".repeat(128)]
        {
            assert_eq!(event_id("id", Some(id)).unwrap(), id);
        }
        assert_eq!(reason(event_id("id", Some(&"x".repeat(129)))), Reason::Length);
        for id in [
            "a b",
            "a\u{200b}",
            "\u{202e}a",
            "ä",
            "a\r\nb",
            "a/b",
            "a ",
            "аcme",
            "{0198c3a2-6f2e-7c4b-9f1a-0242ac120002}",
        ] {
            assert_eq!(reason(event_id("id", Some(id))), Reason::Charset, "B40 {id:?}");
        }
    }

    #[test]
    fn b28_times() {
        for (text, utc) in [
            ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z"),
            ("2026-11-23t10:00:00z", "2026-11-23T10:00:00Z"),
            ("2026-11-23T10:00:00.123456789Z", "2026-11-23T10:00:00.123456Z"),
            ("2026-11-24T00:00:00+14:00", "2026-11-23T10:00:00Z"),
            ("2026-11-23T10:00:00-00:00", "2026-11-23T10:00:00Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(time(text).unwrap(), utc.parse::<DateTime<Utc>>().unwrap(), "{text}");
        }
        for text in [
            "",
            "-001-01-01T00:00:00Z",
            "-0001-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "+10000-01-01T00:00:00Z",
            "infinity",
            "2026-02-30T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-12-31T23:59:60Z",
            "2026-11-23T23:59:60Z",
            "2026-11-23T10:00:00",
            "2026-11-23",
            "2026-11-23T10:00:00+99:00",
            "2026-11-23T10:00Z",
            "2026-11-23 10:00:00Z",
            "2026-11-23T10:00:00 Z",
            " 2026-11-23T10:00:00Z",
            "2026-11-23T10:00:00Z ",
            "2026-11-23T10:00:00\u{2212}01:00",
            "1795428000",
            "1795428000000",
            "Mon, 23 Nov 2026 10:00:00 GMT",
        ] {
            assert_eq!(reason(time(text)), Reason::Time, "{text}");
        }
    }

    #[test]
    fn sources_providers_and_models() {
        for text in ["gw-eu-1", "gw-eu-1/pod-3", "gw/a/b.c:d"] {
            assert_eq!(source(text).unwrap(), text);
        }
        for text in ["/gw", "gw/", "gw//a", "gw a", "gw/ä"] {
            assert_eq!(reason(source(text)), Reason::Charset, "{text}");
        }
        for text in ["openai", "gcp.vertex_ai", "x_ai"] {
            assert_eq!(provider(text).unwrap(), text);
        }
        assert_eq!(reason(provider("OpenAI")), Reason::Charset);
        for text in [
            "gpt-5",
            "openai/gpt-5.6:free",
            "claude@20250101",
            "My Deployment",
            "'; DROP TABLE usage_events; --",
            "<script>",
        ] {
            assert_eq!(model(text).unwrap(), text, "B42, B44: plain text");
        }
        for text in [" gpt-5", "gpt-5 ", "gpt\n5", "gpt\u{1b}5", "gpt\u{200b}5", "gрt-5", "\u{202e}5-tpg"] {
            assert_eq!(reason(model(text)), Reason::Charset, "B40, B41 {text:?}");
        }
        assert_eq!(reason(model(&"m".repeat(64 * 1024))), Reason::Length, "B39");
    }
}
