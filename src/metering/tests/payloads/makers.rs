//! Gemini, DeepSeek, Mistral and Cohere.

use serde_json::json;

use super::super::event_with;
use super::{classes, part, refused};
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
        json!({"promptTokenCount": 10, "cachedContentTokenCount": 11}),
        json!({"promptTokenCount": 10, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}]}),
        json!({"promptTokenCount": 10, "cachedContentTokenCount": 5,
               "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}]}),
        // How much of the text and of the audio was cached is not told.
        json!({"promptTokenCount": 10_050, "cachedContentTokenCount": 8_000, "promptTokensDetails":
               [{"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 10_000}]}),
        json!({"promptTokenCount": 10, "candidatesTokenCount": 100, "thoughtsTokenCount": 60, "totalTokenCount": 110,
               "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}]}),
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
        ("", None),
        ("ON_DEMAND_TURBO", Some("on_demand_turbo")),
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
