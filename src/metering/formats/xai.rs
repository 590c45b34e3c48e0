//! `xai.chat`: chat completions of xAI.
//!
//! Cached tokens are inside the prompt, reasoning is *outside* the completion unless the total says otherwise. The
//! stated cost comes in ticks of 10^-10 USD. Choices: searches of the web and of X, and the sources that the older
//! live search bills by, are `web_search` fees; code interpreter calls are `code_session` fees.

use super::chat::{self, Reasoning, ServerSideTools};
use super::{Format, Reading, or_zero, quantities, stated};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object};
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::XaiChat)?;
    let (main, prompt) = call.usage.inclusive(call.usage.caches()?, Reasoning::Outside)?;
    let (searches, sessions) = tool_calls(call.usage.server_side_tool_usage_details.as_ref());
    let mut counts: Vec<_> = main.non_zero().collect();
    counts.extend([
        (TokenClass::WebSearch, searches),
        (TokenClass::WebSearch, or_zero(call.usage.num_sources_used)),
        (TokenClass::CodeSession, sessions),
    ]);
    let quantities = quantities(&counts)?;
    let stated_cost = match call.usage.cost_in_usd_ticks {
        Some(Count(ticks)) => stated::ticks(ticks),
        None => stated::cost(call.usage.cost),
    };
    Ok(Reading { stated_cost, ..call.reading(quantities, prompt) })
}

/// Searches and code sessions that ran at xAI.
pub(super) fn tool_calls(tools: Option<&Object<ServerSideTools>>) -> (i64, i64) {
    tools.map_or((0, 0), |Object(tools)| {
        (
            or_zero(tools.web_search_calls) + or_zero(tools.x_search_calls),
            or_zero(tools.code_interpreter_calls),
        )
    })
}
