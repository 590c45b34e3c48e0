//! `otel.gen_ai`: the attributes of one span by OpenTelemetry's `gen_ai` conventions, old and new names.
//!
//! The body is the attributes as an object, itself or under `attributes`. The rule is inclusive: input holds cache
//! reads and writes. Some instrumentations break it: an input below its caches is exclusive, and so is one that a total
//! exceeds by its caches. Choices: cache writes have the five-minute lifetime, as no attribute splits them; spans of
//! agents and workflows, and those of the AI SDK around its calls, sum their children and are `ambiguous`; counts may be
//! texts of digits, as in OTLP/JSON.
//!
//! LiteLLM's spans leave out cached and reasoning tokens of OpenAI, the lifetime of cache writes and the searches, but
//! carry its whole usage object as a text, as Python prints it: where that stands, it is what counts.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    Format, Reading, inconsistent, known_provider, litellm, need, python, quantities, rest, stated, unmetered,
};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Text, fault, read};
use crate::metering::reason::{Reason, Rejected};

/// Operations that are one call of a model; everything else may sum calls that have spans of their own.
const CALLS: [&str; 4] = ["chat", "text_completion", "generate_content", "embeddings"];

/// What the AI SDK's names of its own operations begin with.
const SDK_PREFIX: &str = "ai.";
/// Ends of those names that are one call of a model; the others are around such calls.
const SDK_CALLS: [&str; 3] = [".doGenerate", ".doStream", SDK_EMBEDDING];
const SDK_EMBEDDING: &str = ".doEmbed";

/// A count that has several names.
#[derive(Clone, Copy)]
enum Slot {
    Input,
    Output,
    Total,
    CacheRead,
    CacheWrite,
    Reasoning,
    InputAudio,
    InputImage,
    InputVideo,
    OutputAudio,
    OutputImage,
    /// The input outside every cache.
    Uncached,
    /// The output without reasoning.
    Visible,
}

/// How many slots there are.
const SLOTS: usize = 13;

/// What an attribute means, by its name.
fn slot(name: &str) -> Option<Slot> {
    Some(match name {
        "gen_ai.usage.input_tokens"
        | "gen_ai.usage.prompt_tokens"
        | "llm.token_count.prompt"
        | "ai.usage.inputTokens"
        | "ai.usage.promptTokens"
        | "ai.usage.tokens" => Slot::Input,
        "gen_ai.usage.output_tokens"
        | "gen_ai.usage.completion_tokens"
        | "llm.token_count.completion"
        | "ai.usage.outputTokens"
        | "ai.usage.completionTokens" => Slot::Output,
        "gen_ai.usage.total_tokens" | "llm.token_count.total" | "ai.usage.totalTokens" => Slot::Total,
        "gen_ai.usage.cache_read.input_tokens"
        | "gen_ai.usage.cache_read_input_tokens"
        | "gen_ai.usage.input_tokens.cached"
        | "gen_ai.usage.details.cache_read_tokens"
        | "llm.token_count.prompt_details.cache_read"
        | "ai.usage.cachedInputTokens"
        | "ai.usage.inputTokenDetails.cacheReadTokens" => Slot::CacheRead,
        "gen_ai.usage.cache_creation.input_tokens"
        | "gen_ai.usage.cache_write.input_tokens"
        | "gen_ai.usage.cache_creation_input_tokens"
        | "gen_ai.usage.input_tokens.cache_write"
        | "gen_ai.usage.details.cache_write_tokens"
        | "llm.token_count.prompt_details.cache_write"
        | "ai.usage.inputTokenDetails.cacheWriteTokens" => Slot::CacheWrite,
        "gen_ai.usage.reasoning.output_tokens"
        | "gen_ai.usage.output_tokens.reasoning"
        | "gen_ai.usage.details.reasoning_tokens"
        | "llm.token_count.completion_details.reasoning"
        | "ai.usage.reasoningTokens"
        | "ai.usage.outputTokenDetails.reasoningTokens" => Slot::Reasoning,
        "gen_ai.usage.audio.input_tokens" | "gen_ai.usage.input_tokens.audio" => Slot::InputAudio,
        "gen_ai.usage.image.input_tokens" => Slot::InputImage,
        "gen_ai.usage.video.input_tokens" | "gen_ai.usage.input_tokens.video" => Slot::InputVideo,
        "gen_ai.usage.audio.output_tokens" => Slot::OutputAudio,
        "gen_ai.usage.output_tokens.image" => Slot::OutputImage,
        "ai.usage.inputTokenDetails.noCacheTokens" => Slot::Uncached,
        "ai.usage.outputTokenDetails.textTokens" => Slot::Visible,
        _ => return None,
    })
}

