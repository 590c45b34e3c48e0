"""The side of LiteLLM: its price map as it is in the package, the calls that its models can get, its amounts."""

import dataclasses
import datetime
import json
import pathlib
import random
from decimal import Decimal

import litellm
from litellm._internal_context import pinned_billing_time
from litellm.cost_calculator import batch_cost_calculator, cost_per_token
from litellm.llms import get_cost_for_web_search_request
from litellm.llms.bedrock.chat.converse_transformation import AmazonConverseConfig
from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import VertexGeminiConfig
from litellm.llms.xai.chat.transformation import XAIChatConfig
from litellm.responses.utils import ResponseAPILoggingUtils
from litellm.types.utils import Usage

from calls import AT, UTC, Call, counts, loosest, shapes

litellm.suppress_debug_info = True
LIBRARY = "litellm"
MAP = pathlib.Path(litellm.__file__).with_name("model_prices_and_context_window_backup.json")
MODES = {"chat", "responses", "completion", "embedding"}
# Our names of providers that the map names otherwise.
OURS = {"gemini": "google", "cohere_chat": "cohere", "moonshot": "moonshotai"}
# What LiteLLM calls the providers of some entries when it prices a call.
THEIRS = {"bedrock_converse": "bedrock", "fireworks_ai-embedding-models": "fireworks_ai"}
FORMATS = {
    "anthropic": "anthropic.messages", "vertex_ai-anthropic_models": "anthropic.messages", "bedrock": "bedrock.converse",
    "bedrock_converse": "bedrock.converse", "gemini": "gemini.generate_content",
    "vertex_ai-language-models": "gemini.generate_content", "deepseek": "deepseek.chat", "xai": "xai.chat",
    "mistral": "mistral.chat", "openrouter": "openrouter.chat", "cohere_chat": "cohere.v2", "perplexity": "perplexity.chat",
}
# Formats of which LiteLLM's own record says less than the response.
UNCARRIED = {"perplexity.chat", "cohere.v2"}
# One in so many models is also called at a tier that it has no prices for.
UNASKED = 12
TIERS = ("priority", "flex", "balanced", "ultrafast", "fast")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the map, and how LiteLLM is asked for it."""

    key: str
    listed: dict
    provider: str
    model: str
    # The entry that LiteLLM takes where the name repeats the provider.
    unrepeated: dict | None


def write_prices(path):
    path.write_bytes(MAP.read_bytes())
    return path


def entries():
    """What our importer reads as models with token prices, by our provider and model."""
    listed = json.loads(MAP.read_text())
    found = {}
    for key, entry in listed.items():
        provider = entry.get("litellm_provider") if isinstance(entry, dict) else None
        if provider is None or key in ("sample_spec", "fallback_generalizations") or entry.get("mode") not in MODES:
            continue
        if "input_cost_per_token" not in entry and "tiered_pricing" not in entry:
            continue
        theirs = "vertex_ai" if provider.startswith("vertex_ai-") else THEIRS.get(provider, provider)
        model = key.removeprefix(f"{theirs}/")
        name = (OURS.get(provider, theirs), model)
        # LiteLLM looks for the name with the provider first.
        if name not in found or key.startswith(f"{theirs}/"):
            repeated = key.startswith(f"{theirs}/{theirs}/")
            found[name] = Entry(key, entry, theirs, key, listed.get(model) if repeated else None)
    return found


def calls():
    for (provider, model), entry in entries().items():
        yield from calls_of(provider, model, entry)


def thresholds(listed):
    found = {int(key.split("_above_")[-1].split("k_tokens")[0]) * 1000 for key in listed if "k_tokens" in key and "_above_" in key}
    found |= {int(row["range"][0]) for row in listed.get("tiered_pricing", []) if row["range"][0] > 0}
    return sorted(found)


def instants(listed):
    """A little before and at every edge of the off-peak windows, on a Monday and a Saturday."""
    windows = listed.get("off_peak_pricing", {}).get("windows", [])
    hours = [hours for window in windows for hours in ([window["hours_utc"]] if isinstance(window["hours_utc"], str) else window["hours_utc"])]
    edges = {datetime.time.fromisoformat(edge) for window in hours for edge in window.split("-")}
    for day in (datetime.date(2026, 11, 23), datetime.date(2026, 11, 28)):
        for edge in sorted(edges):
            at = datetime.datetime.combine(day, edge, UTC)
            yield from (at - datetime.timedelta(seconds=1), at)


def calls_of(provider, model, entry):
    listed = entry.listed
    form = FORMATS.get(listed["litellm_provider"], "openai.chat")
    embeds = listed["mode"] == "embedding"
    if listed["mode"] == "responses" and form == "openai.chat":
        form = "openai.responses"

    def call(shape, prompt=None, at=AT, form=form, **conditions):
        drawn = counts(form, shape, provider, model, prompt, prompt=prompt)
        if embeds:
            drawn = {name: count for name, count in drawn.items() if name == "input"}
        return Call(provider, model, form, shape, drawn, at, conditions, entry)

    if embeds:
        yield call("plain", form="openai.chat")
        return
    for shape in shapes(form):
        yield call(shape)
    whole = call(loosest(form))
    if form not in UNCARRIED:
        yield dataclasses.replace(whole, carried=("litellm", logged(whole)))
    if form == "openai.chat" and provider in ("openai", "azure"):
        yield call("everything", form="openai.responses")
    for above in thresholds(listed):
        for prompt in (above - 1, above, above + 1):
            yield call(loosest(form), prompt)
    for at in instants(listed):
        yield call(loosest(form), at=at)
    if random.Random(entry.key).randrange(UNASKED) == 0 and not any(key.endswith("_priority") for key in listed):
        yield call(loosest(form), service_tier="priority")
    for conditions in asked(provider, listed):
        yield call(loosest(form), **conditions)
        for above in thresholds(listed):
            yield call(loosest(form), above + 1, **conditions)


def asked(provider, listed):
    """Conditions that the map has prices for."""
    for tier in TIERS:
        suffix = "_priority" if tier == "fast" else f"_{tier}"
        if any(key.endswith(suffix) for key in listed) and (tier != "fast" or provider == "openai"):
            yield {"service_tier": tier}
    if any(key.endswith("_batches") for key in listed):
        yield {"processing": "batch"}
    for region in ("eu", "us"):
        if f"regional_processing_uplift_multiplier_{region}" in listed:
            yield {"region": region}
    if "regional_endpoint_uplift_multiplier" in listed and listed["litellm_provider"].startswith("vertex_ai"):
        yield {"region": "us-east5"}
    specific = listed.get("provider_specific_entry", {}) if provider == "anthropic" else {}
    if "us" in specific:
        yield {"region": "us"}
    if "fast" in specific:
        yield {"speed": "fast"}
        if "us" in specific:
            yield {"speed": "fast", "region": "us"}


def usage_of(call):
    """The usage as LiteLLM reads it from the provider's response."""
    response = call.response()
    if call.format == "gemini.generate_content":
        return VertexGeminiConfig._calculate_usage(completion_response=response)
    body = response["usage"]
    if call.format == "anthropic.messages":
        return litellm.AnthropicConfig().calculate_usage(usage_object=body, reasoning_content=None)
    if call.format == "bedrock.converse":
        return AmazonConverseConfig().transform_usage(body)
    if call.format == "openai.responses":
        return ResponseAPILoggingUtils.transform_response_api_usage_to_chat_usage(body)
    if call.format == "cohere.v2":
        tokens = body["tokens"]
        return Usage(prompt_tokens=tokens["input_tokens"], completion_tokens=tokens["output_tokens"],
                     total_tokens=sum(tokens.values()))
    if call.format == "xai.chat":
        usage = Usage(**body)
        XAIChatConfig.fold_reasoning_tokens_into_completion(usage)
        return usage
    usage = Usage(**body)
    if call.format == "perplexity.chat" and call.count("search"):
        usage.prompt_tokens_details = litellm.types.utils.PromptTokensDetailsWrapper(web_search_requests=call.count("search"))
    return usage


