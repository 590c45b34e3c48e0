//! `anthropic.messages`: the Messages API.
//!
//! Input excludes cache reads and writes; thinking is inside the output. Tier `batch` is batch processing, speed
//! `fast` and geography `us` are conditions of the price. A safety refusal before any output is not billed although
//! its usage carries counts: it is recorded as zero. A refusal in mid-stream is billed as any other call. Where the
//! response brings no content to tell the two apart, at most one output token is taken for the former.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::iterations::{self, Attempt, DECLINED_OUTPUT_MAX, TopLevel};
use super::{Format, Reading, Served, inconsistent, or_zero, unmetered, usage_of};
use crate::domain::tokens::{Quantities, TokenClass};
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::{Reason, Rejected};

/// Geographies that are no condition of a price.
const NO_GEOGRAPHY: [&str; 2] = ["global", "not_available"];

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_reason: Option<Text<'a>>,
    content: Option<Vec<IgnoredAny>>,
    input_tokens: Option<IgnoredAny>,
    output_tokens: Option<IgnoredAny>,
}

pub(super) fn decompose(body: &str) -> Result<Vec<Reading<'_>>, Rejected> {
    let response: Response<'_> = read(body)?;
    let flat = response.input_tokens.is_some() || response.output_tokens.is_some();
    let usage: Attempt<'_> = usage_of(body, response.usage, flat)?;
    if usage.prompt_tokens.is_some() || usage.input_tokens_details.is_some() {
        return Err(Rejected::new(
            Reason::Ambiguous,
            "the body has prompt_tokens or input_tokens_details, which the Messages API never sends; send the format \
             that it is in",
        ));
    }
    if usage.is_empty() {
        return Err(unmetered(Format::AnthropicMessages));
    }
    if !usage.is_counted() {
        return Err(Rejected::new(
            Reason::MissingField,
            "`input_tokens` or `output_tokens` is missing; of a stream, merge the first and the last usage",
        ));
    }
    let whole = usage.quantities()?;
    check_total(&usage, whole)?;
    let declined = response.stop_reason.as_deref() == Some("refusal")
        && response.content.map_or(usage.output() <= DECLINED_OUTPUT_MAX, |content| content.is_empty());
    let attempts = iterations::billed(usage.iterations, TopLevel::messages(&whole), declined)?;
    let mut readings = match attempts {
        Some(attempts) if !attempts.is_empty() => attempts,
        Some(_) => vec![Reading::default()],
        None if declined => vec![Reading::default()],
        None => vec![Reading::of(whole)],
    };
    let served = served(&usage);
    for reading in &mut readings {
        reading.model = reading.model.take().or_else(|| response.model.clone());
        reading.conditions = served.clone();
    }
    add_searches(&mut readings, &usage)?;
    Ok(readings)
}

/// A total is no field of the API: where a proxy adds one, it must be the sum of an exclusive prompt.
fn check_total(usage: &Attempt<'_>, whole: Quantities) -> Result<(), Rejected> {
    let sum = whole.prompt_total() + usage.output();
    match usage.total_tokens {
        Some(Count(total)) if total != sum => Err(inconsistent(format_args!(
            "total_tokens is {total}, but input, caches and output sum to {sum}"
        ))),
        _ => Ok(()),
    }
}

fn served<'a>(usage: &Attempt<'a>) -> Served<'a> {
    let geography =
        |geography: &Text<'_>| !NO_GEOGRAPHY.iter().any(|none| none.eq_ignore_ascii_case(geography));
    Served {
        platform: None,
        region: usage.inference_geo.clone().filter(geography),
        service_tier: usage.service_tier.clone(),
        speed: usage.speed.clone(),
    }
}

/// Web searches are counted for the call as a whole; their fee goes with its last attempt. Web fetches are free.
fn add_searches(readings: &mut [Reading<'_>], usage: &Attempt<'_>) -> Result<(), Rejected> {
    let searches =
        usage.server_tool_use.as_ref().map_or(0, |Object(tools)| or_zero(tools.web_search_requests));
    if let Some(last) = readings.last_mut() {
        last.quantities
            .set(TokenClass::WebSearch, searches)
            .map_err(|limit| Rejected::new(Reason::Limit, limit))?;
    }
    Ok(())
}
