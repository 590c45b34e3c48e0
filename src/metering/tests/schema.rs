//! The published schema and the decoder accept the same events; the published channel is the one that is read.

use jsonschema::Validator;
use serde_json::{Value, json};

use super::payloads::bare_usage;
use super::wire::{refused_fields, with};
use super::{event_with, parse, plain_event};
use crate::domain::event::Outcome;
use crate::domain::tokens::{QUANTITY_MAX, TokenClass};
use crate::metering::{
    ATTRIBUTES_MAX, Format, MESSAGE_MAX_BYTES, MESSAGE_MAX_EVENTS, Reason, SPEC_VERSION, TASK_TYPE,
    USAGE_TYPE,
};

const SCHEMA: &str = include_str!("../../../openapi/usage-event.schema.json");
const ASYNCAPI: &str = include_str!("../../../openapi/asyncapi.json");
const SCHEMA_FILE: &str = "./usage-event.schema.json";

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn validator() -> Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

/// The schema's verdict and the decoder's must be the same, and this one.
#[track_caller]
fn agree(validator: &Validator, event: &Value, accepted: bool) {
    let decoded = parse(event);
    assert_eq!(decoded.is_ok(), accepted, "decoder: {decoded:?} {event}");
    let faults: Vec<_> = validator.iter_errors(event).map(|error| error.to_string()).collect();
    assert_eq!(faults.is_empty(), accepted, "schema: {faults:?} {event}");
}

fn outcome_event(data: &Value) -> Value {
    let mut event = event_with(data);
    event["type"] = json!(TASK_TYPE);
    event
}

