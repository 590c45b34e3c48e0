//! `gemini.generate_content`: the Gemini API and Vertex, and Gemini's Live API.
//!
//! Cached content is inside the prompt; thoughts are outside the candidates and tool-use prompts outside the prompt,
//! except at older endpoints, which the total gives away: there they are part of the text. Each modality of the prompt
//! includes its cached tokens. Choices: documents are text; cached tokens without a modality are text (implicit
//! caching), and more of them than the prompt has text are refused: how much of which modality was cached is not told,
//! and each has a rate of its own. Tool-use prompts are input and count for context tiers, except where a search or the
//! maps made them, which is free (all of them then: how much another tool of the same call made is not told); thoughts
//! are outside where there is no total. A prompt alone is refused: no answer is known to be empty by that, except in an
//! embedding.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::grounding::Grounding;
use super::{Format, Reading, Served, inconsistent, need, or_zero, quantities, rest, unmetered, usage_of};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::Rejected;

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, rename = "modelVersion", alias = "model_version")]
    model: Option<Text<'a>>,
    #[serde(borrow, rename = "usageMetadata", alias = "usage_metadata")]
    usage: Option<&'a RawValue>,
    #[serde(rename = "promptTokenCount", alias = "prompt_token_count")]
    prompt: Option<IgnoredAny>,
    #[serde(borrow)]
    candidates: Option<&'a RawValue>,
    #[serde(alias = "embeddings")]
    embedding: Option<IgnoredAny>,
}

/// `usageMetadata`, in the spelling of the API or of the Python SDK.
#[derive(Deserialize)]
struct Usage<'a> {
    #[serde(rename = "promptTokenCount", alias = "prompt_token_count")]
    prompt: Option<Count>,
    #[serde(rename = "cachedContentTokenCount", alias = "cached_content_token_count")]
    cached: Option<Count>,
    #[serde(
        rename = "candidatesTokenCount",
        alias = "candidates_token_count",
        alias = "responseTokenCount",
        alias = "response_token_count"
    )]
    candidates: Option<Count>,
    #[serde(rename = "thoughtsTokenCount", alias = "thoughts_token_count")]
    thoughts: Option<Count>,
    #[serde(rename = "toolUsePromptTokenCount", alias = "tool_use_prompt_token_count")]
    tool_use: Option<Count>,
    #[serde(rename = "totalTokenCount", alias = "total_token_count")]
    total: Option<Count>,
    #[serde(borrow, rename = "promptTokensDetails", alias = "prompt_tokens_details")]
    prompt_details: Option<Vec<Object<Modality<'a>>>>,
    #[serde(borrow, rename = "cacheTokensDetails", alias = "cache_tokens_details")]
    cache_details: Option<Vec<Object<Modality<'a>>>>,
    #[serde(
        borrow,
        rename = "candidatesTokensDetails",
        alias = "candidates_tokens_details",
        alias = "responseTokensDetails",
        alias = "response_tokens_details"
    )]
    candidates_details: Option<Vec<Object<Modality<'a>>>>,
    #[serde(borrow, rename = "toolUsePromptTokensDetails", alias = "tool_use_prompt_tokens_details")]
    tool_use_details: Option<Vec<Object<Modality<'a>>>>,
    #[serde(borrow, rename = "trafficType", alias = "traffic_type")]
    traffic_type: Option<Text<'a>>,
    #[serde(borrow, rename = "serviceTier", alias = "service_tier")]
    service_tier: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Modality<'a> {
    #[serde(borrow)]
    modality: Option<Text<'a>>,
    #[serde(rename = "tokenCount", alias = "token_count")]
    tokens: Option<Count>,
}

/// Tokens of one whole by modality; text is what the details do not name otherwise.
#[derive(Default)]
struct ByModality {
    text: i64,
    audio: i64,
    image: i64,
    video: i64,
}

impl ByModality {
    fn new(whole: i64, details: Option<&Vec<Object<Modality<'_>>>>, what: &str) -> Result<Self, Rejected> {
        let mut split = Self::default();
        let mut stated = 0;
        for Object(detail) in details.into_iter().flatten() {
            let tokens = or_zero(detail.tokens);
            stated += tokens;
            match detail.modality.as_deref() {
                Some(name) if name.eq_ignore_ascii_case("audio") => split.audio += tokens,
                Some(name) if name.eq_ignore_ascii_case("image") => split.image += tokens,
                Some(name) if name.eq_ignore_ascii_case("video") => split.video += tokens,
                _ => {}
            }
        }
        rest(whole, &[stated], what)?;
        split.text = rest(whole, &[split.audio, split.image, split.video], what)?;
        Ok(split)
    }

