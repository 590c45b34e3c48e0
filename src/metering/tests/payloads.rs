//! Provider payloads through the wire format: one table per question, hand-computed.

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
fn bare_usage() -> Vec<(&'static str, &'static str, Value)> {
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
    let some = |text: &str| Some(text.to_owned());
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
fn openai_chat() {
    let body = json!({
        "model": "gpt-audio", "service_tier": "default", "choices": [],
        "usage": {
            "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 100, "audio_tokens": 50},
            "completion_tokens_details": {"reasoning_tokens": 200, "audio_tokens": 30, "rejected_prediction_tokens": 9},
        },
    });
    let audio = part("openai.chat", &body);
    assert_eq!(
        classes(&audio),
        "input=550 cache_read=300 cache_write_5m=100 output=270 reasoning=200 input_audio=50 output_audio=30"
    );
    assert_eq!((audio.tier_input, audio.model.as_str()), (1000, "gpt-audio"));
    let vllm =
        json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": null});
    assert_eq!(classes(&part("openai.chat", &vllm)), "input=7 output=2");
    let embeddings = json!({"usage": {"prompt_tokens": 8, "total_tokens": 8}});
    assert_eq!(classes(&part("openai.chat", &embeddings)), "input=8");
    let sglang =
        json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "reasoning_tokens": 4});
    assert_eq!(classes(&part("openai.chat", &sglang)), "input=7 output=1 reasoning=4");
    for (body, expected) in [
        (json!({"prompt_tokens": 7, "total_tokens": 9}), Reason::MissingField),
        (json!({"prompt_tokens": 7}), Reason::MissingField),
        (json!({"completion_tokens": 7}), Reason::MissingField),
        (json!({"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 9}), Reason::Inconsistent),
        (
            json!({"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}),
            Reason::Inconsistent,
        ),
        (
            json!({"prompt_tokens": 7, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}}),
            Reason::Inconsistent,
        ),
        (
            json!({"prompt_tokens": 7, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 1},
                   "reasoning_tokens": 2}),
            Reason::Inconsistent,
        ),
        (
            json!({"prompt_tokens": 7, "completion_tokens": 1, "cache_read_input_tokens": 5}),
            Reason::Ambiguous,
        ),
        (
            json!({"prompt_tokens": 7, "completion_tokens": 1, "cache_creation_input_tokens": 5}),
            Reason::Ambiguous,
        ),
    ] {
        assert_eq!(refused("openai.chat", &body), expected, "B17 {body}");
    }
    let repeated = json!({"prompt_tokens": 7, "completion_tokens": 1, "cache_read_input_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 5}});
    assert_eq!(classes(&part("openai.chat", &repeated)), "input=2 cache_read=5 output=1");
}

#[test]
fn openai_chat_of_perplexity_states_its_cost() {
    let body = json!({"model": "sonar-deep-research", "usage": {
        "prompt_tokens": 20, "completion_tokens": 500, "total_tokens": 520, "citation_tokens": 1000,
        "num_search_queries": 3, "reasoning_tokens": 5000,
        "cost": {"input_tokens_cost": 0.0, "total_cost": 0.041},
    }});
    let research = part("openai.chat", &body);
    assert_eq!(classes(&research), "input=1020 output=500 reasoning=5000 web_search=3");
    assert_eq!(research.tier_input, 20);
    assert_eq!(stated(&research).as_deref(), Some("0.041 USD"));
}

#[test]
fn openai_responses_and_xai_behind_it() {
    let body = json!({"type": "response.completed", "response": {"model": "gpt-5", "service_tier": "flex", "usage": {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 150,
    }}});
    let streamed = part("openai.responses", &body);
    assert_eq!(classes(&streamed), "input=60 cache_read=40 output=30 reasoning=20");
    assert_eq!(
        (streamed.model.as_str(), streamed.conditions.service_tier.as_deref()),
        ("gpt-5", Some("flex"))
    );
    let image = json!({"usage": {"input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 4000, "output_tokens_details": {"text_tokens": 0, "image_tokens": 4000}, "total_tokens": 4050}});
    assert_eq!(classes(&part("openai.responses", &image)), "input=10 input_image=40 output_image=4000");
    let xai = json!({"input_tokens": 10, "output_tokens": 5, "cost_in_usd_ticks": 318_319_000,
        "server_side_tool_usage_details": {"x_search_calls": 3, "web_search_calls": 2, "code_interpreter_calls": 1}});
    let fees = part("openai.responses", &xai);
    assert_eq!(classes(&fees), "input=10 output=5 web_search=5 code_session=1");
    assert_eq!(stated(&fees).as_deref(), Some("0.0318319 USD"));
    for usage in [
        json!({"input_tokens": 10, "output_tokens": 5, "total_tokens": 16}),
        json!({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 11}}),
        json!({"input_tokens": 10, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 6}}),
    ] {
        assert_eq!(refused("openai.responses", &usage), Reason::Inconsistent, "{usage}");
    }
    assert_eq!(refused("openai.responses", &json!({"input_tokens": 10})), Reason::MissingField);
}

#[test]
fn openai_realtime_without_a_split_of_the_cache_is_text() {
    let usage = json!({"type": "response.done", "response": {"usage": {"input_tokens": 100, "output_tokens": 10,
        "input_token_details": {"audio_tokens": 60, "cached_tokens": 30}}}});
    assert_eq!(classes(&part("openai.realtime", &usage)), "input=10 cache_read=30 output=10 input_audio=60");
    for details in [
        json!({"audio_tokens": 60, "cached_tokens": 41}),
        json!({"text_tokens": 30, "audio_tokens": 60}),
        json!({"audio_tokens": 101}),
        json!({"cached_tokens": 10, "cached_tokens_details": {"audio_tokens": 11}}),
        json!({"audio_tokens": 5, "cached_tokens": 10, "cached_tokens_details": {"audio_tokens": 6}}),
    ] {
        let usage = json!({"input_tokens": 100, "output_tokens": 10, "input_token_details": details});
        assert_eq!(refused("openai.realtime", &usage), Reason::Inconsistent, "{usage}");
    }
}

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
    assert_eq!(call.conditions, crate::domain::event::CallConditions::default());
    let priority = json!({"input_tokens": 1, "output_tokens": 1, "service_tier": "priority"});
    assert_eq!(part("anthropic.messages", &priority).conditions.service_tier.as_deref(), Some("priority"));
    for (usage, expected) in [
        (json!({"input_tokens": 1}), Reason::MissingField),
        (json!({"output_tokens": 1}), Reason::MissingField),
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
}

/// An attempt of a call.
fn attempt(kind: &str, model: Option<&str>, input: i64, output: i64) -> Value {
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
fn gemini_modalities_thoughts_and_tiers() {
    // V17: a cached audio prompt.
    let body = json!({"modelVersion": "gemini-2.5-flash", "usageMetadata": {
        "promptTokenCount": 10_000, "cachedContentTokenCount": 6_000, "candidatesTokenCount": 700,
        "thoughtsTokenCount": 300, "totalTokenCount": 11_000,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 4_000}, {"modality": "AUDIO", "tokenCount": 5_000},
                                {"modality": "DOCUMENT", "tokenCount": 1_000}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 3_000}, {"modality": "TEXT", "tokenCount": 3_000}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 500}],
        "trafficType": "ON_DEMAND_FLEX",
    }});
    let call = part("gemini.generate_content", &body);
    assert_eq!(
        classes(&call),
        "input=2000 cache_read=3000 output=200 reasoning=300 input_audio=2000 cache_read_audio=3000 output_image=500"
    );
    assert_eq!((call.tier_input, call.model.as_str()), (10_000, "gemini-2.5-flash"));
    assert_eq!(call.conditions.service_tier.as_deref(), Some("flex"));
    let snake = json!({"usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 5,
        "total_token_count": 15, "prompt_tokens_details": [{"modality": "TEXT", "token_count": 10}]}});
    assert_eq!(classes(&part("gemini.generate_content", &snake)), "input=10 output=5");
    let live = json!({"promptTokenCount": 10, "responseTokenCount": 5, "totalTokenCount": 15,
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 5}]});
    assert_eq!(classes(&part("gemini.generate_content", &live)), "input=10 output_audio=5");
    let inside = json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "thoughtsTokenCount": 3,
        "totalTokenCount": 18});
    assert_eq!(classes(&part("gemini.generate_content", &inside)), "input=10 output=5 reasoning=3");
    let no_total = json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "thoughtsTokenCount": 3});
    assert_eq!(classes(&part("gemini.generate_content", &no_total)), "input=10 output=8 reasoning=3");
    let implicit = json!({"promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 1});
    assert_eq!(classes(&part("gemini.generate_content", &implicit)), "input=6 cache_read=4 output=1");
    for usage in [
        json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "totalTokenCount": 20}),
        json!({"promptTokenCount": 10, "cachedContentTokenCount": 11}),
        json!({"promptTokenCount": 10, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}]}),
        json!({"promptTokenCount": 10, "cachedContentTokenCount": 5,
               "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}]}),
    ] {
        assert_eq!(refused("gemini.generate_content", &usage), Reason::Inconsistent, "{usage}");
    }
    assert_eq!(refused("gemini.generate_content", &json!({"totalTokenCount": 5})), Reason::MissingField);
}

