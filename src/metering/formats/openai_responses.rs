//! `openai.responses`: responses of OpenAI and xAI, and OpenAI's image endpoints.
//!
//! Cached and written tokens are inside the input, reasoning inside the output (at xAI too, unlike in its chat
//! completions). xAI's extras: the stated cost in ticks, and server-side tool calls as fees; a search of X counts as a
//! `web_search`, which has the same price there. OpenAI's hosted tools are not in its usage and so not here.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::{Caches, ServerSideTools};
use super::{
    Format, Reading, Served, inconsistent, need, not_of_anthropic, or_zero, quantities, rest, stated,
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
struct Usage {
    input_tokens: Option<Count>,
    input_tokens_details: Option<Object<InputDetails>>,
    output_tokens: Option<Count>,
    output_tokens_details: Option<Object<OutputDetails>>,
    total_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    cost_in_usd_ticks: Option<Count>,
    server_side_tool_usage_details: Option<Object<ServerSideTools>>,
}

#[derive(Deserialize, Default)]
struct InputDetails {
    cached_tokens: Option<Count>,
    cache_write_tokens: Option<Count>,
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
    let usage: Usage = usage_of(text, response.usage, flat)?;
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        return Err(unmetered(Format::OpenAiResponses));
    }
    not_of_anthropic([usage.cache_read_input_tokens, usage.cache_creation_input_tokens])?;
    let input = need(usage.input_tokens, "input_tokens")?;
    let output = need(usage.output_tokens, "output_tokens")?;
    if let Some(Count(total)) = usage.total_tokens
        && total != input + output
    {
        return Err(inconsistent(format_args!(
            "total_tokens is {total}, but input and output are {input} and {output}"
        )));
    }
    let read_in = usage.input_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let written_out = usage.output_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let caches = Caches::new(or_zero(read_in.cached_tokens), or_zero(read_in.cache_write_tokens), None)?;
    let (audio, image) = (or_zero(read_in.audio_tokens), or_zero(read_in.image_tokens));
    let (spoken, drawn) = (or_zero(written_out.audio_tokens), or_zero(written_out.image_tokens));
    let reasoned = or_zero(written_out.reasoning_tokens);
    let (searches, sessions) = xai::tool_calls(usage.server_side_tool_usage_details.as_ref());
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
        stated_cost: usage.cost_in_usd_ticks.and_then(|Count(ticks)| stated::ticks(ticks)),
        ..Reading::default()
    })
}
