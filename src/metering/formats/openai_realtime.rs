//! `openai.realtime`: realtime sessions and audio of OpenAI.
//!
//! Text, audio and image tokens sum to the input, each includes its cached tokens. Choice: cached tokens without a
//! split by modality are text.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{
    Format, Reading, inconsistent, input_and_output, not_of_anthropic, or_zero, quantities, rest, unmetered,
    usage_of,
};
use crate::domain::tokens::TokenClass;
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::Rejected;

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// The event `response.done` wraps the response.
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    input_tokens: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<Count>,
    input_token_details: Option<Object<InputDetails>>,
    output_tokens: Option<Count>,
    output_token_details: Option<Object<Modalities>>,
    total_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
}

#[derive(Deserialize, Default)]
struct InputDetails {
    text_tokens: Option<Count>,
    audio_tokens: Option<Count>,
    image_tokens: Option<Count>,
    cached_tokens: Option<Count>,
    cached_tokens_details: Option<Object<Modalities>>,
}

#[derive(Deserialize, Default)]
struct Modalities {
    text_tokens: Option<Count>,
    audio_tokens: Option<Count>,
    image_tokens: Option<Count>,
}

/// Text, audio and image tokens of one whole; text is the rest and must be so where it is stated.
fn split(whole: i64, stated: &Modalities, what: &str) -> Result<[i64; 3], Rejected> {
    let (audio, image) = (or_zero(stated.audio_tokens), or_zero(stated.image_tokens));
    let text = rest(whole, &[audio, image], what)?;
    match stated.text_tokens {
        Some(Count(said)) if said != text => {
            Err(inconsistent(format_args!("{what} has {said} text tokens stated, and {text} left")))
        }
        _ => Ok([text, audio, image]),
    }
}

pub(super) fn decompose(body: &str) -> Result<Reading<'_>, Rejected> {
    let outer: Response<'_> = read(body)?;
    let (response, text) = match outer.response {
        Some(inner) => (read(inner.get())?, inner.get()),
        None => (outer, body),
    };
    let usage: Usage = usage_of(text, response.usage, response.input_tokens.is_some())?;
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        return Err(unmetered(Format::OpenAiRealtime));
    }
    not_of_anthropic([usage.cache_read_input_tokens, usage.cache_creation_input_tokens])?;
    let (input, output) = input_and_output([usage.input_tokens, usage.output_tokens], usage.total_tokens)?;
    let details = usage.input_token_details.map(|Object(details)| details).unwrap_or_default();
    let stated = Modalities {
        text_tokens: details.text_tokens,
        audio_tokens: details.audio_tokens,
        image_tokens: details.image_tokens,
    };
    let cached_details = details.cached_tokens_details.map(|Object(details)| details).unwrap_or_default();
    let [text_in, audio_in, image_in] = split(input, &stated, "the input")?;
    let [text_cached, audio_cached, image_cached] =
        split(or_zero(details.cached_tokens), &cached_details, "the cached input")?;
    let written = usage.output_token_details.map(|Object(details)| details).unwrap_or_default();
    let [text_out, audio_out, image_out] = split(output, &written, "the output")?;
    let quantities = quantities(&[
        (TokenClass::Input, rest(text_in, &[text_cached], "the text input")?),
        (TokenClass::InputAudio, rest(audio_in, &[audio_cached], "the audio input")?),
        (TokenClass::InputImage, rest(image_in, &[image_cached], "the image input")?),
        (TokenClass::CacheRead, text_cached),
        (TokenClass::CacheReadAudio, audio_cached),
        (TokenClass::CacheReadImage, image_cached),
        (TokenClass::Output, text_out),
        (TokenClass::OutputAudio, audio_out),
        (TokenClass::OutputImage, image_out),
    ])?;
    Ok(Reading { model: response.model, ..Reading::of(quantities) })
}
