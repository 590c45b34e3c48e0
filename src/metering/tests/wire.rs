//! The envelope and the explicit classes, case by case (`reliability` c.1; the numbers are its rows).

use serde_json::{Value, json};

use super::{event_with, parse, plain_event, reason, usage};
use crate::domain::event::{Outcome, Report, UsageSource};
use crate::domain::tokens::{QUANTITY_MAX, TokenClass};
use crate::metering::{ATTRIBUTES_MAX, Reason, content_hash, parse_event, parse_outline, parse_usage, split};

/// The plain event with one field set, by JSON pointer.
pub(super) fn with(pointer: &str, value: Value) -> Value {
    let mut event = plain_event();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    event.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    event
}

fn without(pointer: &str) -> Value {
    let mut event = plain_event();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    event.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    event
}

/// The plain event with the input count replaced by this text, as it stands.
fn with_count(text: &str) -> String {
    plain_event().to_string().replace("\"input\":168", &format!("\"input\":{text}"))
}

fn reason_of(raw: &[u8]) -> Result<(), Reason> {
    parse_event(raw).map(|_| ()).map_err(|rejected| rejected.reason)
}

#[test]
fn the_event_of_the_specification_is_read() {
    let event = parse(&json!({
        "specversion": "1.0", "id": "0198c3a2-6f2e-7c4b-9f1a-0242ac120002", "source": "gw-eu-1",
        "type": "llm.usage.v1", "subject": "acme", "time": "2026-11-23T10:00:00.123Z",
        "sequence": "0012", "epoch": "boot-7",
        "data": {
            "provider": "openai", "model": "gpt-5", "region": null, "service_tier": "Default", "processing": "BATCH",
            "speed": "standard", "platform": "azure",
            "task": {"id": "refund-8812", "type": "refund", "parent": null},
            "usage": {"input": 168, "cache_read": 3328, "output": 1327, "web_search": 2},
            "attributes": {"project": "support", "agent": "triage", "user": null},
            "status": "ok", "usage_source": "estimated", "latency_ms": 1830, "corrects": "an-older-one",
        },
    }))
    .unwrap();
    assert_eq!(event.identity.source, "gw-eu-1");
    assert_eq!(event.customer, "acme");
    assert_eq!(event.occurred_at.to_rfc3339(), "2026-11-23T10:00:00.123+00:00");
    assert_eq!(event.sequence.as_ref().map(|mark| (mark.epoch.as_str(), mark.number)), Some(("boot-7", 12)));
    assert_eq!(event.corrects.as_deref(), Some("an-older-one"));
    let usage = usage(&event);
    let [part] = usage.parts.as_slice() else { panic!("one part") };
    assert_eq!((part.provider.as_str(), part.model.as_str()), ("openai", "gpt-5"));
    assert_eq!(part.conditions.platform.as_deref(), Some("azure"));
    assert_eq!(part.conditions.service_tier, None);
    assert_eq!(part.conditions.processing.as_deref(), Some("batch"));
    assert_eq!(part.conditions.speed, None);
    assert_eq!(part.tier_input, 168 + 3328);
    assert_eq!(part.quantities.get(TokenClass::WebSearch), 2);
    assert_eq!(usage.task.as_ref().map(|task| task.id.as_str()), Some("refund-8812"));
    assert_eq!(
        usage.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(),
        ["agent=triage", "project=support"]
    );
    assert_eq!((usage.usage_source, usage.latency_ms), (UsageSource::Estimated, Some(1830)));
}

#[test]
fn a_task_outcome_is_read() {
    let mut event =
        event_with(&json!({"task": {"id": "refund-8812", "type": "refund"}, "outcome": "success"}));
    event["type"] = json!("llm.task.v1");
    let Report::Outcome(outcome) = parse(&event).unwrap().report else { panic!("an outcome") };
    assert_eq!((outcome.task.id.as_str(), outcome.outcome), ("refund-8812", Outcome::Success));
    for (data, expected) in [
        (json!({"task": {"id": "t"}}), Reason::MissingField),
        (json!({"outcome": "success"}), Reason::MissingField),
        (json!({"task": {"type": "x"}, "outcome": "success"}), Reason::MissingField),
        (json!({"task": {"id": "t"}, "outcome": "great"}), Reason::Type),
        (json!({"task": {"id": "t"}, "outcome": "success", "usage": {"input": 1}}), Reason::Ambiguous),
        (json!({"task": {"id": "t"}, "outcome": "success", "corrects": "guess"}), Reason::Ambiguous),
    ] {
        event["data"] = data.clone();
        assert_eq!(reason(&event), Err(expected), "{data}");
    }
}

