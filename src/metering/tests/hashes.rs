//! The content hashes of one payload of each format, as they are in the journal.

use serde_json::{Value, json};

use super::{event_with, parse};
use crate::domain::identity::hex;
use crate::metering::{Format, READING, bytes_hash, content_hash};

/// One payload of each format with what it can say of conditions, and the hash of an event with it.
fn pinned() -> Vec<(Format, Value, &'static str)> {
    let chat = json!({"model": "gpt-5-2025-08-07", "service_tier": "flex", "usage": {"prompt_tokens": 3496, "completion_tokens": 1327,
        "total_tokens": 4823, "prompt_tokens_details": {"cached_tokens": 3328},
        "completion_tokens_details": {"reasoning_tokens": 1024}}});
    let responses = json!({"model": "gpt-5", "service_tier": "priority", "usage": {"input_tokens": 2600,
        "input_tokens_details": {"cached_tokens": 2000}, "output_tokens": 500,
        "output_tokens_details": {"reasoning_tokens": 120}, "total_tokens": 3100}});
    let realtime = json!({"type": "response.done", "response": {"usage": {"input_tokens": 100, "output_tokens": 10,
        "input_token_details": {"audio_tokens": 60, "cached_tokens": 30}}}});
    let claude = json!({"model": "claude-sonnet-4-5", "usage": {"input_tokens": 2095, "output_tokens": 503,
        "cache_read_input_tokens": 50_000, "cache_creation_input_tokens": 6_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 2_000, "ephemeral_1h_input_tokens": 4_000},
        "service_tier": "priority", "inference_geo": "us", "speed": "fast", "server_tool_use": {"web_search_requests": 2}}});
    let gemini = json!({"modelVersion": "gemini-2.5-flash", "usageMetadata": {"promptTokenCount": 10_000,
        "cachedContentTokenCount": 6_000, "candidatesTokenCount": 700, "thoughtsTokenCount": 300, "totalTokenCount": 11_000,
        "trafficType": "ON_DEMAND_FLEX"}});
    let bedrock = json!({"serviceTier": {"type": "flex"}, "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 135,
        "cacheReadInputTokens": 20, "cacheWriteInputTokens": 100}});
    let deepseek = json!({"model": "deepseek-chat", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
        "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6}});
    let xai = json!({"model": "grok-4", "usage": {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 150,
        "completion_tokens_details": {"reasoning_tokens": 20}, "num_sources_used": 2}});
    let mistral = json!({"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "prompt_audio_seconds": 12,
        "prompt_tokens_details": {"cached_tokens": 60}, "service_tier": "priority"});
    let cohere = json!({"usage": {"billed_units": {"input_tokens": 21, "output_tokens": 11},
        "tokens": {"input_tokens": 515, "output_tokens": 13}}});
    let openrouter = json!({"model": "openai/gpt-5", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.0375,
        "server_tool_use_details": {"web_search_requests": 2}}});
    let otel = json!({"attributes": {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic",
        "gen_ai.response.model": "claude-sonnet-4-5", "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60, "gen_ai.openai.response.service_tier": "flex"}});
    let litellm = json!({"custom_llm_provider": "openai", "model": "gpt-5", "status": "success", "prompt_tokens": 100,
        "completion_tokens": 20, "metadata": {"usage_object": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}},
        "cost_breakdown": {"service_tier": "priority", "data_residency": "eu"}});
    let portkey = json!({"prompt_tokens": 40, "completion_tokens": 5, "total_tokens": 75, "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 10});
    vec![
        (Format::OpenAiChat, chat, "d639e94a18f5529beaf69a1bd52e1b06"),
        (Format::OpenAiResponses, responses, "876311da3b0f43a37dbfd1f57f0b071c"),
        (Format::OpenAiRealtime, realtime, "ba573874bd3db8580511dc19de0dab4e"),
        (Format::AnthropicMessages, claude, "3e30fe7b951a18844d431826c22fc89d"),
        (Format::GeminiGenerateContent, gemini, "70cf0972921221f205db1428f6ce5634"),
        (Format::BedrockConverse, bedrock, "43737c6e01b0fd6e4f0886a023503feb"),
        (Format::DeepSeekChat, deepseek, "e49c3e488b500da6fe480cee773f2334"),
        (Format::XaiChat, xai, "9cff21fce2bd83c509a4853734c33757"),
        (Format::MistralChat, mistral, "58a3a718de6e78e905f9e94ebaf88933"),
        (Format::CohereV2, cohere, "0a0c6415e6ed5048e702d59fc5af5a93"),
        (Format::OpenRouterChat, openrouter, "9430f296bce997549a918face7798de5"),
        (Format::OtelGenAi, otel, "ba4df949ff500f71045c576c54e70794"),
        (Format::LiteLlm, litellm, "c27dcff4a5de87e8133aa89e813c2719"),
        (Format::PortkeyAnthropic, portkey, "d7d49af7d984f47d747e69d6587b284a"),
    ]
}

/// Another hash than the release before gave makes conflicts of copies that come in across the upgrade. Where that has to be,
/// the release says so, and raises [`READING`].
#[test]
fn what_is_recorded_is_read_as_it_was() {
    let pinned = pinned();
    let formats: Vec<Format> = pinned.iter().map(|(format, ..)| *format).collect();
    assert_eq!(formats, Format::ALL, "every format has one");
    let mut differing = Vec::new();
    for (format, body, expected) in pinned {
        let data = json!({"provider": "p", "model": "m", "provider_usage": {"format": format.as_str(), "body": body}});
        let hash = hex(&content_hash(&parse(&event_with(&data)).unwrap()));
        if hash != expected {
            differing.push(format!("{format} {hash}"));
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
}

/// Other hashes, another reading. It is raised, too, where an event reads otherwise whose hash is none of these.
#[test]
fn another_reading_has_another_number() {
    let hashes: String = pinned().iter().map(|(.., hash)| *hash).collect();
    assert_eq!(
        (READING, hex(&bytes_hash(hashes.as_bytes())).as_str()),
        (1, "0067762dfc7c6e25b97a4ad655f83d2e")
    );
}

#[test]
fn bytes_are_no_content() {
    let event = event_with(&json!({"provider": "p", "model": "m", "usage": {"input": 1}}));
    let bytes = bytes_hash(event.to_string().as_bytes());
    assert_ne!(bytes, content_hash(&parse(&event).unwrap()));
    assert_eq!(hex(&bytes_hash(b"")), "6e340b9cffb37a989ca544e6bb780a2c");
}
