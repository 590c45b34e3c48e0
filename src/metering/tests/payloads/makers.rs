//! Gemini, DeepSeek, Mistral and Cohere.

use serde_json::{Value, json};

use super::super::{event_with, parse, usage};
use super::{classes, part, refused};
use crate::domain::tokens::TokenClass;
use crate::metering::{Reason, parse_event};

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
    let live_snake = json!({"usage_metadata": {"prompt_token_count": 10, "response_token_count": 5,
        "total_token_count": 15, "response_tokens_details": [{"modality": "AUDIO", "token_count": 5}]}});
    assert_eq!(classes(&part("gemini.generate_content", &live_snake)), "input=10 output_audio=5");
    let inside = json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "thoughtsTokenCount": 3,
        "totalTokenCount": 18});
    assert_eq!(classes(&part("gemini.generate_content", &inside)), "input=10 output=5 reasoning=3");
    let mut in_text = json!({"promptTokenCount": 10, "candidatesTokenCount": 100, "thoughtsTokenCount": 60,
        "totalTokenCount": 110, "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 100}]});
    assert_eq!(classes(&part("gemini.generate_content", &in_text)), "input=10 output=40 reasoning=60");
    in_text["candidatesTokensDetails"] = json!([{"modality": "IMAGE", "tokenCount": 40}]);
    assert_eq!(classes(&part("gemini.generate_content", &in_text)), "input=10 reasoning=60 output_image=40");
    let no_total = json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "thoughtsTokenCount": 3});
    assert_eq!(classes(&part("gemini.generate_content", &no_total)), "input=10 output=8 reasoning=3");
    let implicit = json!({"promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 1});
    assert_eq!(classes(&part("gemini.generate_content", &implicit)), "input=6 cache_read=4 output=1");
    for usage in [
        json!({"promptTokenCount": 10, "candidatesTokenCount": 8, "totalTokenCount": 20}),
        json!({"promptTokenCount": 10, "totalTokenCount": 10, "cachedContentTokenCount": 11}),
        json!({"promptTokenCount": 10, "totalTokenCount": 10,
               "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}]}),
        json!({"promptTokenCount": 10, "totalTokenCount": 10, "cachedContentTokenCount": 5,
               "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}]}),
        // How much of the text and of the audio was cached is not told.
        json!({"promptTokenCount": 10_050, "totalTokenCount": 10_050, "cachedContentTokenCount": 8_000,
               "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 10_000}]}),
        json!({"promptTokenCount": 10, "candidatesTokenCount": 100, "thoughtsTokenCount": 60, "totalTokenCount": 110,
               "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}]}),
    ] {
        assert_eq!(refused("gemini.generate_content", &usage), Reason::Inconsistent, "{usage}");
    }
    assert_eq!(refused("gemini.generate_content", &json!({"totalTokenCount": 5})), Reason::MissingField);
}

#[test]
fn gemini_knows_an_empty_answer_by_its_total_only() {
    let format = "gemini.generate_content";
    for usage in [
        json!({"promptTokenCount": 10}),
        json!({"promptTokenCount": 10, "thoughtsTokenCount": 3}),
        json!({"prompt_token_count": 10, "response_token_count": null, "total_token_count": null}),
    ] {
        assert_eq!(refused(format, &usage), Reason::MissingField, "{usage}");
    }
    let blocked = json!({"promptTokenCount": 10, "totalTokenCount": 10});
    assert_eq!(classes(&part(format, &blocked)), "input=10");
    let cut_short = json!({"promptTokenCount": 10, "thoughtsTokenCount": 3, "totalTokenCount": 13});
    assert_eq!(classes(&part(format, &cut_short)), "input=10 reasoning=3");
    for answer in [json!({"embedding": {"values": [0.5]}}), json!({"embeddings": [{"values": [0.5]}]})] {
        let mut body = answer;
        body["usageMetadata"] = json!({"promptTokenCount": 10});
        assert_eq!(classes(&part(format, &body)), "input=10", "{body}");
    }
}

/// A whole response of Gemini in which tools made the model read 70 tokens more, grounded like this by candidate.
fn grounded(model: &str, candidates: &[Value]) -> Value {
    let candidates: Vec<_> = candidates
        .iter()
        .map(|found| json!({"content": {"parts": [{"text": "…"}]}, "groundingMetadata": found}))
        .collect();
    json!({"modelVersion": model, "candidates": candidates, "usageMetadata": {"promptTokenCount": 1000,
        "toolUsePromptTokenCount": 70, "candidatesTokenCount": 200, "totalTokenCount": 1270}})
}

#[test]
fn gemini_counts_searches_and_reads_what_they_brought_for_nothing() {
    let web = json!([{"web": {"uri": "u", "title": "t"}}]);
    let maps = json!([{"maps": {"title": "t"}}]);
    let asked = |queries: &[&str]| json!({"webSearchQueries": queries, "groundingChunks": web});
    let three = asked(&["a", "b", "", "c", "a"]);
    let both = json!({"webSearchQueries": ["a"], "groundingChunks": [web[0], maps[0]]});
    for (model, candidates, billed) in [
        ("gemini-3-flash-preview", vec![three.clone()], "input=1000 output=200 web_search=3"),
        (
            "gemini-3-flash-preview",
            vec![three.clone(), asked(&["c", "d"])],
            "input=1000 output=200 web_search=4",
        ),
        // Billed by the prompt, however many queries it took.
        ("gemini-2.5-flash", vec![three], "input=1000 output=200 web_search=1"),
        // Queries that were put to the maps alone have another fee.
        (
            "gemini-3-pro",
            vec![json!({"webSearchQueries": ["a"], "groundingChunks": maps})],
            "input=1000 output=200",
        ),
        ("gemini-3-pro", vec![json!({"googleMapsWidgetContextToken": "w"})], "input=1000 output=200"),
        ("gemini-3-pro", vec![both], "input=1000 output=200 web_search=1"),
        // Tools that are no search are read at the price of the input.
        ("gemini-3-pro", vec![], "input=1070 output=200"),
        ("gemini-3-pro", vec![Value::Null], "input=1070 output=200"),
        ("gemini-3-pro", vec![asked(&[""])], "input=1070 output=200"),
        (
            "gemini-3-pro",
            vec![json!({"groundingChunks": [{"retrievedContext": {"text": "…"}}]})],
            "input=1070 output=200",
        ),
    ] {
        let body = grounded(model, &candidates);
        let call = part("gemini.generate_content", &body);
        assert_eq!(classes(&call), billed, "{body}");
        assert_eq!(call.tier_input, call.quantities.prompt_total(), "{body}");
    }
    let usage = grounded("gemini-3-pro", &[])["usageMetadata"].take();
    let snake = json!({"model_version": "gemini-3-pro", "usage_metadata": usage, "candidates":
        [{"grounding_metadata": {"web_search_queries": ["a", "b"], "grounding_chunks": web}}]});
    assert_eq!(classes(&part("gemini.generate_content", &snake)), "input=1000 output=200 web_search=2");
    let texts_cut_out =
        json!({"candidates": "cut", "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}});
    assert_eq!(classes(&part("gemini.generate_content", &texts_cut_out)), "input=1");
}

#[test]
fn gemini_without_its_model_is_billed_for_searches_as_the_event_names_it() {
    for (model, searches) in [("gemini-2.5-pro", 1), ("gemini-3-pro", 2)] {
        let mut body = grounded("", &[json!({"webSearchQueries": ["a", "b"]})]);
        for named in ["gone", "empty"] {
            let data = json!({"provider": "google", "model": model,
                "provider_usage": {"format": "gemini.generate_content", "body": body}});
            let event = parse(&event_with(&data)).unwrap();
            let call = &usage(&event).parts[0];
            assert_eq!(call.quantities.get(TokenClass::WebSearch), searches, "{model}, {named}");
            body.as_object_mut().unwrap().remove("modelVersion");
        }
    }
}

#[test]
fn a_searched_call_of_gemini_costs_the_same_natively_and_through_litellm() {
    for (model, searches) in [("gemini-2.5-flash", 1), ("gemini-3-flash-preview", 2)] {
        let native = grounded(model, &[json!({"webSearchQueries": ["a", "b"]})]);
        let logged = json!({"custom_llm_provider": "gemini", "model": model, "metadata": {"usage_object":
            {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1270,
             "prompt_tokens_details": {"web_search_requests": 2, "tool_use_tokens": 70}}}});
        let (native, logged) = (part("gemini.generate_content", &native), part("litellm", &logged));
        assert_eq!(native.quantities, logged.quantities, "{model}");
        assert_eq!(native.tier_input, logged.tier_input, "{model}");
        assert_eq!(native.quantities.get(TokenClass::WebSearch), searches, "{model}");
    }
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
        ("", None),
        ("ON_DEMAND_TURBO", Some("on_demand_turbo")),
    ] {
        let usage = json!({"promptTokenCount": 1, "totalTokenCount": 1, "trafficType": traffic});
        assert_eq!(
            part("gemini.generate_content", &usage).conditions.service_tier.as_deref(),
            tier,
            "{traffic}"
        );
    }
    let usage = json!({"promptTokenCount": 1, "totalTokenCount": 1, "serviceTier": "PRIORITY"});
    assert_eq!(part("gemini.generate_content", &usage).conditions.service_tier.as_deref(), Some("priority"));
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
        let refused = parse_event(event.as_bytes()).unwrap_err();
        assert_eq!(refused.reason, expected, "{count}");
    }
}
