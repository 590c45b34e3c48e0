//! `openai.responses`: responses of OpenAI, xAI and Perplexity, and OpenAI's image endpoints.
//!
//! Cached and written tokens are inside the input, reasoning inside the output (at xAI too, unlike in its chat
//! completions). xAI's extras: the stated cost in ticks, and server-side tool calls as fees; a search of X counts as a
//! `web_search`, which has the same price there. Perplexity's: cache counts under Anthropic's names, but within the
//! input; searches; the stated cost. OpenAI's hosted tools are not in its usage and so not here.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::{Caches, ServerSideTools};
use super::{
    Format, Reading, Served, agreed, input_and_output, not_of_anthropic, or_zero, quantities, rest, stated,
    unmetered, usage_of, xai,
};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::Rejected;

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
    cost_in_usd_ticks: Option<Count>,
    server_side_tool_usage_details: Option<Object<ServerSideTools>>,
    tool_calls_details: Option<Object<ToolCalls>>,
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
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
    let read_in = usage.input_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let written_out = usage.output_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let read = agreed(&[read_in.cached_tokens, read_in.cache_read_input_tokens], "cache reads")?;
    let written = agreed(&[read_in.cache_write_tokens, read_in.cache_creation_input_tokens], "cache writes")?;
    let caches = Caches::new(read, written, None)?;
    let (audio, image) = (or_zero(read_in.audio_tokens), or_zero(read_in.image_tokens));
    let (spoken, drawn) = (or_zero(written_out.audio_tokens), or_zero(written_out.image_tokens));
    let reasoned = or_zero(written_out.reasoning_tokens);
    let (searches, sessions) = xai::tool_calls(usage.server_side_tool_usage_details.as_ref());
    let invocations = usage.tool_calls_details.and_then(|Object(tools)| tools.search_web);
    let invoked = invocations.map_or(0, |Object(search)| or_zero(search.invocation));
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
        (TokenClass::WebSearch, searches + invoked),
        (TokenClass::CodeSession, sessions),
    ])?;
    Ok(Reading {
        model: response.model,
        conditions: Served { service_tier: response.service_tier, ..Served::default() },
        quantities,
        tier_input: input,
        stated_cost: match usage.cost_in_usd_ticks {
            Some(Count(ticks)) => stated::ticks(ticks),
            None => stated::cost_or_total(usage.cost),
        },
        ..Reading::default()
    })
}
