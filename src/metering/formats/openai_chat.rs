//! `openai.chat`: chat completions and embeddings of OpenAI, Azure, vLLM, `SGLang`, Perplexity and their like.
//!
//! Cached, written and audio tokens are inside the prompt; reasoning, audio and rejected predictions inside the
//! completion. Choices: Perplexity's citations are input beside the prompt (their rate is the input rate), its
//! reasoning stands beside the completion, its search queries are `web_search` fees.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::chat::{self, Reasoning, Usage};
use super::{Format, Reading, or_zero, quantities, stated};
use crate::domain::money::Amount;
use crate::domain::tokens::TokenClass;
use crate::metering::json::read;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let mut call = chat::call(body, Format::OpenAiChat)?;
    let caches = call.usage.caches()?;
    let stated_cost = cost(&call.usage);
    let searches = [or_zero(call.usage.num_search_queries), call.usage.web_searches()?];
    let citations = or_zero(call.usage.citation_tokens);
    let is_perplexity = call.usage.citation_tokens.is_some() || call.usage.num_search_queries.is_some();
    let beside_reasoning = if is_perplexity { call.usage.reasoning_tokens.take() } else { None };
    let (main, prompt) = call.usage.inclusive(caches, Reasoning::Inside)?;
    let mut counts: Vec<_> = main.non_zero().collect();
    counts.push((TokenClass::Input, citations));
    counts.push((TokenClass::Reasoning, or_zero(beside_reasoning)));
    counts.extend(searches.map(|searches| (TokenClass::WebSearch, searches)));
    let quantities = quantities(&counts)?;
    Ok(Reading { stated_cost, ..call.reading(quantities, prompt) })
}

/// The stated cost: a number, or Perplexity's object with a total.
fn cost(usage: &Usage<'_>) -> Option<Amount> {
    #[derive(Deserialize)]
    struct Cost<'a> {
        #[serde(borrow)]
        total_cost: Option<&'a RawValue>,
    }
    let raw = usage.cost?;
    match read::<Cost<'_>>(raw.get()) {
        Ok(cost) => stated::cost(cost.total_cost),
        Err(_) => stated::cost(Some(raw)),
    }
}
