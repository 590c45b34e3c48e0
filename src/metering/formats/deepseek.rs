//! `deepseek.chat`: the prompt is cache hits plus misses, reasoning is inside the completion.

use super::chat::{self, Caches, Reasoning};
use super::{Format, Reading, agreed, inconsistent, need};
use crate::metering::json::Count;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::DeepSeekChat)?;
    let usage = &call.usage;
    let prompt = need(usage.prompt_tokens, "prompt_tokens")?;
    let cached = usage.caches()?.read;
    let hit = agreed(&[usage.prompt_cache_hit_tokens, Some(Count(cached))], "the cache hit")?;
    if let Some(Count(miss)) = usage.prompt_cache_miss_tokens
        && hit + miss != prompt
    {
        return Err(inconsistent(format_args!(
            "cache hit {hit} and miss {miss} do not sum to the prompt of {prompt}"
        )));
    }
    let (quantities, prompt) =
        usage.inclusive(Caches { read: hit, ..Caches::default() }, Reasoning::Inside)?;
    Ok(call.reading(quantities, prompt))
}
