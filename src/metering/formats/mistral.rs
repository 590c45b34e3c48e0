//! `mistral.chat`: cached tokens are inside the prompt, reasoning inside the completion; audio of a prompt is billed by
//! the second.

use super::chat::{self, Reasoning};
use super::{Format, Reading, add, or_zero};
use crate::domain::tokens::TokenClass;
use crate::metering::reason::Rejected;

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let call = chat::call(body, Format::MistralChat)?;
    let (mut quantities, prompt) = call.usage.inclusive(call.usage.caches()?, Reasoning::Inside)?;
    add(&mut quantities, &[(TokenClass::Second, or_zero(call.usage.prompt_audio_seconds))])?;
    Ok(call.reading(quantities, prompt))
}
