//! What a real gateway sent: LiteLLM's callback payloads and spans, decomposed to the counts of the mock provider and
//! rated with the starter book.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{event_with, parse, shared, usage};
use crate::domain::event::UsagePart;
use crate::rating::starter::tests::book;

const GPT_CHAT: &str = "input=168 cache_read=3328 output=303 reasoning=1024";
const GPT_RESPONSES: &str = "input=600 cache_read=2000 output=380 reasoning=120";
const CLAUDE: &str =
    "input=2095 cache_read=50000 cache_write_5m=2000 cache_write_1h=4000 output=503 web_search=2";

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
    let expected = [
        ("openai", "gpt-5", GPT_CHAT, "0.013896", true),
        ("openai", "gpt-5", GPT_CHAT, "0.013896", true),
        ("anthropic", "claude-sonnet-4-5", CLAUDE, "0.08033", true),
        ("anthropic", "claude-sonnet-4-5", CLAUDE, "0.08033", true),
        // It states 0.006000000000000001, which has more places than an amount holds.
        ("openai", "gpt-5", GPT_RESPONSES, "0.006", false),
    ];
    assert_eq!(payloads.len(), expected.len());
    for (payload, (provider, model, quantities, exact, states_it)) in payloads.iter_mut().zip(expected) {
        let whole = decompose("litellm", payload);
        assert_eq!((whole.provider.as_str(), whole.model.as_str()), (provider, model));
        assert_eq!(classes(&whole), quantities);
        assert_eq!(whole.tier_input, payload["prompt_tokens"].as_i64().unwrap());
        assert_eq!(cost(&whole), exact);
        let stated = whole.stated_cost.map(|cost| cost.amount.to_string());
        assert_eq!(stated.as_deref(), states_it.then_some(exact));
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

#[test]
fn spans_decompose_to_what_their_attributes_tell() {
    let requests = lines("otlp_traces.jsonl");
    let calls: Vec<BTreeMap<String, Value>> = requests
        .iter()
        .flat_map(|request| spans(&base64(request["base64"].as_str().unwrap())))
        .filter(|attributes| attributes.contains_key("gen_ai.usage.input_tokens"))
        .collect();
    if requests.is_empty() {
        return;
    }
    // LiteLLM's spans leave out OpenAI's cached and reasoning tokens, the lifetime of cache writes and the searches, so
    // what they cost is not what the calls cost: too much for OpenAI's, too little for Claude's.
    let gpt_chat = "input=3496 output=1327";
    let claude = "input=2095 cache_read=50000 cache_write_5m=6000 output=503";
    let expected = [
        ("gpt-5", gpt_chat, 3496, "0.01764"),
        ("gpt-5", gpt_chat, 3496, "0.01764"),
        ("claude-sonnet-4-5", claude, 58095, "0.05133"),
        ("claude-sonnet-4-5", claude, 58095, "0.05133"),
        ("gpt-5", "input=2600 output=500", 2600, "0.00825"),
    ];
    assert_eq!(calls.len(), expected.len());
    for (attributes, (model, quantities, tier_input, exact)) in calls.into_iter().zip(expected) {
        let named = attributes.get("gen_ai.provider.name").and_then(Value::as_str) != Some("");
        let mut data =
            json!({"provider_usage": {"format": "otel.gen_ai", "body": {"attributes": attributes}}});
        if !named {
            data["provider"] = json!("from-the-event");
        }
        let event = parse(&event_with(&data)).unwrap();
        let part = &usage(&event).parts[0];
        assert_eq!(
            (part.model.as_str(), classes(part).as_str(), part.tier_input),
            (model, quantities, tier_input)
        );
        assert_eq!(part.provider == "from-the-event", !named);
        let provider = if model == "gpt-5" { "openai" } else { "anthropic" };
        assert_eq!(cost(&UsagePart { provider: provider.to_owned(), ..part.clone() }), exact);
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

/// An `AnyValue`: a text, an integer, or something that no count or name is sent as.
fn any_value(bytes: &[u8]) -> Value {
    match fields(bytes).into_iter().next() {
        Some((1, Field::Bytes(text))) => json!(String::from_utf8(text).unwrap()),
        Some((3, Field::Number(number))) => json!(number),
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
