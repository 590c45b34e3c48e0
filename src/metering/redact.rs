//! What people and models said to each other has no place in a ledger: it is cut out of an event before it is stored.
//!
//! Only inside `data.provider_usage.body`, and only texts: counts, names and costs stay, so a redacted event reads as
//! the same usage (a test proves it for every payload we know). A rule by key, and one by length for the keys that
//! nobody thought of. Of what tools did at the provider, as much stays as their fees are counted by.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem;
use serde::de::IgnoredAny;

use super::json::too_deep;
use super::message::{Message, ZSTD_MAGIC, decompressed, objects};

/// Found in every event that has something to cut. Made once: that takes as long as a search.
static MARK: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"provider_usage\""));
/// Keys whose texts, lists and objects are cut; plain numbers under them are counts and stay.
const CUT: [&str; 33] = [
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
    "embeddings",
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
    "vertex_ai_grounding_metadata",
];
/// Lists of what was answered, of which an outline stays; where they are no lists, they are cut.
const ANSWERS: [&str; 2] = ["candidates", "output"];
/// What Google looked up, of which an outline stays wherever it is.
const GROUNDING: [&str; 4] =
    ["groundingChunks", "groundingMetadata", "grounding_chunks", "grounding_metadata"];
/// What an entry of an outline did, and of which kind that or the entry is.
const ACTION: &str = "action";
const KIND: &str = "type";
/// Lists of queries: they stay countable, each text as a number, the same for the same query.
const QUERIES: [&str; 2] = ["webSearchQueries", "web_search_queries"];
/// Beginnings of span attributes that carry texts.
const CUT_PREFIXES: [&str; 21] = [
    "ai.embedding",
    "ai.prompt",
    "ai.response.",
    "ai.schema",
    "ai.toolCall.",
    "ai.value",
    "gen_ai.completion.",
    "gen_ai.content.",
    "gen_ai.input.",
    "gen_ai.output.",
    "gen_ai.prompt.",
    "gen_ai.system_instructions",
    "gen_ai.tool.",
    "input.value",
    "llm.completions.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.prompts.",
    "llm.tools.",
    "output.value",
    "traceloop.entity.",
];
/// Span attributes that begin so and carry none.
const KEPT: [&str; 4] =
    ["ai.response.finishReason", "ai.response.id", "ai.response.model", "ai.response.timestamp"];
/// A wrapper around what the provider answered: searched like the body.
const WRAPPER: &str = "response";
/// Longest text that stays under any other key: names, ids, addresses.
const TEXT_MAX_BYTES: usize = 256;
/// Level at which what was compressed is compressed again.
const ZSTD_LEVEL: i32 = 3;
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

/// What could not be recorded without texts of prompts and answers: those of each object in it that is valid JSON, be it
/// alone, among others or compressed with zstd.
pub fn redact_rejected(received: &[u8]) -> Cow<'_, [u8]> {
    if !received.starts_with(ZSTD_MAGIC) {
        return redact_objects(received);
    }
    let Ok(plain) = decompressed(received) else { return Cow::Borrowed(received) };
    match redact_objects(&plain) {
        Cow::Owned(cut) => zstd::bulk::compress(&cut, ZSTD_LEVEL).map_or(Cow::Borrowed(received), Cow::Owned),
        Cow::Borrowed(_) => Cow::Borrowed(received),
    }
}

fn redact_objects(text: &[u8]) -> Cow<'_, [u8]> {
    let mut cutter = Cutter::new(text);
    for object in objects(text) {
        if has_payload(&text[object.clone()]) {
            cutter.run(object.start, Zone::Event);
        }
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
    /// What was answered, as far as fees are counted by it.
    Outline,
    /// Queries that were put to a search.
    Queries,
}

