//! `cohere.v2`: chat, embed, rerank and classify of Cohere.
//!
//! `billed_units` is the bill; `tokens` is what the model saw, larger, and what context tiers are compared with. Counts
//! come as floats of whole value and are read from their digits. Choices: search units and classifications are
//! `request` fees; images are `image` fees; `cached_tokens` is left alone, as its relation to the billed input is not
//! documented and the bill does not depend on it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Format, Reading, quantities, unmetered, usage_of};
use crate::domain::tokens::{QUANTITY_MAX, TokenClass};
use crate::metering::json::{Object, Text, read};
use crate::metering::reason::{Reason, Rejected};

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// Embed, rerank and classify name it so.
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    billed_units: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Usage<'a> {
    #[serde(borrow)]
    billed_units: Option<Object<Units<'a>>>,
    #[serde(borrow)]
    tokens: Option<Object<Units<'a>>>,
}

#[derive(Deserialize)]
struct Units<'a> {
    #[serde(borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    search_units: Option<&'a RawValue>,
    #[serde(borrow)]
    classifications: Option<&'a RawValue>,
    #[serde(borrow)]
    images: Option<&'a RawValue>,
}

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let response: Response<'_> = read(body)?;
    let nested = response.usage.or(response.meta);
    let usage: Usage<'_> = usage_of(body, nested, response.billed_units.is_some())?;
    let Some(Object(billed)) = usage.billed_units else { return Err(unmetered(Format::CohereV2)) };
    let fields = [
        billed.input_tokens,
        billed.output_tokens,
        billed.search_units,
        billed.classifications,
        billed.images,
    ];
    if fields.iter().all(Option::is_none) {
        return Err(unmetered(Format::CohereV2));
    }
    let input = whole(billed.input_tokens)?;
    let quantities = quantities(&[
        (TokenClass::Input, input),
        (TokenClass::Output, whole(billed.output_tokens)?),
        (TokenClass::Request, whole(billed.search_units)?),
        (TokenClass::Request, whole(billed.classifications)?),
        (TokenClass::Image, whole(billed.images)?),
    ])?;
    let seen = usage.tokens.and_then(|Object(tokens)| tokens.input_tokens);
    let tier_input = if seen.is_some() { whole(seen)? } else { input };
    Ok(Reading { model: response.model, quantities, tier_input, ..Reading::default() })
}

/// A whole number, with or without a fraction of zeros; read from its digits.
fn whole(raw: Option<&RawValue>) -> Result<i64, Rejected> {
    let text = raw.map_or("0", RawValue::get);
    let (digits, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_whole = fraction.bytes().all(|byte| byte == b'0');
    if digits.starts_with('-') && digits != "-0" {
        return Err(Rejected::new(Reason::Negative, "a count of Cohere is negative"));
    }
    if !is_whole || !digits.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Rejected::new(Reason::Type, "a count of Cohere is not a whole number"));
    }
    let digits = digits.trim_start_matches('-');
    let count: i64 = digits
        .parse()
        .map_err(|_| Rejected::new(Reason::Range, "a count of Cohere does not fit a 64-bit counter"))?;
    if count > QUANTITY_MAX {
        return Err(Rejected::new(
            Reason::Limit,
            format_args!("{count} is above the limit of {QUANTITY_MAX} for one event"),
        ));
    }
    Ok(count)
}
