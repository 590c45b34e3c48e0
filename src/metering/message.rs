//! A message of the stream or the API: one event, or an array of them.

use std::io::Read;
use std::ops::Range;

use bytes::Bytes;

use super::reason::{Reason, Rejected};

/// Largest message body after decompression, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most events in one message.
pub const MESSAGE_MAX_EVENTS: usize = 500;
/// Largest window a compressed body may ask for, as a power of two: no decoder needs more memory than the bound above.
const ZSTD_WINDOW_LOG_MAX: u32 = 22;
/// First bytes of zstd.
pub(super) const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of compressed data that came without its `Content-Encoding`.
const COMPRESSED_MAGIC: [&[u8]; 2] = [&[0x1f, 0x8b], ZSTD_MAGIC];
/// What an editor or a shell puts in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// A message taken apart: the bytes of its body, decompressed, and where its events are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    body: Bytes,
    events: Vec<Range<usize>>,
}

impl Message {
    /// The body, decompressed.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where each event lies in the body, in order; at least one.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.events
    }

    /// The raw bytes of each event, in order; at least one, none of them checked yet.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.events.iter().map(|range| &self.body[range.clone()])
    }
}

/// Takes a message body apart without judging its events: a fault of one never reaches its neighbours.
///
/// `content_encoding` is the header of that name: none, `identity` or `zstd`.
///
/// # Errors
/// [`Rejected`] where the message as a whole cannot be used: `empty`, `encoding`, `too_large`, `too_many`, `json`.
pub fn split(body: &[u8], content_encoding: Option<&str>) -> Result<Message, Rejected> {
    split_shared(&Bytes::copy_from_slice(body), content_encoding)
}

/// As [`split`], of a body that is kept anyway: what came plain is not copied.
///
/// # Errors
/// As [`split`].
pub fn split_shared(body: &Bytes, content_encoding: Option<&str>) -> Result<Message, Rejected> {
    let body = decoded(body, content_encoding)?;
    let events = Scanner { body: &body, at: 0 }.message()?;
    Ok(Message { body, events })
}

/// The body without its compression, bounded.
fn decoded(body: &Bytes, content_encoding: Option<&str>) -> Result<Bytes, Rejected> {
    let encoding = content_encoding.map_or("identity", str::trim);
    if encoding.eq_ignore_ascii_case("zstd") {
        return decompressed(body).map(Bytes::from);
    }
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(Rejected::new(
            Reason::Encoding,
            format_args!("content encoding `{}` is not accepted; send plain JSON or zstd", short(encoding)),
        ));
    }
    if COMPRESSED_MAGIC.iter().any(|magic| body.starts_with(magic)) {
        return Err(Rejected::new(
            Reason::Encoding,
            "the body is compressed but says nothing of it; set `Content-Encoding: zstd` or send plain JSON",
        ));
    }
    if body.len() > MESSAGE_MAX_BYTES {
        return Err(too_large());
    }
    Ok(body.clone())
}

