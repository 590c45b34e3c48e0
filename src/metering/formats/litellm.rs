//! `litellm`: the `StandardLoggingPayload` of LiteLLM's callbacks, without the prompts and answers.
//!
//! The counts are in `metadata.usage_object`; the prompt is inclusive for every provider. Choices: a hit in LiteLLM's
//! own cache cost nothing and is recorded as zero, as is a failed call without any token; without a usage object the
//! cache counts are unknown, so the totals alone are `unmetered`. The model is the response's, then the name with the
//! provider's prefix taken off.
//!
//! Searches of most providers are counted in the prompt's details, which repeat xAI's searches of the web (not those of
//! X), the sources of its older live search, and Perplexity's queries; those of OpenAI's responses are in the output
//! alone. Perplexity's citations are input for the one model that is billed for them: for every model LiteLLM may put an estimate there, from the length of the links.
//!
//! Where a finished batch is retrieved, the usage is the sum of all its calls, each time it is retrieved: `ambiguous`.
//! Each call has a model and a prompt of its own, which price it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::{Caches, Reasoning, Usage};
use super::iterations::{self, TopLevel};
use super::{Format, Reading, Served, add, agreed, need, openai_responses, or_zero, stated, unmetered, xai};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::{Reason, Rejected};

/// The model whose citations Perplexity bills.
const BILLED_CITATIONS: &str = "sonar-deep-research";
/// Ends of the names of calls that retrieve a batch.
const BATCH_CALL: &str = "retrieve_batch";

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    custom_llm_provider: Option<Text<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    call_type: Option<Text<'a>>,
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
    hidden_params: Option<Object<HiddenParams>>,
}

#[derive(Deserialize)]
struct HiddenParams {
    batch_models: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    usage_object: Option<Object<Usage<'a>>>,
}

#[derive(Deserialize, Default)]
struct CostBreakdown<'a> {
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    data_residency: Option<Text<'a>>,
}

/// What the response itself says; it is a text or empty for some calls.
#[derive(Deserialize, Default)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

pub(super) fn decompose(body: &str) -> Result<Vec<Reading<'_>>, Rejected> {
    let payload: Payload<'_> = read(body)?;
    let response: Response<'_> = match payload.response {
        Some(raw) if raw.get().starts_with('{') => read(raw.get())?,
        _ => Response::default(),
    };
    let mut usage =
        payload.metadata.and_then(|Object(metadata)| metadata.usage_object).map(|Object(usage)| usage);
    let no_tokens = or_zero(payload.prompt_tokens) == 0 && or_zero(payload.completion_tokens) == 0;
    let failed = payload.status.as_deref() == Some("failure") && no_tokens;
    let is_batch = payload.call_type.as_deref().is_some_and(sums_a_batch)
        || payload.hidden_params.is_some_and(|Object(hidden)| hidden.batch_models.is_some());
    let provider = payload.custom_llm_provider.filter(|provider| !provider.is_empty());
    let model = response
        .model
        .filter(|model| !model.is_empty())
        .or_else(|| payload.model.map(|model| without_prefix(model, provider.as_deref())));
    let mut readings = match &mut usage {
        _ if payload.cache_hit == Some(true) => vec![Reading::default()],
        Some(usage) if usage.prompt_tokens.is_some() || usage.completion_tokens.is_some() => {
            if is_batch {
                return Err(sum_of_a_batch());
            }
            parts(usage, model.as_deref(), openai_responses::listed_searches(response.output)?)?
        }
        _ if failed => vec![Reading::default()],
        _ => return Err(unmetered(Format::LiteLlm)),
    };
    let breakdown = payload.cost_breakdown.map(|Object(breakdown)| breakdown).unwrap_or_default();
    let tier = response
        .service_tier
        .or_else(|| usage.as_ref().and_then(|usage| usage.service_tier.clone()))
        .or(breakdown.service_tier);
    let served = served(usage.as_ref(), tier);
    let served = Served { region: served.region.or(breakdown.data_residency), ..served };
    for reading in &mut readings {
        reading.model = reading.model.take().or_else(|| model.clone());
        reading.provider = provider.clone().map(super::known_provider);
        reading.conditions = served.clone();
    }
    if let [only] = readings.as_mut_slice() {
        only.stated_cost = stated::cost(payload.response_cost);
    }
    Ok(readings)
}

