//! The attempts of one Claude call: compaction, advisor and fallback models, each priced at its own model.
//!
//! Compaction and advisor tokens are *not* in the top-level usage; the attempts of type `message` (and, in a fallback,
//! `fallback_message`) are. Choices:
//! - Each attempt is compared with context tiers by its own prompt: each is a request of its own to a model.
//! - A `message` before a fallback was declined; it is free where it wrote at most one token, the only sign in the usage.
//! - Attempts whose messages do not sum to the top level are not this call's (Claude Code puts its session's sums
//!   there): then the top level counts, unless compaction or an advisor would be lost, which is `inconsistent`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::chat::{CacheCreation, Caches, ToolUse};
use super::{Reading, inconsistent, or_zero, quantities, rest};
use crate::domain::tokens::{Quantities, TokenClass};
use crate::metering::json::{Count, Object, Text, read_any};
use crate::metering::reason::Rejected;

/// Most output of a declined attempt that is not billed, in tokens.
pub(super) const DECLINED_OUTPUT_MAX: i64 = 1;

/// Counts of one attempt, and of the call as a whole, which alone has the fields from `service_tier` on. The prompt
/// excludes both caches.
#[derive(Deserialize)]
pub(super) struct Attempt<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    input_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    cache_creation: Option<Object<CacheCreation>>,
    output_tokens: Option<Count>,
    output_tokens_details: Option<Object<OutputDetails>>,
    #[serde(borrow)]
    pub service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    pub inference_geo: Option<Text<'a>>,
    #[serde(borrow)]
    pub speed: Option<Text<'a>>,
    pub server_tool_use: Option<Object<ToolUse>>,
    #[serde(borrow)]
    pub iterations: Option<&'a RawValue>,
    /// Never in a response of the Messages API; some proxies add it.
    pub total_tokens: Option<Count>,
    /// OpenAI's, never in a response of the Messages API.
    pub prompt_tokens: Option<IgnoredAny>,
    /// OpenAI's, never in a response of the Messages API.
    pub input_tokens_details: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct OutputDetails {
    #[serde(alias = "reasoning_tokens")]
    thinking_tokens: Option<Count>,
}

impl Attempt<'_> {
    /// Whether it states both counts that every attempt has.
    pub(super) fn is_counted(&self) -> bool {
        self.input_tokens.is_some() && self.output_tokens.is_some()
    }

    /// Whether it states neither.
    pub(super) fn is_empty(&self) -> bool {
        self.input_tokens.is_none() && self.output_tokens.is_none()
    }

    pub(super) fn output(&self) -> i64 {
        or_zero(self.output_tokens)
    }

    /// Disjoint classes; a split of the writes that falls short leaves the rest at the five-minute rate.
    pub(super) fn quantities(&self) -> Result<Quantities, Rejected> {
        let split = self.cache_creation.as_ref().map(|Object(split)| split);
        let split_sum = split.map_or(0, |split| {
            or_zero(split.ephemeral_5m_input_tokens) + or_zero(split.ephemeral_1h_input_tokens)
        });
        let written = self.cache_creation_input_tokens.map_or(split_sum, |count| count.0);
        let caches = Caches::new(or_zero(self.cache_read_input_tokens), written, split)?;
        let thought =
            self.output_tokens_details.as_ref().map_or(0, |Object(details)| or_zero(details.thinking_tokens));
        quantities(&[
            (TokenClass::Input, or_zero(self.input_tokens)),
            (TokenClass::CacheRead, caches.read),
            (TokenClass::CacheWrite5m, caches.write_5m),
            (TokenClass::CacheWrite1h, caches.write_1h),
            (TokenClass::Output, rest(self.output(), &[thought], "the output")?),
            (TokenClass::Reasoning, thought),
        ])
    }
}

/// What an attempt was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Fallback,
    /// Compaction or advisor: beside the top level.
    Beside,
}

fn kind(attempt: &Attempt<'_>) -> Result<Kind, Rejected> {
    match attempt.kind.as_deref() {
        Some("message") => Ok(Kind::Message),
        Some("fallback_message") => Ok(Kind::Fallback),
        Some("compaction" | "advisor_message") => Ok(Kind::Beside),
        _ => Err(inconsistent("an iteration has a type that is not known here")),
    }
}

