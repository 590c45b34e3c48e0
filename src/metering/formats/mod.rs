//! Provider payloads, one module per format: each says which counts are inside which (`usage-and-prices` 1).
//!
//! A body is the provider's whole response or its usage object alone; both at once are `ambiguous`. Every module
//! brings the counts to disjoint classes and refuses what does not add up: no class below zero, parts within their
//! whole, the total equal to a known sum.

#![expect(clippy::struct_field_names, reason = "the fields bear the names of the payload")]

mod anthropic;
mod bedrock;
mod chat;
mod cohere;
mod deepseek;
mod gemini;
mod grounding;
mod iterations;
mod litellm;
mod mistral;
mod openai_chat;
mod openai_realtime;
mod openai_responses;
mod openrouter;
mod otel;
mod portkey;
mod python;
mod stated;
mod xai;

use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fields;
use super::json::{Count, Text, read};
use super::reason::{Reason, Rejected};
use crate::domain::event::{CallConditions, text_enum};
use crate::domain::money::Amount;
use crate::domain::names;
use crate::domain::tokens::{Quantities, TokenClass};

text_enum! {
    /// The format of a provider's payload.
    Format, UnknownFormat, "payload format" {
        /// Chat completions and embeddings of OpenAI, Azure, vLLM, Perplexity and their like.
        #[serde(rename = "openai.chat")]
        OpenAiChat = "openai.chat",
        /// Responses of OpenAI and xAI, and OpenAI's images.
        #[serde(rename = "openai.responses")]
        OpenAiResponses = "openai.responses",
        /// Realtime of OpenAI.
        #[serde(rename = "openai.realtime")]
        OpenAiRealtime = "openai.realtime",
        /// Messages of Anthropic.
        #[serde(rename = "anthropic.messages")]
        AnthropicMessages = "anthropic.messages",
        /// Generate content of Gemini and Vertex.
        #[serde(rename = "gemini.generate_content")]
        GeminiGenerateContent = "gemini.generate_content",
        /// Converse of Bedrock.
        #[serde(rename = "bedrock.converse")]
        BedrockConverse = "bedrock.converse",
        /// Chat completions of DeepSeek.
        #[serde(rename = "deepseek.chat")]
        DeepSeekChat = "deepseek.chat",
        /// Chat completions of xAI.
        #[serde(rename = "xai.chat")]
        XaiChat = "xai.chat",
        /// Chat completions of Mistral.
        #[serde(rename = "mistral.chat")]
        MistralChat = "mistral.chat",
        /// Version 2 of Cohere's API.
        #[serde(rename = "cohere.v2")]
        CohereV2 = "cohere.v2",
        /// Chat completions of OpenRouter.
        #[serde(rename = "openrouter.chat")]
        OpenRouterChat = "openrouter.chat",
        /// Span attributes of OpenTelemetry's `gen_ai` conventions.
        #[serde(rename = "otel.gen_ai")]
        OtelGenAi = "otel.gen_ai",
        /// LiteLLM's standard logging payload.
        #[serde(rename = "litellm")]
        LiteLlm = "litellm",
        /// Portkey's chat completions of Claude models.
        #[serde(rename = "portkey.anthropic")]
        PortkeyAnthropic = "portkey.anthropic",
    }
}

impl Format {
    /// The usage parts that a payload of this format states; at least one. The event's model is for what depends on the
    /// model where the payload names none.
    pub(super) fn decompose<'a>(
        self,
        body: &'a str,
        model: Option<&str>,
    ) -> Result<Vec<Reading<'a>>, Rejected> {
        match self {
            Self::OpenAiChat => openai_chat::decompose(body).map(|reading| vec![reading]),
            Self::OpenAiResponses => openai_responses::decompose(body).map(|reading| vec![reading]),
            Self::OpenAiRealtime => openai_realtime::decompose(body).map(|reading| vec![reading]),
            Self::AnthropicMessages => anthropic::decompose(body),
            Self::GeminiGenerateContent => gemini::decompose(body, model).map(|reading| vec![reading]),
            Self::BedrockConverse => bedrock::decompose(body).map(|reading| vec![reading]),
            Self::DeepSeekChat => deepseek::decompose(body).map(|reading| vec![reading]),
            Self::XaiChat => xai::decompose(body).map(|reading| vec![reading]),
            Self::MistralChat => mistral::decompose(body).map(|reading| vec![reading]),
            Self::CohereV2 => cohere::decompose(body).map(|reading| vec![reading]),
            Self::OpenRouterChat => openrouter::decompose(body).map(|reading| vec![reading]),
            Self::OtelGenAi => otel::decompose(body),
            Self::LiteLlm => litellm::decompose(body),
            Self::PortkeyAnthropic => portkey::decompose(body).map(|reading| vec![reading]),
        }
    }
}