def logged(call):
    """The call as LiteLLM's callbacks report it."""
    usage = usage_of(call)
    return {"model": call.model, "custom_llm_provider": call.entry.provider, "status": "success", "cache_hit": False,
            "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
            "metadata": {"usage_object": usage.model_dump()}}


def amount(call):
    entry, conditions, usage = call.entry, call.conditions, usage_of(call)
    with pinned_billing_time(call.at):
        if conditions.get("processing") == "batch":
            parts = batch_cost_calculator(usage, entry.model, entry.provider)
            return sum(map(exact, parts))
        region = conditions.get("region")
        vertex = region if entry.provider == "vertex_ai" else None
        if call.provider == "anthropic":
            usage.inference_geo, usage.speed, region = region, conditions.get("speed"), None
        parts = cost_per_token(model=entry.model, custom_llm_provider=entry.provider, usage_object=usage,
                               prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens,
                               service_tier=conditions.get("service_tier"), data_residency=region, vertex_location=vertex)
        total = sum(map(exact, parts))
        if call.count("search") and entry.provider != "perplexity":
            info = litellm.get_model_info(model=entry.model, custom_llm_provider=entry.provider)
            total += exact(get_cost_for_web_search_request(custom_llm_provider=entry.provider, usage=usage, model_info=info) or 0.0)
        return total


def exact(number):
    return Decimal(repr(number))
