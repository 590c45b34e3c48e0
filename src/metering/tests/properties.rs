//! What holds for every payload, not only for those in the tables.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{event_with, parts_of, plain_event};
use crate::domain::event::UsagePart;
use crate::domain::price::quotation::NewPrice;
use crate::domain::tokens::TokenClass;
use crate::metering::{Format, content_hash, hints, parse_event, split};
use crate::rating::starter::tests::book_of;

fn one(format: &str, body: &Value) -> UsagePart {
    parts_of(format, body).unwrap_or_else(|rejected| panic!("{format} {body}: {rejected}")).remove(0)
}

/// All tokens of a part, fees aside.
fn tokens(part: &UsagePart) -> i64 {
    part.quantities.non_zero().filter(|(class, _)| !class.is_fee()).map(|(_, quantity)| quantity).sum()
}

prop_compose! {
    /// Disjoint counts of a call: input, cache read, writes of 5 minutes and an hour, visible output, reasoning.
    fn call()(counts in prop::array::uniform6(0_i64..1_000_000_000)) -> [i64; 6] { counts }
}

/// The same call as each format reports it, where the format can say all of it; `None` leaves out what it cannot.
fn shapes([input, read, write, hour, visible, thought]: [i64; 6]) -> Vec<(&'static str, Value)> {
    let written = write + hour;
    let (prompt, output) = (input + read + written, visible + thought);
    vec![
        (
            "anthropic.messages",
            json!({"input_tokens": input, "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written, "cache_creation": {"ephemeral_5m_input_tokens": write,
            "ephemeral_1h_input_tokens": hour}, "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": thought}}),
        ),
        (
            "litellm",
            json!({"metadata": {"usage_object": {"prompt_tokens": prompt, "completion_tokens": output,
            "total_tokens": prompt + output, "completion_tokens_details": {"reasoning_tokens": thought},
            "prompt_tokens_details": {"cached_tokens": read, "cache_creation_tokens": written,
            "cache_creation_token_details": {"ephemeral_5m_input_tokens": write,
            "ephemeral_1h_input_tokens": hour}}}}}),
        ),
    ]
}

