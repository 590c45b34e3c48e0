//! Provider payloads through the wire format: one table per question, hand-computed.

mod claude;
mod gateways;
mod makers;
mod openai;

use serde_json::{Value, json};

use super::{event_with, parse, parts_of, reason, usage};
use crate::domain::event::UsagePart;
use crate::metering::{Format, Reason};

/// The classes of a part as `name=quantity`, in their order.
fn classes(part: &UsagePart) -> String {
    part.quantities
        .non_zero()
        .map(|(class, quantity)| format!("{class}={quantity}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The one part of a payload.
fn part(format: &str, body: &Value) -> UsagePart {
    let mut parts = parts_of(format, body).unwrap_or_else(|rejected| panic!("{format} {body}: {rejected}"));
    assert_eq!(parts.len(), 1, "{format} {body}");
    parts.remove(0)
}

fn stated(part: &UsagePart) -> Option<String> {
    part.stated_cost.map(|cost| format!("{} {}", cost.amount, cost.currency))
}

fn refused(format: &str, body: &Value) -> Reason {
    match parts_of(format, body) {
        Ok(parts) => panic!("{format} {body} was read as {}", classes(&parts[0])),
        Err(rejected) => rejected.reason,
    }
}

/// The least usage object of each format that stands alone in its body.
pub(super) fn bare_usage() -> Vec<(&'static str, &'static str, Value)> {
    let chat = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    let tokens = json!({"input_tokens": 10, "output_tokens": 5});
    vec![
        ("openai.chat", "usage", chat.clone()),
        ("openai.responses", "usage", tokens.clone()),
        ("openai.realtime", "usage", tokens.clone()),
        ("anthropic.messages", "usage", tokens),
        (
            "gemini.generate_content",
            "usageMetadata",
            json!({"promptTokenCount": 10, "candidatesTokenCount": 5}),
        ),
        ("bedrock.converse", "usage", json!({"inputTokens": 10, "outputTokens": 5, "totalTokens": 15})),
        ("deepseek.chat", "usage", chat.clone()),
        ("xai.chat", "usage", chat.clone()),
        ("mistral.chat", "usage", chat.clone()),
        ("cohere.v2", "usage", json!({"billed_units": {"input_tokens": 10.0, "output_tokens": 5.0}})),
        ("openrouter.chat", "usage", chat.clone()),
        ("portkey.anthropic", "usage", chat),
        (
            "otel.gen_ai",
            "attributes",
            json!({"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5}),
        ),
    ]
}

#[test]
fn a_body_is_the_response_or_its_usage_object() {
    for (format, key, usage) in bare_usage() {
        let bare = part(format, &usage);
        assert_eq!(classes(&bare), "input=10 output=5", "{format}");
        assert_eq!(bare.tier_input, 10, "{format}");
        assert_eq!(bare.model, "m", "{format}: the event names the model");
        assert_eq!(part(format, &json!({key: usage, "id": "x"})), bare, "{format}");
    }
    assert_eq!(bare_usage().len() + 1, Format::ALL.len(), "litellm is always a whole payload");
}

#[test]
fn both_at_once_are_ambiguous() {
    for (format, key, usage) in bare_usage().into_iter().filter(|(format, ..)| *format != "otel.gen_ai") {
        let mut body = usage.clone();
        body[key] = usage;
        assert_eq!(refused(format, &body), Reason::Ambiguous, "B18 {format}");
    }
}

#[test]
fn v24_missing_usage_is_unmetered() {
    for format in Format::ALL.iter().map(|format| format.as_str()) {
        for body in
            [json!({}), json!({"usage": null}), json!({"id": "x", "usage": {}}), json!({"usageMetadata": {}})]
        {
            assert_eq!(refused(format, &body), Reason::Unmetered, "{format} {body}");
        }
        for body in [json!([]), json!("x"), json!(5)] {
            assert_eq!(refused(format, &body), Reason::Type, "{format} {body}");
        }
        assert_eq!(refused(format, &Value::Null), Reason::Unmetered, "{format}");
    }
    assert_eq!(refused("openai.completions", &json!({})), Reason::UnknownFormat);
}

#[test]
fn a_payload_under_another_format_is_not_read_wrong() {
    let anthropic = json!({"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 5});
    let responses =
        json!({"input_tokens": 100, "input_tokens_details": {"cached_tokens": 90}, "output_tokens": 5});
    let portkey = json!({"prompt_tokens": 10, "completion_tokens": 5, "cache_creation_input_tokens": 90});
    assert_eq!(refused("openai.responses", &anthropic), Reason::Ambiguous);
    assert_eq!(refused("openai.realtime", &anthropic), Reason::Ambiguous);
    assert_eq!(refused("anthropic.messages", &responses), Reason::Ambiguous);
    for format in ["openai.chat", "deepseek.chat", "xai.chat", "mistral.chat", "openrouter.chat"] {
        assert_eq!(refused(format, &portkey), Reason::Ambiguous, "{format}");
        assert_eq!(refused(format, &anthropic), Reason::Unmetered, "{format}");
    }
    assert_eq!(refused("anthropic.messages", &portkey), Reason::Ambiguous);
}

#[test]
fn counts_in_payloads_are_integers() {
    for value in [json!(1.0), json!("10"), json!(true), json!(-1), json!(1_000_000_000_001_i64)] {
        let expected = match &value {
            Value::Number(number) if number.as_i64() == Some(-1) => Reason::Negative,
            Value::Number(number) if number.is_i64() => Reason::Limit,
            _ => Reason::Type,
        };
        assert_eq!(
            refused("openai.chat", &json!({"prompt_tokens": value, "completion_tokens": 1})),
            expected,
            "{value}"
        );
    }
}

#[test]
fn what_the_provider_served_goes_before_what_the_event_says() {
    let with = |data: Value, response: Value| {
        let mut all = json!({"provider": "p", "model": "asked", "provider_usage": {"format": "openai.chat"}});
        all.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
        let mut body = json!({"usage": {"prompt_tokens": 1, "completion_tokens": 1}});
        body.as_object_mut().unwrap().extend(response.as_object().unwrap().clone());
        all["provider_usage"]["body"] = body;
        let event = parse(&event_with(&all)).unwrap();
        let part = usage(&event).parts[0].clone();
        (part.model, part.conditions.service_tier, part.conditions.processing)
    };
    let some = |text: &str| Some(text.into());
    assert_eq!(with(json!({}), json!({})), ("asked".into(), None, None));
    assert_eq!(with(json!({}), json!({"model": "served"})).0, "served");
    assert_eq!(with(json!({}), json!({"model": ""})).0, "asked");
    let asked = json!({"service_tier": "Priority"});
    assert_eq!(with(asked.clone(), json!({})).1, some("priority"));
    assert_eq!(with(asked.clone(), json!({"service_tier": "default"})).1, None);
    assert_eq!(with(asked.clone(), json!({"service_tier": "flex"})).1, some("flex"));
    assert_eq!(with(asked.clone(), json!({"service_tier": "auto"})).1, some("priority"), "auto is no answer");
    assert_eq!(with(asked, json!({"service_tier": null})).1, some("priority"));
    for tier in ["default", "Standard", "on_demand", "AUTO"] {
        assert_eq!(with(json!({"service_tier": tier}), json!({})).1, None, "{tier}");
    }
    assert_eq!(with(json!({"service_tier": "batch"}), json!({})), ("asked".into(), None, some("batch")));
    assert_eq!(with(json!({"processing": "batch"}), json!({"service_tier": "default"})).2, some("batch"));
}

#[test]
fn a_payload_needs_its_format_and_body() {
    for (payload, expected) in [
        (json!({"body": {}}), Reason::MissingField),
        (json!({"format": "openai.chat"}), Reason::Unmetered),
        (json!({"format": "OpenAI.chat", "body": {}}), Reason::UnknownFormat),
        (json!([]), Reason::Type),
    ] {
        let data = json!({"provider": "p", "model": "m", "provider_usage": payload});
        assert_eq!(reason(&event_with(&data)), Err(expected), "{payload}");
    }
}
