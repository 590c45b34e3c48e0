//! What people and models said to each other has no place in a ledger: it is cut out of an event before it is stored.
//!
//! Only inside `data.provider_usage.body`, and only texts: counts, names and costs stay, so a redacted event reads as
//! the same usage (a test proves it for every payload we know). A rule by key, and one by length for the keys that
//! nobody thought of.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem;
use serde::de::IgnoredAny;

use super::json::too_deep;
use super::message::Message;

/// Found in every event that has something to cut.
const MARK: &[u8] = b"\"provider_usage\"";
/// Made once: that takes as long as a search.
static MARKS: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(MARK));
/// Keys whose texts, lists and objects are cut; plain numbers under them are counts and stay.
const CUT: [&str; 31] = [
    "arguments",
    "candidates",
    "choices",
    "classifier_input",
    "completion",
    "content",
    "contents",
    "data",
    "delta",
    "embedding",
    "error_information",
    "error_str",
    "guardrail_information",
    "input",
    "instructions",
    "message",
    "messages",
    "model_parameters",
    "output",
    "output_text",
    "prompt",
    "reasoning",
    "reasoning_content",
    "request",
    "response",
    "system",
    "systemInstruction",
    "system_instruction",
    "text",
    "tools",
    "transcript",
];
/// Beginnings of span attributes that carry texts.
const CUT_PREFIXES: [&str; 10] = [
    "gen_ai.completion.",
    "gen_ai.content.",
    "gen_ai.input.",
    "gen_ai.output.",
    "gen_ai.prompt.",
    "gen_ai.system_instructions",
    "gen_ai.tool.",
    "llm.completions.",
    "llm.prompts.",
    "traceloop.entity.",
];
/// A wrapper around what the provider answered: searched like the body.
const WRAPPER: &str = "response";
/// Longest text that stays under any other key: names, ids, addresses.
const TEXT_MAX_BYTES: usize = 256;
/// The attribute of a span that holds all counts of the call, as one text.
const COUNTS: &str = "metadata.usage_object";

/// The event without texts of prompts and answers; as it is where it has none, or is not a valid JSON object.
pub fn redact(event: &[u8]) -> Cow<'_, [u8]> {
    let suspect = event.first() == Some(&b'{') && MARKS.find(event).is_some();
    if !suspect || too_deep(event) || serde_json::from_slice::<IgnoredAny>(event).is_err() {
        return Cow::Borrowed(event);
    }
    cut(event, (0, Zone::Event))
}

/// The same of a valid JSON object that does not nest too deep, from a value of it on.
fn cut(event: &[u8], (at, zone): (usize, Zone)) -> Cow<'_, [u8]> {
    let mut cutter = Cutter { text: event, at, out: Vec::new(), copied: 0 };
    cutter.run(zone);
    if cutter.copied == 0 {
        return Cow::Borrowed(event);
    }
    cutter.out.extend_from_slice(&event[cutter.copied..]);
    Cow::Owned(cutter.out)
}

/// Where in an event that was read there is something to cut: in the object under the one key of that name, or, where
/// that takes more than a glance (several of them, a key written with escapes), anywhere.
fn start(event: &[u8]) -> (usize, Zone) {
    let Some(mark) = MARKS.find(event) else { return (0, Zone::Event) };
    let after = mark + MARK.len();
    if memchr::memchr(b'\\', event).is_some() || MARKS.find(&event[after..]).is_some() {
        return (0, Zone::Event);
    }
    match event.get(after..after + 2) {
        Some(b":{") => (after + 1, Zone::ProviderUsage),
        _ => (0, Zone::Event),
    }
}

/// The body of a message, each of its events redacted; `read` says of which [`parse_event`](super::parse_event) made an
/// event: these need not be checked again.
pub fn redact_message(message: &Message, read: impl Fn(usize) -> bool) -> Cow<'_, [u8]> {
    let body = message.body();
    let mut redacted = Vec::new();
    let mut copied = 0;
    for (index, range) in message.ranges().iter().enumerate() {
        let event = &body[range.clone()];
        let event = match MARKS.find(event) {
            None => continue,
            Some(_) if read(index) => cut(event, start(event)),
            Some(_) => redact(event),
        };
        if let Cow::Owned(event) = event {
            redacted.extend_from_slice(&body[copied..range.start]);
            redacted.extend_from_slice(&event);
            copied = range.end;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(body);
    }
    redacted.extend_from_slice(&body[copied..]);
    Cow::Owned(redacted)
}

