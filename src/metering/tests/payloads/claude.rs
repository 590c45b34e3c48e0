//! `anthropic.messages` and `bedrock.converse`.

use serde_json::{Value, json};

use super::super::parts_of;
use super::{classes, part, refused};
use crate::domain::event::CallConditions;
use crate::metering::Reason;

#[test]
fn anthropic_caches_tiers_and_geography() {
    let body = json!({"model": "claude-opus-4-8", "stop_reason": "end_turn", "content": [{"type": "text"}], "usage": {
        "input_tokens": 10, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
        "output_tokens": 50, "output_tokens_details": {"thinking_tokens": 15},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 3},
        "service_tier": "batch", "inference_geo": "us", "speed": "fast",
    }});
    let call = part("anthropic.messages", &body);
    assert_eq!(
        classes(&call),
        "input=10 cache_read=20 cache_write_5m=60 cache_write_1h=40 output=35 reasoning=15 web_search=2",
        "a split that falls short leaves the rest at five minutes"
    );
    assert_eq!(call.tier_input, 130);
    let conditions = &call.conditions;
    assert_eq!(conditions.service_tier, None);
    assert_eq!(conditions.processing.as_deref(), Some("batch"));
    assert_eq!((conditions.region.as_deref(), conditions.speed.as_deref()), (Some("us"), Some("fast")));
    let plain = json!({"input_tokens": 1, "output_tokens": 1, "service_tier": "standard", "speed": "standard",
        "inference_geo": "not_available", "cache_creation": {"ephemeral_1h_input_tokens": 7}});
    let call = part("anthropic.messages", &plain);
    assert_eq!(classes(&call), "input=1 cache_write_1h=7 output=1");
    assert_eq!(call.conditions, CallConditions::default());
    let priority = json!({"input_tokens": 1, "output_tokens": 1, "service_tier": "priority"});
    assert_eq!(part("anthropic.messages", &priority).conditions.service_tier.as_deref(), Some("priority"));
    for (usage, expected) in [
        (json!({"input_tokens": 1}), Reason::MissingField),
        (json!({"output_tokens": 1}), Reason::MissingField),
        (json!({"input_tokens": 9, "output_tokens": 1, "total_tokens": 11}), Reason::Inconsistent),
        (json!({"input_tokens": 1, "output_tokens": 1, "prompt_tokens": 1}), Reason::Ambiguous),
        (
            json!({"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 5, "total_tokens": 10}),
            Reason::Inconsistent,
        ),
        (
            json!({"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 5,
                   "cache_creation": {"ephemeral_1h_input_tokens": 6}}),
            Reason::Inconsistent,
        ),
    ] {
        assert_eq!(refused("anthropic.messages", &usage), expected, "{usage}");
    }
}

#[test]
fn anthropic_refusals_before_any_output_are_free() {
    let body = |content: Value, output: i64| {
        json!({"model": "claude", "stop_reason": "refusal", "content": content,
               "usage": {"input_tokens": 100, "output_tokens": output}})
    };
    assert_eq!(classes(&part("anthropic.messages", &body(json!([]), 4))), "");
    assert_eq!(
        classes(&part("anthropic.messages", &body(json!([{"type": "text"}]), 1))),
        "input=100 output=1"
    );
    assert_eq!(
        classes(&part("anthropic.messages", &body(Value::Null, 1))),
        "",
        "without content one token decides"
    );
    assert_eq!(classes(&part("anthropic.messages", &body(Value::Null, 2))), "input=100 output=2");
    let attempts =
        [attempt("message", None, 100, 1), attempt("fallback_message", Some("claude-small"), 90, 0)];
    let all_declined = json!({"model": "claude", "stop_reason": "refusal", "content": [],
        "usage": {"input_tokens": 90, "output_tokens": 0, "iterations": attempts}});
    assert_eq!(classes(&part("anthropic.messages", &all_declined)), "", "the fallback declined as well");
}

/// An attempt of a call.
pub(super) fn attempt(kind: &str, model: Option<&str>, input: i64, output: i64) -> Value {
    json!({"type": kind, "model": model, "input_tokens": input, "output_tokens": output})
}

/// `model: classes @ tier input` of every part.
fn attempts_of(top_level: (i64, i64), iterations: &[Value]) -> Result<Vec<String>, Reason> {
    let body = json!({"model": "claude-main", "usage": {
        "input_tokens": top_level.0, "output_tokens": top_level.1, "iterations": iterations,
        "server_tool_use": {"web_search_requests": 1},
    }});
    let parts = parts_of("anthropic.messages", &body).map_err(|rejected| rejected.reason)?;
    Ok(parts.iter().map(|part| format!("{}: {} @ {}", part.model, classes(part), part.tier_input)).collect())
}

#[test]
fn anthropic_attempts_are_billed_each_at_its_model() {
    let message = |input, output| attempt("message", None, input, output);
    let advisor = attempt("advisor_message", Some("claude-advisor"), 60, 8);
    let served = attempt("fallback_message", Some("claude-small"), 100, 20);
    for (name, top_level, iterations, expected) in [
        (
            "one message",
            (10, 5),
            vec![message(10, 5)],
            vec!["claude-main: input=10 output=5 web_search=1 @ 10"],
        ),
        (
            "compaction is beside the top level",
            (23, 10),
            vec![attempt("compaction", None, 180, 35), message(23, 10)],
            vec![
                "claude-main: input=180 output=35 @ 180",
                "claude-main: input=23 output=10 web_search=1 @ 23",
            ],
        ),
        (
            "an advisor has a model of its own",
            (9, 15),
            vec![message(4, 5), advisor.clone(), message(5, 10)],
            vec![
                "claude-main: input=4 output=5 @ 4",
                "claude-advisor: input=60 output=8 @ 60",
                "claude-main: input=5 output=10 web_search=1 @ 5",
            ],
        ),
        (
            "a declined attempt is free",
            (100, 20),
            vec![message(100, 1), served.clone()],
            vec!["claude-small: input=100 output=20 web_search=1 @ 100"],
        ),
        (
            "an attempt that wrote something before it was declined is not",
            (200, 27),
            vec![message(100, 7), served.clone()],
            vec![
                "claude-main: input=100 output=7 @ 100",
                "claude-small: input=100 output=20 web_search=1 @ 100",
            ],
        ),
        (
            "sums of a session are another call's: the top level counts",
            (5000, 900),
            vec![message(10, 5)],
            vec!["claude-main: input=5000 output=900 web_search=1 @ 5000"],
        ),
        ("an empty list", (10, 5), vec![], vec!["claude-main: input=10 output=5 web_search=1 @ 10"]),
    ] {
        let expected = expected.into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(attempts_of(top_level, &iterations), Ok(expected), "{name}");
    }
    for (name, top_level, iterations) in [
        ("compaction would be lost", (50, 10), vec![attempt("compaction", None, 180, 35), message(23, 10)]),
        ("an unknown type", (10, 5), vec![attempt("poem", None, 10, 5)]),
        ("no counts", (10, 5), vec![json!({"type": "message"})]),
    ] {
        assert_eq!(attempts_of(top_level, &iterations), Err(Reason::Inconsistent), "{name}");
    }
    let many = vec![message(0, 0); 65];
    assert_eq!(attempts_of((0, 0), &many), Err(Reason::Limit));
}

#[test]
fn bedrock_is_exclusive_and_a_platform() {
    let body = json!({"serviceTier": {"type": "flex"}, "usage": {"inputTokens": 10, "outputTokens": 5,
        "totalTokens": 135, "cacheReadInputTokens": 20, "cacheWriteInputTokens": 100,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 20}]}});
    let call = part("bedrock.converse", &body);
    assert_eq!(classes(&call), "input=10 cache_read=20 cache_write_5m=70 cache_write_1h=30 output=5");
    assert_eq!(call.tier_input, 130);
    assert_eq!(call.conditions.platform.as_deref(), Some("bedrock"));
    assert_eq!(call.conditions.service_tier.as_deref(), Some("flex"));
    for usage in [
        json!({"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "cacheReadInputTokens": 4}),
        json!({"inputTokens": 1, "outputTokens": 5, "cacheWriteInputTokens": 4,
               "cacheDetails": [{"ttl": "1h", "inputTokens": 5}]}),
    ] {
        assert_eq!(refused("bedrock.converse", &usage), Reason::Inconsistent, "{usage}");
    }
}