/// The same call without an hour's writes and without reasoning, as every emitter of Claude can say it.
fn claude_shapes([input, read, write, _, output, _]: [i64; 6]) -> Vec<(&'static str, Value)> {
    let prompt = input + read + write;
    let span = |input: i64, total: i64| {
        json!({"gen_ai.usage.input_tokens": input, "gen_ai.usage.output_tokens": output,
            "gen_ai.usage.cache_read.input_tokens": read, "gen_ai.usage.cache_creation.input_tokens": write,
            "gen_ai.usage.total_tokens": total})
    };
    let portkey = |prompt: i64, total: i64| {
        json!({"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": total,
            "cache_read_input_tokens": read, "cache_creation_input_tokens": write})
    };
    let whole = prompt + output;
    vec![
        (
            "anthropic.messages",
            json!({"input_tokens": input, "cache_read_input_tokens": read,
            "cache_creation_input_tokens": write, "output_tokens": output}),
        ),
        ("otel.gen_ai", span(prompt, whole)),
        ("otel.gen_ai", span(input, whole)),
        ("portkey.anthropic", portkey(input, whole)),
        ("portkey.anthropic", portkey(prompt, whole)),
        (
            "bedrock.converse",
            json!({"inputTokens": input, "outputTokens": output, "totalTokens": whole,
            "cacheReadInputTokens": read, "cacheWriteInputTokens": write}),
        ),
        (
            "openrouter.chat",
            json!({"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": whole,
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": write}}),
        ),
    ]
}

proptest! {
    #[test]
    fn v28_one_call_has_one_reading_in_every_shape(call in call()) {
        let [input, read, write, hour, visible, thought] = call;
        for (format, body) in shapes(call) {
            let part = one(format, &body);
            let got = TokenClass::ALL[..6].iter().map(|class| part.quantities.get(*class)).collect::<Vec<_>>();
            prop_assert_eq!(got, vec![input, read, write, hour, visible, thought], "{} {}", format, body);
            prop_assert_eq!(part.tier_input, input + read + write + hour);
        }
        // With no cache at all the two readings of a prompt are the same.
        let first = one(claude_shapes(call)[0].0, &claude_shapes(call)[0].1);
        for (format, body) in claude_shapes(call) {
            let part = one(format, &body);
            prop_assert_eq!(part.quantities, first.quantities, "{} {}", format, body);
            prop_assert_eq!(part.tier_input, first.tier_input, "{} {}", format, body);
        }
    }

    #[test]
    fn one_call_costs_the_same_in_every_shape(call in call(), long in 1_i64..3_000_000_000) {
        // A rate of its own for each class, and another above a context, so that every token counts where it belongs.
        let price = |above: Option<i64>, factor: &str| -> NewPrice {
            serde_json::from_value(json!({"provider": "p", "model": "m", "per": 1_000_000, "multiplier": factor,
                "conditions": {"context_above": above}, "valid_from": "2020-01-01T00:00:00Z", "source": "test",
                "rates": {"input": "3", "cache_read": "0.3", "cache_write_5m": "3.75", "output": "15"}})).unwrap()
        };
        let book = book_of(&[price(None, "1"), price(Some(long), "1.7")]);
        let at = "2026-11-23T10:00:00Z".parse().unwrap();
        let mut costs = claude_shapes(call)
            .into_iter()
            // Bedrock is a platform with prices of its own.
            .filter(|(format, _)| *format != "bedrock.converse")
            .map(|(format, body)| (format, book.rate(&one(format, &body), at).map(|rated| rated.amount)));
        let (_, native) = costs.next().unwrap();
        prop_assert!(native.is_ok(), "{:?}", native);
        for (format, cost) in costs {
            prop_assert_eq!(&cost, &native, "{}", format);
        }
    }

    #[test]
    fn parts_sum_to_the_total_or_the_payload_is_refused(
        prompt in 0_i64..5000, completion in 0_i64..5000, cached in 0_i64..5000, written in 0_i64..5000,
        audio in 0_i64..5000, reasoning in 0_i64..5000,
    ) {
        let total = prompt + completion;
        let chat = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio},
            "completion_tokens_details": {"reasoning_tokens": reasoning}});
        let responses = json!({"input_tokens": prompt, "output_tokens": completion, "total_tokens": total,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio},
            "output_tokens_details": {"reasoning_tokens": reasoning}});
        let gemini = json!({"promptTokenCount": prompt, "cachedContentTokenCount": cached,
            "candidatesTokenCount": completion, "thoughtsTokenCount": reasoning,
            "totalTokenCount": prompt + completion + reasoning,
            "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": audio}]});
        let fits = cached + written + audio <= prompt && reasoning <= completion;
        for (format, body, fits, total) in [
            ("openai.chat", &chat, fits, total),
            ("mistral.chat", &chat, fits, total),
            ("openrouter.chat", &chat, fits, total),
            ("xai.chat", &chat, fits, total),
            ("openai.responses", &responses, fits, total),
            ("gemini.generate_content", &gemini, cached + audio <= prompt, total + reasoning),
        ] {
            match parts_of(format, body) {
                Ok(parts) => {
                    prop_assert!(fits, "{} {}", format, body);
                    prop_assert_eq!(tokens(&parts[0]), total, "{} {}", format, body);
                    prop_assert!(parts[0].quantities.raw().iter().all(|quantity| *quantity >= 0));
                }
                Err(rejected) => prop_assert!(!fits, "{} {}: {}", format, body, rejected),
            }
        }
    }

    #[test]
    fn a_wrong_total_is_refused(call in call(), off in 1_i64..1000) {
        for (format, mut body) in claude_shapes(call).into_iter().chain(shapes(call)) {
            let usage = body.pointer("/metadata/usage_object").is_some();
            let object = if usage { &mut body["metadata"]["usage_object"] } else { &mut body };
            let Some((key, total)) = ["total_tokens", "totalTokens", "gen_ai.usage.total_tokens"]
                .into_iter()
                .find_map(|key| Some((key, object.get(key)?.as_i64()?)))
            else { continue };
            object[key] = json!(total + off);
            // The one known identity that a larger total may hit: an exclusive reading of an inclusive prompt.
            if let Ok(parts) = parts_of(format, &body) {
                prop_assert_eq!(tokens(&parts[0]), total + off, "{} {}", format, body);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_fail(raw in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_event(&raw);
        let _ = hints(&raw);
        for encoding in [None, Some("zstd"), Some("gzip")] {
            if let Ok(message) = split(&raw, encoding) {
                prop_assert!(message.events().all(|event| !event.is_empty()));
            }
        }
    }

    #[test]
    fn no_mutation_of_an_event_makes_it_fail(
        format in prop::sample::select(Format::ALL.to_vec()),
        call in call(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..6),
    ) {
        let body = shapes(call).into_iter().chain(claude_shapes(call)).find(|(name, _)| *name == format.as_str());
        let body = body.map_or_else(|| json!({"usage": {"prompt_tokens": call[0]}}), |(_, body)| body);
        let event = event_with(&json!({"provider": "p", "model": "m",
            "provider_usage": {"format": format.as_str(), "body": body}}));
        for event in [event, plain_event()] {
            let mut raw = event.to_string().into_bytes();
            for (at, byte, kind) in &edits {
                let at = at.index(raw.len());
                match kind {
                    0 => raw[at] = *byte,
                    1 => raw.insert(at, *byte),
                    _ => { raw.remove(at); }
                }
            }
            let _ = hints(&raw);
            if let Ok(event) = parse_event(&raw) {
                prop_assert_eq!(content_hash(&event), content_hash(&event.clone()));
            }
        }
    }

    #[test]
    fn events_come_out_of_a_message_as_they_went_in(
        events in prop::collection::vec("\\{\"[a-z\\]\\[{},: ]{0,9}\":(-?[0-9]{1,3}|\\[\\]|\"\\\\\\\\\"|\\{\"x\":null\\})\\}", 1..20),
        blank in "[ \t\r\n]{0,3}",
    ) {
        let body = format!("{blank}[{blank}{}{blank}]{blank}", events.join(&format!("{blank},{blank}")));
        let message = split(body.as_bytes(), None).unwrap();
        let found: Vec<_> = message.events().map(|raw| String::from_utf8(raw.to_vec()).unwrap()).collect();
        prop_assert_eq!(found, events);
        let packed = zstd::bulk::compress(body.as_bytes(), 1).unwrap();
        let unpacked = split(&packed, Some("zstd")).unwrap();
        prop_assert_eq!(unpacked.body(), body.as_bytes());
    }
}