/// What a payload says of one call on one model; what it does not say, the event does.
#[derive(Debug, Default)]
pub(super) struct Reading<'a> {
    pub provider: Option<Text<'a>>,
    pub model: Option<Text<'a>>,
    pub conditions: Served<'a>,
    pub quantities: Quantities,
    pub tier_input: i64,
    /// In US dollars, as every provider states it.
    pub stated_cost: Option<Amount>,
}

impl Reading<'_> {
    /// Disjoint classes whose prompt is their own sum.
    pub(super) fn of(quantities: Quantities) -> Self {
        Self { quantities, tier_input: quantities.prompt_total(), ..Self::default() }
    }

    /// The same reading, of a body that does not stay.
    fn into_owned(self) -> Reading<'static> {
        let owned = |text: Option<Text<'_>>| text.map(|text| Text::owned(&text));
        let Served { platform, region, service_tier, speed } = self.conditions;
        Reading {
            provider: owned(self.provider),
            model: owned(self.model),
            conditions: Served {
                platform,
                region: owned(region),
                service_tier: owned(service_tier),
                speed: owned(speed),
            },
            quantities: self.quantities,
            tier_input: self.tier_input,
            stated_cost: self.stated_cost,
        }
    }
}

/// Conditions under which the provider says it served the call, in its own words.
#[derive(Debug, Default, Clone)]
pub(super) struct Served<'a> {
    pub platform: Option<&'static str>,
    pub region: Option<Text<'a>>,
    pub service_tier: Option<Text<'a>>,
    pub speed: Option<Text<'a>>,
}

/// Names of the standard tier: no condition at all. `auto` is a request, not an answer, so it says nothing.
const STANDARD_TIERS: [&str; 4] = ["default", "standard", "on_demand", "auto"];
/// Names of interactive processing.
const STANDARD_PROCESSING: [&str; 3] = ["standard", "default", "interactive"];
/// Names of ordinary speed.
const STANDARD_SPEEDS: [&str; 2] = ["standard", "default"];

impl Served<'_> {
    /// The conditions of the call: what was served over what the event says (its own values, lower case).
    pub(super) fn over(
        &self,
        platform: Option<CompactString>,
        region: Option<CompactString>,
        service_tier: Option<CompactString>,
        processing: Option<CompactString>,
        speed: Option<CompactString>,
    ) -> Result<CallConditions, Rejected> {
        let served_tier = said(self.service_tier.as_ref()).filter(|tier| !tier.eq_ignore_ascii_case("auto"));
        let served_tier = fields::condition("service_tier", served_tier)?;
        let served_speed = fields::condition("speed", said(self.speed.as_ref()))?;
        let served_region = fields::condition("region", said(self.region.as_ref()))?;
        let tier = served_tier.or(service_tier);
        // Anthropic names its batch processing as a service tier.
        let (tier, processing) = match tier {
            Some(tier) if tier == "batch" => (None, Some(tier)),
            tier => (tier, processing),
        };
        Ok(CallConditions {
            platform: platform.or_else(|| self.platform.map(CompactString::const_new)),
            region: served_region.or(region),
            service_tier: other_than(&STANDARD_TIERS, tier),
            processing: other_than(&STANDARD_PROCESSING, processing),
            speed: other_than(&STANDARD_SPEEDS, served_speed.or(speed)),
        })
    }
}

/// Providers send empty texts for what they do not know.
fn said<'t, 'a>(served: Option<&'t Text<'a>>) -> Option<&'t Text<'a>> {
    served.filter(|text| !text.is_empty())
}

