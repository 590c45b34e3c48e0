//! `xai.chat`: chat completions of xAI, and the usage of its native API.
//!
//! Cached tokens are inside the prompt, reasoning is *outside* the completion unless the total says otherwise. The
//! stated cost comes in ticks of 10^-10 USD. Choices: searches of the web and of X, and the sources that the older
//! live search bills by, are `web_search` fees; code interpreter calls are `code_session` fees. Other tools have no
//! class, and most no fee.

use serde_json::value::RawValue;

use super::chat::{self, Reasoning, ServerSideTools, Usage};
use super::{Format, Reading, add, agreed, or_zero, stated};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object};
use crate::metering::reason::{Reason, Rejected};

/// What the names of the native API's tools begin with.
const TOOL_PREFIX: &str = "SERVER_SIDE_TOOL_";
/// The tools of the native API, each at its number there; 9 is none.
const TOOLS: [&str; 12] = [
    "INVALID",
    WEB_SEARCH,
    X_SEARCH,
    CODE_EXECUTION,
    "VIEW_IMAGE",
    "VIEW_X_VIDEO",
    "COLLECTIONS_SEARCH",
    "MCP",
    "ATTACHMENT_SEARCH",
    "",
    "IMAGE_SEARCH",
    "IMAGE_GENERATION",
];
const WEB_SEARCH: &str = "WEB_SEARCH";
const X_SEARCH: &str = "X_SEARCH";
const CODE_EXECUTION: &str = "CODE_EXECUTION";

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::XaiChat)?;
    let (mut quantities, prompt) = call.usage.inclusive(call.usage.caches()?, Reasoning::Outside)?;
    let (of_the_web, of_x, sessions) = all_tool_calls(&call.usage)?;
    let searches = searches(of_the_web, of_x, call.usage.num_sources_used);
    add(&mut quantities, &[(TokenClass::WebSearch, searches), (TokenClass::CodeSession, sessions)])?;
    let stated_cost = match call.usage.cost_in_usd_ticks {
        Some(ticks) => stated::ticks(ticks),
        None => stated::cost(call.usage.cost),
    };
    Ok(Reading { stated_cost, ..call.reading(quantities, prompt) })
}

/// Searches of the web and of X, and code sessions, that ran at xAI.
pub(super) fn tool_calls(tools: Option<&Object<ServerSideTools>>) -> (i64, i64, i64) {
    tools.map_or((0, 0, 0), |Object(tools)| {
        (
            or_zero(tools.web_search_calls),
            or_zero(tools.x_search_calls),
            or_zero(tools.code_interpreter_calls),
        )
    })
}

/// The searches that are billed: the calls of the tools. Sources are what the older live search is billed by; beside
/// calls of the tools they are no searches of their own.
pub(super) fn searches(of_the_web: i64, of_x: i64, sources: Option<Count>) -> i64 {
    match of_the_web + of_x {
        0 => or_zero(sources),
        calls => calls,
    }
}

/// The same calls as their number by tool, or as the native API's list with an entry for each.
fn all_tool_calls(usage: &Usage<'_>) -> Result<(i64, i64, i64), Rejected> {
    let (of_the_web, of_x, sessions) = tool_calls(usage.server_side_tool_usage_details.as_ref());
    let mut listed = [0; 3];
    for entry in usage.server_side_tools_used.iter().flatten() {
        match tool(entry)? {
            WEB_SEARCH => listed[0] += 1,
            X_SEARCH => listed[1] += 1,
            CODE_EXECUTION => listed[2] += 1,
            _ => {}
        }
    }
    let both = |counted, listed, what| agreed(&[Some(Count(counted)), Some(Count(listed))], what);
    Ok((
        both(of_the_web, listed[0], "the number of web searches")?,
        both(of_x, listed[1], "the number of searches of X")?,
        both(sessions, listed[2], "the number of code sessions")?,
    ))
}

/// The tool that an entry of the native API's list names, or gives the number of.
fn tool(entry: &RawValue) -> Result<&'static str, Rejected> {
    let text = entry.get().trim_matches('"');
    let numbered = || TOOLS.get(text.parse::<usize>().ok()?).copied();
    let named = |name: &str| TOOLS.into_iter().find(|tool| *tool == name);
    text.strip_prefix(TOOL_PREFIX).map_or_else(numbered, named).filter(|tool| !tool.is_empty()).ok_or_else(|| {
        Rejected::new(
            Reason::Ambiguous,
            "`server_side_tools_used` lists a tool that is not known here, and so not whether it has a fee; send its \
             name as xAI's SDK has it",
        )
    })
}