#[test]
fn gemini_tiers_by_traffic() {
    for (traffic, tier) in [
        ("ON_DEMAND", None),
        ("ON_DEMAND_PRIORITY", Some("priority")),
        ("ON_DEMAND_FLEX", Some("flex")),
        ("ON_DEMAND_OFFPEAK", Some("offpeak")),
        ("PROVISIONED_THROUGHPUT", Some("provisioned")),
        ("TRAFFIC_TYPE_UNSPECIFIED", None),
    ] {
        let usage = json!({"promptTokenCount": 1, "trafficType": traffic});
        assert_eq!(
            part("gemini.generate_content", &usage).conditions.service_tier.as_deref(),
            tier,
            "{traffic}"
        );
    }
    let usage = json!({"promptTokenCount": 1, "serviceTier": "PRIORITY"});
    assert_eq!(part("gemini.generate_content", &usage).conditions.service_tier.as_deref(), Some("priority"));
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

#[test]
fn deepseek_hits_and_misses() {
    for usage in [
        json!({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6}),
        json!({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}),
    ] {
        assert_eq!(classes(&part("deepseek.chat", &usage)), "input=6 cache_read=4 output=5");
    }
    for usage in [
        json!({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}),
        json!({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4,
               "prompt_tokens_details": {"cached_tokens": 5}}),
    ] {
        assert_eq!(refused("deepseek.chat", &usage), Reason::Inconsistent, "{usage}");
    }
}

#[test]
fn xai_reasoning_is_outside_unless_the_total_says_otherwise() {
    let usage = |total: Value| {
        json!({"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": 20}, "num_sources_used": 2, "cost_in_usd_ticks": 1})
    };
    for (total, expected) in [
        (json!(150), "input=100 output=30 reasoning=20 web_search=2"),
        (Value::Null, "input=100 output=30 reasoning=20 web_search=2"),
        (json!(130), "input=100 output=10 reasoning=20 web_search=2"),
    ] {
        assert_eq!(classes(&part("xai.chat", &usage(total.clone()))), expected, "{total}");
    }
    assert_eq!(refused("xai.chat", &usage(json!(140))), Reason::Inconsistent);
    assert_eq!(stated(&part("xai.chat", &usage(Value::Null))).as_deref(), Some("0.0000000001 USD"));
}