#[test]
fn the_data_alone_reads_as_in_its_event() {
    let event = plain_event();
    let alone = parse_usage(event["data"].to_string().as_bytes()).unwrap();
    assert_eq!(&alone, usage(&parse(&event).unwrap()));
    assert_eq!(parse_usage(b"{}").unwrap_err().reason, Reason::Unmetered);
    assert_eq!(parse_usage(b"{\"a\":\"\xff\"}").unwrap_err().reason, Reason::Utf8);
    assert_eq!(parse_usage("[".repeat(200).as_bytes()).unwrap_err().reason, Reason::Json);
}

#[test]
fn an_event_is_counted_where_either_key_stands_whatever_its_value() {
    let counted = |event: &Value| parse_outline(event.to_string().as_bytes()).unwrap().counted;
    assert!(!counted(&plain_event()));
    for (pointer, value) in [
        ("/sequence", json!(1)),
        ("/sequence", Value::Null),
        ("/epoch", json!("boot-7")),
        ("/epoch", Value::Null),
    ] {
        let event = with(pointer, value);
        assert!(counted(&event), "{event}");
        assert!(parse(&event).is_ok(), "{event}");
    }
    for key in ["sequence", "epoch"] {
        let null = with(&format!("/{key}"), Value::Null);
        assert_eq!(parse(&null).unwrap().sequence, None, "{key}");
        let twice = null.to_string().replacen('{', &format!("{{\"{key}\":null,"), 1);
        assert_eq!(reason_of(twice.as_bytes()), Err(Reason::DuplicateKey), "{key}");
    }
}

#[test]
fn b02_to_b04_what_is_no_json() {
    let event = plain_event().to_string();
    for raw in ["", " ", "{", "{}x", "{\"a\":tru}", "{'a':1}", "{\"a\":1,}", "{\"id\":\"\\ud800\"}"] {
        assert_eq!(reason_of(raw.as_bytes()), Err(Reason::Json), "{raw}");
    }
    assert_eq!(reason_of(&event.as_bytes()[..event.len() - 1]), Err(Reason::Json));
    assert_eq!(reason_of(&[b"\xef\xbb\xbf", event.as_bytes()].concat()), Err(Reason::Json));
    assert_eq!(reason_of(event.replace("gpt-5", "gpt-\u{1}").as_bytes()), Err(Reason::Json));
    assert_eq!(
        reason_of(&[b"{\"id\":\"", b"\xff\xfe".as_slice(), b"\"}"].concat()),
        Err(Reason::Utf8),
        "B03"
    );
    for value in ["1", "\"x\"", "null", "[]", "[\"1.0\",\"llm.usage.v1\"]"] {
        assert_eq!(reason_of(value.as_bytes()), Err(Reason::Type), "{value}: an event is an object");
    }
}

#[test]
fn b04_depth_is_bounded_also_where_nothing_is_read() {
    let nested = |levels: usize| {
        format!("{{\"x\":{}{},{}", "[".repeat(levels), "]".repeat(levels), &plain_event().to_string()[1..])
    };
    assert_eq!(reason_of(nested(127).as_bytes()), Ok(()));
    assert_eq!(reason_of(nested(128).as_bytes()), Err(Reason::Json));
    assert_eq!(reason_of(nested(100_000).as_bytes()), Err(Reason::Json));
    let wide = format!("{{\"x\":[{}],{}", vec!["[]"; 1000].join(","), &plain_event().to_string()[1..]);
    assert_eq!(reason_of(wide.as_bytes()), Ok(()));
    let quoted = format!("{{\"x\":\"{}\\\"\",{}", "[".repeat(1000), &plain_event().to_string()[1..]);
    assert_eq!(reason_of(quoted.as_bytes()), Ok(()));
}

#[test]
fn b07_one_bad_event_leaves_its_neighbours_alone() {
    let good = plain_event().to_string();
    let bad = ["{\"id\":}", "{\"id\":\"\u{1}\"}", "12", "{}", "{\"a\":tru}"];
    for bad in bad.map(str::as_bytes).into_iter().chain([b"{\"a\":\"\xff\"}".as_slice()]) {
        let body = [b"[", good.as_bytes(), b",", bad, b",", good.as_bytes(), b"]"].concat();
        let results: Vec<_> =
            split(&body, None).unwrap().events().map(|raw| parse_event(raw).is_ok()).collect();
        assert_eq!(results, [true, false, true], "{}", String::from_utf8_lossy(bad));
    }
}

