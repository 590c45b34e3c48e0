"""The side of genai-prices: its price set as a file, the calls that its models can get, its amounts."""

import dataclasses
import datetime
import json
import random
import re
from decimal import Decimal

from genai_prices import Usage, calc_price, data, types
from genai_prices.data_snapshot import get_snapshot

from calls import AT, INPUTS, UTC, Call, counts, loosest, shapes

LIBRARY = "genai-prices"
# Our names of providers that the library names otherwise.
OURS = {"x-ai": "xai"}
# Formats by provider where the fields alone do not tell.
CHAT_FORMATS = {"deepseek": "deepseek.chat", "mistral": "mistral.chat", "x-ai": "xai.chat",
                "openrouter": "openrouter.chat", "perplexity": "perplexity.chat"}
# Extractors of things that are no calls of a model with tokens, or of forms that we do not read.
SKIPPED = {"embeddings", "live", "realtime", "images", "decisions", "systemone", "tokens", "ocr", "ocr_annotated",
           "usage-event"}
# Keys of a usage by our names, where there is no extractor to do it.
USAGE = {"cache_read": "cache_read_tokens", "write_5m": "cache_write_tokens", "input_audio": "input_audio_tokens",
         "output_audio": "output_audio_tokens", "reasoning": "output_reasoning_tokens"}
CONTEXTS = ({"service_tier": "priority"}, {"service_tier": "flex"}, {"service_tier": "fast"}, {"processing": "batch"},
            {"speed": "fast"})
