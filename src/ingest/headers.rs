//! The headers of a message as the stream keeps them: bytes of the publisher's choice, which no server looks at.
//!
//! The client library is strict: it ends its connection at headers that it cannot read, and takes a message whose headers are
//! a status for the server's own word. Here whatever can be read is, and the rest is kept as it came.

use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName};

/// What the headers begin with; a status may follow, in what a server says.
const VERSION: &str = "NATS/1.0";
/// Among the headers of a rejection: the lines that are none.
const UNREADABLE: &str = "(unreadable)";

/// Headers of a message.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// Those that can be read; bytes that are not UTF-8 are replaced.
    pub fields: HeaderMap,
    /// The lines that cannot.
    unreadable: Vec<String>,
    /// Whether the client library would not hand over a message with them.
    pub undeliverable: bool,
}

impl Headers {
    /// Reads what can be read.
    pub fn read(block: &[u8]) -> Self {
        let text = String::from_utf8_lossy(block);
        let mut headers = Self { undeliverable: matches!(text, Cow::Owned(_)), ..Self::default() };
        let mut lines = text.lines().peekable();
        let version = |line: &&str| line.strip_prefix(VERSION).is_some_and(|rest| rest.trim().is_empty());
        if lines.next_if(version).is_none() && !block.is_empty() {
            headers.undeliverable = true;
        }
        while let Some(line) = lines.next() {
            if line.is_empty() {
                continue;
            }
            let field = line.split_once(':').and_then(|(name, value)| {
                let name = name.parse::<HeaderName>().ok()?;
                Some((name, value.trim_start().to_owned()))
            });
            let Some((name, mut value)) = field else {
                headers.unreadable.push(line.to_owned());
                continue;
            };
            while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
                value.push_str(more);
            }
            value.truncate(value.trim_end().len());
            headers.fields.append(name, value);
        }
        headers.undeliverable |= !headers.unreadable.is_empty();
        headers
    }

    /// Of a message that the client library has handed over.
    pub fn delivered(fields: Option<HeaderMap>) -> Self {
        Self { fields: fields.unwrap_or_default(), ..Self::default() }
    }

    /// As a JSON object, for rejections; `None` where there are none.
    pub fn json(&self) -> Option<String> {
        if self.fields.is_empty() && self.unreadable.is_empty() {
            return None;
        }
        let fields = self.fields.iter().map(|(name, values)| (name.to_string(), texts(values)));
        let unreadable =
            (!self.unreadable.is_empty()).then(|| (UNREADABLE.to_owned(), texts(&self.unreadable)));
        let object: serde_json::Map<String, serde_json::Value> = fields.chain(unreadable).collect();
        serde_json::to_string(&object).ok()
    }
}

/// PostgreSQL's JSON cannot hold NUL.
fn texts<'a>(values: impl IntoIterator<Item = &'a (impl AsRef<str> + 'a)>) -> serde_json::Value {
    let values = values.into_iter().map(|value| value.as_ref().replace('\0', "\u{fffd}"));
    values.collect::<Vec<_>>().into()
}

/// Whether some lines of these headers, as JSON, could not be read.
pub(super) fn partly_unreadable(json: &str) -> bool {
    json.contains(&format!("\"{UNREADABLE}\":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its name, the headers, whether they are undeliverable, the encoding, and the first line that cannot be read.
    type Case = (&'static str, &'static [u8], bool, Option<&'static str>, Option<&'static str>);

    #[test]
    fn what_can_be_read_of_headers_is_and_the_rest_is_kept() {
        let cases: [Case; 12] = [
            ("none", b"", false, None, None),
            ("empty", b"NATS/1.0\r\n\r\n", false, None, None),
            ("good", b"NATS/1.0\r\nContent-Encoding: zstd\r\n\r\n", false, Some("zstd"), None),
            ("continued", b"NATS/1.0\r\nContent-Encoding: z\r\n std\r\n\r\n", false, Some("z std"), None),
            ("no version", b"Content-Encoding: zstd\r\n\r\n", true, Some("zstd"), None),
            (
                "another version",
                b"NATS/2.0\r\nContent-Encoding:zstd\r\n",
                true,
                Some("zstd"),
                Some("NATS/2.0"),
            ),
            ("a status", b"NATS/1.0 404 No Messages\r\n\r\n", true, None, Some("NATS/1.0 404 No Messages")),
            (
                "no status",
                b"NATS/1.0 x\r\nContent-Encoding: zstd\r\n",
                true,
                Some("zstd"),
                Some("NATS/1.0 x"),
            ),
            (
                "no colon",
                b"NATS/1.0\r\nhello\r\nContent-Encoding: zstd\r\n",
                true,
                Some("zstd"),
                Some("hello"),
            ),
            ("a blank in a name", b"NATS/1.0\r\nA b: c\r\n", true, None, Some("A b: c")),
            ("not UTF-8", b"NATS/1.0\r\nA: \xfc\r\nContent-Encoding: zstd\r\n", true, Some("zstd"), None),
            ("nothing but rubbish", b"\xff\0\r\n", true, None, Some("\u{fffd}\0")),
        ];
        for (name, block, undeliverable, encoding, unreadable) in cases {
            let headers = Headers::read(block);
            assert_eq!(headers.undeliverable, undeliverable, "{name}");
            let read = headers.fields.get("Content-Encoding").map(ToString::to_string);
            assert_eq!(read.as_deref(), encoding, "{name}");
            assert_eq!(headers.unreadable.first().map(String::as_str), unreadable, "{name}");
            let json = headers.json();
            assert_eq!(json.as_deref().is_some_and(partly_unreadable), unreadable.is_some(), "{name}");
            assert!(!json.unwrap_or_default().contains("\\u0000"), "{name}");
        }
    }
}