    /// What is left of it without a part of it, modality by modality.
    fn without(&self, part: &Self) -> Result<Self, Rejected> {
        Ok(Self {
            text: rest(self.text, &[part.text], "the text prompt")?,
            audio: rest(self.audio, &[part.audio], "the audio prompt")?,
            image: rest(self.image, &[part.image], "the image prompt")?,
            video: rest(self.video, &[part.video], "the video prompt")?,
        })
    }
}

/// The model is the event's, for a response that names none.
pub(super) fn decompose<'a>(body: &'a str, model: Option<&str>) -> Result<Reading<'a>, Rejected> {
    let response: Response<'_> = read(body)?;
    let usage: Usage<'_> = usage_of(body, response.usage, response.prompt.is_some())?;
    if usage.prompt.is_none() && usage.candidates.is_none() && usage.total.is_none() {
        return Err(unmetered(Format::GeminiGenerateContent));
    }
    let prompt = need(usage.prompt, "promptTokenCount")?;
    if usage.total.is_none() && response.embedding.is_none() {
        need(usage.candidates, "candidatesTokenCount")?;
    }
    let served = response.model.as_deref().filter(|model| !model.is_empty());
    let grounding = Grounding::of(response.candidates, served.or(model))?;
    let tool_use = or_zero(usage.tool_use);
    let thoughts = or_zero(usage.thoughts);
    let cached = ByModality::new(or_zero(usage.cached), usage.cache_details.as_ref(), "the cached content")?;
    let fresh = ByModality::new(prompt, usage.prompt_details.as_ref(), "the prompt")?.without(&cached)?;
    let mut tools = ByModality::new(tool_use, usage.tool_use_details.as_ref(), "the tool-use prompt")?;
    if grounding.is_read_for_free {
        tools = ByModality::default();
    }
    let shown = shown(&usage, prompt + tool_use, thoughts)?;
    let quantities = quantities(&[
        (TokenClass::Input, fresh.text + tools.text),
        (TokenClass::InputAudio, fresh.audio + tools.audio),
        (TokenClass::InputImage, fresh.image + tools.image),
        (TokenClass::InputVideo, fresh.video + tools.video),
        (TokenClass::CacheRead, cached.text),
        (TokenClass::CacheReadAudio, cached.audio),
        (TokenClass::CacheReadImage, cached.image),
        (TokenClass::CacheReadVideo, cached.video),
        (TokenClass::Output, shown.text),
        (TokenClass::OutputAudio, shown.audio),
        (TokenClass::OutputImage, shown.image),
        (TokenClass::OutputVideo, shown.video),
        (TokenClass::Reasoning, thoughts),
        (TokenClass::WebSearch, grounding.searches),
    ])?;
    let service_tier = usage.service_tier.or_else(|| usage.traffic_type.as_deref().and_then(tier_of_traffic));
    Ok(Reading {
        model: response.model,
        conditions: Served { service_tier, ..Served::default() },
        quantities,
        tier_input: quantities.prompt_total(),
        ..Reading::default()
    })
}

/// The candidates by modality, without the thoughts that older endpoints count among their text.
fn shown(usage: &Usage<'_>, prompts: i64, thoughts: i64) -> Result<ByModality, Rejected> {
    let candidates = or_zero(usage.candidates);
    let all = ByModality::new(candidates, usage.candidates_details.as_ref(), "the candidates")?;
    match usage.total.map(|total| total.0) {
        None => Ok(all),
        Some(total) if total == prompts + candidates + thoughts => Ok(all),
        Some(total) if total == prompts + candidates => {
            Ok(ByModality { text: rest(all.text, &[thoughts], "the candidates' text")?, ..all })
        }
        Some(total) => Err(inconsistent(format_args!(
            "totalTokenCount is {total}; prompts, candidates and thoughts are {prompts}, {candidates} and {thoughts}"
        ))),
    }
}

/// Vertex names the tier by its traffic: `ON_DEMAND_FLEX` is `flex`, `ON_DEMAND` the standard one. Traffic that is not
/// known here is a tier of its own name, so that it has no price before one is published.
fn tier_of_traffic(traffic: &str) -> Option<Text<'static>> {
    match traffic {
        "ON_DEMAND" => Some(Text::from("standard")),
        "ON_DEMAND_PRIORITY" => Some(Text::from("priority")),
        "ON_DEMAND_FLEX" => Some(Text::from("flex")),
        "ON_DEMAND_OFFPEAK" => Some(Text::from("offpeak")),
        "PROVISIONED_THROUGHPUT" => Some(Text::from("provisioned")),
        "TRAFFIC_TYPE_UNSPECIFIED" => None,
        other => Some(Text::owned(other)),
    }
}
