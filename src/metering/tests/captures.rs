//! What a real gateway sent: LiteLLM's callback payloads and spans, decomposed to the counts of the mock provider and
//! rated with the starter book.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{event_with, parse, parts_of, shared, usage};
use crate::domain::event::UsagePart;
use crate::metering::reason::Reason;
use crate::rating::starter::tests::book;

const GPT_CHAT: &str = "input=168 cache_read=3328 output=303 reasoning=1024";
const GPT_RESPONSES: &str = "input=600 cache_read=2000 output=380 reasoning=120";
const CLAUDE: &str =
    "input=2095 cache_read=50000 cache_write_5m=2000 cache_write_1h=4000 output=503 web_search=2";

/// What a call of the capture is, whichever channel it came through.
const CALLS: [(&str, &str, &str, i64, &str); 5] = [
    ("openai", "gpt-5", GPT_CHAT, 3496, "0.013896"),
    ("openai", "gpt-5", GPT_CHAT, 3496, "0.013896"),
    ("anthropic", "claude-sonnet-4-5", CLAUDE, 58095, "0.08033"),
    ("anthropic", "claude-sonnet-4-5", CLAUDE, 58095, "0.08033"),
    ("openai", "gpt-5", GPT_RESPONSES, 2600, "0.006"),
];