/// What the attempts' messages must sum to, so that they are this call's.
#[derive(Clone, Copy)]
pub(super) enum TopLevel {
    /// Input, cache reads, cache writes and output as the Messages API reports them.
    Messages([i64; 4]),
    /// The whole prompt and completion of a gateway that may have summed every attempt into them.
    Gateway {
        /// Caches included.
        prompt: i64,
        /// Reasoning included.
        completion: i64,
    },
}

/// The billed attempts, or `None` where the top level counts instead.
///
/// `declined` says that the last attempt was refused before it wrote anything.
pub(super) fn billed<'a>(
    raw: Option<&'a RawValue>,
    top_level: TopLevel,
    declined: bool,
) -> Result<Option<Vec<Reading<'a>>>, Rejected> {
    let Some(raw) = raw else { return Ok(None) };
    let attempts: Vec<Object<Attempt<'a>>> = read_any(raw.get())?;
    if attempts.is_empty() {
        return Ok(None);
    }
    let mut counted = Vec::with_capacity(attempts.len());
    for Object(attempt) in attempts {
        if !attempt.is_counted() {
            return Err(inconsistent("an iteration lacks its input or output tokens"));
        }
        counted.push((kind(&attempt)?, attempt.quantities()?, attempt.output(), attempt.model));
    }
    if !top_level.is_sum_of(&counted) {
        if counted.iter().any(|(kind, ..)| *kind == Kind::Beside) {
            return Err(inconsistent("the message iterations do not sum to the usage of the call"));
        }
        return Ok(None);
    }
    let last = counted.len() - 1;
    let fell_back_after =
        |index: usize| counted[index + 1..].iter().any(|(kind, ..)| *kind == Kind::Fallback);
    let free = |index: usize, kind: Kind, output: i64| {
        let was_declined = kind != Kind::Beside && fell_back_after(index) && output <= DECLINED_OUTPUT_MAX;
        was_declined || (declined && index == last)
    };
    let keep: Vec<bool> = counted
        .iter()
        .enumerate()
        .map(|(index, (kind, _, output, _))| !free(index, *kind, *output))
        .collect();
    let readings = counted
        .into_iter()
        .zip(keep)
        .filter(|(_, keep)| *keep)
        .map(|((_, quantities, _, model), _)| Reading { model, ..Reading::of(quantities) })
        .collect();
    Ok(Some(readings))
}

type Counted<'a> = (Kind, Quantities, i64, Option<Text<'a>>);

/// Input, cache reads, cache writes and output.
fn four_counts(quantities: &Quantities) -> [i64; 4] {
    let of = |class| quantities.get(class);
    [
        of(TokenClass::Input),
        of(TokenClass::CacheRead),
        of(TokenClass::CacheWrite5m) + of(TokenClass::CacheWrite1h),
        of(TokenClass::Output) + of(TokenClass::Reasoning),
    ]
}

impl TopLevel {
    /// The counts of a response of the Messages API.
    pub(super) fn messages(whole: &Quantities) -> Self {
        Self::Messages(four_counts(whole))
    }

    fn is_sum_of(self, counted: &[Counted<'_>]) -> bool {
        let sum = |wanted: &[Kind]| {
            counted.iter().filter(|(kind, ..)| wanted.contains(kind)).fold(
                [0_i64; 4],
                |mut sum, (_, quantities, ..)| {
                    sum.iter_mut().zip(four_counts(quantities)).for_each(|(sum, count)| *sum += count);
                    sum
                },
            )
        };
        let candidates = [
            sum(&[Kind::Message]),
            sum(&[Kind::Fallback]),
            sum(&[Kind::Message, Kind::Fallback]),
            sum(&[Kind::Message, Kind::Fallback, Kind::Beside]),
        ];
        match self {
            // Everything summed is no way in which the Messages API reports.
            Self::Messages(counts) => candidates[..3].contains(&counts),
            Self::Gateway { prompt, completion } => {
                candidates.iter().any(|[input, read, written, output]| {
                    input + read + written == prompt && *output == completion
                })
            }
        }
    }
}
