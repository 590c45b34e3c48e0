//! OpenRouter, Portkey, LiteLLM and OpenTelemetry.

use serde_json::{Value, json};

use super::super::{event_with, parse, parts_of, usage};
use super::claude::attempt;
use super::{classes, part, refused, stated};
use crate::metering::Reason;

#[test]
fn openrouter_states_its_cost_and_adds_the_upstream_of_own_keys_only() {
    let body = |cost: Value, is_byok: Value| {
        json!({"model": "openai/gpt-5.6-luna", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "cost": cost,
            "is_byok": is_byok, "cost_details": {"upstream_inference_cost": 0.0375},
            "server_tool_use_details": {"web_search_requests": 2, "tool_calls_executed": 2}}})
    };
    for (cost, is_byok, expected) in [
        (json!(0.001_875), json!(true), Some("0.039375 USD")),
        (json!(0), json!(true), Some("0.0375 USD")),
        (json!(0.0375), json!(false), Some("0.0375 USD")),
        (json!("0.0375"), Value::Null, Some("0.0375 USD")),
        (json!(8.5e-05), Value::Null, Some("0.000085 USD")),
        (Value::Null, Value::Null, None),
        (json!(-1), Value::Null, None),
    ] {
        let call = part("openrouter.chat", &body(cost.clone(), is_byok.clone()));
        assert_eq!(stated(&call).as_deref(), expected, "{cost} {is_byok}");
        assert_eq!(classes(&call), "input=10 output=5 web_search=2");
        assert_eq!(call.model, "openai/gpt-5.6-luna");
    }
}

#[test]
fn portkey_is_told_apart_by_its_total() {
    let usage = |prompt: i64, total: Value| {
        json!({"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": total,
            "cache_read_input_tokens": 20, "cache_creation_input_tokens": 10})
    };
    let expected = "input=40 cache_read=20 cache_write_5m=10 output=5";
    assert_eq!(classes(&part("portkey.anthropic", &usage(40, json!(75)))), expected, "exclusive");
    assert_eq!(classes(&part("portkey.anthropic", &usage(70, json!(75)))), expected, "inclusive");
    assert_eq!(part("portkey.anthropic", &usage(40, json!(75))).tier_input, 70);
    assert_eq!(refused("portkey.anthropic", &usage(40, json!(60))), Reason::Inconsistent);
    assert_eq!(refused("portkey.anthropic", &usage(40, Value::Null)), Reason::Ambiguous);
    let uncached = json!({"prompt_tokens": 40, "completion_tokens": 5});
    assert_eq!(classes(&part("portkey.anthropic", &uncached)), "input=40 output=5", "nothing to tell apart");
    let below = part("portkey.anthropic", &usage(6, Value::Null));
    assert_eq!(
        classes(&below),
        "input=6 cache_read=20 cache_write_5m=10 output=5",
        "a prompt below its caches"
    );
}

#[test]
fn otel_names_old_and_new() {
    let span = json!({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude", "gen_ai.response.model": "claude-sonnet-4-5",
        "gen_ai.usage.input_tokens": 100, "gen_ai.usage.prompt_tokens": "100", "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60, "gen_ai.usage.cache_creation.input_tokens": 10,
        "gen_ai.usage.reasoning.output_tokens": 5, "gen_ai.cost.total_cost": 0.08033, "other": {"x": [1]}});
    let mut data = json!({"provider_usage": {"format": "otel.gen_ai", "body": {"attributes": span}}});
    let event = parse(&event_with(&data)).unwrap();
    let call = &usage(&event).parts[0];
    assert_eq!(classes(call), "input=30 cache_read=60 cache_write_5m=10 output=15 reasoning=5");
    assert_eq!((call.provider.as_str(), call.model.as_str()), ("anthropic", "claude-sonnet-4-5"));
    assert_eq!((call.tier_input, stated(call).as_deref()), (100, Some("0.08033 USD")));
    data["provider"] = json!("vertex");
    assert_eq!(
        usage(&parse(&event_with(&data)).unwrap()).parts[0].provider,
        "vertex",
        "the event's name goes first"
    );
    for (input, output) in [
        ("llm.token_count.prompt", "llm.token_count.completion"),
        ("ai.usage.inputTokens", "ai.usage.outputTokens"),
        ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
    ] {
        assert_eq!(
            classes(&part("otel.gen_ai", &json!({input: 10, output: 5}))),
            "input=10 output=5",
            "{input}"
        );
    }
}