/// Where in an event the scan is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zone {
    Event,
    Data,
    ProviderUsage,
    Body,
}

impl Zone {
    /// The zone of a member's value; `None` where nothing in it concerns us.
    fn inside(self, key: &str) -> Option<Self> {
        match (self, key) {
            (Self::Event, "data") => Some(Self::Data),
            (Self::Data, "provider_usage") => Some(Self::ProviderUsage),
            (Self::ProviderUsage, "body") | (Self::Body, _) => Some(Self::Body),
            _ => None,
        }
    }
}

/// Goes through valid JSON once, without recursion, and copies it with texts replaced by empty ones of their kind, so
/// that nothing changes its type.
struct Cutter<'a> {
    text: &'a [u8],
    at: usize,
    out: Vec<u8>,
    /// Up to where the text is in `out`; 0 where nothing was cut yet.
    copied: usize,
}

impl<'a> Cutter<'a> {
    /// Goes through the value ahead, in this zone.
    fn run(&mut self, whole: Zone) {
        // The containers that are open: whether each is an object, and its zone.
        let mut open: Vec<(bool, Zone)> = Vec::new();
        loop {
            self.skip_separators();
            let Some(byte) = self.peek() else { return };
            if matches!(byte, b'}' | b']') {
                self.at += 1;
                open.pop();
                if open.is_empty() {
                    return;
                }
                continue;
            }
            let (mut zone, mut cut, mut counts) = (Some(whole), false, false);
            if let Some((is_object, around)) = open.last().copied() {
                zone = Some(around);
                if is_object {
                    let key = self.key();
                    zone = around.inside(&key);
                    cut = around == Zone::Body && self.is_cut(&key);
                    counts = key == COUNTS;
                }
            }
            match (zone, self.peek()) {
                (Some(_), Some(b'{' | b'[' | b'"')) if cut => self.empty(),
                (Some(zone), Some(opener @ (b'{' | b'['))) => {
                    self.at += 1;
                    open.push((opener == b'{', zone));
                }
                (Some(Zone::Body), Some(b'"')) if !counts && self.value_end() - self.at > TEXT_MAX_BYTES => {
                    self.empty();
                }
                _ => self.at = self.value_end(),
            }
        }
    }

    /// Whether the value ahead is cut under this key.
    fn is_cut(&self, key: &str) -> bool {
        let named = CUT.contains(&key) || CUT_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        named && !(key == WRAPPER && self.peek() == Some(b'{'))
    }

    /// Replaces the value ahead by an empty one of its kind; a list that had entries keeps one, for the decoders that
    /// ask whether there were any.
    fn empty(&mut self) {
        let end = self.value_end();
        let value = &self.text[self.at..end];
        let empty: &[u8] = match self.peek() {
            Some(b'{') => b"{}",
            Some(b'[') if value[1..value.len() - 1].trim_ascii().is_empty() => b"[]",
            Some(b'[') => b"[{}]",
            _ => b"\"\"",
        };
        if value.len() > empty.len() {
            self.out.extend_from_slice(&self.text[self.copied..self.at]);
            self.out.extend_from_slice(empty);
            self.copied = end;
        }
        self.at = end;
    }

    /// The key ahead, without its quotes and escapes; moves on to its value.
    fn key(&mut self) -> Cow<'a, str> {
        let start = self.at;
        self.at = self.value_end();
        let quoted = &self.text[start..self.at];
        self.skip_separators();
        match quoted {
            [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => {
                str::from_utf8(plain).map_or_else(|_| String::from_utf8_lossy(plain), Cow::Borrowed)
            }
            _ => Cow::Owned(serde_json::from_slice(quoted).unwrap_or_default()),
        }
    }

    /// Where the value ahead ends.
    fn value_end(&self) -> usize {
        let (mut at, mut depth) = (self.at, 0_usize);
        while let Some(byte) = self.text.get(at) {
            match byte {
                b'"' => at = self.string_end(at),
                b'{' | b'[' => depth += 1,
                b'}' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                return at;
            }
        }
        at
    }

