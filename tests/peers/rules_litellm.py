"""Why LiteLLM comes to another amount: its deviations, each computed from its own price map.

As for genai-prices: with no deviation, `amount` is how we read the map, with all it must be what LiteLLM says.
"""

import dataclasses
from decimal import Decimal

from calls import COHERE_FRAME_TOKENS

KEYS = {
    "input": ("input_cost_per_token",), "output": ("output_cost_per_token",),
    "cache_read": ("cache_read_input_token_cost", "input_cost_per_token_cache_hit"),
    "write_5m": ("cache_creation_input_token_cost",), "write_1h": ("cache_creation_input_token_cost_above_1hr",),
    "reasoning": ("output_cost_per_reasoning_token",), "input_audio": ("input_cost_per_audio_token",),
    "input_image": ("input_cost_per_image_token",), "cache_read_audio": ("cache_read_input_audio_token_cost",),
    "output_audio": ("output_cost_per_audio_token",), "output_image": ("output_cost_per_image_token",),
}
PARENTS = {"cache_read": "input", "write_5m": "input", "write_1h": "write_5m", "input_audio": "input", "input_image": "input",
           "cache_read_audio": "cache_read", "reasoning": "output", "output_audio": "output", "output_image": "output"}
SUFFIXES = {"priority": "_priority", "fast": "_priority", "flex": "_flex", "balanced": "_balanced", "ultrafast": "_ultrafast"}
# Classes whose rates LiteLLM looks up by the length of the prompt.
BY_LENGTH = ("input", "output", "cache_read", "write_5m", "write_1h")
# Providers whose calculators are not told the service tier.
UNTIERED = {"fireworks_ai", "deepseek", "tencent", "perplexity", "xai", "dashscope", "qwencloud", "qwen_ai_platform"}
DEVIATIONS = (
    "provider twice in the name", "no fee per request", "Perplexity apart", "tier not passed on", "long prompts of a tier at the standard rate",
    "cached audio as text", "tool use for nothing", "Cohere by its tokens", "batch: cached as input",
    "batch: written as input", "batch: an hour as five minutes", "batch: halves",
    "Vertex by region",
)
# The share of a float's error in a sum of a few products.
FLOAT_NOISE = Decimal("1e-12")


def tolerance(amount):
    return abs(amount) * FLOAT_NOISE


