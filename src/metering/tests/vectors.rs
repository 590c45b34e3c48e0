//! Published vectors and real receipts: every payload decomposed to the classes that its bill was computed from.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{event_with, parse_bytes, shared, usage};
use crate::domain::event::UsagePart;
use crate::domain::tokens::TokenClass;
use crate::metering::{Reason, Rejected};

#[derive(Deserialize)]
struct Vector {
    id: String,
    title: String,
    payload: Box<RawValue>,
    format: Option<String>,
    classes: BTreeMap<String, serde_json::Value>,
    tier_input: Option<i64>,
    fees: String,
    /// What the party that charged says it charged.
    stated: Option<String>,
    stated_field: Option<String>,
    expected: Option<String>,
}

fn load(file: &str) -> Vec<Vector> {
    shared(file).map(|text| serde_json::from_str(&text).unwrap()).unwrap_or_default()
}

/// The payload's own text, byte for byte, in an event.
fn decompose(format: &str, body: &str) -> Result<Vec<UsagePart>, Rejected> {
    let data = serde_json::json!({"provider": "p", "model": "the-model",
        "provider_usage": {"format": format, "body": "BODY"}});
    let event = event_with(&data).to_string().replace("\"BODY\"", body);
    parse_bytes(event.as_bytes()).map(|event| usage(&event).parts.clone())
}

/// Our class for a name of the vectors.
fn class(name: &str) -> TokenClass {
    match name {
        "input_text" => TokenClass::Input,
        "cache_write" => TokenClass::CacheWrite5m,
        "output_text" => TokenClass::Output,
        "output_reasoning" => TokenClass::Reasoning,
        other => other.parse().unwrap(),
    }
}

/// Token classes (no fees) summed over parts.
fn sums<'p>(parts: impl IntoIterator<Item = &'p UsagePart>) -> BTreeMap<TokenClass, i64> {
    let mut sums = BTreeMap::new();
    for (class, quantity) in parts.into_iter().flat_map(|part| part.quantities.non_zero()) {
        if !class.is_fee() {
            *sums.entry(class).or_insert(0) += quantity;
        }
    }
    sums
}

fn expected_sums(vector: &Vector) -> BTreeMap<TokenClass, i64> {
    vector.classes.iter().map(|(name, quantity)| (class(name), quantity.as_i64().unwrap())).collect()
}

#[test]
fn vectors_decompose_to_their_classes() {
    let mut decomposed = 0;
    for vector in load("vectors/vectors.json") {
        let name = format!("{} {}", vector.id, vector.title);
        let format = vector.format.as_deref().unwrap_or("openai.chat");
        let body = vector.payload.get();
        decomposed += 1;
        match vector.id.as_str() {
            "V24" => assert_eq!(decompose(format, body).unwrap_err().reason, Reason::Unmetered, "{name}"),
            // A provider's own key at OpenRouter: the fee and the provider's charge together.
            "V23" => {
                let parts = decompose(format, body).unwrap();
                assert_eq!(
                    parts[0].stated_cost.map(|cost| cost.amount.to_string()),
                    vector.expected,
                    "{name}"
                );
            }
            // Two models in one call.
            "V15" => {
                let parts = decompose(format, body).unwrap();
                let of = |name: &str| vector.classes[name].as_i64().unwrap();
                for (model, input, output) in [
                    ("claude-haiku-4-5", "executor_input", "executor_output"),
                    ("claude-opus-4-6", "advisor_input", "advisor_output"),
                ] {
                    let sums = sums(parts.iter().filter(|part| part.model == model));
                    let expected = [(TokenClass::Input, of(input)), (TokenClass::Output, of(output))];
                    assert_eq!(sums, BTreeMap::from(expected), "{name}: {model}");
                }
            }
            // A million calls of one shape.
            "V29" => {
                #[derive(Deserialize)]
                struct Calls {
                    calls: i64,
                    each: Box<RawValue>,
                }
                let calls: Calls = serde_json::from_str(body).unwrap();
                let parts = decompose(format, calls.each.get()).unwrap();
                assert_eq!(parts[0].quantities.get(TokenClass::Input) * calls.calls, 7_000_000, "{name}");
                assert_eq!(Some(parts[0].tier_input), vector.tier_input, "{name}");
            }
            _ => {
                let parts = decompose(format, body).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
                assert_eq!(sums(&parts), expected_sums(&vector), "{name}");
                let tier_input: i64 = parts.iter().map(|part| part.tier_input).sum();
                assert_eq!(Some(tier_input), vector.tier_input, "{name}");
            }
        }
    }
    eprintln!("{decomposed} vectors");
}

#[test]
fn receipts_decompose_to_their_classes_and_state_their_cost() {
    for vector in load("vectors/receipts.json") {
        let name = format!("{} {}", vector.id, vector.title);
        let expected = expected_sums(&vector);
        let mut body = vector.payload.get().to_owned();
        let format = if vector.title.starts_with("xAI Responses") {
            "openai.responses"
        } else if vector.title.starts_with("OpenRouter") {
            "openrouter.chat"
        } else if vector.title.starts_with("Claude Code") {
            // The receipt's counts do not tell the lifetime of the writes; its bill does.
            if let Some(written) = expected.get(&TokenClass::CacheWrite1h) {
                let details = format!(r#"{{"cacheDetails":[{{"ttl":"1h","inputTokens":{written}}}],"#);
                body = body.replacen('{', &details, 1);
            }
            "bedrock.converse"
        } else {
            "openai.chat"
        };
        let parts = decompose(format, &body).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
        assert_eq!(sums(&parts), expected, "{name}");
        let has_fees =
            parts.iter().flat_map(|part| part.quantities.non_zero()).any(|(class, _)| class.is_fee());
        assert_eq!(has_fees, vector.fees != "0", "{name}");
        if vector.stated_field.is_some_and(|field| field.starts_with("usage.cost")) {
            assert_eq!(parts[0].stated_cost.map(|cost| cost.amount.to_string()), vector.stated, "{name}");
        }
    }
}
