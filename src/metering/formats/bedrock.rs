//! `bedrock.converse`: the Converse API of Bedrock.
//!
//! Input excludes cache reads and writes, as in Anthropic's own API. Writes are split by `cacheDetails`; what it
//! leaves over has the five-minute lifetime.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Format, Reading, Served, inconsistent, need, or_zero, quantities, rest, unmetered, usage_of};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::Rejected;

/// The platform of every call in this format.
const PLATFORM: &str = "bedrock";

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, rename = "serviceTier")]
    service_tier: Option<Object<ServiceTier<'a>>>,
    #[serde(rename = "inputTokens")]
    input: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ServiceTier<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage<'a> {
    input_tokens: Option<Count>,
    output_tokens: Option<Count>,
    total_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    /// Claude Code's usage by model, which is otherwise of this shape, says creation for write.
    #[serde(alias = "cacheCreationInputTokens")]
    cache_write_input_tokens: Option<Count>,
    #[serde(borrow)]
    cache_details: Option<Vec<Object<CacheDetail<'a>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheDetail<'a> {
    #[serde(borrow)]
    ttl: Option<Text<'a>>,
    input_tokens: Option<Count>,
}

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let response: Response<'_> = read(body)?;
    let usage: Usage<'_> = usage_of(body, response.usage, response.input.is_some())?;
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        return Err(unmetered(Format::BedrockConverse));
    }
    let input = need(usage.input_tokens, "inputTokens")?;
    let output = need(usage.output_tokens, "outputTokens")?;
    let cache_read = or_zero(usage.cache_read_input_tokens);
    let (mut detailed, mut one_hour) = (0, 0);
    for Object(detail) in usage.cache_details.iter().flatten() {
        let tokens = or_zero(detail.input_tokens);
        detailed += tokens;
        if detail.ttl.as_deref() == Some("1h") {
            one_hour += tokens;
        }
    }
    let written = usage.cache_write_input_tokens.map_or(detailed, |count| count.0);
    rest(written, &[detailed], "the cache writes")?;
    let sum = input + output + cache_read + written;
    if let Some(Count(total)) = usage.total_tokens
        && total != sum
    {
        return Err(inconsistent(format_args!("totalTokens is {total}, but the counts sum to {sum}")));
    }
    let quantities = quantities(&[
        (TokenClass::Input, input),
        (TokenClass::CacheRead, cache_read),
        (TokenClass::CacheWrite5m, written - one_hour),
        (TokenClass::CacheWrite1h, one_hour),
        (TokenClass::Output, output),
    ])?;
    let service_tier = response.service_tier.and_then(|Object(tier)| tier.kind);
    let conditions = Served { platform: Some(PLATFORM), service_tier, ..Served::default() };
    Ok(Reading { conditions, ..Reading::of(quantities) })
}