#[test]
fn mistral_bills_audio_by_the_second() {
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "prompt_audio_seconds": 12,
        "prompt_tokens_details": {"cached_tokens": 60}, "service_tier": "priority"});
    let call = part("mistral.chat", &usage);
    assert_eq!(classes(&call), "input=40 cache_read=60 output=30 second=12");
    assert_eq!(call.conditions.service_tier.as_deref(), Some("priority"));
}

#[test]
fn cohere_bills_its_billed_units() {
    let body = json!({"usage": {"billed_units": {"input_tokens": 21.0, "output_tokens": 11.00},
        "tokens": {"input_tokens": 515.0, "output_tokens": 13.0}, "cached_tokens": 400}});
    let call = part("cohere.v2", &body);
    assert_eq!((classes(&call).as_str(), call.tier_input), ("input=21 output=11", 515));
    let rerank = json!({"meta": {"billed_units": {"search_units": 1}}});
    assert_eq!(classes(&part("cohere.v2", &rerank)), "request=1");
    for (count, expected) in [
        ("1.5", Reason::Type),
        ("1e3", Reason::Type),
        ("\"1\"", Reason::Type),
        ("-1.0", Reason::Negative),
        ("99999999999999999999.0", Reason::Range),
        ("1000000000001.0", Reason::Limit),
    ] {
        let data = json!({"provider": "p", "model": "m", "provider_usage": {"format": "cohere.v2",
            "body": {"billed_units": {"input_tokens": "COUNT"}}}});
        let event = event_with(&data).to_string().replace("\"COUNT\"", count);
        let refused = crate::metering::parse_event(event.as_bytes()).unwrap_err();
        assert_eq!(refused.reason, expected, "{count}");
    }
}

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