/// A zstd body, decompressed up to the bound and no further.
pub(super) fn decompressed(body: &[u8]) -> Result<Vec<u8>, Rejected> {
    let broken = |error: std::io::Error| {
        Rejected::new(
            Reason::Encoding,
            format_args!("the body is not valid zstd ({error}); compress it again"),
        )
    };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(broken)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(broken)?;
    let bound = u64::try_from(MESSAGE_MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    decoder.take(bound).read_to_end(&mut plain).map_err(broken)?;
    if plain.len() > MESSAGE_MAX_BYTES {
        return Err(too_large());
    }
    Ok(plain)
}

fn too_large() -> Rejected {
    Rejected::new(
        Reason::TooLarge,
        format_args!("a message holds at most {MESSAGE_MAX_BYTES} bytes of JSON; send it as several"),
    )
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

fn not_json(detail: &str) -> Rejected {
    Rejected::new(Reason::Json, format_args!("{detail}; send one event object, or an array of them"))
}

/// Where the objects of a body lie that could not be taken apart, as far as their brackets tell.
pub(super) fn objects(body: &[u8]) -> Vec<Range<usize>> {
    let mut scanner = Scanner { body, at: 0 };
    let mut objects = Vec::new();
    while let Some(ahead) = memchr::memchr(b'{', &body[scanner.at..]) {
        scanner.at += ahead;
        let Ok(object) = scanner.element() else { break };
        objects.push(object);
    }
    objects
}

/// Finds the boundaries of the events by their brackets alone, without recursion.
struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn message(mut self) -> Result<Vec<Range<usize>>, Rejected> {
        self.skip_blanks();
        let events = match self.peek() {
            None => return Err(Rejected::new(Reason::Empty, "the message is empty; send an event")),
            Some(b'{') => vec![self.element()?],
            Some(b'[') => self.array()?,
            Some(_) if self.body.starts_with(BYTE_ORDER_MARK) => {
                return Err(not_json("the message begins with a byte order mark"));
            }
            Some(_) => return Err(not_json("the message is not JSON")),
        };
        self.skip_blanks();
        if self.peek().is_some() {
            return Err(not_json("something follows the end of the JSON"));
        }
        Ok(events)
    }

    fn array(&mut self) -> Result<Vec<Range<usize>>, Rejected> {
        self.at += 1;
        let mut events = Vec::new();
        self.skip_blanks();
        if self.peek() == Some(b']') {
            return Err(Rejected::new(Reason::Empty, "the array is empty; send at least one event"));
        }
        loop {
            self.skip_blanks();
            if events.len() == MESSAGE_MAX_EVENTS {
                return Err(Rejected::new(
                    Reason::TooMany,
                    format_args!("a message holds at most {MESSAGE_MAX_EVENTS} events; send it as several"),
                ));
            }
            events.push(self.element()?);
            self.skip_blanks();
            let separator = self.peek();
            self.at += 1;
            match separator {
                Some(b',') => {}
                Some(b']') => return Ok(events),
                _ => return Err(not_json("the JSON array is truncated")),
            }
        }
    }

    /// One value: up to the comma or bracket that ends it at this level.
    fn element(&mut self) -> Result<Range<usize>, Rejected> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => self.skip_string()?,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(start..self.at);
                    }
                }
                b',' | b'}' | b']' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        let end = start + self.body[start..self.at].trim_ascii_end().len();
        if depth > 0 || end == start {
            return Err(not_json("the JSON is truncated or lacks a value"));
        }
        Ok(start..end)
    }

    /// From the opening quote to the closing one.
    fn skip_string(&mut self) -> Result<(), Rejected> {
        self.at += 1;
        loop {
            let rest = self.body.get(self.at..).unwrap_or_default();
            let Some(special) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                return Err(not_json("the JSON ends inside a string"));
            };
            self.at += special;
            if rest[special] == b'"' {
                return Ok(());
            }
            self.at += 2;
        }
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(body: &[u8], encoding: Option<&str>) -> Reason {
        split(body, encoding).unwrap_err().reason
    }

    #[test]
    fn whole_message_faults_have_their_reason() {
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&str, &[u8], Reason); 19] = [
            ("B01 nothing", b"", Reason::Empty),
            ("B01 blanks", b" \r\n\t", Reason::Empty),
            ("an empty array", b"[ ]", Reason::Empty),
            ("B02 text", b"hello", Reason::Json),
            ("B02 a bare number", b"12", Reason::Json),
            ("B02 truncated object", b"{\"a\":", Reason::Json),
            ("B02 truncated string", b"{\"a\":\"b", Reason::Json),
            ("B02 ends in an escape", b"{\"a\":\"b\\", Reason::Json),
            ("B02 truncated array", b"[{},{}", Reason::Json),
            ("B02 no value", b"[{},,{}]", Reason::Json),
            ("B02 trailing comma", b"[{},]", Reason::Json),
            ("B02 no comma", b"[{}{}]", Reason::Json),
            ("B02 two objects", b"{}{}", Reason::Json),
            ("B02 trailing garbage", b"{} x", Reason::Json),
            ("B02 wrong bracket", b"[{}}", Reason::Json),
            ("B02 byte order mark", b"\xef\xbb\xbf{}", Reason::Json),
            ("B02 UTF-16 with mark", b"\xff\xfe{\0}\0", Reason::Json),
            ("B02 UTF-16", &utf16, Reason::Json),
            ("B45 gzip", b"\x1f\x8b\x08\x00", Reason::Encoding),
        ];
        for (name, body, reason) in cases {
            assert_eq!(split(body, None).map_err(|rejected| rejected.reason), Err(reason), "{name}");
        }
        for encoding in ["gzip", "br", "deflate", "zstd, gzip"] {
            assert_eq!(reason_of(b"{}", Some(encoding)), Reason::Encoding, "B45 {encoding}");
        }
    }

    #[test]
    fn events_are_found_whatever_is_in_them() {
        let events: [&[u8]; 7] = [
            b"{\"a\":\"]},{[\\\"\"}",
            b"{}",
            b"12",
            b"\"x,y\"",
            b"{\"a\":[{},[1,2]]}",
            b"{\"b\":nul}",
            b"{\"c\":\"\xff\"}",
        ];
        let body = [b" [ ".as_slice(), &events.join(b" , ".as_slice()), b" ] ".as_slice()].concat();
        let message = split(&body, Some("identity")).unwrap();
        assert_eq!(message.events().collect::<Vec<_>>(), events);
        assert_eq!(message.body(), body);
        assert_eq!(split(b" {\"a\":1}\n", None).unwrap().events().collect::<Vec<_>>(), [b"{\"a\":1}"]);
    }

    #[test]
    fn b04_deep_nesting_needs_no_stack() {
        for body in [b"[".repeat(1_000_000), b"[{\"a\":".repeat(500_000)] {
            assert_eq!(reason_of(&body, None), Reason::Json);
        }
        let deep = [b"[".repeat(1_000_000), b"]".repeat(1_000_000)].concat();
        let message = split(&[b"[", deep.as_slice(), b",{}]"].concat(), None).unwrap();
        assert_eq!(message.events().len(), 2);
    }

    #[test]
    fn b06_the_number_of_events_is_bounded() {
        let full = format!("[{}]", vec!["{}"; MESSAGE_MAX_EVENTS].join(","));
        assert_eq!(split(full.as_bytes(), None).unwrap().events().len(), MESSAGE_MAX_EVENTS);
        let over = format!("[{}]", vec!["{}"; MESSAGE_MAX_EVENTS + 1].join(","));
        assert_eq!(reason_of(over.as_bytes(), None), Reason::TooMany);
    }

    #[test]
    fn zstd_is_bounded_by_what_comes_out() {
        let compress = |plain: &[u8]| zstd::bulk::compress(plain, 1).unwrap();
        let body = br#"[{"a":1},{"b":2}]"#;
        assert_eq!(split(&compress(body), Some("ZSTD")).unwrap().body(), body);
        let bomb = compress(&b" ".repeat(64 * 1024 * 1024));
        assert!(bomb.len() < 64 * 1024);
        assert_eq!(reason_of(&bomb, Some("zstd")), Reason::TooLarge);
        assert_eq!(reason_of(&b" ".repeat(MESSAGE_MAX_BYTES + 1), None), Reason::TooLarge);
        assert_eq!(reason_of(body, Some("zstd")), Reason::Encoding);
        assert_eq!(reason_of(&compress(body)[..10], Some("zstd")), Reason::Encoding);
        assert_eq!(reason_of(&compress(body), None), Reason::Encoding);
    }
}
