//! `portkey.anthropic`: Claude in OpenAI's shape, by Portkey.
//!
//! Against Anthropic and Vertex the prompt *excludes* the cache counts beside it, against Bedrock it *includes* them.
//! The total tells which; where there is none and both readings are possible, the payload is `ambiguous`.

use super::chat::{self, Caches};
use super::{Format, Reading, inconsistent, need, or_zero, quantities, rest};
use crate::domain::tokens::TokenClass;
use crate::metering::json::Object;
use crate::metering::reason::{Reason, Rejected};

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::PortkeyAnthropic)?;
    let usage = &call.usage;
    let prompt = need(usage.prompt_tokens, "prompt_tokens")?;
    let completion = need(usage.completion_tokens, "completion_tokens")?;
    let split = usage.cache_creation.as_ref().map(|Object(split)| split);
    let caches = Caches::new(
        or_zero(usage.cache_read_input_tokens),
        or_zero(usage.cache_creation_input_tokens),
        split,
    )?;
    let beside = caches.read + caches.written();
    let input = match usage.total_tokens.map(|total| total.0) {
        Some(total) if total == prompt + completion + beside => prompt,
        Some(total) if total == prompt + completion => rest(prompt, &[beside], "the prompt")?,
        Some(total) => {
            return Err(inconsistent(format_args!(
                "total_tokens is {total}; prompt, completion and cache are {prompt}, {completion} and {beside}"
            )));
        }
        None if prompt < beside || beside == 0 => prompt,
        None => {
            return Err(Rejected::new(
                Reason::Ambiguous,
                "without total_tokens the prompt may include the cache counts or not; send total_tokens",
            ));
        }
    };
    let quantities = quantities(&[
        (TokenClass::Input, input),
        (TokenClass::CacheRead, caches.read),
        (TokenClass::CacheWrite5m, caches.write_5m),
        (TokenClass::CacheWrite1h, caches.write_1h),
        (TokenClass::Output, completion),
    ])?;
    let tier_input = quantities.prompt_total();
    Ok(call.reading(quantities, tier_input))
}