#[derive(Default)]
struct Span<'a> {
    counts: [Option<Count>; SLOTS],
    operation: Option<Text<'a>>,
    /// The AI SDK's names of the operation; the second may go on, after a blank, with the caller's name of it.
    sdk_operation: Option<Text<'a>>,
    named_operation: Option<Text<'a>>,
    provider: Option<Text<'a>>,
    response_model: Option<Text<'a>>,
    request_model: Option<Text<'a>>,
    service_tier: Option<Text<'a>>,
    /// LiteLLM's name of the model with its provider, which stands where the provider's attribute is empty.
    provider_model: Option<Text<'a>>,
    /// LiteLLM's name of the call.
    litellm_call: Option<Text<'a>>,
    /// LiteLLM's usage object.
    usage_object: Option<Text<'a>>,
    cost: Option<&'a RawValue>,
    /// The attributes, where the body wraps them.
    nested: Option<&'a RawValue>,
}

impl Span<'_> {
    fn get(&self, slot: Slot) -> Option<Count> {
        self.counts[slot as usize]
    }

    fn count(&self, slot: Slot) -> i64 {
        self.get(slot).map_or(0, |count| count.0)
    }

    /// What is counted once more under a name of its own must be the same there; a zero is a name that was not filled in.
    fn check(&self, slot: Slot, count: i64, what: &str) -> Result<(), Rejected> {
        match self.count(slot) {
            stated if stated == 0 || stated == count => Ok(()),
            stated => Err(inconsistent(format_args!("{what} is stated as {stated}, and {count} is left"))),
        }
    }

    /// What the AI SDK calls the operation, where the span is one of its own.
    fn operations_of_sdk(&self) -> impl Iterator<Item = &str> {
        let names = [self.sdk_operation.as_deref(), self.named_operation.as_deref()];
        let names = names.into_iter().flatten().filter_map(|name| name.split_whitespace().next());
        names.filter(|name| name.starts_with(SDK_PREFIX))
    }

    /// Whether the span may hold the sum of others.
    fn is_sum(&self) -> bool {
        let is_call = |name: &str| SDK_CALLS.iter().any(|call| name.ends_with(call));
        self.operation.as_deref().is_some_and(|operation| !CALLS.contains(&operation))
            || self.operations_of_sdk().any(|name| !is_call(name))
            || self.litellm_call.as_deref().is_some_and(litellm::sums_a_batch)
    }

    /// Whether the call has no output by its nature.
    fn is_embedding(&self) -> bool {
        self.operation.as_deref() == Some("embeddings")
            || self.operations_of_sdk().any(|name| name.ends_with(SDK_EMBEDDING))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Span<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;

        impl<'de> Visitor<'de> for SpanVisitor {
            type Value = Span<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of span attributes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Span<'de>, A::Error> {
                let mut span = Span::default();
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if let Some(slot) = slot(&name) {
                        let Some(Digits(count)) = map.next_value::<Option<Digits>>()? else { continue };
                        let held = &mut span.counts[slot as usize];
                        if held.is_some_and(|held| held != count) {
                            return Err(fault(
                                Reason::Ambiguous,
                                format_args!("`{}` contradicts another name of the same count", &*name),
                            ));
                        }
                        *held = Some(count);
                        continue;
                    }
                    let text = match &*name {
                        "gen_ai.operation.name" => &mut span.operation,
                        "ai.operationId" => &mut span.sdk_operation,
                        "operation.name" => &mut span.named_operation,
                        "gen_ai.provider.name" | "gen_ai.system" => &mut span.provider,
                        "gen_ai.response.model" | "ai.response.model" => &mut span.response_model,
                        "gen_ai.request.model" | "ai.model.id" => &mut span.request_model,
                        "litellm.provider.model" => &mut span.provider_model,
                        "litellm.call_type" => &mut span.litellm_call,
                        "metadata.usage_object" => &mut span.usage_object,
                        "gen_ai.openai.response.service_tier" | "openai.response.service_tier" => {
                            &mut span.service_tier
                        }
                        "gen_ai.usage.cost"
                        | "gen_ai.usage.total_cost"
                        | "gen_ai.cost.total_cost"
                        | "litellm.cost.total" => {
                            span.cost = map.next_value()?;
                            continue;
                        }
                        "attributes" => {
                            span.nested = map.next_value()?;
                            continue;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    let value = map.next_value::<Option<Text<'de>>>()?.filter(|value| !value.is_empty());
                    *text = text.take().or(value);
                }
                Ok(span)
            }
        }

        deserializer.deserialize_map(SpanVisitor)
    }
}

/// A count as an integer or as a text of its digits.
struct Digits(Count);

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: &'de RawValue = Deserialize::deserialize(deserializer)?;
        let text = raw.get();
        let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        serde_json::from_str(digits).map(Digits).map_err(|error| {
            let message = error.to_string();
            de::Error::custom(
                message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message),
            )
        })
    }
}