#[test]
fn b08_no_key_twice() {
    let event = plain_event().to_string();
    for (once, twice) in [
        ("\"input\":168", "\"input\":168,\"input\":999"),
        ("\"input\":168", "\"input\":168,\"inp\\u0075t\":168"),
        ("\"subject\":\"acme\"", "\"subject\":\"acme\",\"subject\":\"other\""),
        ("\"model\":\"gpt-5\"", "\"model\":\"gpt-5\",\"model\":null"),
        ("\"model\":\"gpt-5\"", "\"model\":\"gpt-5\",\"task\":{\"id\":\"a\",\"id\":\"b\"}"),
        ("\"model\":\"gpt-5\"", "\"model\":\"gpt-5\",\"attributes\":{\"a\":\"b\",\"a\":\"b\"}"),
        ("\"model\":\"gpt-5\"", "\"model\":\"gpt-5\",\"attributes\":{\"a\":null,\"a\":\"b\"}"),
    ] {
        assert!(event.contains(once));
        assert_eq!(
            reason_of(event.replacen(once, twice, 1).as_bytes()),
            Err(Reason::DuplicateKey),
            "{twice}"
        );
    }
    let payload = r#"{"provider":"openai","model":"m","provider_usage":{"format":"openai.chat","body":
        {"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens":999}}}}"#;
    let event = event_with(&json!("DATA")).to_string().replace("\"DATA\"", payload);
    assert_eq!(reason_of(event.as_bytes()), Err(Reason::DuplicateKey));
}

#[test]
fn b09_versions_and_unknown_fields() {
    assert_eq!(reason(&with("/data/brand_new", json!({"x": [1]}))), Ok(()));
    assert_eq!(reason(&with("/extension", json!(1.5))), Ok(()));
    assert_eq!(reason(&with("/type", json!("llm.usage.v2"))), Err(Reason::Version));
    assert_eq!(reason(&with("/specversion", json!("2.0"))), Err(Reason::Version));
    let mut future = with("/type", json!("llm.usage.v2"));
    future["data"] = json!({"usage": [{"in": 1.5}]});
    assert_eq!(reason(&future), Err(Reason::Version), "another version shapes its data as it likes");
    future["data"] = json!("text");
    assert_eq!(reason(&future), Err(Reason::Version));
    assert_eq!(reason(&without("/type")), Err(Reason::MissingField));
    assert_eq!(reason(&without("/specversion")), Err(Reason::MissingField));
}

#[test]
fn b10_to_b14_counts() {
    for (text, expected) in [
        ("0", Ok(())),
        ("-0", Ok(())),
        ("1000000000000", Ok(())),
        ("\"12\"", Err(Reason::Type)),
        ("true", Err(Reason::Type)),
        ("null", Err(Reason::Type)),
        ("[1]", Err(Reason::Type)),
        ("{}", Err(Reason::Type)),
        ("1.0", Err(Reason::Type)),
        ("1.5", Err(Reason::Type)),
        ("-1.5", Err(Reason::Type)),
        ("1e3", Err(Reason::Type)),
        ("-1", Err(Reason::Negative)),
        ("-9223372036854775808", Err(Reason::Negative)),
        ("-9223372036854775809", Err(Reason::Negative)),
        ("1000000000001", Err(Reason::Limit)),
        ("9223372036854775807", Err(Reason::Limit)),
        ("9223372036854775808", Err(Reason::Range)),
        ("18446744073709551615", Err(Reason::Range)),
        ("18446744073709551616", Err(Reason::Range)),
        ("1e400", Err(Reason::Range)),
        ("NaN", Err(Reason::Json)),
        ("Infinity", Err(Reason::Json)),
        ("0x10", Err(Reason::Json)),
        ("1_000", Err(Reason::Json)),
        ("01", Err(Reason::Json)),
        ("+1", Err(Reason::Json)),
    ] {
        assert_eq!(reason_of(with_count(text).as_bytes()), expected, "{text}");
    }
    assert_eq!(reason_of(with_count(&"9".repeat(400)).as_bytes()), Err(Reason::Range));
    let limit = parse_event(with_count(&QUANTITY_MAX.to_string()).as_bytes()).unwrap();
    assert_eq!(usage(&limit).parts[0].quantities.get(TokenClass::Input), QUANTITY_MAX);
}