fn lines(file: &str) -> Vec<Value> {
    let text = shared(&format!("data/litellm-captures/{file}")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn decompose(format: &str, body: &Value) -> UsagePart {
    let event = parse(&event_with(&json!({"provider_usage": {"format": format, "body": body}}))).unwrap();
    usage(&event).parts[0].clone()
}

/// What the starter book says it cost.
fn cost(part: &UsagePart) -> String {
    let at = "2026-11-23T10:00:00Z".parse().unwrap();
    book().rate(part, at).unwrap_or_else(|unpriced| panic!("{unpriced}")).amount.to_string()
}

fn classes(part: &UsagePart) -> String {
    part.quantities
        .non_zero()
        .map(|(class, quantity)| format!("{class}={quantity}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn callback_payloads_decompose_with_and_without_prompts_and_answers() {
    let mut payloads: Vec<Value> = lines("generic_api.jsonl")
        .iter()
        .flat_map(|request| request["body"].as_array().unwrap().clone())
        .collect();
    if payloads.is_empty() {
        return;
    }
    assert_eq!(payloads.len(), CALLS.len());
    for (payload, (provider, model, quantities, tier_input, exact)) in payloads.iter_mut().zip(CALLS) {
        let whole = decompose("litellm", payload);
        assert_eq!((whole.provider.as_str(), whole.model.as_str()), (provider, model));
        assert_eq!(classes(&whole), quantities);
        assert_eq!(whole.tier_input, tier_input);
        assert_eq!(cost(&whole), exact);
        let stated = whole.stated_cost.map(|cost| cost.amount.to_string());
        // It states 0.006000000000000001 for the last, which has more places than an amount holds.
        assert_eq!(stated.as_deref(), (exact != "0.006").then_some(exact));
        let stripped = payload.as_object_mut().unwrap();
        for text in ["messages", "response", "model_parameters"] {
            stripped.remove(text);
        }
        assert_eq!(
            decompose("litellm", payload),
            whole,
            "a collector drops the texts before it stores anything"
        );
    }
}

/// The attributes of the spans that are model calls.
fn calls() -> Vec<BTreeMap<String, Value>> {
    lines("otlp_traces.jsonl")
        .iter()
        .flat_map(|request| spans(&base64(request["base64"].as_str().unwrap())))
        .filter(|attributes| attributes.contains_key("gen_ai.usage.input_tokens"))
        .collect()
}

#[test]
fn spans_carry_full_usage_and_cost_what_the_calls_cost() {
    let calls = calls();
    if calls.is_empty() {
        return;
    }
    assert_eq!(calls.len(), CALLS.len());
    for (attributes, (provider, model, quantities, tier_input, exact)) in calls.into_iter().zip(CALLS) {
        // Two of the spans have an empty provider; LiteLLM's own attribute names it.
        let data = json!({"provider_usage": {"format": "otel.gen_ai", "body": {"attributes": attributes}}});
        let event = parse(&event_with(&data)).unwrap();
        let part = &usage(&event).parts[0];
        assert_eq!(
            (part.provider.as_str(), part.model.as_str(), classes(part).as_str(), part.tier_input),
            (provider, model, quantities, tier_input)
        );
        assert_eq!(cost(part), exact);
        let stated = part.stated_cost.map(|cost| cost.amount.to_string());
        // It states 0.006000000000000001 for the last, which has more places than an amount holds.
        assert_eq!(stated.as_deref(), (exact != "0.006").then_some(exact));
    }
}

#[test]
fn spans_without_the_usage_object_cost_what_their_counts_tell() {
    let calls = calls();
    if calls.is_empty() {
        return;
    }
    // Missing are OpenAI's cached and reasoning tokens, the lifetime of Claude's cache writes and its searches, so it is
    // too much for OpenAI's calls and too little for Claude's.
    let gpt_chat = ("input=3496 output=1327", "0.01764");
    let claude = ("input=2095 cache_read=50000 cache_write_5m=6000 output=503", "0.05133");
    let told = [gpt_chat, gpt_chat, claude, claude, ("input=2600 output=500", "0.00825")];
    assert_eq!(calls.len(), told.len());
    for ((mut attributes, (quantities, exact)), (provider, ..)) in calls.into_iter().zip(told).zip(CALLS) {
        attributes.remove("metadata.usage_object").unwrap();
        let part = decompose("otel.gen_ai", &json!({"attributes": attributes}));
        assert_eq!((part.provider.as_str(), classes(&part).as_str()), (provider, quantities));
        assert_eq!(cost(&part), exact);
    }
}

#[test]
fn a_usage_object_of_another_call_is_refused() {
    for (printed, problem) in [
        ("{'prompt_tokens': 11, 'completion_tokens': 5, 'total_tokens': 16}", "states 11 tokens"),
        ("{'prompt_tokens': 10, 'completion_tokens': 6, 'total_tokens': 16}", "states 6 tokens"),
        ("Usage(prompt_tokens=10)", "neither JSON nor a dict"),
    ] {
        let body = json!({"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5,
            "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5", "metadata.usage_object": printed});
        let rejected = parts_of("otel.gen_ai", &body).unwrap_err();
        assert!(rejected.detail.contains(problem), "{printed}: {}", rejected.detail);
    }
}

#[test]
fn totals_alone_are_no_usage() {
    // OpenMeter's and Lago's events have a prompt and a completion, which do not tell what was cached.
    for (file, path) in [("openmeter.jsonl", "/data"), ("lago.jsonl", "/event/properties")] {
        let requests = lines(file);
        assert!(requests.is_empty() || requests.len() == CALLS.len(), "{file}");
        for request in requests {
            let body = request["body"].pointer(path).unwrap();
            let rejected = parts_of("litellm", body).unwrap_err();
            assert_eq!(rejected.reason, Reason::Unmetered, "{file}: {body}");
        }
    }
}

/// Attributes of every span in an `ExportTraceServiceRequest`.
fn spans(request: &[u8]) -> Vec<BTreeMap<String, Value>> {
    let inside = |message: Vec<u8>, wanted: u64| {
        fields(&message)
            .into_iter()
            .filter(move |(number, _)| *number == wanted)
            .map(|(_, value)| value.bytes())
    };
    inside(request.to_vec(), 1) // resource_spans
        .flat_map(|resource| inside(resource, 2)) // scope_spans
        .flat_map(|scope| inside(scope, 2)) // spans
        .map(|span| {
            inside(span, 9) // attributes
                .map(|attribute| {
                    let pair: BTreeMap<u64, Field> = fields(&attribute).into_iter().collect();
                    let name = String::from_utf8(pair[&1].clone().bytes()).unwrap();
                    (name, any_value(&pair[&2].clone().bytes()))
                })
                .collect()
        })
        .collect()
}

/// An `AnyValue`: a text, an integer, a double, or something that no count, cost or name is sent as.
fn any_value(bytes: &[u8]) -> Value {
    match fields(bytes).into_iter().next() {
        Some((1, Field::Bytes(text))) => json!(String::from_utf8(text).unwrap()),
        Some((3, Field::Number(number))) => json!(number),
        Some((4, Field::Bytes(double))) => json!(f64::from_le_bytes(double.try_into().unwrap())),
        _ => Value::Null,
    }
}

#[derive(Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(number) => panic!("{number} is no message"),
        }
    }
}

/// The fields of a protobuf message, by number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Bytes(bytes.split_off(..8).unwrap().to_vec()),
            5 => Field::Bytes(bytes.split_off(..4).unwrap().to_vec()),
            _ => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                Field::Bytes(bytes.split_off(..length).unwrap().to_vec())
            }
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().unwrap();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let sextet = |byte: &u8| ALPHABET.iter().position(|letter| letter == byte).unwrap();
        let bits =
            chunk.iter().fold(0_usize, |bits, byte| bits << 6 | sextet(byte)) << (6 * (4 - chunk.len()));
        let whole = u32::try_from(bits).unwrap().to_be_bytes();
        bytes.extend_from_slice(&whole[1..chunk.len()]);
    }
    bytes
}
