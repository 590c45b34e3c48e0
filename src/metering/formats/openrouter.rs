//! `openrouter.chat`: OpenAI's shape for every provider, with what was charged.
//!
//! The stated cost is `cost`; where the caller brought a key of its own, `cost` is OpenRouter's fee alone and the
//! provider's charge is added. In all other calls the provider's charge is *not* added: it may equal the cost, exceed
//! it (a discount) or fall short of it (a plugin's fee).

use super::chat::{self, Reasoning};
use super::{Format, Reading, add, stated};
use crate::domain::tokens::TokenClass;
use crate::metering::json::Object;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::OpenRouterChat)?;
    let (mut quantities, prompt) = call.usage.inclusive(call.usage.caches()?, Reasoning::Inside)?;
    let searches = call.usage.web_searches(call.model.as_deref())?;
    add(&mut quantities, &[(TokenClass::WebSearch, searches)])?;
    let cost = stated::cost(call.usage.cost);
    let upstream =
        call.usage.cost_details.as_ref().and_then(|Object(details)| details.upstream_inference_cost);
    let stated_cost = match call.usage.is_byok {
        Some(true) => cost.zip(stated::cost(upstream)).and_then(|(fee, upstream)| fee.checked_add(upstream)),
        _ => cost,
    };
    Ok(Reading { stated_cost, ..call.reading(quantities, prompt) })
}