#[test]
fn b16_zero_is_usage_and_nothing_is_not() {
    let zero = parse(&with("/data/usage", json!({"input": 0}))).unwrap();
    assert!(usage(&zero).parts[0].quantities.is_zero());
    assert_eq!(reason(&with("/data/usage", json!({}))), Err(Reason::Unmetered));
    assert_eq!(reason(&with("/data/usage", Value::Null)), Err(Reason::Unmetered));
    assert_eq!(reason(&without("/data/usage")), Err(Reason::Unmetered));
    assert_eq!(reason(&with("/data/usage", json!({"tokens": 5}))), Err(Reason::UnknownClass));
    let both = with("/data/provider_usage", json!({"format": "openai.chat", "body": {}}));
    assert_eq!(reason(&both), Err(Reason::Ambiguous));
}

/// Fields of the plain event that make it refused: where, what, why.
pub(super) fn refused_fields() -> Vec<(&'static str, Value, Reason)> {
    vec![
        ("/id", Value::Null, Reason::NoId),
        ("/id", json!(""), Reason::NoId),
        ("/id", json!(" "), Reason::NoId),
        ("/id", json!("undefined"), Reason::NoId),
        ("/id", json!(12), Reason::Type),
        ("/id", json!("a\u{200b}"), Reason::Charset),
        ("/id", json!("a\u{0}"), Reason::Nul),
        ("/source", Value::Null, Reason::MissingField),
        ("/source", json!(""), Reason::Length),
        ("/source", json!("gw eu"), Reason::Charset),
        ("/subject", Value::Null, Reason::MissingField),
        ("/subject", json!("acme "), Reason::Charset),
        ("/subject", json!("acme\u{202e}"), Reason::Charset),
        ("/subject", json!("x".repeat(129)), Reason::Length),
        ("/time", Value::Null, Reason::MissingField),
        ("/time", json!("2026-02-30T00:00:00Z"), Reason::Time),
        ("/time", json!(1_795_428_000), Reason::Type),
        ("/data", Value::Null, Reason::MissingField),
        ("/data", json!([1]), Reason::Type),
        ("/data/provider", Value::Null, Reason::MissingField),
        ("/data/provider", json!("OpenAI"), Reason::Charset),
        ("/data/model", Value::Null, Reason::MissingField),
        ("/data/model", json!(""), Reason::Length),
        ("/data/model", json!("m".repeat(65536)), Reason::Length),
        ("/data/model", json!("m\u{0}"), Reason::Nul),
        ("/data/region", json!("eu west"), Reason::Charset),
        ("/data/service_tier", json!(""), Reason::Length),
        ("/data/task", json!(["t", null, null]), Reason::Type),
        ("/data/task", json!({"id": "a b"}), Reason::Charset),
        ("/data/task", json!({"id": "t".repeat(129)}), Reason::Length),
        ("/data/task", json!({}), Reason::MissingField),
        ("/data/attributes", json!({"a": 1}), Reason::Type),
        ("/data/attributes", json!({"a b": "1"}), Reason::Charset),
        ("/data/attributes", json!({"a": "v".repeat(129)}), Reason::Length),
        ("/data/attributes", json!({"a": "\u{0}"}), Reason::Nul),
        ("/data/usage_source", json!("guess"), Reason::Type),
        ("/data/latency_ms", json!(-1), Reason::Negative),
        ("/data/corrects", json!("0198c3a2-6f2e-7c4b-9f1a-0242ac120002"), Reason::BadId),
        ("/data/corrects", json!(""), Reason::NoId),
        ("/sequence", json!(0), Reason::Range),
        ("/sequence", json!(-1), Reason::Range),
        ("/sequence", json!("1.5"), Reason::Type),
        ("/sequence", json!("+1"), Reason::Type),
        ("/sequence", json!(i64::MAX), Reason::Range),
    ]
}

#[test]
fn b19_to_b41_texts() {
    for (pointer, value, expected) in refused_fields() {
        assert_eq!(reason(&with(pointer, value.clone())), Err(expected), "{pointer} {value}");
    }
    assert_eq!(reason(&without("/id")), Err(Reason::NoId));
    let many: serde_json::Map<_, _> = (0..=ATTRIBUTES_MAX).map(|n| (format!("k{n}"), json!("v"))).collect();
    assert_eq!(reason(&with("/data/attributes", Value::Object(many))), Err(Reason::Limit));
}

