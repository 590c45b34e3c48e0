//! `litellm`: the `StandardLoggingPayload` of LiteLLM's callbacks, without the prompts and answers.
//!
//! The counts are in `metadata.usage_object`; the prompt is inclusive for every provider. Choices: a hit in LiteLLM's
//! own cache cost nothing and is recorded as zero, as is a failed call without any token; without a usage object the
//! cache counts are unknown, so the totals alone are `unmetered`. The model is the response's, then the name with the
//! provider's prefix taken off.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::chat::{Caches, Reasoning, Usage};
use super::iterations::{self, TopLevel};
use super::{Format, Reading, Served, agreed, need, or_zero, stated, unmetered};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::{Reason, Rejected};

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    custom_llm_provider: Option<Text<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    cache_hit: Option<bool>,
    prompt_tokens: Option<Count>,
    completion_tokens: Option<Count>,
    #[serde(borrow)]
    metadata: Option<Object<Metadata<'a>>>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    cost_breakdown: Option<Object<CostBreakdown<'a>>>,
    #[serde(borrow)]
    response_cost: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    usage_object: Option<Object<Usage<'a>>>,
}

#[derive(Deserialize)]
struct CostBreakdown<'a> {
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
}

/// What the response itself says; it is a text or empty for some calls.
#[derive(Deserialize, Default)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
}

pub(super) fn decompose(body: &str) -> Result<Vec<Reading<'_>>, Rejected> {
    let payload: Payload<'_> = read(body)?;
    let response: Response<'_> = match payload.response {
        Some(raw) if raw.get().starts_with('{') => read(raw.get())?,
        _ => Response::default(),
    };
    let usage =
        payload.metadata.and_then(|Object(metadata)| metadata.usage_object).map(|Object(usage)| usage);
    let no_tokens = or_zero(payload.prompt_tokens) == 0 && or_zero(payload.completion_tokens) == 0;
    let failed = payload.status.as_deref() == Some("failure") && no_tokens;
    let mut readings = match &usage {
        _ if payload.cache_hit == Some(true) => vec![Reading::default()],
        Some(usage) if usage.prompt_tokens.is_some() || usage.completion_tokens.is_some() => parts(usage)?,
        _ if failed => vec![Reading::default()],
        _ => return Err(unmetered(Format::LiteLlm)),
    };
    let provider = payload.custom_llm_provider.filter(|provider| !provider.is_empty());
    let model = response
        .model
        .filter(|model| !model.is_empty())
        .or_else(|| payload.model.map(|model| without_prefix(model, provider.as_deref())));
    let breakdown = payload.cost_breakdown.and_then(|Object(breakdown)| breakdown.service_tier);
    let tier = response
        .service_tier
        .or_else(|| usage.as_ref().and_then(|usage| usage.service_tier.clone()))
        .or(breakdown);
    let served = served(usage.as_ref(), tier);
    for reading in &mut readings {
        reading.model = reading.model.take().or_else(|| model.clone());
        reading.provider.clone_from(&provider);
        reading.conditions = served.clone();
    }
    if let [only] = readings.as_mut_slice() {
        only.stated_cost = stated::cost(payload.response_cost);
    }
    Ok(readings)
}

/// What the usage object says of how the call was served, at a tier.
fn served<'a>(usage: Option<&Usage<'a>>, service_tier: Option<Text<'a>>) -> Served<'a> {
    let geography = usage.and_then(|usage| usage.inference_geo.clone());
    Served {
        platform: None,
        region: geography.filter(|geography| geography.eq_ignore_ascii_case("us")),
        service_tier,
        speed: usage.and_then(|usage| usage.speed.clone()),
    }
}

/// The prompt, the completion and the parts of a usage object that stands in a span, as JSON.
pub(super) fn in_span(usage: &str) -> Result<(i64, i64, Vec<Reading<'static>>), Rejected> {
    let usage: Usage<'_> = read(usage)?;
    let served = served(Some(&usage), usage.service_tier.clone());
    let readings = parts(&usage)?
        .into_iter()
        .map(|reading| Reading { conditions: served.clone(), ..reading }.into_owned())
        .collect();
    Ok((or_zero(usage.prompt_tokens), or_zero(usage.completion_tokens), readings))
}

/// The parts of a usage object: its attempts where it lists them, itself otherwise.
fn parts<'a>(usage: &Usage<'a>) -> Result<Vec<Reading<'a>>, Rejected> {
    let caches = caches(usage)?;
    let (quantities, prompt) = usage.inclusive(caches, Reasoning::Inside)?;
    let completion = need(usage.completion_tokens, "completion_tokens")?;
    let attempts = iterations::billed(usage.iterations, TopLevel::Gateway { prompt, completion }, false)?;
    let mut readings = match attempts {
        Some(attempts) if !attempts.is_empty() => attempts,
        _ => vec![Reading { quantities, tier_input: prompt, ..Reading::default() }],
    };
    if let Some(last) = readings.last_mut() {
        last.quantities
            .set(TokenClass::WebSearch, usage.web_searches()?)
            .map_err(|limit| Rejected::new(Reason::Limit, limit))?;
    }
    Ok(readings)
}

/// Cache counts, which stand in the details and again beside them.
fn caches(usage: &Usage<'_>) -> Result<Caches, Rejected> {
    let details = usage.prompt_tokens_details.as_ref().map(|Object(details)| details);
    let cached = details.and_then(|details| details.cached_tokens);
    let read = agreed(&[cached, usage.cache_read_input_tokens], "cache reads")?;
    let written = agreed(
        &[
            details.and_then(|details| details.cache_write_tokens),
            details.and_then(|details| details.cache_creation_tokens),
            usage.cache_creation_input_tokens,
        ],
        "cache writes",
    )?;
    let split = details.and_then(|details| details.cache_creation_token_details.as_ref());
    Caches::new(read, written, split.map(|Object(split)| split))
}

/// `openai/gpt-5` is `gpt-5` at `openai`.
fn without_prefix<'a>(model: Text<'a>, provider: Option<&str>) -> Text<'a> {
    let bare = provider.and_then(|provider| model.strip_prefix(provider)?.strip_prefix('/'));
    match bare {
        Some(bare) if !bare.is_empty() => Text::owned(bare),
        _ => model,
    }
}