impl Zone {
    /// The zone of a member's value; `None` where nothing in it concerns us.
    fn inside(self, key: &str) -> Option<Self> {
        match (self, key) {
            (Self::Event, "data") => Some(Self::Data),
            (Self::Data, "provider_usage") => Some(Self::ProviderUsage),
            (Self::Body | Self::Outline, key) if QUERIES.contains(&key) => Some(Self::Queries),
            (Self::Body | Self::Outline, key) if GROUNDING.contains(&key) => Some(Self::Outline),
            (Self::Body, key) if ANSWERS.contains(&key) => Some(Self::Outline),
            (Self::Outline, ACTION) => Some(Self::Outline),
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
    /// The queries of the body, by their numbers.
    queries: HashMap<Cow<'a, str>, usize>,
}

impl<'a> Cutter<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, out: Vec::new(), copied: 0, queries: HashMap::new() }
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
        self.queries.clear();
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
                    cut = self.is_cut(around, &key);
                    counts = key == COUNTS;
                }
            }
            match (zone, self.peek()) {
                (_, Some(b'{' | b'[' | b'"')) if cut => self.empty(),
                (Some(Zone::Queries), Some(b'"')) => self.number(),
                (Some(Zone::Queries), Some(b'{')) | (Some(Zone::Outline), Some(b'"')) => self.empty(),
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

    /// Whether the value ahead is cut under this key of an object in the zone.
    fn is_cut(&self, around: Zone, key: &str) -> bool {
        let kept = |key: &str| match self.peek() {
            Some(b'{') => key == WRAPPER,
            Some(b'[') => ANSWERS.contains(&key),
            _ => KEPT.contains(&key),
        };
        match around {
            Zone::Body => {
                let named = CUT.contains(&key) || CUT_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
                named && !kept(key)
            }
            Zone::Outline if key == KIND => {
                self.peek() != Some(b'"') || self.value_end() - self.at > TEXT_MAX_BYTES
            }
            Zone::Outline => around.inside(key).is_none(),
            _ => false,
        }
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
            self.replace(end, empty);
        }
        self.at = end;
    }

    /// Replaces the query ahead by its number; an empty one is none and stays.
    fn number(&mut self) {
        let (end, quoted) = (self.value_end(), &self.text[self.at..self.value_end()]);
        if quoted.len() > 2 {
            let next = self.queries.len() + 1;
            let number = *self.queries.entry(unquoted(quoted)).or_insert(next);
            self.replace(end, format!("\"{number}\"").as_bytes());
        }
        self.at = end;
    }

    /// Writes something else in place of the text up to there.
    fn replace(&mut self, end: usize, by: &[u8]) {
        if self.text[self.at..end] != *by {
            self.out.extend_from_slice(&self.text[self.copied..self.at]);
            self.out.extend_from_slice(by);
            self.copied = end;
        }
    }

    /// The key ahead, without its quotes and escapes; moves on to its value.
    fn key(&mut self) -> Cow<'a, str> {
        let start = self.at;
        self.at = self.value_end();
        let quoted = &self.text[start..self.at];
        self.skip_separators();
        unquoted(quoted)
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

