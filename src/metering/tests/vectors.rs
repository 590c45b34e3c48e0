//! Published vectors and real receipts: every payload decomposed to the classes that its bill was computed
//! from, and rated to the bill.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{event_with, parse_bytes, shared, usage};
use crate::domain::event::UsagePart;
use crate::domain::money::Amount;
use crate::domain::price::quotation::NewPrice;
use crate::domain::tokens::TokenClass;
use crate::metering::{Reason, Rejected};
use crate::rating::PriceBook;
use crate::rating::starter::tests::book_of;

#[derive(Deserialize)]
struct Vector {
    id: String,
    title: String,
    payload: Box<RawValue>,
    format: Option<String>,
    classes: BTreeMap<String, Value>,
    tier_input: Option<i64>,
    fees: String,
    /// `base` and `tiers`, the same by model, or the rates themselves.
    rates_per_mtok: Value,
    mult: String,
    #[serde(default)]
    tier_inclusive: Option<bool>,
    /// What the party that charged says it charged.
    stated: Option<String>,
    stated_field: Option<String>,
    expected: Option<String>,
}

/// The vector's rates as a price book for these parts: fees by the unit, the other conditions those of the call.
fn price_book(vector: &Vector, parts: &[UsagePart]) -> PriceBook {
    let mut prices: BTreeMap<String, NewPrice> = BTreeMap::new();
    for part in parts {
        let rates = &vector.rates_per_mtok;
        let rates = rates.get(part.model.as_str()).unwrap_or(rates);
        let mut add = |rates: &Value, above: &Value| {
            let rates: BTreeMap<&str, &Value> =
                rates.as_object().unwrap().iter().map(|(name, rate)| (class(name).name(), rate)).collect();
            let fees = part.quantities.non_zero().filter(|(class, _)| class.is_fee());
            let fees: BTreeMap<&str, String> = fees
                .map(|(class, quantity)| {
                    let fee = vector.fees.parse::<Decimal>().unwrap() / Decimal::from(quantity);
                    (class.name(), fee.to_string())
                })
                .collect();
            let made = &part.conditions;
            let price = json!({"provider": part.provider.as_str(), "model": part.model.as_str(), "per": 1_000_000, "rates": rates,
                "fees": fees, "multiplier": vector.mult, "valid_from": "2020-01-01T00:00:00Z",
                "conditions": {"service_tier": made.service_tier.as_deref(), "processing": made.processing.as_deref(),
                    "speed": made.speed.as_deref(),
                    "context_above": above,
                    "context_inclusive": !above.is_null() && vector.tier_inclusive == Some(true)}});
            prices.insert(price.to_string(), serde_json::from_value(price).unwrap());
        };
        add(rates.get("base").unwrap_or(rates), &Value::Null);
        for tier in rates.get("tiers").and_then(Value::as_array).into_iter().flatten() {
            add(&tier["rates"], &tier["above"]);
        }
    }
    book_of(&prices.into_values().collect::<Vec<_>>())
}

/// What the parts cost by the vector's rates.
fn amount(vector: &Vector, parts: &[UsagePart]) -> Amount {
    let book = price_book(vector, parts);
    let at = "2026-11-23T10:00:00Z".parse().unwrap();
    Amount::checked_sum(parts.iter().map(|part| book.rate(part, at).unwrap().amount)).unwrap()
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
fn vectors_decompose_to_their_classes_and_cost_what_they_say() {
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
                assert_eq!(Some(amount(&vector, &parts).to_string()), vector.expected, "{name}");
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
                let each = amount(&vector, &parts);
                let all = Amount::checked_sum((0..calls.calls).map(|_| each)).unwrap();
                assert_eq!(Some(all.to_string()), vector.expected, "{name}");
            }
            _ => {
                let parts = decompose(format, body).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
                assert_eq!(sums(&parts), expected_sums(&vector), "{name}");
                let tier_input: i64 = parts.iter().map(|part| part.tier_input).sum();
                assert_eq!(Some(tier_input), vector.tier_input, "{name}");
                assert_eq!(Some(amount(&vector, &parts).to_string()), vector.expected, "{name}");
            }
        }
    }
    eprintln!("{decomposed} vectors");
}

#[test]
fn receipts_decompose_to_their_classes_and_cost_what_was_billed() {
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
        assert_eq!(Some(amount(&vector, &parts).to_string()), vector.expected, "{name}");
        let has_fees =
            parts.iter().flat_map(|part| part.quantities.non_zero()).any(|(class, _)| class.is_fee());
        assert_eq!(has_fees, vector.fees != "0", "{name}");
        if vector.stated_field.is_some_and(|field| field.starts_with("usage.cost")) {
            assert_eq!(parts[0].stated_cost.map(|cost| cost.amount.to_string()), vector.stated, "{name}");
        }
    }
}