/// Whether a call of that name retrieves a batch.
pub(super) fn sums_a_batch(call_type: &str) -> bool {
    call_type.ends_with(BATCH_CALL)
}

fn sum_of_a_batch() -> Rejected {
    Rejected::new(
        Reason::Ambiguous,
        "the usage sums the calls of a batch; send each of them, with `processing` batch",
    )
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

/// The prompt, the completion and the parts of a usage object that stands in a span of a model, as JSON.
pub(super) fn in_span(
    usage: &str,
    model: Option<&str>,
) -> Result<(i64, i64, Vec<Reading<'static>>), Rejected> {
    let mut usage: Usage<'_> = read(usage)?;
    let served = served(Some(&usage), usage.service_tier.clone());
    let readings = parts(&mut usage, model, 0)?
        .into_iter()
        .map(|reading| Reading { conditions: served.clone(), ..reading }.into_owned())
        .collect();
    Ok((or_zero(usage.prompt_tokens), or_zero(usage.completion_tokens), readings))
}

/// The parts of a usage object: its attempts where it lists them, itself otherwise. The searches that the output lists
/// count where the usage counts none.
fn parts<'a>(
    usage: &mut Usage<'a>,
    model: Option<&str>,
    listed_searches: i64,
) -> Result<Vec<Reading<'a>>, Rejected> {
    let caches = caches(usage)?;
    let (counted_searches, sessions) = tool_calls(usage, model)?;
    let searches = if counted_searches == 0 { listed_searches } else { counted_searches };
    let reasoning_beside = usage.take_reasoning_of_perplexity()?;
    if counted_searches > 0 || looked_up_maps(usage) {
        leave_out_what_the_search_read(usage);
    }
    let (whole, prompt) = usage.inclusive(caches, Reasoning::Inside)?;
    let completion = need(usage.completion_tokens, "completion_tokens")?;
    let attempts = iterations::billed(usage.iterations, TopLevel::Gateway { prompt, completion }, false)?;
    let mut readings = match attempts {
        Some(attempts) if !attempts.is_empty() => attempts,
        _ => vec![Reading { quantities: whole, tier_input: prompt, ..Reading::default() }],
    };
    let are_citations_billed = model.is_some_and(|model| model.ends_with(BILLED_CITATIONS));
    let citations = if are_citations_billed { or_zero(usage.citation_tokens) } else { 0 };
    if let Some(last) = readings.last_mut() {
        add(
            &mut last.quantities,
            &[
                (TokenClass::Input, citations),
                (TokenClass::Reasoning, reasoning_beside),
                (TokenClass::WebSearch, searches),
                (TokenClass::CodeSession, sessions),
            ],
        )?;
    }
    Ok(readings)
}

/// Searches and code sessions that ran at the provider.
fn tool_calls(usage: &Usage<'_>, model: Option<&str>) -> Result<(i64, i64), Rejected> {
    let counted = Some(Count(usage.web_searches(model)?));
    let (of_the_web, of_x, sessions) = xai::tool_calls(usage.server_side_tool_usage_details.as_ref());
    let of_the_web = agreed(&[counted, Some(Count(of_the_web))], "the number of web searches")?;
    Ok((xai::searches(of_the_web, of_x, usage.num_sources_used), sessions))
}

/// Whether Google looked something up in its maps for the answer.
fn looked_up_maps(usage: &Usage<'_>) -> bool {
    let details = usage.prompt_tokens_details.as_ref();
    details.is_some_and(|Object(details)| or_zero(details.google_maps_grounding_requests) > 0)
}

/// What Google's search read is free; LiteLLM leaves it out of the prompt, but not out of Google's total.
fn leave_out_what_the_search_read(usage: &mut Usage<'_>) {
    let read = usage.prompt_tokens_details.as_ref().and_then(|Object(details)| details.tool_use_tokens);
    let billed = or_zero(usage.prompt_tokens) + or_zero(usage.completion_tokens);
    if usage.total_tokens == Some(Count(billed + or_zero(read))) {
        usage.total_tokens = Some(Count(billed));
    }
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