/// A JSON string without its quotes and escapes.
fn unquoted(quoted: &[u8]) -> Cow<'_, str> {
    match quoted {
        [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => {
            str::from_utf8(plain).map_or_else(|_| String::from_utf8_lossy(plain), Cow::Borrowed)
        }
        _ => Cow::Owned(serde_json::from_slice(quoted).unwrap_or_default()),
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
                r#"{"response":{"model":"m","output":[{"text":""}],"usage":{"input_tokens":5}}}"#,
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
            (
                r#"{"attributes":{"ai.prompt":"SECRET","ai.prompt.messages":"SECRET","ai.response.text":"SECRET",
                    "ai.response.model":"m","ai.response.id":"r1","ai.toolCall.args":"SECRET","ai.values":["SECRET"],
                    "input.value":"SECRET","output.value":"SECRET","llm.input_messages.0.message.content":"SECRET",
                    "llm.output_messages.0.message.content":"SECRET","ai.usage.inputTokens":5}}"#,
                r#"{"attributes":{"ai.prompt":"","ai.prompt.messages":"","ai.response.text":"",
                    "ai.response.model":"m","ai.response.id":"r1","ai.toolCall.args":"","ai.values":[{}],
                    "input.value":"","output.value":"","llm.input_messages.0.message.content":"",
                    "llm.output_messages.0.message.content":"","ai.usage.inputTokens":5}}"#,
            ),
            (&format!(r#"{{"unheard_of":"{long}","short":"ok"}}"#), r#"{"unheard_of":"","short":"ok"}"#),
        ];
        for (body, expected) in cases {
            assert_eq!(redacted(body), event(expected), "{body}");
        }
    }

    #[test]
    fn what_fees_are_counted_by_stays_countable() {
        let cases = [
            (
                r#"{"output":[{"type":"web_search_call","id":"SECRET","action":{"type":"search","query":"SECRET",
                    "sources":[{"type":"url","url":"SECRET"}]}},{"type":"message","content":[{"text":"SECRET"}]},
                    "SECRET",{"type":["SECRET"],"summary":"SECRET","n":1}]}"#,
                r#"{"output":[{"type":"web_search_call","id":"","action":{"type":"search","query":"",
                    "sources":[{}]}},{"type":"message","content":[{}]},
                    "",{"type":[{}],"summary":"","n":1}]}"#,
            ),
            (
                r#"{"candidates":[{"content":{"parts":["SECRET"]},"groundingMetadata":{"webSearchQueries":
                    ["SECRET","","more SECRET","SECR\u0045T",{"a":"SECRET"}],"groundingChunks":[{"maps":{"title":"SECRET"}}],
                    "searchEntryPoint":{"renderedContent":"SECRET"}}},{"grounding_metadata":{"web_search_queries":
                    ["more SECRET","1"]}}]}"#,
                r#"{"candidates":[{"content":{},"groundingMetadata":{"webSearchQueries":
                    ["1","","2","1",{}],"groundingChunks":[{"maps":{}}],
                    "searchEntryPoint":{}}},{"grounding_metadata":{"web_search_queries":
                    ["2","3"]}}]}"#,
            ),
            (
                r#"{"serverContent":{"groundingMetadata":{"webSearchQueries":["SECRET"],"retrievalQueries":["SECRET"]}},
                    "output":{"message":"SECRET"},"candidates":"SECRET"}"#,
                r#"{"serverContent":{"groundingMetadata":{"webSearchQueries":["1"],"retrievalQueries":[{}]}},
                    "output":{},"candidates":""}"#,
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(redacted(body), event(expected), "{body}");
            assert_eq!(redacted(expected), event(expected), "what is cut stays as it is");
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
    fn what_is_rejected_as_a_whole_is_cut_where_it_can_be_read() {
        let (told, cut) = (event(r#"{"prompt":"SECRET","n":1}"#), event(r#"{"prompt":"","n":1}"#));
        let many = |event: &str| format!("[{}]", vec![event; super::super::MESSAGE_MAX_EVENTS + 1].join(","));
        let cases = [
            (told.clone(), cut.clone()),
            (many(&told), many(&cut)),
            (format!("[{told},]"), format!("[{cut},]")),
            (format!("[{told},{told}"), format!("[{cut},{cut}")),
            (format!("\u{feff}{told}"), format!("\u{feff}{cut}")),
            (format!("{told}\n{told} x"), format!("{cut}\n{cut} x")),
            (format!("[[{told}],12]"), format!("[[{cut}],12]")),
        ];
        for (received, expected) in cases {
            assert_eq!(String::from_utf8_lossy(&redact_rejected(received.as_bytes())), expected);
            let compressed = zstd::bulk::compress(received.as_bytes(), 1).unwrap();
            let stored = redact_rejected(&compressed).into_owned();
            assert_eq!(String::from_utf8_lossy(&zstd::decode_all(&stored[..]).unwrap()), expected);
        }
        // What ends before its bracket does cannot be read; what holds nothing to cut stays as it came.
        let truncated = told.replace("]}", "");
        for received in [&truncated[..truncated.len() - 3], "[{}{}]", "hello {", "[[[[", "{\"a", ""] {
            for received in [received.as_bytes(), &zstd::bulk::compress(received.as_bytes(), 1).unwrap()] {
                assert!(matches!(redact_rejected(received), Cow::Borrowed(same) if same == received));
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
