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
    for total in [15, 45] {
        let exclusive = json!({"gen_ai.usage.input_tokens": 10, "gen_ai.usage.total_tokens": total});
        let call = part("otel.gen_ai", &span(exclusive));
        assert_eq!(classes(&call), "input=10 cache_read=30 output=5", "an input below its caches, {total}");
        assert_eq!(call.tier_input, 40);
    }
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
        (json!({"gen_ai.operation.name": "chat", "litellm.call_type": "aretrieve_batch"}), Reason::Ambiguous),
        (json!({"gen_ai.usage.output_tokens": 5.0}), Reason::Type),
        (json!({"gen_ai.usage.output_tokens": -5}), Reason::Negative),
    ] {
        assert_eq!(refused("otel.gen_ai", &span(extra.clone())), expected, "{extra}");
    }
    let embeddings = json!({"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 9});
    assert_eq!(classes(&part("otel.gen_ai", &embeddings)), "input=9");
}

#[test]
fn otel_takes_the_calls_of_the_ai_sdk_and_not_what_sums_them() {
    let span = |extra: Value| {
        let mut span = json!({"ai.usage.inputTokens": 650_361, "ai.usage.outputTokens": 300,
            "gen_ai.usage.input_tokens": 650_361, "gen_ai.usage.output_tokens": 300,
            "ai.usage.totalTokens": 650_661, "ai.usage.cachedInputTokens": 649_452,
            "ai.usage.inputTokenDetails.noCacheTokens": 2, "ai.usage.inputTokenDetails.cacheReadTokens": 649_452,
            "ai.usage.inputTokenDetails.cacheWriteTokens": 907, "ai.usage.outputTokenDetails.textTokens": 200,
            "ai.usage.outputTokenDetails.reasoningTokens": 100, "ai.usage.reasoningTokens": 100,
            "ai.response.model": "claude-sonnet-5", "ai.model.id": "claude-sonnet-5", "ai.response.text": "…"});
        span.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        span
    };
    for operation in ["ai.generateText", "ai.streamText", "ai.generateObject", "ai.streamObject"] {
        let call = if operation.contains("stream") {
            format!("{operation}.doStream")
        } else {
            format!("{operation}.doGenerate")
        };
        for names in [
            json!({"ai.operationId": call, "operation.name": format!("{call} my task")}),
            json!({"operation.name": format!("{call} ai.generateText")}),
            json!({"ai.operationId": call, "gen_ai.operation.name": "chat", "operation.name": "other"}),
        ] {
            let read = part("otel.gen_ai", &span(names));
            assert_eq!(
                classes(&read),
                "input=2 cache_read=649452 cache_write_5m=907 output=200 reasoning=100"
            );
            assert_eq!((read.tier_input, read.model.as_str()), (650_361, "claude-sonnet-5"));
        }
        for names in [
            json!({"ai.operationId": operation}),
            json!({"operation.name": operation}),
            json!({"operation.name": format!("{operation} a.doGenerate")}),
            json!({"ai.operationId": operation, "gen_ai.operation.name": "chat"}),
        ] {
            assert_eq!(refused("otel.gen_ai", &span(names.clone())), Reason::Ambiguous, "{names}");
        }
    }
    for (extra, expected) in [
        (json!({"ai.usage.inputTokenDetails.noCacheTokens": 3}), Reason::Inconsistent),
        (json!({"ai.usage.outputTokenDetails.textTokens": 300}), Reason::Inconsistent),
        (json!({"ai.usage.inputTokenDetails.cacheReadTokens": 1}), Reason::Ambiguous),
    ] {
        assert_eq!(refused("otel.gen_ai", &span(extra.clone())), expected, "{extra}");
    }
    let exclusive = json!({"ai.usage.inputTokens": 50, "ai.usage.outputTokens": 5,
        "ai.usage.inputTokenDetails.cacheReadTokens": 30, "ai.usage.inputTokenDetails.noCacheTokens": 50});
    assert_eq!(classes(&part("otel.gen_ai", &exclusive)), "input=50 cache_read=30 output=5");
    let embedding =
        json!({"ai.operationId": "ai.embedMany.doEmbed", "ai.usage.tokens": 9, "ai.values": ["…"]});
    assert_eq!(classes(&part("otel.gen_ai", &embedding)), "input=9");
    let sum = json!({"ai.operationId": "ai.embedMany", "ai.usage.tokens": 9});
    assert_eq!(refused("otel.gen_ai", &sum), Reason::Ambiguous);
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

/// LiteLLM's payload of a call of a model, with these additions to its usage object.
fn called(model: &str, provider: &str, usage: &Value) -> Value {
    let mut whole = json!({"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200});
    whole.as_object_mut().unwrap().extend(usage.as_object().unwrap().clone());
    json!({"custom_llm_provider": provider, "model": model, "status": "success", "prompt_tokens": 1000,
        "completion_tokens": 200, "metadata": {"usage_object": whole}})
}

#[test]
fn providers_have_the_names_of_price_books() {
    let named = |format: &str, body: &Value, stated: Option<&str>| {
        let data = json!({"provider": stated, "provider_usage": {"format": format, "body": body}});
        usage(&parse(&event_with(&data)).unwrap()).parts[0].provider.to_string()
    };
    for (reported, ours) in [
        ("gemini", "google"),
        ("cohere_chat", "cohere"),
        ("moonshot", "moonshotai"),
        ("vertex_ai", "vertex_ai"),
        ("openai", "openai"),
    ] {
        let body = called("m", reported, &json!({}));
        assert_eq!(named("litellm", &body, None), ours);
        assert_eq!(named("litellm", &body, Some(reported)), reported, "what the gateway says stays");
    }
    for (reported, ours) in [
        ("gcp.gemini", "google"),
        ("gcp.gen_ai", "google"),
        ("gcp.vertex_ai", "vertex_ai"),
        ("x_ai", "xai"),
        ("mistral_ai", "mistral"),
        ("aws.bedrock", "bedrock"),
        ("azure.ai.openai", "azure"),
        ("moonshot_ai", "moonshotai"),
        ("anthropic", "anthropic"),
    ] {
        let span = json!({"gen_ai.provider.name": reported, "gen_ai.request.model": "m",
            "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5});
        assert_eq!(named("otel.gen_ai", &span, None), ours);
    }
    // The prefix that the model's name repeats is LiteLLM's.
    let data = json!({"provider_usage": {"format": "litellm",
        "body": called("gemini/gemini-2.5-pro", "gemini", &json!({}))}});
    assert_eq!(usage(&parse(&event_with(&data)).unwrap()).parts[0].model, "gemini-2.5-pro");
}

#[test]
fn litellm_counts_searches_in_the_details_of_the_prompt() {
    let searched = |count: i64| json!({"prompt_tokens_details": {"web_search_requests": count}});
    let with = |count: i64, extra: Value| {
        let mut usage = searched(count);
        usage.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        usage
    };
    let tools = |count: i64| json!({"server_tool_use": {"web_search_requests": count}});
    let xai = |calls: Value| json!({"server_side_tool_usage_details": calls});
    for (model, provider, usage, fees) in [
        ("gemini-3-flash-preview", "gemini", searched(3), "web_search=3"),
        ("gemini/gemini-3.1-flash-image", "gemini", json!({"web_search_requests": 2}), "web_search=2"),
        // Billed by the prompt, however many queries it took.
        ("gemini-2.5-flash", "vertex_ai", searched(3), "web_search=1"),
        ("gemini/gemini-2.5-flash-image", "gemini", json!({"web_search_requests": 2}), "web_search=1"),
        ("vertex_ai/gemini-live-2.5-flash", "vertex_ai", searched(2), "web_search=1"),
        ("gemini-2.5-pro", "vertex_ai", searched(0), ""),
        ("gpt-5-search-api", "openai", searched(2), "web_search=2"),
        ("claude-sonnet-4-5", "anthropic", with(2, tools(2)), "web_search=2"),
        // One count under two names.
        ("grok-4", "xai", with(5, json!({"num_sources_used": 5})), "web_search=5"),
        ("grok-4", "xai", json!({"num_sources_used": 5}), "web_search=5"),
        ("sonar-pro", "perplexity", with(3, json!({"num_search_queries": 3})), "web_search=3"),
        // Searches of X have no second name, and those of the web none in xAI's responses.
        (
            "grok-4.3",
            "xai",
            with(2, xai(json!({"web_search_calls": 2, "x_search_calls": 3}))),
            "web_search=5",
        ),
        ("grok-4.3", "xai", xai(json!({"web_search_calls": 2})), "web_search=2"),
        ("grok-4.3", "xai", xai(json!({"code_interpreter_calls": 4})), "code_session=4"),
        ("grok-4.3", "xai", with(0, xai(Value::Null)), ""),
    ] {
        let payload = called(model, provider, &usage);
        let call = part("litellm", &payload);
        assert_eq!(classes(&call), format!("input=1000 output=200 {fees}").trim_end(), "{model} {usage}");
        assert_eq!(call.tier_input, 1000);
        let printed = payload["metadata"]["usage_object"].to_string();
        let span = json!({"gen_ai.response.model": model, "metadata.usage_object": printed});
        assert_eq!(part("otel.gen_ai", &span).quantities, call.quantities, "{printed}");
    }
    let contradiction = called("claude-sonnet-4-5", "anthropic", &with(2, tools(3)));
    assert_eq!(refused("litellm", &contradiction), Reason::Inconsistent);
}

#[test]
fn litellm_leaves_out_of_the_total_what_a_search_of_google_read() {
    let usage = |searches: i64, total: i64| {
        let details = json!({"web_search_requests": searches, "tool_use_tokens": 70});
        let usage = json!({"total_tokens": total, "prompt_tokens_details": details});
        called("gemini-3-flash-preview", "gemini", &usage)
    };
    for total in [1200, 1270] {
        let grounded = part("litellm", &usage(2, total));
        assert_eq!(classes(&grounded), "input=1000 output=200 web_search=2", "{total}");
    }
    let details = json!({"google_maps_grounding_requests": 1, "tool_use_tokens": 70});
    let mapped = json!({"total_tokens": 1270, "prompt_tokens_details": details});
    let mapped = part("litellm", &called("gemini-3-flash-preview", "gemini", &mapped));
    assert_eq!(classes(&mapped), "input=1000 output=200");
    assert_eq!(refused("litellm", &usage(2, 1271)), Reason::Inconsistent);
    assert_eq!(refused("litellm", &usage(0, 1270)), Reason::Inconsistent, "only what a search read is free");
}

#[test]
fn litellm_adds_reasoning_and_billed_citations_of_perplexity() {
    let usage = json!({"citation_tokens": 7299, "num_search_queries": 74, "completion_tokens_details":
        {"reasoning_tokens": 73_248, "text_tokens": 0}, "prompt_tokens_details": {"web_search_requests": 74}});
    let researched = part("litellm", &called("sonar-deep-research", "perplexity", &usage));
    assert_eq!(classes(&researched), "input=8299 output=200 reasoning=73248 web_search=74");
    assert_eq!(researched.tier_input, 1000);
    let estimated = called("sonar-pro", "perplexity", &json!({"citation_tokens": 150}));
    assert_eq!(classes(&part("litellm", &estimated)), "input=1000 output=200", "no count of Perplexity's");
    let mut response = called("sonar-deep-research", "perplexity", &usage)["metadata"]["usage_object"].take();
    let expected = "input=8299 output=200 reasoning=73248 web_search=74";
    assert_eq!(classes(&part("openai.chat", &response)), expected, "as its caller gets it");
    response["num_search_queries"] = json!(73);
    assert_eq!(refused("openai.chat", &response), Reason::Inconsistent);
}

#[test]
fn litellm_sums_of_a_batch_are_refused() {
    let with = |extra: Value| {
        let mut payload = called("gpt-5", "openai", &json!({}));
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        payload
    };
    for call in ["aretrieve_batch", "retrieve_batch"] {
        assert_eq!(refused("litellm", &with(json!({"call_type": call}))), Reason::Ambiguous);
        let underway = json!({"call_type": call, "metadata": {"usage_object": null}});
        assert_eq!(refused("litellm", &with(underway)), Reason::Unmetered);
    }
    let models = json!({"hidden_params": {"batch_models": ["gpt-5", "gpt-5-mini"]}});
    assert_eq!(refused("litellm", &with(models)), Reason::Ambiguous);
    let single = json!({"call_type": "acompletion", "hidden_params": {"batch_models": null}});
    assert_eq!(classes(&part("litellm", &with(single))), "input=1000 output=200");
}

#[test]
fn litellm_says_where_the_data_stayed() {
    let region = |breakdown: Value, usage: Value| {
        let mut payload = called("gpt-5", "openai", &usage);
        payload["cost_breakdown"] = breakdown;
        part("litellm", &payload).conditions.region.map(|region| region.to_string())
    };
    assert_eq!(region(json!({"data_residency": "EU"}), json!({})).as_deref(), Some("eu"));
    for nowhere in [json!({"data_residency": null}), json!({"data_residency": ""}), Value::Null] {
        assert_eq!(region(nowhere, json!({})), None);
    }
    let both = region(json!({"data_residency": "eu"}), json!({"inference_geo": "us"}));
    assert_eq!(both.as_deref(), Some("us"), "what the provider says goes before");
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
