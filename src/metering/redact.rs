//! What people and models said to each other has no place in a ledger: it is cut out of an event before it is stored.
//!
//! Only inside `data.provider_usage.body`, and only texts: counts, names and costs stay, so a redacted event reads as
//! the same usage (a test proves it for every payload we know). A rule by key, and one by length for the keys that
//! nobody thought of.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem;
use serde::de::IgnoredAny;

use super::json::too_deep;
use super::message::Message;

/// Found in every event that has something to cut. Made once: that takes as long as a search.
static MARK: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"provider_usage\""));
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
    let mut cutter = Cutter::new(event);
    if has_payload(event) {
        cutter.run(0, Zone::Event);
    }
    cutter.finish()
}

/// Whether this is an event with a payload of a provider, as far as can be told without reading it.
fn has_payload(event: &[u8]) -> bool {
    event.first() == Some(&b'{')
        && MARK.find(event).is_some()
        && !too_deep(event)
        && serde_json::from_slice::<IgnoredAny>(event).is_ok()
}

/// The body of a message, each of its events redacted; `payload` says of those that were read where in the event the
/// provider's payload lies, as [`parse_with_payload`](super::parse_with_payload) found it: nothing else is gone through.
pub fn redact_message(message: &Message, payload: impl Fn(usize) -> Option<Range<usize>>) -> Cow<'_, [u8]> {
    let mut cutter = Cutter::new(message.body());
    for (index, event) in message.ranges().iter().enumerate() {
        match payload(index) {
            Some(payload) if payload.is_empty() => {}
            Some(payload) => cutter.run(event.start + payload.start, Zone::Body),
            None if has_payload(&message.body()[event.clone()]) => cutter.run(event.start, Zone::Event),
            None => {}
        }
    }
    cutter.finish()
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
    const fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, out: Vec::new(), copied: 0 }
    }

    /// The whole text, without what was cut.
    fn finish(mut self) -> Cow<'a, [u8]> {
        if self.copied == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.extend_from_slice(&self.text[self.copied..]);
        Cow::Owned(self.out)
    }

    /// Goes through the value that begins there, in this zone.
    fn run(&mut self, at: usize, whole: Zone) {
        self.at = at;
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
            if open.is_empty() {
                return;
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

    const ENVELOPE: &str = r#"{"specversion":"1.0","type":"llm.usage.v1","source":"gw","subject":"acme","id":"1",
        "time":"2026-11-23T10:00:00Z","data":{"provider":"openai","model":"m","provider_usage":PROVIDED}}"#;

    /// The event as it is stored in a message, twice, after it was read.
    fn stored(event: &str) -> String {
        let (_, payload) = super::super::parse_with_payload(event.as_bytes()).unwrap();
        let message = super::super::split(format!(" [{event},{event}]").as_bytes(), None).unwrap();
        String::from_utf8(redact_message(&message, |_| Some(payload.clone())).into_owned()).unwrap()
    }

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
        let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":7}"#;
        let chat = |texts: &str| format!(r#"{{"format":"openai.chat","body":{{{texts}{usage}}}}}"#);
        for provided in [
            chat(r#""messages":["SECRET"],"#),
            chat(r#""m\u0065ssages":["SECRET"],"#),
            chat(""),
            chat(r#""prompt":"SECRET","#).replace(r#"{"format""#, r#" {"format""#),
            format!(r#"{{"body" : {{ {usage}, "choices":["SECRET"]}} ,"format":"openai.chat"}}"#),
        ] {
            let event = ENVELOPE.replace("PROVIDED", &provided);
            for event in [
                event.clone(),
                event.replace(r#""id":"1""#, r#""id":"provider_usage""#),
                event.replace(r#""data":"#, r#""provider_usage":{"body":{"prompt":"kept"}},"data":"#),
            ] {
                let alone = String::from_utf8(redact(event.as_bytes()).into_owned()).unwrap();
                assert!(!alone.contains("SECRET"), "{event}");
                assert_eq!(stored(&event), format!(" [{alone},{alone}]"));
            }
        }
    }

    #[test]
    fn a_payload_whose_key_is_written_with_escapes_is_cut_where_the_event_was_read() {
        let body = r#"{"prompt":"SECRET","usage":{"prompt_tokens":5,"completion_tokens":7}}"#;
        let provided = format!(r#"{{"format":"openai.chat","body":{body}}}"#);
        let event = ENVELOPE.replace("PROVIDED", &provided).replace("provider_usage", r"provider\u005fusage");
        let cut = event.replace("SECRET", "");
        assert_eq!(stored(&event), format!(" [{cut},{cut}]"));
    }

    #[test]
    fn a_message_keeps_its_events_where_they_are() {
        let (plain, told) = (r#"{"id":"0"}"#, event(r#"{"prompt":"SECRET"}"#));
        let body = format!(" [{plain} , {told},{told} ,{plain}, broken] ");
        let message = super::super::split(body.as_bytes(), None).unwrap();
        let redacted = String::from_utf8(redact_message(&message, |_| None).into_owned()).unwrap();
        let cut = event(r#"{"prompt":""}"#);
        assert_eq!(redacted, format!(" [{plain} , {cut},{cut} ,{plain}, broken] "));
        let plain = super::super::split(plain.as_bytes(), None).unwrap();
        assert!(matches!(redact_message(&plain, |_| None), Cow::Borrowed(_)));
    }
}