#[test]
fn b21_ids_are_compared_as_they_are_written() {
    let upper = parse(&with("/id", json!("0198C3A2-6F2E-7C4B-9F1A-0242AC120002"))).unwrap();
    assert_ne!(upper.identity, parse(&plain_event()).unwrap().identity);
}

#[test]
fn b36_money_in_the_body_is_not_read() {
    let mut event = with("/data/cost", json!(9.99));
    event["data"]["price"] = json!("1");
    event["data"]["currency"] = json!("EUR");
    event["invoice_id"] = json!("i-1");
    assert_eq!(parse(&event).unwrap(), parse(&plain_event()).unwrap());
}

#[test]
fn b42_to_b44_labels_are_text() {
    for text in
        ["'; DROP TABLE usage_events; --", "{{7*7}}", "=cmd|'/c calc'!A1", "\t1", "\r1", "<script>", "%s $1"]
    {
        let event = parse(&with("/data/attributes", json!({"note": text}))).unwrap();
        assert_eq!(usage(&event).attributes.get("note").unwrap(), text);
    }
}

#[test]
fn b46_a_sequence_without_epoch_has_one() {
    let event = parse(&with("/sequence", json!(7))).unwrap();
    assert_eq!(event.sequence.map(|mark| (mark.epoch, mark.number)), Some(("default".into(), 7)));
    assert_eq!(parse(&with("/epoch", json!("e"))).unwrap().sequence, None);
}

#[test]
fn the_hash_covers_what_is_billed_and_nothing_else() {
    let hash = |event: &Value| content_hash(&parse(event).unwrap());
    let plain = hash(&plain_event());
    for (pointer, value) in [
        ("/subject", json!("other")),
        ("/time", json!("2026-11-23T10:00:00.124Z")),
        ("/data/provider", json!("azure")),
        ("/data/model", json!("gpt-5-mini")),
        ("/data/usage", json!({"input": 169, "cache_read": 3328, "output": 1327})),
        ("/data/usage", json!({"input": 168, "cache_write_5m": 3328, "output": 1327})),
        ("/data/region", json!("us")),
        ("/data/service_tier", json!("us")),
        ("/data/processing", json!("batch")),
        ("/data/corrects", json!("x")),
        ("/data/task", json!({"id": "t"})),
    ] {
        assert_ne!(hash(&with(pointer, value.clone())), plain, "{pointer} {value}");
    }
    for (pointer, value) in [
        ("/source", json!("gw-eu-1/pod-4")),
        ("/time", json!("2026-11-23T11:00:00.123+01:00")),
        ("/data/service_tier", json!("standard")),
        ("/data/attributes", json!({"a": "b"})),
        ("/data/latency_ms", json!(5)),
        ("/data/status", json!("error")),
        ("/sequence", json!(5)),
    ] {
        assert_eq!(hash(&with(pointer, value.clone())), plain, "{pointer} {value}");
    }
    let named = |provider: &str, model: &str| {
        hash(&event_with(&json!({"provider": provider, "model": model, "usage": {"input": 1}})))
    };
    assert_ne!(named("ab", "c"), named("a", "bc"));
    let seen = |tokens: i64| {
        let body = json!({"billed_units": {"input_tokens": 5}, "tokens": {"input_tokens": tokens}});
        hash(&event_with(&json!({"provider": "cohere", "model": "m",
            "provider_usage": {"format": "cohere.v2", "body": body}})))
    };
    assert_ne!(seen(300_000), seen(300_001), "the prompt that chooses the context tier");
    let task = |task: Value| hash(&with("/data/task", task));
    assert_ne!(task(json!({"id": "ab", "type": "c"})), task(json!({"id": "a", "type": "bc"})));
    assert_ne!(task(json!({"id": "a", "type": "b"})), task(json!({"id": "a", "parent": "b"})));
}

#[test]
fn a_fault_names_its_field() {
    let detail = |pointer: &str, value: Value| parse(&with(pointer, value)).unwrap_err().detail;
    assert!(detail("/data/latency_ms", json!("x".repeat(4000))).starts_with("`latency_ms`: invalid type"));
    assert!(detail("/data/usage", json!({"output": -5})).contains("`output`: -5 is negative"));
    assert!(detail("/data/latency_ms", json!("x".repeat(4000))).len() < 400);
}