    /// The closing quote of the string that opens here.
    fn string_end(&self, open: usize) -> usize {
        let mut at = open + 1;
        while let Some(byte) = self.text.get(at) {
            match byte {
                b'"' => return at,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        at
    }

    fn skip_separators(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r' | b',' | b':')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(body: &str) -> String {
        format!(r#"{{"id":"1","data":{{"model":"m","provider_usage":{{"format":"f","body":{body}}}}}}}"#)
    }

    fn redacted(body: &str) -> String {
        String::from_utf8(redact(event(body).as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn texts_are_cut_and_counts_stay() {
        let long = "x".repeat(TEXT_MAX_BYTES);
        let cases = [
            (r#"{"messages":[{"role":"user","content":"SECRET"}],"n":1}"#, r#"{"messages":[{}],"n":1}"#),
            (
                r#"{"choices" : [ {"message":{"content":"a]}\"SECRET"}} ] , "n":1}"#,
                r#"{"choices" : [{}] , "n":1}"#,
            ),
            (
                r#"{"prompt":"SECRET","usage":{"input":5,"prompt":7}}"#,
                r#"{"prompt":"","usage":{"input":5,"prompt":7}}"#,
            ),
            (
                r#"{"response":{"model":"m","output":[{"text":"SECRET"}],"usage":{"input_tokens":5}}}"#,
                r#"{"response":{"model":"m","output":[{}],"usage":{"input_tokens":5}}}"#,
            ),
            (
                r#"{"response":"SECRET","model_parameters":{"stop":"SECRET"}}"#,
                r#"{"response":"","model_parameters":{}}"#,
            ),
            (r#"{"m\u0065ssages":["SECRET"],"content":[]}"#, r#"{"m\u0065ssages":[{}],"content":[]}"#),
            (
                r#"{"attributes":{"gen_ai.prompt.0.content":"SECRET","gen_ai.usage.input_tokens":"5"}}"#,
                r#"{"attributes":{"gen_ai.prompt.0.content":"","gen_ai.usage.input_tokens":"5"}}"#,
            ),
            (r#"{"deep":[{"deeper":[{"input":["SECRET"]}]}]}"#, r#"{"deep":[{"deeper":[{"input":[{}]}]}]}"#),
            (&format!(r#"{{"unheard_of":"{long}","short":"ok"}}"#), r#"{"unheard_of":"","short":"ok"}"#),
        ];
        for (body, expected) in cases {
            assert_eq!(redacted(body), event(expected), "{body}");
        }
    }

    #[test]
    fn everything_else_is_kept_byte_for_byte() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for text in [
            event(r#"{"usage":{"prompt_tokens":5,"completion_tokens":7}}"#),
            event(r#"{"messages":[],"content":"","input":5}"#),
            event(r#"{"messages":["truncated"#),
            event(&format!(r#"{{"messages":["SECRET"],"deep":{deep}}}"#)),
            r#"{"messages":["no provider usage"],"data":{"prompt":"x"}}"#.to_owned(),
            r#"["provider_usage",{"data":{"provider_usage":{"body":{"prompt":"x"}}}}]"#.to_owned(),
            String::new(),
        ] {
            assert!(matches!(redact(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn events_that_were_read_are_cut_alike() {
        for event in [
            event(r#"{"messages":["SECRET"],"n":1}"#),
            event(r#"{"m\u0065ssages":["SECRET"],"n":1}"#),
            event(r#"{"usage":{"prompt_tokens":5}}"#),
            event(r#"{"messages":["SECRET"]}"#).replace(r#"{"format""#, r#" {"format""#),
            event(r#"{"prompt":"SECRET"}"#).replace(r#""id":"1""#, r#""id":"provider_usage""#),
            event(r#"{"prompt":"SECRET"}"#).replace("provider_usage", r"provider\u005fusage"),
        ] {
            let message = super::super::split(event.as_bytes(), None).unwrap();
            assert_eq!(redact_message(&message, |_| true), redact(event.as_bytes()), "{event}");
        }
    }

    #[test]
    fn a_message_keeps_its_events_where_they_are() {
        let (plain, told) = (r#"{"id":"0"}"#, event(r#"{"prompt":"SECRET"}"#));
        let body = format!(" [{plain} , {told},{told} ,{plain}, broken] ");
        let message = super::super::split(body.as_bytes(), None).unwrap();
        let redacted = String::from_utf8(redact_message(&message, |_| false).into_owned()).unwrap();
        let cut = event(r#"{"prompt":""}"#);
        assert_eq!(redacted, format!(" [{plain} , {cut},{cut} ,{plain}, broken] "));
        let plain = super::super::split(plain.as_bytes(), None).unwrap();
        assert!(matches!(redact_message(&plain, |_| false), Cow::Borrowed(_)));
    }
}
