//! The usage object that chat completion APIs share, and what is inside what in it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{
    Format, Reading, Served, agreed, inconsistent, need, or_zero, quantities, rest, unmetered, usage_of,
};
use crate::domain::tokens::{Quantities, TokenClass};
use crate::metering::json::{Count, Object, Text, read};
use crate::metering::reason::{Reason, Rejected};

/// A chat completion as far as it is needed here.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    prompt_tokens: Option<IgnoredAny>,
    completion_tokens: Option<IgnoredAny>,
}

/// The usage object, with what the various APIs add to it.
#[derive(Deserialize)]
pub(super) struct Usage<'a> {
    pub prompt_tokens: Option<Count>,
    pub completion_tokens: Option<Count>,
    pub total_tokens: Option<Count>,
    pub prompt_tokens_details: Option<Object<PromptDetails>>,
    pub completion_tokens_details: Option<Object<CompletionDetails>>,
    /// Beside the details: xAI's mirror image of it, `SGLang`'s copy of it, Perplexity's own count.
    pub reasoning_tokens: Option<Count>,
    // DeepSeek.
    pub prompt_cache_hit_tokens: Option<Count>,
    pub prompt_cache_miss_tokens: Option<Count>,
    // Gateways in front of Claude.
    pub cache_read_input_tokens: Option<Count>,
    pub cache_creation_input_tokens: Option<Count>,
    pub cache_creation: Option<Object<CacheCreation>>,
    pub server_tool_use: Option<Object<ToolUse>>,
    /// LiteLLM's, of an image call.
    pub web_search_requests: Option<Count>,
    #[serde(borrow)]
    pub inference_geo: Option<Text<'a>>,
    #[serde(borrow)]
    pub speed: Option<Text<'a>>,
    #[serde(borrow)]
    pub iterations: Option<&'a RawValue>,
    // Mistral.
    pub prompt_audio_seconds: Option<Count>,
    #[serde(borrow)]
    pub service_tier: Option<Text<'a>>,
    // Perplexity.
    pub citation_tokens: Option<Count>,
    pub num_search_queries: Option<Count>,
    // xAI.
    pub num_sources_used: Option<Count>,
    pub server_side_tool_usage_details: Option<Object<ServerSideTools>>,
    #[serde(borrow)]
    pub cost_in_usd_ticks: Option<&'a RawValue>,
    // xAI's native API, which has no details of the prompt.
    pub cached_prompt_text_tokens: Option<Count>,
    pub prompt_image_tokens: Option<Count>,
    #[serde(borrow)]
    pub server_side_tools_used: Option<Vec<&'a RawValue>>,
    // OpenRouter, Perplexity and others that state what they charged.
    #[serde(borrow)]
    pub cost: Option<&'a RawValue>,
    pub is_byok: Option<bool>,
    #[serde(borrow)]
    pub cost_details: Option<Object<CostDetails<'a>>>,
    pub server_tool_use_details: Option<Object<ToolUse>>,
}

#[derive(Deserialize, Default)]
pub(super) struct PromptDetails {
    pub cached_tokens: Option<Count>,
    pub cache_write_tokens: Option<Count>,
    pub cache_creation_tokens: Option<Count>,
    pub cache_creation_token_details: Option<Object<CacheCreation>>,
    pub audio_tokens: Option<Count>,
    pub image_tokens: Option<Count>,
    pub video_tokens: Option<Count>,
    /// LiteLLM's copy of what Google, OpenAI, xAI, Perplexity and Mistral count elsewhere or only list.
    pub web_search_requests: Option<Count>,
    /// LiteLLM's count of what Google looked up in its maps.
    pub google_maps_grounding_requests: Option<Count>,
    /// LiteLLM's copy of Google's tool-use prompt.
    pub tool_use_tokens: Option<Count>,
}

#[derive(Deserialize, Default)]
pub(super) struct CompletionDetails {
    pub reasoning_tokens: Option<Count>,
    pub audio_tokens: Option<Count>,
    pub image_tokens: Option<Count>,
    pub video_tokens: Option<Count>,
}

/// Cache writes by lifetime.
#[derive(Deserialize, Default)]
pub(super) struct CacheCreation {
    pub ephemeral_5m_input_tokens: Option<Count>,
    pub ephemeral_1h_input_tokens: Option<Count>,
}

/// Calls of tools that run at the provider.
#[derive(Deserialize)]
pub(super) struct ToolUse {
    pub web_search_requests: Option<Count>,
}