# One in so many models is also called under conditions that it has no prices for.
UNASKED = 12


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the list, and how its usage is read."""

    provider: types.Provider
    model: types.ModelInfo
    extractor: types.UsageExtractor | None
    # Whether the public function finds the model under this name.
    public: bool


def plain(value):
    """The data classes of the library in the form of its data file."""
    if isinstance(value, Decimal):
        return f"<{value}>"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if item is not None}
    if hasattr(value, "__dict__"):
        return {name.rstrip("_"): plain(item) for name, item in vars(value).items() if not name.startswith("__") and item is not None}
    return value


def write_prices(path):
    providers = [{"id": provider.id, "models": [
        {"id": model.id, "match": plain(model.match), "prices": plain(model.prices),
         "price_variants": plain(model.price_variants or [])} for model in provider.models]} for provider in data.providers]
    # Decimals are written digit by digit, not by way of a float.
    path.write_text(re.sub(r'"<([^">]*)>"', r"\1", json.dumps(providers)))
    return path


def form_of(provider, extractor):
    """The format that an extractor reads, or None."""
    if extractor.api_flavor in SKIPPED:
        return None
    if extractor.root == "usageMetadata":
        return "gemini.generate_content"
    if extractor.root == ["usage", "billed_units"]:
        return "cohere.v2"
    if extractor.root != "usage":
        return None
    read = {mapping.path if isinstance(mapping.path, str) else "/".join(map(str, mapping.path)) for mapping in extractor.mappings}
    if "inputTokens" in read:
        return "bedrock.converse"
    if "prompt_tokens" in read:
        # Counts in places that only this library knows of.
        if read & {"cached_prompt_text_tokens", "cached_tokens", "cache_read_input_tokens"}:
            return None
        return CHAT_FORMATS.get(provider.id, "openai.chat")
    if "input_tokens_details/cache_read_input_tokens" in read:
        return "perplexity.responses"
    return "anthropic.messages" if "cache_read_input_tokens" in read else "openai.responses"


def readers(provider):
    """Formats that the library can read of a provider, each with its extractor, once."""
    found = {}
    for extractor in provider.extractors or []:
        form = form_of(provider, extractor)
        if form and not any(list(extractor.mappings) == list(other.mappings) for other in found.values()):
            found.setdefault(form, extractor)
    return found or {"openai.chat": None}


def history(model):
    """Instants at which the prices of a model may change, and just before them."""
    instants = set()
    conditional = [*(model.prices if isinstance(model.prices, list) else []), *(model.price_variants or [])]
    for price in conditional:
        limits = price.constraint
        if isinstance(limits, types.StartDateConstraint):
            midnight = datetime.datetime.combine(limits.start_date, datetime.time(), UTC)
            instants |= {midnight, midnight - datetime.timedelta(seconds=1)}
        elif isinstance(limits, types.TimeOfDateConstraint):
            for time in (limits.start_time, limits.end_time):
                edge = datetime.datetime.combine(AT.date(), time.replace(tzinfo=None), UTC)
                instants |= {edge, edge - datetime.timedelta(seconds=1)}
    return sorted(instants)


def thresholds(model):
    prices = prices_of(model) + [variant.prices for variant in model.price_variants or []]
    tiered = [price for one in prices for price in vars(one).values() if isinstance(price, types.TieredPrices)]
    return sorted({tier.start for price in tiered for tier in price.tiers})


def finds(provider, name, model):
    try:
        return get_snapshot().find_provider_model(name, None, provider.id, None)[1] is model
    except LookupError:
        return False


def calls():
    for provider in data.providers:
        for form, extractor in readers(provider).items():
            for model in provider.models:
                yield from calls_of(provider, model, form, extractor)


def calls_of(provider, model, form, extractor):
    found = finds(provider, model.id, model)

    prices = prices_of(model)
    writes = any(getattr(price, "output_mtok") is not None for price in prices)

    def call(shape, prompt=None, at=AT, name=model.id, public=found, silent=not writes, **conditions):
        drawn = counts(form, shape, provider.id, model.id, prompt, prompt=prompt)
        if silent:
            drawn = {name: count for name, count in drawn.items() if name in INPUTS}
        return Call(OURS.get(provider.id, provider.id), name, form, shape, drawn, at, conditions, Entry(provider, model, extractor, public))

    if not found:
        yield call("plain", public=True)
    if not writes:
        yield call("plain", silent=False)
    for name in aliases(model.match):
        yield call("plain", name=name, public=True)
    for shape in shapes(form):
        yield call(shape)
    for above in thresholds(model):
        for prompt in (above - 1, above, above + 1):
            yield call(loosest(form), prompt)
    for at in history(model):
        yield call(loosest(form), at=at)
    unasked = random.Random(f"{provider.id}/{model.id}").randrange(UNASKED) == 0
    for context in CONTEXTS:
        if any(context.items() <= variant.when.items() for variant in model.price_variants or []):
            for prompt in (None, *(above + 1 for above in thresholds(model))):
                yield call(loosest(form), prompt, **context)
            for at in history(model):
                yield call(loosest(form), at=at, **context)
        elif unasked:
            yield call(loosest(form), **context)


def prices_of(model):
    return [item.prices for item in model.prices] if isinstance(model.prices, list) else [model.prices]


def aliases(clause):
    """Exact names under which a model is called."""
    clauses = [clause, *(clause.or_ if isinstance(clause, types.ClauseOr) else [])]
    return sorted({clause.equals for clause in clauses if isinstance(clause, types.ClauseEquals)})


def usage_of(call):
    """The usage as the library reads it from the provider's response."""
    extractor = call.entry.extractor
    if extractor is not None:
        return extractor.extract(call.response())[1]
    output = sum(call.count(name) for name in ("output", "reasoning", "output_audio"))
    named = {USAGE[name]: count for name, count in call.counts.items() if name in USAGE}
    return Usage(input_tokens=call.prompt, output_tokens=output, **named)


def amount(call):
    entry, usage = call.entry, usage_of(call)
    context = call.conditions or None
    if entry.public:
        return calc_price(usage, call.model, provider_id=entry.provider.id, genai_request_timestamp=call.at,
                          price_context=context).total_price
    return entry.model.calc_price(usage, entry.provider, genai_request_timestamp=call.at, price_context=context).total_price
