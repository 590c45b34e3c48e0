//! `openai.*` and `xai.chat`.

use serde_json::{Value, json};

use super::{classes, part, refused, stated};
use crate::domain::tokens::TokenClass;
use crate::metering::Reason;

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
fn openai_responses_count_searches_beside_the_usage_or_in_the_output() {
    let usage = json!({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15});
    let search = |action: Value| json!({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action});
    let output = json!([
        {"type": "reasoning", "summary": []},
        search(json!({"type": "search", "query": "…", "queries": ["…", "…"]})),
        search(json!({"type": "open_page", "url": "https://example.com"})),
        search(json!({"type": "find_in_page", "pattern": "…"})),
        search(Value::Null),
        {"type": "web_search_call"},
        {"type": "computer_call", "action": {"type": "search"}},
        {"type": "message", "content": [{"type": "output_text", "text": "web_search_call"}]},
    ]);
    let xai = json!({"input_tokens": 10, "output_tokens": 5, "server_side_tool_usage_details": {"web_search_calls": 1}});
    let counted = |searches: i64| json!({"web_search": {"num_requests": searches}, "image_gen": {"n": 1}});
    for (body, fees) in [
        (json!({"usage": usage, "output": output}), "web_search=3"),
        (
            json!({"type": "response.completed", "response": {"usage": usage, "output": output}}),
            "web_search=3",
        ),
        (json!({"input_tokens": 10, "output_tokens": 5, "output": output}), "web_search=3"),
        (json!({"usage": usage, "output": [{"type": "message"}, "cut", [1]]}), ""),
        (json!({"usage": usage, "output": "cut"}), ""),
        // What is counted goes before what is listed.
        (json!({"usage": usage, "output": output, "tool_usage": counted(2)}), "web_search=2"),
        (json!({"usage": usage, "output": output, "tool_usage": counted(0)}), ""),
        (json!({"usage": usage, "tool_usage": counted(2)}), "web_search=2"),
        (json!({"usage": usage, "tool_usage": {"web_search": null}}), ""),
        (json!({"usage": xai, "output": output}), "web_search=1"),
    ] {
        let call = part("openai.responses", &body);
        assert_eq!(classes(&call), format!("input=10 output=5 {fees}").trim_end(), "{body}");
    }
    let logged = json!({"custom_llm_provider": "openai", "model": "gpt-5", "response": {"output": output},
        "metadata": {"usage_object": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}});
    assert_eq!(classes(&part("litellm", &logged)), "input=10 output=5 web_search=3");
}