class Listing:
    """The rates of an entry for one call."""

    def __init__(self, call, deviations):
        self.call, self.deviations = call, deviations
        self.provider = call.entry.provider
        unrepeated = call.entry.unrepeated if "provider twice in the name" in deviations else None
        self.listed = table_row(unrepeated or call.entry.listed, call.prompt)
        self.off_peak = off_peak(call)
        tier = call.conditions.get("service_tier")
        self.is_batch = call.conditions.get("processing") == "batch"
        self.suffix = "_batches" if self.is_batch else SUFFIXES.get(tier, "")
        if "tier not passed on" in deviations and self.provider in UNTIERED and not self.is_batch:
            self.suffix = ""

    def number(self, key):
        value = self.listed.get(key)
        return None if value is None else Decimal(repr(value))

    def crossed(self):
        """Thresholds that the prompt is above, lowest first."""
        prompt, inclusive = self.call.prompt, self.provider == "xai"
        found = {int(key.split("_above_")[-1].split("k_tokens")[0]) for key in self.listed if "k_tokens" in key and "_above_" in key}
        return [above for above in sorted(found) if prompt > above * 1000 or (inclusive and prompt == above * 1000)]

    def own(self, name, suffix):
        """The rate that is listed for a class at this length of prompt, without any fallback."""
        for key in KEYS[name]:
            lengths = [self.number(f"{key}_above_{above}k_tokens{suffix}") for above in reversed(self.crossed())]
            found = next((rate for rate in [*lengths, self.number(key + suffix)] if rate is not None), None)
            if found is not None:
                return found
        return None

    def repeats_output(self):
        return self.number(KEYS["reasoning"][0]) == self.number(KEYS["output"][0])

    def rate(self, name):
        """The rate of a class; `None` where neither it nor its parents have one."""
        if self.off_peak is not None:
            found = next((self.off_peak[key] for key in KEYS[name] if key in self.off_peak), None)
            found = Decimal(repr(found)) if found is not None else self.number(KEYS[name][0])
            return found if found is not None else self.rate(PARENTS[name]) if name in PARENTS else None
        if name == "reasoning" and self.repeats_output():
            return self.rate("output")
        late = "long prompts of a tier at the standard rate" in self.deviations
        if self.suffix and not self.is_batch and late and name in BY_LENGTH:
            found = self.step_by_step(name)
        else:
            found = self.own(name, self.suffix) if self.suffix else None
            if found is None and name == "write_1h":
                found = self.hour_of_a_batch()
            found = self.own(name, "") if found is None else found
        if found is None and name == "cache_read" and self.provider == "fireworks_ai":
            return self.number("input_cost_per_token") / 2
        if found is None and name in PARENTS:
            return self.rate(PARENTS[name])
        return found

    def hour_of_a_batch(self):
        """We lower the rate as a batch lowers that of the input."""
        hour, batch, standard = self.own("write_1h", ""), self.own("input", "_batches"), self.own("input", "")
        lowered = self.is_batch and self.own("write_5m", "_batches") is not None
        return hour * batch / standard if lowered and None not in (hour, batch, standard) else None

    def step_by_step(self, name):
        """At each length the rate of the tier, else the standard one of that length, else what stood before."""
        key = KEYS[name][0]
        tiered = self.number(key + self.suffix) if name != "write_1h" else None
        found = tiered if tiered is not None else self.number(key)
        for above in self.crossed():
            long = f"{key}_above_{above}k_tokens"
            found = next((rate for rate in (self.number(long + self.suffix), self.number(long), found) if rate is not None), None)
        return found

    def factor(self):
        region, speed = self.call.conditions.get("region"), self.call.conditions.get("speed")
        specific = self.listed.get("provider_specific_entry", {}) if self.provider == "anthropic" else {}
        factor = Decimal(repr(self.listed.get(f"regional_processing_uplift_multiplier_{region}", 1)))
        if "Vertex by region" in self.deviations and self.provider == "vertex_ai" and region:
            factor *= Decimal(repr(self.listed.get("regional_endpoint_uplift_multiplier", 1)))
        for name in (region, speed):
            factor *= Decimal(repr(specific.get(name, 1)))
        return factor

    def search_fee(self):
        """One fee for all sizes of context, or none."""
        sizes = {Decimal(repr(fee)) for fee in self.listed.get("search_context_cost_per_query", {}).values()}
        return sizes.pop() if len(sizes) == 1 else None


def table_row(listed, prompt):
    """The entry with the rates of its table for this length of prompt, where it has one."""
    rows = [row for row in listed.get("tiered_pricing", []) if row["range"][0] < prompt]
    return {**listed, **{key: rate for row in rows for key, rate in row.items() if key != "range"}}


def off_peak(call):
    """The rates of an open window; conditions have none."""
    block = call.entry.listed.get("off_peak_pricing")
    if not block or call.conditions:
        return None
    minute = call.at.hour * 60 + call.at.minute
    # The windows are in UTC; their weekdays may be those of Shanghai, eight hours ahead.
    ahead = 8 if block.get("weekday_timezone") == "Asia/Shanghai" else 0
    weekday = call.at.isoweekday() % 7 + 1 if minute >= (24 - ahead) * 60 else call.at.isoweekday()
    for window in block["windows"]:
        hours = [window["hours_utc"]] if isinstance(window["hours_utc"], str) else window["hours_utc"]
        edges = [[int(edge[:2]) * 60 + int(edge[3:]) for edge in span.split("-")] for span in hours]
        if weekday in window["weekdays"] and any(start <= minute < (end or 24 * 60) for start, end in edges):
            return block
    return None


