//! `openai.chat`: chat completions and embeddings of OpenAI, Azure, vLLM, `SGLang`, Perplexity and their like.
//!
//! Cached, written and audio tokens are inside the prompt; reasoning, audio and rejected predictions inside the
//! completion. Choices: Perplexity's citations are input beside the prompt (their rate is the input rate), its
//! reasoning stands beside the completion, its search queries are `web_search` fees.

use super::chat::{self, Reasoning};
use super::{Format, Reading, add, or_zero, stated};
use crate::domain::tokens::TokenClass;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let mut call = chat::call(body, Format::OpenAiChat)?;
    let caches = call.usage.caches()?;
    let stated_cost = stated::cost_or_total(call.usage.cost);
    let searches = call.usage.web_searches(call.model.as_deref())?;
    let citations = or_zero(call.usage.citation_tokens);
    let beside_reasoning = call.usage.take_reasoning_of_perplexity()?;
    let (mut quantities, prompt) = call.usage.inclusive(caches, Reasoning::Inside)?;
    add(
        &mut quantities,
        &[
            (TokenClass::Input, citations),
            (TokenClass::Reasoning, beside_reasoning),
            (TokenClass::WebSearch, searches),
        ],
    )?;
    Ok(Reading { stated_cost, ..call.reading(quantities, prompt) })
}