#[test]
fn both_accept_what_is_valid() {
    let validator = validator();
    agree(&validator, &plain_event(), true);
    for (pointer, value) in [
        ("/id", json!("trace.1:span_2-x")),
        ("/source", json!("gw/a/b")),
        ("/time", json!("2026-11-23t10:00:00.123456789-05:30")),
        ("/sequence", json!(1)),
        ("/sequence", json!("0007")),
        ("/epoch", Value::Null),
        ("/unknown", json!([1.5])),
        ("/data/model", json!("accounts/x/models/y@1:free z")),
        ("/data/attributes", json!({"a": "=cmd|'/c calc'!A1\t\u{202e}", "b": null})),
        ("/data/attributes", Value::Null),
        ("/data/task", json!({"id": "t", "type": null, "extra": 1})),
        ("/data/usage", json!({"input": 0})),
        ("/data/usage", json!({"input": QUANTITY_MAX, "web_search": 2})),
        ("/data/provider_usage", Value::Null),
        ("/data/usage_source", json!("estimated")),
        ("/data/corrects", json!("an-older-one")),
        ("/data/latency_ms", Value::Null),
    ] {
        agree(&validator, &with(pointer, value), true);
    }
    for (format, key, usage) in bare_usage() {
        let data = json!({"provider": "p", "model": "m", "provider_usage": {"format": format, "body": {key: usage}}});
        agree(&validator, &event_with(&data), true);
    }
    let named = json!({"provider_usage": {"format": "otel.gen_ai", "body": {"gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-5", "gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1}}});
    agree(&validator, &event_with(&named), true);
    for outcome in Outcome::ALL {
        let mut data = json!({"task": {"id": "t"}, "outcome": outcome.as_str()});
        agree(&validator, &outcome_event(&data), true);
        data["corrects"] = Value::Null;
        agree(&validator, &outcome_event(&data), true);
    }
}

#[test]
fn both_refuse_what_is_not() {
    let validator = validator();
    for (pointer, value, why) in refused_fields() {
        // An event that corrects itself is a comparison of two fields, which a schema cannot make.
        let beyond_a_schema = pointer == "/data/corrects" && why == Reason::BadId;
        // A February of thirty days is for the calendar.
        let beyond_a_pattern = value == "2026-02-30T00:00:00Z";
        if beyond_a_schema || beyond_a_pattern {
            assert!(validator.is_valid(&with(pointer, value)));
        } else {
            agree(&validator, &with(pointer, value), false);
        }
    }
    for (pointer, value) in [
        ("/type", json!("llm.usage.v2")),
        ("/specversion", json!("2.0")),
        ("/id", json!("Undefined")),
        ("/time", json!("2026-11-23T10:00:00")),
        ("/time", json!("2026-11-23 10:00:00Z")),
        ("/time", json!("2026-11-23T23:59:60Z")),
        ("/time", json!("2026-11-23T10:00:00+99:00")),
        ("/data/usage", json!({})),
        ("/data/usage", Value::Null),
        ("/data/usage", json!({"tokens": 1})),
        ("/data/usage", json!({"input": "12"})),
        ("/data/usage", json!({"input": -1})),
        ("/data/usage", json!({"input": 1.5})),
        ("/data/usage", json!({"input": null})),
        ("/data/usage", json!({"input": QUANTITY_MAX + 1})),
        ("/data/provider_usage", json!({"format": "openai.chat", "body": {"prompt_tokens": 1}})),
    ] {
        agree(&validator, &with(pointer, value), false);
    }
    for data in [
        json!({"provider": "p", "model": "m"}),
        json!({"provider": "p", "usage": {"input": 1}}),
        json!({"model": "m", "usage": {"input": 1}}),
        json!({"provider": "p", "model": "m", "provider_usage": {"format": "x", "body": {"prompt_tokens": 1}}}),
        json!({"provider": "p", "model": "m", "provider_usage": {"format": "openai.chat", "body": {}}}),
        json!({"provider": "p", "model": "m", "provider_usage": {"format": "openai.chat", "body": []}}),
        json!({"provider": "p", "model": "m", "provider_usage": {"format": "openai.chat"}}),
    ] {
        agree(&validator, &event_with(&data), false);
    }
    for data in [
        json!({"task": {"id": "t"}}),
        json!({"outcome": "success"}),
        json!({"task": {"id": "t"}, "outcome": "won"}),
        json!({"task": {"id": "t"}, "outcome": "success", "usage": {"input": 1}}),
        json!({"task": {"id": "t"}, "outcome": "success", "corrects": "an-older-one"}),
    ] {
        agree(&validator, &outcome_event(&data), false);
    }
}

#[test]
fn the_schema_names_what_the_decoder_knows() {
    let schema = schema();
    let defs = &schema["$defs"];
    let formats: Vec<_> = Format::ALL.iter().map(|format| format.as_str()).collect();
    assert_eq!(defs["provider_usage"]["properties"]["format"]["enum"], json!(formats));
    let mut classes: Vec<_> = TokenClass::ALL.iter().map(|class| class.name()).collect();
    classes.sort_unstable();
    let mut published: Vec<_> =
        defs["usage"]["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    published.sort_unstable();
    assert_eq!(published, classes);
    assert_eq!(defs["count"]["maximum"], json!(QUANTITY_MAX));
    assert_eq!(schema["properties"]["specversion"]["const"], json!(SPEC_VERSION));
    assert_eq!(schema["properties"]["type"]["enum"], json!([USAGE_TYPE, TASK_TYPE]));
    let attributes = &defs["usage_data"]["properties"]["attributes"]["anyOf"][0];
    assert_eq!(attributes["maxProperties"], json!(ATTRIBUTES_MAX));
    let outcomes: Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    assert_eq!(defs["task_data"]["properties"]["outcome"]["enum"], json!(outcomes));
}

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_channel_is_published_whole() {
    let document: Value = serde_json::from_str(ASYNCAPI).unwrap();
    assert_eq!(document["asyncapi"], "3.0.0");
    let channel = &document["channels"]["usage"];
    assert_eq!(channel["address"], "usage.v1.{gateway}");
    assert!(channel["parameters"]["gateway"].is_object());
    let operation = &document["operations"]["recordUsage"];
    assert_eq!(
        (&operation["action"], &operation["channel"]["$ref"]),
        (&json!("receive"), &json!("#/channels/usage"))
    );
    for name in ["event", "batch"] {
        assert_eq!(channel["messages"][name]["$ref"], format!("#/components/messages/{name}"));
        assert!(
            operation["messages"]
                .as_array()
                .unwrap()
                .contains(&json!({"$ref": format!("#/channels/usage/messages/{name}")}))
        );
    }
    let messages = &document["components"]["messages"];
    assert_eq!(messages["event"]["payload"], json!({"$ref": SCHEMA_FILE}));
    assert_eq!(messages["batch"]["payload"]["items"], json!({"$ref": SCHEMA_FILE}));
    assert_eq!(messages["batch"]["payload"]["maxItems"], json!(MESSAGE_MAX_EVENTS));
    let encoding = &document["components"]["schemas"]["headers"]["properties"]["Content-Encoding"];
    assert_eq!(encoding["enum"], json!(["identity", "zstd"]));
    let bound = format!("{} MiB", MESSAGE_MAX_BYTES >> 20);
    assert!(encoding["description"].as_str().unwrap().contains(&bound));
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let resolves = reference == SCHEMA_FILE
            || reference.strip_prefix('#').is_some_and(|pointer| document.pointer(pointer).is_some());
        assert!(resolves, "{reference} leads nowhere");
    }
    let examples = messages["event"]["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 3);
    for example in examples {
        agree(&validator(), &example["payload"], true);
    }
}