#[test]
fn openai_responses_of_perplexity() {
    let body = json!({"model": "perplexity/sonar", "usage": {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150,
        "input_tokens_details": {"cache_read_input_tokens": 40, "cache_creation_input_tokens": 10},
        "tool_calls_details": {"search_web": {"invocation": 3}},
        "cost": {"input_cost": 0.1, "total_cost": 0.0125, "currency": "USD"}}});
    let call = part("openai.responses", &body);
    assert_eq!(classes(&call), "input=50 cache_read=40 cache_write_5m=10 output=50 web_search=3");
    assert_eq!((call.tier_input, stated(&call).as_deref()), (100, Some("0.0125 USD")));
    let both = json!({"input_tokens": 100, "output_tokens": 5,
        "input_tokens_details": {"cached_tokens": 30, "cache_read_input_tokens": 40}});
    assert_eq!(refused("openai.responses", &both), Reason::Inconsistent);
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
fn xai_native_usage_has_its_cache_and_its_tools() {
    let native = json!({"prompt_tokens": 701, "completion_tokens": 69, "total_tokens": 893, "reasoning_tokens": 123,
        "prompt_text_tokens": 701, "cached_prompt_text_tokens": 679, "cost_in_usd_ticks": "1580000"});
    let with = |extra: Value| {
        let mut usage = native.clone();
        usage.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        usage
    };
    let call = part("xai.chat", &native);
    assert_eq!(classes(&call), "input=22 cache_read=679 output=69 reasoning=123");
    assert_eq!((call.tier_input, stated(&call).as_deref()), (701, Some("0.000158 USD")));
    let seen = with(json!({"prompt_text_tokens": 691, "prompt_image_tokens": 10}));
    assert_eq!(
        classes(&part("xai.chat", &seen)),
        "input=12 cache_read=679 output=69 reasoning=123 input_image=10"
    );
    let twice = with(json!({"prompt_tokens_details": {"cached_tokens": 679}}));
    assert_eq!(part("xai.chat", &twice).quantities, call.quantities);
    let contradiction = with(json!({"prompt_tokens_details": {"cached_tokens": 600}}));
    assert_eq!(refused("xai.chat", &contradiction), Reason::Inconsistent);
    let tools = json!([
        "SERVER_SIDE_TOOL_WEB_SEARCH",
        "SERVER_SIDE_TOOL_X_SEARCH",
        "SERVER_SIDE_TOOL_X_SEARCH",
        "SERVER_SIDE_TOOL_CODE_EXECUTION",
        "SERVER_SIDE_TOOL_VIEW_IMAGE",
        "SERVER_SIDE_TOOL_MCP"
    ]);
    let counted = json!({"web_search_calls": 1, "x_search_calls": 2, "code_interpreter_calls": 1});
    for used in [
        json!({"server_side_tools_used": tools}),
        json!({"server_side_tools_used": [1, 2, 2, 3, 4, 7]}),
        json!({"server_side_tools_used": tools, "server_side_tool_usage_details": counted}),
        json!({"server_side_tool_usage_details": counted}),
    ] {
        let expected = "input=22 cache_read=679 output=69 reasoning=123 web_search=3 code_session=1";
        assert_eq!(classes(&part("xai.chat", &with(used.clone()))), expected, "{used}");
    }
    for unknown in
        [json!(["SERVER_SIDE_TOOL_NEW"]), json!([9]), json!([12]), json!(["WEB_SEARCH"]), json!([{}])]
    {
        let usage = with(json!({"server_side_tools_used": unknown}));
        assert_eq!(refused("xai.chat", &usage), Reason::Ambiguous, "{unknown}");
    }
    let more = with(
        json!({"server_side_tools_used": [1], "server_side_tool_usage_details": {"web_search_calls": 2}}),
    );
    assert_eq!(refused("xai.chat", &more), Reason::Inconsistent);
}

#[test]
fn xai_sources_are_searches_only_where_no_tool_was_called() {
    for (calls, searches) in [
        (json!({"web_search_calls": 2}), 2),
        (json!({"x_search_calls": 3}), 3),
        (json!({"web_search_calls": 2, "x_search_calls": 3}), 5),
        (json!({"code_interpreter_calls": 1}), 7),
        (Value::Null, 7),
    ] {
        let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "num_sources_used": 7,
            "server_side_tool_usage_details": calls});
        let logged =
            json!({"custom_llm_provider": "xai", "model": "grok-4", "metadata": {"usage_object": usage}});
        for (format, body) in [("xai.chat", &usage), ("litellm", &logged)] {
            let call = part(format, body);
            assert_eq!(call.quantities.get(TokenClass::WebSearch), searches, "{format} {body}");
        }
    }
}

#[test]
fn a_cost_that_cannot_be_held_refuses_no_event() {
    for (ticks, cost) in [
        (json!(1_000_000_000_001_i64), Some("100.0000000001 USD")),
        (json!(318_319_000), Some("0.0318319 USD")),
        (json!(u64::MAX), None),
        (json!(-1), None),
        (json!(1.5), None),
        (json!("a lot"), None),
        (json!({}), None),
        (Value::Null, None),
    ] {
        let chat = json!({"prompt_tokens": 10, "completion_tokens": 5, "cost_in_usd_ticks": ticks});
        let responses = json!({"input_tokens": 10, "output_tokens": 5, "cost_in_usd_ticks": ticks});
        for (format, usage) in [("xai.chat", chat), ("openai.responses", responses)] {
            let call = part(format, &usage);
            assert_eq!(
                (classes(&call).as_str(), stated(&call).as_deref()),
                ("input=10 output=5", cost),
                "{usage}"
            );
        }
    }
}