/// Calls of tools that run at xAI.
#[derive(Deserialize, Default)]
pub(super) struct ServerSideTools {
    pub web_search_calls: Option<Count>,
    pub x_search_calls: Option<Count>,
    pub code_interpreter_calls: Option<Count>,
}

#[derive(Deserialize)]
pub(super) struct CostDetails<'a> {
    #[serde(borrow)]
    pub upstream_inference_cost: Option<&'a RawValue>,
}

/// Beginnings of the models whose search Google bills by the grounded prompt, however many queries that took; later
/// ones are billed by the query (`usage-and-prices` 1.5).
const BILLED_BY_PROMPT: [&str; 3] = ["gemini-1.", "gemini-2.", "gemini-live-2."];

/// Whether a model's searches are billed by the prompt, whatever names of providers lead its own.
pub(super) fn is_billed_by_prompt(model: &str) -> bool {
    let name = model.rsplit_once('/').map_or(model, |(_, name)| name);
    BILLED_BY_PROMPT.iter().any(|start| name.starts_with(start))
}

/// Where reasoning is counted when no total tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reasoning {
    /// Within the completion.
    Inside,
    /// Beside it.
    Outside,
}

/// A call, its usage object, and what the response says of model and tier.
pub(super) struct Call<'a> {
    pub model: Option<Text<'a>>,
    pub service_tier: Option<Text<'a>>,
    pub usage: Usage<'a>,
}

/// Reads a chat completion or its usage object.
pub(super) fn call(body: &str, format: Format) -> Result<Call<'_>, Rejected> {
    let response: Response<'_> = read(body)?;
    let flat = response.prompt_tokens.is_some() || response.completion_tokens.is_some();
    let mut usage: Usage<'_> = usage_of(body, response.usage, flat)?;
    if usage.prompt_tokens.is_none() && usage.completion_tokens.is_none() {
        return Err(unmetered(format));
    }
    let service_tier = response.service_tier.or_else(|| usage.service_tier.take());
    Ok(Call { model: response.model, service_tier, usage })
}

impl<'a> Call<'a> {
    /// A reading of these quantities; the prompt, caches included, is what tiers are compared with.
    pub(super) fn reading(self, quantities: Quantities, tier_input: i64) -> Reading<'a> {
        Reading {
            model: self.model,
            conditions: Served { service_tier: self.service_tier, ..Served::default() },
            quantities,
            tier_input,
            ..Reading::default()
        }
    }
}

/// Cache counts of a prompt.
#[derive(Clone, Copy, Default)]
pub(super) struct Caches {
    pub read: i64,
    pub write_5m: i64,
    pub write_1h: i64,
}

impl Caches {
    /// Writes split by lifetime: what the split leaves over has the five-minute (or the only) lifetime.
    pub(super) fn new(read: i64, written: i64, split: Option<&CacheCreation>) -> Result<Self, Rejected> {
        let one_hour = split.map_or(0, |split| or_zero(split.ephemeral_1h_input_tokens));
        let five_minutes = split.map_or(0, |split| or_zero(split.ephemeral_5m_input_tokens));
        let left_over = rest(written, &[one_hour, five_minutes], "the cache writes")?;
        Ok(Self { read, write_5m: five_minutes + left_over, write_1h: one_hour })
    }

    pub(super) const fn written(self) -> i64 {
        self.write_5m + self.write_1h
    }
}