def amount(call, deviations=()):
    """What the map says the call costs; a class without any rate counts nothing."""
    listing, counts = Listing(call, deviations), dict(call.counts)
    if "Perplexity apart" in deviations and listing.provider == "perplexity":
        return perplexity(listing, counts)
    if "tool use for nothing" in deviations:
        counts.pop("tool", None)
    if "Cohere by its tokens" in deviations and call.format == "cohere.v2":
        counts["input"] += COHERE_FRAME_TOKENS
    # Our choice for Perplexity's citations, and tokens of tools.
    counts["input"] = counts.get("input", 0) + counts.pop("citation", 0) + counts.pop("tool", 0)
    if listing.is_batch:
        batch(listing, counts)
    searches = counts.pop("search", 0)
    if "cached audio as text" in deviations:
        counts["cache_read"] = counts.get("cache_read", 0) + counts.pop("cache_read_audio", 0)
    total = sum((count * (listing.rate(name) or 0) for name, count in counts.items()), Decimal(0)) * listing.factor()
    if listing.is_batch and "batch: halves" in deviations:
        total += halves(listing, counts)
    if "no fee per request" not in deviations:
        total += listing.number("input_cost_per_request") or 0
    return total + searches * (listing.search_fee() or 0)


def batch(listing, counts):
    """What LiteLLM counts otherwise in a batch."""
    has = lambda name: listing.own(name, "_batches") is not None
    move = lambda name, to: counts.update({to: counts.get(to, 0) + counts.pop(name, 0)})
    if has("input"):
        if "batch: cached as input" in listing.deviations and not has("cache_read"):
            move("cache_read", "input")
        if "batch: written as input" in listing.deviations and not has("write_5m"):
            move("write_5m", "input")
            move("write_1h", "input")
        if "batch: an hour as five minutes" in listing.deviations and has("write_5m"):
            move("write_1h", "write_5m")


def halves(listing, counts):
    """Half of the standard rate where there is none of a batch: what that changes."""
    changed = Decimal(0)
    if listing.own("output", "_batches") is None:
        output = counts.get("output", 0) + counts.get("reasoning", 0)
        changed += output * (listing.number("output_cost_per_token") or 0) / 2
        changed -= counts.get("output", 0) * listing.rate("output") + counts.get("reasoning", 0) * listing.rate("reasoning")
    return changed


def perplexity(listing, counts):
    """LiteLLM's calculator for Perplexity: the flat rates of input and output; reasoning is free or taken off the output."""
    count = lambda name: counts.get(name, 0)
    rate = lambda key: listing.number(key) or Decimal(0)
    output, reasoning = count("output"), count("reasoning")
    separate = listing.listed.get("output_cost_per_reasoning_token") is not None and reasoning > 0
    total = (count("input") + count("cache_read")) * rate("input_cost_per_token")
    total += count("citation") * rate("citation_cost_per_token")
    total += (max(0, output - reasoning) if separate else output) * rate("output_cost_per_token")
    total += reasoning * rate("output_cost_per_reasoning_token") if separate else 0
    fee = listing.listed.get("search_context_cost_per_query", {}).get("search_context_size_low", 0)
    return total + count("search") * Decimal(repr(fee))


def kind(amount):
    """What kind of failure it is, if it is one."""
    return getattr(amount, "kind", None)


def all_zero(call, mine, theirs):
    listed = call.entry.listed
    rates = [value for key, value in listed.items() if "cost" in key and isinstance(value, (int, float))]
    return kind(mine) == "unknown model" and not any(rates) and theirs == 0


def no_search_fee(call, mine, theirs):
    return is_searched(call, mine, theirs) and not call.entry.listed.get("search_context_cost_per_query")


def search_fee_by_size(call, mine, theirs):
    return is_searched(call, mine, theirs) and bool(call.entry.listed.get("search_context_cost_per_query"))


def is_searched(call, mine, theirs):
    return kind(mine) == "no rate" and mine.of == "web_search" and near(theirs, amount(call, DEVIATIONS))


def no_such_tier(call, mine, theirs):
    suffix = SUFFIXES.get(call.conditions.get("service_tier"))
    listed = any(key.endswith(suffix) for key in call.entry.listed) if suffix else True
    standard = dataclasses.replace(call, conditions={})
    return kind(mine) == "no price for it" and not listed and near(theirs, amount(standard, DEVIATIONS))


def near(left, right):
    return isinstance(left, Decimal) and abs(left - right) <= tolerance(right)


STATES = {"nothing but zeros": all_zero, "no fee for searches": no_search_fee,
          "fee for searches by size of context": search_fee_by_size,
          "no price for the tier": no_such_tier}