fn other_than(standard: &[&str], value: Option<CompactString>) -> Option<CompactString> {
    value.filter(|value| !standard.contains(&value.as_str()))
}

/// The usage object: the nested one, or the body itself where it is one.
fn usage_of<'a, U: Deserialize<'a>>(
    body: &'a str,
    nested: Option<&'a RawValue>,
    flat: bool,
) -> Result<U, Rejected> {
    match nested {
        Some(_) if flat => Err(Rejected::new(
            Reason::Ambiguous,
            "the body holds counts both in `usage` and beside it; send one",
        )),
        Some(usage) => read(usage.get()),
        None => read(body),
    }
}

/// A provider under the name that price books have for it.
fn known_provider(reported: Text<'_>) -> Text<'_> {
    names::known_provider(&reported).map_or(reported, Text::from)
}

/// A count that the format always has.
fn need(count: Option<Count>, name: &str) -> Result<i64, Rejected> {
    count.map(|count| count.0).ok_or_else(|| {
        Rejected::new(
            Reason::MissingField,
            format_args!("`{name}` is missing from the provider's usage; send it whole"),
        )
    })
}

/// A count that is zero where it is not given.
fn or_zero(count: Option<Count>) -> i64 {
    count.map_or(0, |count| count.0)
}

/// The same count under several names: they must agree; a zero beside a count is a name that was not filled in.
fn agreed(counts: &[Option<Count>], what: &str) -> Result<i64, Rejected> {
    let mut agreed = 0;
    for count in counts.iter().flatten().map(|count| count.0).filter(|count| *count != 0) {
        if agreed != 0 && agreed != count {
            return Err(inconsistent(format_args!("{what} is stated as {agreed} and as {count}")));
        }
        agreed = count;
    }
    Ok(agreed)
}

/// What is left of a whole after its parts; parts above their whole are refused.
fn rest(whole: i64, parts: &[i64], what: &str) -> Result<i64, Rejected> {
    let inside: i64 = parts.iter().sum();
    if inside > whole {
        return Err(inconsistent(format_args!(
            "the parts of {what} sum to {inside}, above the whole of {whole}"
        )));
    }
    Ok(whole - inside)
}

fn inconsistent(detail: impl fmt::Display) -> Rejected {
    Rejected::new(Reason::Inconsistent, format_args!("{detail}; send the provider's usage unchanged"))
}

/// The two counts that a format of OpenAI always has, which sum to the total where that is stated.
fn input_and_output(counts: [Option<Count>; 2], total: Option<Count>) -> Result<(i64, i64), Rejected> {
    let [input, output] = counts;
    let (input, output) = (need(input, "input_tokens")?, need(output, "output_tokens")?);
    match total {
        Some(Count(total)) if total != input + output => Err(inconsistent(format_args!(
            "total_tokens is {total}, but input and output are {input} and {output}"
        ))),
        _ => Ok((input, output)),
    }
}

/// Refuses a body of the Messages API under a name of OpenAI's: both count in `input_tokens`, but not the same.
fn not_of_anthropic(counts: [Option<Count>; 2]) -> Result<(), Rejected> {
    if counts.into_iter().all(|count| or_zero(count) == 0) {
        return Ok(());
    }
    Err(Rejected::new(
        Reason::Ambiguous,
        "the body has cache counts as only the Messages API sends them; send the format anthropic.messages",
    ))
}

fn unmetered(format: Format) -> Rejected {
    Rejected::new(
        Reason::Unmetered,
        format_args!(
            "the {format} body holds no usage; send the final response, or an estimate marked as such"
        ),
    )
}

/// Sums counts into quantities; a fault here is a sum above the limit.
fn quantities(counts: &[(TokenClass, i64)]) -> Result<Quantities, Rejected> {
    let mut quantities = Quantities::NONE;
    add(&mut quantities, counts)?;
    Ok(quantities)
}

/// Adds counts to quantities; a fault here is a sum above the limit.
fn add(quantities: &mut Quantities, counts: &[(TokenClass, i64)]) -> Result<(), Rejected> {
    for (class, count) in counts {
        let sum = quantities.get(*class) + count;
        quantities.set(*class, sum).map_err(|limit| Rejected::new(Reason::Limit, limit))?;
    }
    Ok(())
}