#[test]
fn otel_inclusive_exclusive_and_what_is_no_call() {
    let span = |extra: Value| {
        let mut span = json!({"gen_ai.usage.input_tokens": 40, "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 30});
        span.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        span
    };
    let total = |total: i64| span(json!({"gen_ai.usage.total_tokens": total}));
    assert_eq!(
        classes(&part("otel.gen_ai", &span(json!({})))),
        "input=10 cache_read=30 output=5",
        "the rule"
    );
    assert_eq!(classes(&part("otel.gen_ai", &total(45))), "input=10 cache_read=30 output=5");
    assert_eq!(
        classes(&part("otel.gen_ai", &total(75))),
        "input=40 cache_read=30 output=5",
        "the total says exclusive"
    );
    let all_cached = span(json!({"gen_ai.usage.cache_creation.input_tokens": 10}));
    assert_eq!(classes(&part("otel.gen_ai", &all_cached)), "cache_read=30 cache_write_5m=10 output=5");
    let below = span(json!({"gen_ai.usage.cache_creation.input_tokens": 20}));
    assert_eq!(classes(&part("otel.gen_ai", &below)), "input=40 cache_read=30 cache_write_5m=20 output=5");
    assert_eq!(part("otel.gen_ai", &below).tier_input, 90);
    for (extra, expected) in [
        (json!({"gen_ai.usage.total_tokens": 50}), Reason::Inconsistent),
        (json!({"gen_ai.usage.reasoning.output_tokens": 6}), Reason::Inconsistent),
        (json!({"gen_ai.usage.prompt_tokens": 41}), Reason::Ambiguous),
        (json!({"gen_ai.operation.name": "invoke_agent"}), Reason::Ambiguous),
        (json!({"gen_ai.operation.name": "execute_tool"}), Reason::Ambiguous),
        (json!({"gen_ai.usage.output_tokens": 5.0}), Reason::Type),
        (json!({"gen_ai.usage.output_tokens": -5}), Reason::Negative),
    ] {
        assert_eq!(refused("otel.gen_ai", &span(extra.clone())), expected, "{extra}");
    }
    let embeddings = json!({"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 9});
    assert_eq!(classes(&part("otel.gen_ai", &embeddings)), "input=9");
}

#[test]
fn otel_reads_the_usage_object_of_litellm() {
    let printed = "{'completion_tokens': 50, 'prompt_tokens': 100, 'total_tokens': 150, 'completion_tokens_details': \
        {'reasoning_tokens': 20}, 'prompt_tokens_details': {'cached_tokens': 40, 'cache_write_tokens': 30, \
        'cache_creation_token_details': {'ephemeral_1h_input_tokens': 10}}, 'server_tool_use': \
        {'web_search_requests': 2, 'tool_search_requests': None}, 'inference_geo': 'us', 'speed': 'fast', \
        'service_tier': 'standard', 'iterations': None}";
    let mut body = json!({"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": "100",
        "gen_ai.usage.output_tokens": 50, "metadata.usage_object": printed});
    let whole = part("otel.gen_ai", &body);
    assert_eq!(
        classes(&whole),
        "input=30 cache_read=40 cache_write_5m=20 cache_write_1h=10 output=30 reasoning=20 web_search=2"
    );
    let conditions = &whole.conditions;
    assert_eq!((conditions.region.as_deref(), conditions.speed.as_deref()), (Some("us"), Some("fast")));
    assert_eq!((conditions.service_tier.as_deref(), whole.tier_input), (None, 100));
    for nothing in ["", "None", "{}"] {
        body["metadata.usage_object"] = json!(nothing);
        assert_eq!(classes(&part("otel.gen_ai", &body)), "input=100 output=50", "{nothing}");
    }
}

#[test]
fn litellm_hits_failures_and_missing_counts() {
    let payload = |extra: Value| {
        let mut payload = json!({"model": "openai/gpt-5", "custom_llm_provider": "openai", "status": "success",
            "prompt_tokens": 10, "completion_tokens": 5, "response_cost": 0.006,
            "metadata": {"usage_object": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}});
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        payload
    };
    let call = part("litellm", &payload(json!({})));
    assert_eq!((classes(&call).as_str(), stated(&call).as_deref()), ("input=10 output=5", Some("0.006 USD")));
    assert_eq!(call.model, "gpt-5", "without the provider's prefix");
    let named = json!({"response": {"model": "gpt-5-2025-08-07", "service_tier": "priority"}});
    let call = part("litellm", &payload(named));
    assert_eq!(
        (call.model.as_str(), call.conditions.service_tier.as_deref()),
        ("gpt-5-2025-08-07", Some("priority"))
    );
    assert_eq!(classes(&part("litellm", &payload(json!({"cache_hit": true})))), "");
    let failed = json!({"status": "failure", "prompt_tokens": 0, "completion_tokens": 0, "metadata": {}});
    assert_eq!(classes(&part("litellm", &payload(failed))), "");
    for extra in
        [json!({"metadata": {}}), json!({"metadata": null}), json!({"status": "failure", "metadata": {}})]
    {
        assert_eq!(refused("litellm", &payload(extra.clone())), Reason::Unmetered, "{extra}");
    }
    let contradiction = json!({"metadata": {"usage_object": {"prompt_tokens": 10, "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4}, "cache_read_input_tokens": 5}}});
    assert_eq!(refused("litellm", &payload(contradiction)), Reason::Inconsistent);
    let advised = json!({"metadata": {"usage_object": {"prompt_tokens": 15, "completion_tokens": 7, "total_tokens": 22,
        "iterations": [attempt("message", None, 5, 4), attempt("advisor_message", Some("claude-advisor"), 10, 3)]}}});
    let parts = parts_of("litellm", &payload(advised)).unwrap();
    assert_eq!(parts.iter().map(classes).collect::<Vec<_>>(), ["input=5 output=4", "input=10 output=3"]);
    assert_eq!(parts.iter().map(|part| part.model.as_str()).collect::<Vec<_>>(), ["gpt-5", "claude-advisor"]);
    assert!(parts.iter().all(|part| part.stated_cost.is_none()), "one cost is not two parts' cost");
}
