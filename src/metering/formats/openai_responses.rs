//! `openai.responses`: responses of OpenAI, xAI and Perplexity, and OpenAI's image endpoints.
//!
//! Cached and written tokens are inside the input, reasoning inside the output (at xAI too, unlike in its chat
//! completions). xAI's extras: the stated cost in ticks, and server-side tool calls as fees; a search of X counts as a
//! `web_search`, which has the same price there. Perplexity's: cache counts under Anthropic's names, but within the
//! input; searches; the stated cost.
//!
//! OpenAI's searches are not in its usage: they are counted beside it, or listed in the output. Choices: where the
//! usage counts calls of tools, the output is not asked; of the calls listed, those that only opened or searched a page
//! found before are free.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::{Caches, ServerSideTools};
use super::{
    Format, Reading, Served, agreed, input_and_output, not_of_anthropic, or_zero, quantities, rest, stated,
    unmetered, usage_of, xai,
};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, objects, read};
use crate::metering::reason::Rejected;

/// An entry of the output that calls the search tool.
const SEARCH_CALL: &str = r#""web_search_call""#;
/// What such a call does where it has a fee.
const SEARCH_ACTION: &str = r#""search""#;

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// The last event of a stream wraps the response.
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    tool_usage: Option<Object<HostedTools>>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    input_tokens: Option<IgnoredAny>,
    output_tokens: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Usage<'a> {
    input_tokens: Option<Count>,
    input_tokens_details: Option<Object<InputDetails>>,
    output_tokens: Option<Count>,
    output_tokens_details: Option<Object<OutputDetails>>,
    total_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    #[serde(borrow)]
    cost_in_usd_ticks: Option<&'a RawValue>,
    server_side_tool_usage_details: Option<Object<ServerSideTools>>,
    tool_calls_details: Option<Object<ToolCalls>>,
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
}

/// What OpenAI counts beside the usage.
#[derive(Deserialize)]
struct HostedTools {
    web_search: Option<Object<HostedSearches>>,
}

#[derive(Deserialize)]
struct HostedSearches {
    num_requests: Option<Count>,
}

/// An entry of the output, or the action of one.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    action: Option<&'a RawValue>,
}

/// Calls of tools that run at Perplexity.
#[derive(Deserialize)]
struct ToolCalls {
    search_web: Option<Object<Invocations>>,
}

#[derive(Deserialize)]
struct Invocations {
    invocation: Option<Count>,
}

#[derive(Deserialize, Default)]
struct InputDetails {
    cached_tokens: Option<Count>,
    cache_write_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    audio_tokens: Option<Count>,
    image_tokens: Option<Count>,
}

#[derive(Deserialize, Default)]
struct OutputDetails {
    reasoning_tokens: Option<Count>,
    audio_tokens: Option<Count>,
    image_tokens: Option<Count>,
}

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let outer: Response<'_> = read(body)?;
    let (response, text) = match outer.response {
        Some(inner) => (read(inner.get())?, inner.get()),
        None => (outer, body),
    };
    let flat = response.input_tokens.is_some() || response.output_tokens.is_some();
    let usage: Usage<'_> = usage_of(text, response.usage, flat)?;
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        return Err(unmetered(Format::OpenAiResponses));
    }
    not_of_anthropic([usage.cache_read_input_tokens, usage.cache_creation_input_tokens])?;
    let (input, output) = input_and_output([usage.input_tokens, usage.output_tokens], usage.total_tokens)?;
    let counted = searches(&usage);
    let read_in = usage.input_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let written_out = usage.output_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let read = agreed(&[read_in.cached_tokens, read_in.cache_read_input_tokens], "cache reads")?;
    let written = agreed(&[read_in.cache_write_tokens, read_in.cache_creation_input_tokens], "cache writes")?;
    let caches = Caches::new(read, written, None)?;
    let (audio, image) = (or_zero(read_in.audio_tokens), or_zero(read_in.image_tokens));
    let (spoken, drawn) = (or_zero(written_out.audio_tokens), or_zero(written_out.image_tokens));
    let reasoned = or_zero(written_out.reasoning_tokens);
    let (_, _, sessions) = xai::tool_calls(usage.server_side_tool_usage_details.as_ref());
    let hosted = response.tool_usage.and_then(|Object(tools)| tools.web_search);
    let searches = match (counted, hosted.and_then(|Object(searches)| searches.num_requests)) {
        (Some(counted), _) | (None, Some(Count(counted))) => counted,
        (None, None) => listed_searches(response.output)?,
    };
    let quantities = quantities(&[
        (TokenClass::Input, rest(input, &[caches.read, caches.written(), audio, image], "the input")?),
        (TokenClass::CacheRead, caches.read),
        (TokenClass::CacheWrite5m, caches.write_5m),
        (TokenClass::InputAudio, audio),
        (TokenClass::InputImage, image),
        (TokenClass::Output, rest(output, &[reasoned, spoken, drawn], "the output")?),
        (TokenClass::Reasoning, reasoned),
        (TokenClass::OutputAudio, spoken),
        (TokenClass::OutputImage, drawn),
        (TokenClass::WebSearch, searches),
        (TokenClass::CodeSession, sessions),
    ])?;
    Ok(Reading {
        model: response.model,
        conditions: Served { service_tier: response.service_tier, ..Served::default() },
        quantities,
        tier_input: input,
        stated_cost: match usage.cost_in_usd_ticks {
            Some(ticks) => stated::ticks(ticks),
            None => stated::cost_or_total(usage.cost),
        },
        ..Reading::default()
    })
}

/// The searches that the usage itself counts, at xAI or Perplexity.
fn searches(usage: &Usage<'_>) -> Option<i64> {
    let at_xai = usage.server_side_tool_usage_details.as_ref();
    let at_perplexity = usage.tool_calls_details.as_ref();
    if at_xai.is_none() && at_perplexity.is_none() {
        return None;
    }
    let (of_the_web, of_x, _) = xai::tool_calls(at_xai);
    let invocations = at_perplexity.and_then(|Object(tools)| tools.search_web.as_ref());
    Some(of_the_web + of_x + invocations.map_or(0, |Object(search)| or_zero(search.invocation)))
}

/// The calls of the search tool that an output lists and that have a fee.
pub(super) fn listed_searches(output: Option<&RawValue>) -> Result<i64, Rejected> {
    let mut searches = 0;
    for item in objects::<Item<'_>>(output)? {
        if item.kind.map(RawValue::get) != Some(SEARCH_CALL) {
            continue;
        }
        let action = match item.action.map(RawValue::get) {
            Some(action) if action.starts_with('{') => read::<Item<'_>>(action)?.kind.map(RawValue::get),
            _ => None,
        };
        searches += i64::from(action.is_none_or(|action| action == SEARCH_ACTION));
    }
    Ok(searches)
}