impl Usage<'_> {
    /// Cache reads and writes as the details of the prompt state them.
    ///
    /// Claude's cache counts beside the prompt are `ambiguous` unless they repeat the details: half of the gateways
    /// that send them mean a prompt without them.
    pub(super) fn caches(&self) -> Result<Caches, Rejected> {
        let caches = self.caches_in_details()?;
        let repeats = |beside: Option<Count>, inside: i64| or_zero(beside) == 0 || or_zero(beside) == inside;
        if repeats(self.cache_read_input_tokens, caches.read)
            && repeats(self.cache_creation_input_tokens, caches.written())
        {
            return Ok(caches);
        }
        Err(Rejected::new(
            Reason::Ambiguous,
            "cache counts of Claude stand beside an OpenAI prompt; send the format portkey.anthropic, litellm or \
             anthropic.messages",
        ))
    }

    fn caches_in_details(&self) -> Result<Caches, Rejected> {
        let none = PromptDetails::default();
        let details = self.prompt_tokens_details.as_ref().map_or(&none, |Object(details)| details);
        let read = agreed(&[details.cached_tokens, self.cached_prompt_text_tokens], "cache reads")?;
        let written = agreed(&[details.cache_write_tokens, details.cache_creation_tokens], "cache writes")?;
        let split = details.cache_creation_token_details.as_ref().map(|Object(split)| split);
        Caches::new(read, written, split)
    }

    /// Web searches, under whatever name; the queries of a model that is billed by the grounded prompt are one.
    pub(super) fn web_searches(&self, model: Option<&str>) -> Result<i64, Rejected> {
        let tools = |tools: &Option<Object<ToolUse>>| {
            tools.as_ref().and_then(|Object(tools)| tools.web_search_requests)
        };
        let in_details =
            self.prompt_tokens_details.as_ref().and_then(|Object(details)| details.web_search_requests);
        let by_prompt = model.is_some_and(is_billed_by_prompt);
        let billed = |queries: Option<Count>| if by_prompt { queries.min(Some(Count(1))) } else { queries };
        agreed(
            &[
                billed(in_details),
                billed(self.web_search_requests),
                tools(&self.server_tool_use),
                tools(&self.server_tool_use_details),
                self.num_search_queries,
            ],
            "the number of web searches",
        )
    }

    /// Perplexity's reasoning, taken out of the usage: it stands beside the completion, and no total includes it.
    pub(super) fn take_reasoning_of_perplexity(&mut self) -> Result<i64, Rejected> {
        if self.citation_tokens.is_none() && self.num_search_queries.is_none() {
            return Ok(0);
        }
        let details = self.completion_tokens_details.as_mut();
        let in_details = details.and_then(|Object(details)| details.reasoning_tokens.take());
        agreed(&[in_details, self.reasoning_tokens.take()], "reasoning")
    }

    /// Disjoint classes of an inclusive prompt and its completion, and the whole prompt.
    pub(super) fn inclusive(
        &self,
        caches: Caches,
        reasoning: Reasoning,
    ) -> Result<(Quantities, i64), Rejected> {
        let none = PromptDetails::default();
        let details = self.prompt_tokens_details.as_ref().map_or(&none, |Object(details)| details);
        let prompt = need(self.prompt_tokens, "prompt_tokens")?;
        let (audio, video) = (or_zero(details.audio_tokens), or_zero(details.video_tokens));
        let image = agreed(&[details.image_tokens, self.prompt_image_tokens], "image tokens")?;
        let input = rest(prompt, &[caches.read, caches.written(), audio, image, video], "the prompt")?;
        let [visible, reasoned, spoken, drawn, filmed] = self.completion(prompt, reasoning)?;
        let quantities = quantities(&[
            (TokenClass::Input, input),
            (TokenClass::CacheRead, caches.read),
            (TokenClass::CacheWrite5m, caches.write_5m),
            (TokenClass::CacheWrite1h, caches.write_1h),
            (TokenClass::InputAudio, audio),
            (TokenClass::InputImage, image),
            (TokenClass::InputVideo, video),
            (TokenClass::Output, visible),
            (TokenClass::Reasoning, reasoned),
            (TokenClass::OutputAudio, spoken),
            (TokenClass::OutputImage, drawn),
            (TokenClass::OutputVideo, filmed),
        ])?;
        Ok((quantities, prompt))
    }

    /// Visible, reasoning, audio, image and video tokens of the completion, disjoint. The total decides where reasoning
    /// is, `reasoning` where there is none.
    fn completion(&self, prompt: i64, reasoning: Reasoning) -> Result<[i64; 5], Rejected> {
        let none = CompletionDetails::default();
        let details = self.completion_tokens_details.as_ref().map_or(&none, |Object(details)| details);
        // Embeddings have no completion; then the total must say so.
        let completion = match (self.completion_tokens, self.total_tokens) {
            (None, Some(total)) if total.0 == prompt => 0,
            (completion, _) => need(completion, "completion_tokens")?,
        };
        let reasoned = agreed(&[details.reasoning_tokens, self.reasoning_tokens], "reasoning")?;
        let inside = match self.total_tokens.map(|total| total.0) {
            None => reasoning == Reasoning::Inside,
            Some(total) if total == prompt + completion => true,
            Some(total) if total == prompt + completion + reasoned => false,
            Some(total) => {
                return Err(inconsistent(format_args!(
                    "total_tokens is {total}, but prompt and completion are {prompt} and {completion}"
                )));
            }
        };
        let (audio, image, video) =
            (or_zero(details.audio_tokens), or_zero(details.image_tokens), or_zero(details.video_tokens));
        let reasoned_inside = if inside { reasoned } else { 0 };
        let output = rest(completion, &[reasoned_inside, audio, image, video], "the completion")?;
        Ok([output, reasoned, audio, image, video])
    }
}
