//! `mistral.chat`: cached tokens are inside the prompt, reasoning inside the completion; audio of a prompt is billed by
//! the second.

use super::chat::{self, Reasoning};
use super::{Format, Reading, or_zero, quantities};
use crate::domain::tokens::TokenClass;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::MistralChat)?;
    let (main, prompt) = call.usage.inclusive(call.usage.caches()?, Reasoning::Inside)?;
    let mut counts: Vec<_> = main.non_zero().collect();
    counts.push((TokenClass::Second, or_zero(call.usage.prompt_audio_seconds)));
    Ok(call.reading(quantities(&counts)?, prompt))
}