pub(super) fn decompose(body: &str) -> Result<Vec<Reading<'_>>, Rejected> {
    let outer: Span<'_> = read(body)?;
    let span = match outer.nested {
        Some(attributes) => read(attributes.get())?,
        None => outer,
    };
    if span.is_sum() {
        return Err(Rejected::new(
            Reason::Ambiguous,
            "this span is not one model call and may sum spans that are; send chat, text_completion, \
             generate_content and embeddings spans only, and of the AI SDK those of doGenerate, doStream and doEmbed",
        ));
    }
    let mut readings = match in_full(&span)? {
        Some(readings) => readings,
        None => vec![counted(&span)?],
    };
    let provider = span.provider.or_else(|| {
        let (provider, _) = span.provider_model.as_ref()?.split_once('/')?;
        Some(Text::owned(provider))
    });
    let provider = provider.map(known_provider);
    let model = span.response_model.or(span.request_model);
    for reading in &mut readings {
        reading.provider.clone_from(&provider);
        reading.model = reading.model.take().or_else(|| model.clone());
        if let Some(tier) = &span.service_tier {
            reading.conditions.service_tier = Some(tier.clone());
        }
    }
    if let [only] = readings.as_mut_slice() {
        only.stated_cost = stated::cost(span.cost);
    }
    Ok(readings)
}

/// What the usage object of LiteLLM says, where there is one; it must be of the call that the attributes count.
fn in_full<'a>(span: &Span<'_>) -> Result<Option<Vec<Reading<'a>>>, Rejected> {
    let Some(printed) = span.usage_object.as_deref().filter(|text| !["None", "{}"].contains(text)) else {
        return Ok(None);
    };
    let json = python::json(printed).ok_or_else(|| {
        inconsistent("`metadata.usage_object` is neither JSON nor a dict as Python prints it")
    })?;
    let model = span.response_model.as_deref().or(span.request_model.as_deref());
    let (prompt, completion, readings) = litellm::in_span(&json, model)?;
    for (slot, stated) in [(Slot::Input, prompt), (Slot::Output, completion)] {
        if let Some(Count(count)) = span.get(slot)
            && count != stated
        {
            return Err(inconsistent(format_args!(
                "`metadata.usage_object` states {stated} tokens where the span's own attribute states {count}"
            )));
        }
    }
    Ok(Some(readings))
}

/// What the span's own counts say.
fn counted<'a>(span: &Span<'_>) -> Result<Reading<'a>, Rejected> {
    if span.get(Slot::Input).is_none() && span.get(Slot::Output).is_none() {
        return Err(unmetered(Format::OtelGenAi));
    }
    let stated_input = need(span.get(Slot::Input), "gen_ai.usage.input_tokens")?;
    let output = match span.get(Slot::Output) {
        None if span.is_embedding() => 0,
        output => need(output, "gen_ai.usage.output_tokens")?,
    };
    let (cache_read, written) = (span.count(Slot::CacheRead), span.count(Slot::CacheWrite));
    let prompt = prompt(span, stated_input, output, cache_read + written)?;
    let (audio, image, video) =
        (span.count(Slot::InputAudio), span.count(Slot::InputImage), span.count(Slot::InputVideo));
    let (spoken, drawn) = (span.count(Slot::OutputAudio), span.count(Slot::OutputImage));
    let reasoned = span.count(Slot::Reasoning);
    let visible = rest(output, &[reasoned, spoken, drawn], "the output")?;
    span.check(Slot::Visible, visible, "the text of the output")?;
    let quantities = quantities(&[
        (TokenClass::Input, rest(prompt, &[cache_read, written, audio, image, video], "the input")?),
        (TokenClass::CacheRead, cache_read),
        (TokenClass::CacheWrite5m, written),
        (TokenClass::InputAudio, audio),
        (TokenClass::InputImage, image),
        (TokenClass::InputVideo, video),
        (TokenClass::Output, visible),
        (TokenClass::Reasoning, reasoned),
        (TokenClass::OutputAudio, spoken),
        (TokenClass::OutputImage, drawn),
    ])?;
    Ok(Reading { quantities, tier_input: prompt, ..Reading::default() })
}

/// The whole prompt, caches included.
fn prompt(span: &Span<'_>, input: i64, output: i64, cached: i64) -> Result<i64, Rejected> {
    let whole = whole_prompt(span, input, output, cached)?;
    if span.count(Slot::Uncached) == input {
        return Ok(input + cached);
    }
    span.check(Slot::Uncached, whole - cached, "the input outside the cache")?;
    Ok(whole)
}

/// The whole prompt as far as the total tells, or the rule.
fn whole_prompt(span: &Span<'_>, input: i64, output: i64, cached: i64) -> Result<i64, Rejected> {
    match span.get(Slot::Total).map(|total| total.0) {
        // The total of some sums what they report, so an input below its caches is exclusive here too.
        Some(total) if total == input + output && input >= cached => Ok(input),
        Some(total) if total == input + output || total == input + output + cached => Ok(input + cached),
        Some(total) => Err(inconsistent(format_args!(
            "total_tokens is {total}; input, output and cache are {input}, {output} and {cached}"
        ))),
        None if input < cached => Ok(input + cached),
        None => Ok(input),
    }
}
