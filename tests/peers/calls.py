"""The generated calls: disjoint quantities, written as each provider's API reports them.

Everything is drawn from a generator seeded by the name of the call, so a run is repeatable and one call does not depend on
the others.
"""

import dataclasses
import datetime
import random

UTC = datetime.timezone.utc
# An hour of a working day without a special price anywhere.
# Tokens of the frame around a prompt at Cohere, which are not billed.
COHERE_FRAME_TOKENS = 67
AT = datetime.datetime(2026, 11, 24, 5, 0, tzinfo=UTC)

INPUTS = ("input", "cache_read", "write_5m", "write_1h", "input_audio", "input_image", "input_video", "cache_read_audio")
CHAT = {"input", "cache_read", "write_5m", "input_audio", "output", "reasoning", "output_audio"}
# What each format can report, in the names of `Call.counts`.
CLASSES = {
    "openai.chat": CHAT,
    "openai.responses": {"input", "cache_read", "write_5m", "output", "reasoning"},
    "anthropic.messages": {"input", "cache_read", "write_5m", "write_1h", "output", "reasoning", "search"},
    "gemini.generate_content": {"input", "cache_read", "input_audio", "input_image", "input_video", "cache_read_audio",
                                "tool", "output", "reasoning", "output_image"},
    "bedrock.converse": {"input", "cache_read", "write_5m", "write_1h", "output"},
    "deepseek.chat": {"input", "cache_read", "output", "reasoning"},
    "xai.chat": {"input", "cache_read", "output", "reasoning"},
    "mistral.chat": {"input", "cache_read", "output", "reasoning"},
    "openrouter.chat": CHAT,
    "cohere.v2": {"input", "output"},
    "perplexity.chat": {"input", "output", "reasoning", "citation", "search"},
    "perplexity.responses": {"input", "cache_read", "output", "reasoning", "search"},
}
# What our decoders call the formats that one provider has a dialect of.
OURS = {"perplexity.chat": "openai.chat", "perplexity.responses": "openai.responses"}
# Quantities that make up a call of each shape; a shape is used where the format reports all of them.
SHAPES = {
    "plain": ("input", "output"),
    "cached": ("input", "cache_read", "output"),
    "written": ("input", "cache_read", "write_5m", "output"),
    "written for an hour": ("input", "write_5m", "write_1h", "output"),
    "reasoning": ("input", "output", "reasoning"),
    "everything": ("input", "cache_read", "write_5m", "write_1h", "output", "reasoning"),
    "audio": ("input", "input_audio", "output"),
    "spoken": ("input", "output", "output_audio"),
    "cached audio": ("input", "cache_read", "input_audio", "cache_read_audio", "output"),
    "image": ("input", "input_image", "output"),
    "drawn": ("input", "output", "output_image"),
    "tool use": ("input", "tool", "output"),
    "searched": ("input", "output", "search"),
    "researched": ("input", "output", "reasoning", "citation", "search"),
}
# Reasoning alone is what Perplexity's chat never reports.
NEVER = {("perplexity.chat", "reasoning"), ("perplexity.chat", "everything")}
# Shapes that take what the format has of them.
LOOSE = {"everything"}
LARGEST = {"input": 20_000, "cache_read": 60_000, "write_5m": 9_000, "write_1h": 7_000, "output": 5_000,
           "reasoning": 9_000, "input_audio": 4_000, "input_image": 4_000, "cache_read_audio": 3_000, "tool": 3_000,
           "output_audio": 2_000, "output_image": 2_000, "search": 5, "citation": 3_000}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: what was used, how it is reported, and under which conditions."""

    provider: str
    model: str
    format: str
    shape: str
    counts: dict
    at: datetime.datetime = AT
    conditions: dict = dataclasses.field(default_factory=dict)
    # What the library needs to price it: its own entry.
    entry: object = None
    # A format and a body that carry the same usage, where it is not sent as the provider reports it.
    carried: tuple | None = None

    @property
    def prompt(self):
        """What context tiers are compared with."""
        return sum(self.counts.get(name, 0) for name in (*INPUTS, "tool"))

    def count(self, name):
        return self.counts.get(name, 0)

    def response(self):
        return WRITERS[self.format](self)

    def event(self):
        """The data of a usage event."""
        form, body = self.carried or (OURS.get(self.format, self.format), self.response())
        return {"provider": self.provider, "model": self.model, **self.conditions,
                "provider_usage": {"format": form, "body": body}}

    def name(self):
        conditions = " ".join(f"{key}={value}" for key, value in self.conditions.items())
        carried = f" as {self.carried[0]}" if self.carried else ""
        return f"{self.provider} {self.model} [{self.format}{carried}, {self.shape}, {self.at:%Y-%m-%dT%H:%M} {conditions}] {self.counts}"


def shapes(form):
    """Shapes that a format can report; the others are left out, not bent."""
    fits = lambda name: name in LOOSE or set(SHAPES[name]) <= CLASSES[form]
    return [name for name in SHAPES if fits(name) and (form, name) not in NEVER]


def loosest(form):
    """The shape with the most that a format reports."""
    return "researched" if form == "perplexity.chat" else "everything"


def counts(form, shape, *seed, prompt=None):
    """Quantities of a shape; with `prompt`, scaled so that the whole prompt is exactly that long."""
    drawn = random.Random("/".join(map(str, (form, shape, *seed))))
    found = {name: drawn.randint(1, LARGEST[name]) for name in SHAPES[shape] if name in CLASSES[form]}
    if prompt is not None:
        beside = sum(count for name, count in found.items() if name in INPUTS and name != "input")
        if beside >= prompt:
            found = {name: count for name, count in found.items() if name not in INPUTS}
            beside = 0
        found["input"] = prompt - beside
    return found


def chat(call):
    count = call.count
    prompt = {"cached_tokens": count("cache_read"), "cache_write_tokens": count("write_5m") + count("write_1h"),
              "audio_tokens": count("input_audio")}
    spoken = {"reasoning_tokens": count("reasoning"), "audio_tokens": count("output_audio")}
    completion = count("output") + count("reasoning") + count("output_audio")
    return {"model": call.model, "usage": {
        "prompt_tokens": call.prompt, "completion_tokens": completion, "total_tokens": call.prompt + completion,
        "prompt_tokens_details": filled(prompt), "completion_tokens_details": filled(spoken)}}


def deepseek(call):
    response = chat(call)
    read = call.count("cache_read")
    response["usage"] |= {"prompt_cache_hit_tokens": read, "prompt_cache_miss_tokens": call.prompt - read}
    return response


def xai(call):
    """Reasoning stands beside the completion."""
    response = chat(call)
    response["usage"]["completion_tokens"] -= call.count("reasoning")
    return response


def perplexity(call):
    """Reasoning and citations stand beside prompt and completion."""
    count = call.count
    beside = {"reasoning_tokens": count("reasoning"), "citation_tokens": count("citation"),
              "num_search_queries": count("search")}
    return {"model": call.model, "usage": {
        "prompt_tokens": count("input"), "completion_tokens": count("output"),
        "total_tokens": count("input") + count("output"), **filled(beside)}}


def responses(call):
    count = call.count
    output = count("output") + count("reasoning")
    return {"model": call.model, "usage": {
        "input_tokens": call.prompt, "output_tokens": output, "total_tokens": call.prompt + output,
        "input_tokens_details": {"cached_tokens": count("cache_read"), "cache_write_tokens": count("write_5m")},
        "output_tokens_details": {"reasoning_tokens": count("reasoning")}}}


def perplexity_responses(call):
    """Cache counts and searches have names of their own."""
    response = responses(call)
    usage = response["usage"]
    usage["input_tokens_details"] = {"cache_read_input_tokens": call.count("cache_read")}
    if call.count("search"):
        usage["tool_calls_details"] = {"search_web": {"invocation": call.count("search")}}
    return response


def anthropic(call):
    count = call.count
    usage = {"input_tokens": count("input"), "output_tokens": count("output") + count("reasoning"),
             "cache_read_input_tokens": count("cache_read"),
             "cache_creation_input_tokens": count("write_5m") + count("write_1h"),
             "cache_creation": {"ephemeral_5m_input_tokens": count("write_5m"),
                                "ephemeral_1h_input_tokens": count("write_1h")}}
    if count("reasoning"):
        usage["output_tokens_details"] = {"thinking_tokens": count("reasoning")}
    if count("search"):
        usage["server_tool_use"] = {"web_search_requests": count("search")}
    return {"model": call.model, "usage": usage}


def gemini(call):
    count = call.count
    cached = count("cache_read") + count("cache_read_audio")
    prompt = call.prompt - count("tool")
    candidates = count("output") + count("output_image")
    usage = {
        "promptTokenCount": prompt, "cachedContentTokenCount": cached, "candidatesTokenCount": candidates,
        "thoughtsTokenCount": count("reasoning"), "toolUsePromptTokenCount": count("tool"),
        "totalTokenCount": call.prompt + candidates + count("reasoning"),
        "promptTokensDetails": modalities(TEXT=count("input") + count("cache_read"), IMAGE=count("input_image"),
                                          AUDIO=count("input_audio") + count("cache_read_audio")),
        "cacheTokensDetails": modalities(TEXT=count("cache_read"), AUDIO=count("cache_read_audio")),
        "candidatesTokensDetails": modalities(TEXT=count("output"), IMAGE=count("output_image")),
        "toolUsePromptTokensDetails": modalities(TEXT=count("tool"))}
    return {"modelVersion": call.model, "usageMetadata": filled(usage)}


def bedrock(call):
    count = call.count
    written = count("write_5m") + count("write_1h")
    details = [{"ttl": ttl, "inputTokens": count(name)} for ttl, name in (("5m", "write_5m"), ("1h", "write_1h"))
               if count(name)]
    return {"usage": {
        "inputTokens": count("input"), "outputTokens": count("output"), "totalTokens": call.prompt + count("output"),
        "cacheReadInputTokens": count("cache_read"), "cacheWriteInputTokens": written, "cacheDetails": details}}


def cohere(call):
    """What the model read is more than what is billed."""
    units = {"input_tokens": call.count("input"), "output_tokens": call.count("output")}
    return {"model": call.model, "usage": {
        "billed_units": units, "tokens": {**units, "input_tokens": units["input_tokens"] + COHERE_FRAME_TOKENS}}}


def filled(fields):
    """Without what is zero or empty, which providers leave out as often as not."""
    return {name: value for name, value in fields.items() if value}


def modalities(**tokens):
    return [{"modality": name, "tokenCount": count} for name, count in tokens.items() if count]


WRITERS = {
    "openai.chat": chat, "openai.responses": responses, "anthropic.messages": anthropic,
    "gemini.generate_content": gemini, "bedrock.converse": bedrock, "deepseek.chat": deepseek, "xai.chat": xai,
    "mistral.chat": chat, "openrouter.chat": chat, "cohere.v2": cohere,
    "perplexity.chat": perplexity, "perplexity.responses": perplexity_responses,
}
