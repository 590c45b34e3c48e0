"""Why genai-prices comes to another amount: its deviations, each computed from its own price set.

`amount(call, deviations)` is what the list says a call costs, with some of the library's deviations; with none it is how
we read the list, with all it must be what the library says, to the last digit.
"""

from decimal import ROUND_HALF_UP, Decimal

from genai_prices import types

PLACES = Decimal("1e-15")
# Price keys of a class, the most special first.
CHAINS = {
    "input": ("input_mtok",),
    "tool": ("input_mtok",),
    "cache_read": ("cache_read_mtok", "input_mtok"),
    "write_5m": ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "write_1h": ("cache_write_1h_mtok", "cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "input_audio": ("input_audio_mtok", "input_mtok"),
    "input_image": ("input_image_mtok", "input_mtok"),
    "cache_read_audio": ("cache_audio_read_mtok", "cache_read_mtok", "input_mtok"),
    "output": ("output_mtok",),
    "reasoning": ("output_reasoning_mtok", "output_mtok"),
    "output_audio": ("output_audio_mtok", "output_mtok"),
    "output_image": ("output_image_mtok", "output_mtok"),
    "citation": ("input_mtok",),
    "search": ("web_searches_kcount",),
}
# What an extractor calls a class of ours.
READ_AS = {"cache_read": "cache_read_tokens", "write_5m": "cache_write_tokens", "write_1h": "cache_write_tokens",
           "search": "web_searches"}
# Formats whose input is counted without what is cached.
EXCLUSIVE = {"anthropic.messages", "bedrock.converse"}
DEVIATIONS = ("unread counts", "citations as output", "cached audio as audio", "float noise",
              "more than 15 places")


def prices(call, context=True):
    return call.entry.model.get_prices(call.at, call.conditions if context else None)


def quoted(prices, key, prompt):
    price = getattr(prices, key)
    if not isinstance(price, types.TieredPrices):
        return price
    above = [tier.price for tier in price.tiers if prompt > tier.start]
    return above[-1] if above else price.base


def rounded(rate, deviations):
    """The rate of one unit: as we hold it, in 15 places, or as the library does, as it is listed."""
    held = rate.quantize(PLACES, ROUND_HALF_UP)
    noise = abs(rate - held) < Decimal("1e-20")
    return rate if ("float noise" if noise else "more than 15 places") in deviations else held


def unread(call):
    """Counts of the response that the provider's extractor does not read."""
    extractor = call.entry.extractor
    if extractor is None:
        return {}
    read = {mapping.dest for mapping in extractor.mappings}
    return {name: READ_AS[name] for name in call.counts if name in READ_AS and READ_AS[name] not in read}


def amount(call, deviations=(), context=True):
    """What the list says the call costs; a class without any rate counts nothing."""
    listed, counts = prices(call, context), dict(call.counts)
    prompt = call.prompt
    if "unread counts" in deviations:
        for name in unread(call):
            lost = counts.pop(name)
            if name == "search":
                continue
            if call.format in EXCLUSIVE:
                prompt -= lost
            else:
                counts["input"] = counts.get("input", 0) + lost
    total = Decimal(0)
    for name, count in counts.items():
        chain = CHAINS[name]
        if name == "citation" and "citations as output" in deviations:
            chain = ("output_citation_mtok", "output_mtok")
        if name == "cache_read_audio" and "cached audio as audio" in deviations and listed.cache_read_mtok is None:
            chain = ("cache_audio_read_mtok", "input_audio_mtok", "input_mtok")
        total += count * rate(listed, chain, prompt, deviations)
    return total + rate(listed, ("requests_kcount",), prompt, deviations)


def rate(listed, chain, prompt, deviations):
    key = next((key for key in chain if getattr(listed, key) is not None), None)
    if key is None:
        return Decimal(0)
    per = 1_000 if key.endswith("kcount") else 1_000_000
    return rounded(quoted(listed, key, prompt) / per, deviations)


def is_empty(call):
    model = call.entry.model
    listed = [item.prices for item in model.prices] if isinstance(model.prices, list) else [model.prices]
    return all(price is None for one in listed for price in vars(one).values())


def lacks_classes(call):
    """Whether none of the keys of the model has a class of ours."""
    ours = {key for chain in CHAINS.values() for key in chain} | {"requests_kcount", "input_document_kpages", "input_mchars"}
    model = call.entry.model
    listed = [item.prices for item in model.prices] if isinstance(model.prices, list) else [model.prices]
    return not any(getattr(one, key) is not None for one in listed for key in ours)


def has_variant(call):
    active = (variant for variant in call.entry.model.price_variants or []
              if variant.constraint is None or variant.constraint.active(call.at))
    return any(variant.when == call.conditions for variant in active)


def kind(amount):
    """What kind of failure it is, if it is one."""
    return getattr(amount, "kind", None)


def no_price(call, mine, theirs):
    return kind(mine) == "unknown model" and is_empty(call) and theirs == 0


def no_class(call, mine, theirs):
    return kind(mine) == "unknown model" and not is_empty(call) and lacks_classes(call) and theirs == amount(call, DEVIATIONS)


def no_rate(call, mine, theirs):
    missing = {"input": "input_mtok", "output": "output_mtok"}.get(getattr(mine, "of", None))
    return (kind(mine) == "no rate" and missing is not None and getattr(prices(call), missing) is None
            and theirs == amount(call, DEVIATIONS))


def no_search_fee(call, mine, theirs):
    return (kind(mine) == "no rate" and mine.of == "web_search" and prices(call).web_searches_kcount is None
            and theirs == amount(call, DEVIATIONS))


def no_such_tier(call, mine, theirs):
    return (kind(mine) == "no price for it" and not has_variant(call)
            and theirs == amount(call, DEVIATIONS, context=False))


def no_such_name(call, mine, theirs):
    return kind(theirs) == "LookupError" and call.model == call.entry.model.id and mine == amount(call)


# Where one of the two has no amount: which it must be, and why.
STATES = {
    "no price at all": no_price, "no class of ours": no_class, "no rate for a part": no_rate, "no fee for searches": no_search_fee,
    "no price for the tier": no_such_tier, "id that is no name": no_such_name,
}


def tolerance(_amount):
    return Decimal(0)
