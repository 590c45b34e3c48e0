"""Amounts of ours beside those of genai-prices and LiteLLM, on the same calls at the same prices.

Their price sets go through our importers, generated provider payloads through our decoder and our rating
(`waybill prices quote`). Every difference must fall under a rule of differences.json, which says why and who is right,
and each rule must explain as many calls as it says; `--write` notes the numbers.
"""

import collections
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import subprocess
import sys
from decimal import Decimal

AT = datetime.datetime(2026, 11, 23, 10, 0, tzinfo=datetime.timezone.utc)
KNOWN = pathlib.Path(__file__).with_name("differences.json")
CALLS_MIN = 2_000
# LiteLLM counts in floats: what differs by less than this share is the same.
FLOAT_NOISE = Decimal("1e-9")
# Prompt, read from a cache, written to a cache, output.
SHAPES = {
    "plain": (1_000, 0, 0, 500),
    "cached": (10_000, 6_000, 0, 700),
    "written": (10_000, 2_000, 3_000, 700),
    "long": (300_001, 100_000, 0, 4_000),
}


def payload(provider, model, shape):
    """A call as its provider would report it; the model under the name that the price list has for it."""
    prompt, read, written, output = SHAPES[shape]
    if provider == "anthropic":
        form = "anthropic.messages"
        body = {"input_tokens": prompt - read - written, "cache_read_input_tokens": read,
                "cache_creation_input_tokens": written, "output_tokens": output}
    else:
        form = "openai.chat"
        body = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written}}
    return {"provider": provider, "model": model, "provider_usage": {"format": form, "body": body}}


def ours(binary, form, prices, calls):
    lines = "".join(json.dumps({"at": AT.isoformat(), "data": payload(*call)}) + "\n" for call in calls)
    command = [binary, "prices", "quote", str(prices), "--format", form, "--valid-from", "2020-01-01T00:00:00Z"]
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: {run.stderr}")
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(calls)
    return [Decimal(answer["amount"]) if "amount" in answer else answer["error"] for answer in answers]


def plain(value):
    """The data classes of genai-prices in the form of its data file."""
    if isinstance(value, Decimal):
        return float(value) if value != value.to_integral() else int(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if item is not None}
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        fields.update(vars(value))
        return {name.rstrip("_"): plain(item) for name, item in fields.items() if item is not None and not name.startswith("_")}
    if hasattr(value, "__dict__"):
        return {name.rstrip("_"): plain(item) for name, item in vars(value).items() if not name.startswith("_") and item is not None}
    return value


def genai_prices(cache):
    from genai_prices import Usage, calc_price, data

    providers = [{"id": provider.id, "models": [
        {"id": model.id, "match": plain(model.match), "prices": plain(model.prices),
         "price_variants": plain(model.price_variants or [])} for model in provider.models]} for provider in data.providers]
    prices = cache / "genai-prices.json"
    prices.write_text(json.dumps(providers))
    calls = [(provider.id, model.id, shape) for provider in data.providers for model in provider.models for shape in SHAPES]

    def theirs(provider, model, shape):
        prompt, read, written, output = SHAPES[shape]
        usage = Usage(input_tokens=prompt, cache_read_tokens=read or None, cache_write_tokens=written or None,
                      output_tokens=output)
        return calc_price(usage, model, provider_id=provider, genai_request_timestamp=AT).total_price

    return "genai-prices", prices, calls, theirs


def litellm_map(_cache):
    import litellm
    from litellm.types.utils import PromptTokensDetailsWrapper, Usage

    prices = pathlib.Path(litellm.__file__).with_name("model_prices_and_context_window_backup.json")
    listed = {}
    for name, entry in json.loads(prices.read_text()).items():
        provider = entry.get("litellm_provider")
        if provider not in ("openai", "anthropic", "deepseek", "mistral", "xai", "groq", "dashscope", "cohere_chat",
                            "together_ai", "fireworks_ai", "openrouter", "azure_ai", "perplexity", "deepinfra", "gemini"):
            continue
        if entry.get("mode") not in ("chat", "responses", "completion") or "input_cost_per_token" not in entry:
            continue
        listed[(provider, name.removeprefix(provider + "/"))] = name
    rename = {"gemini": "google", "cohere_chat": "cohere"}
    calls = [(rename.get(provider, provider), model, shape) for provider, model in listed for shape in SHAPES]
    back = {new: old for old, new in rename.items()}

    def theirs(provider, model, shape):
        provider = back.get(provider, provider)
        prompt, read, written, output = SHAPES[shape]
        details = PromptTokensDetailsWrapper(cached_tokens=read or None, cache_creation_tokens=written or None)
        usage = Usage(prompt_tokens=prompt, completion_tokens=output, total_tokens=prompt + output,
                      prompt_tokens_details=details, cache_read_input_tokens=read, cache_creation_input_tokens=written)
        parts = litellm.cost_per_token(model=listed[(provider, model)], custom_llm_provider=provider, usage_object=usage)
        return Decimal(repr(parts[0])) + Decimal(repr(parts[1]))

    return "litellm", prices, calls, theirs


def same(left, right):
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str)
    return abs(left - right) <= FLOAT_NOISE * max(left, right)


def kind(provider, model, shape, mine, peer):
    """A short name of how they differ; an explanation is for a library, a kind and some models of it."""
    if isinstance(mine, str):
        reason = "no rate" if "no rate" in mine else "none for" if "but none for" in mine else "unknown" if "knows no model" in mine else mine[:40]
        return f"we: {reason}; they: {'nothing' if isinstance(peer, str) else 'zero' if not peer else 'an amount'}"
    if isinstance(peer, str):
        return "we: an amount; they: nothing"
    return f"{shape}: {'we more' if mine > peer else 'we less'}"


def compare(binary, library, prices, calls, theirs):
    found = collections.defaultdict(list)
    amounts = ours(binary, library, prices, calls)
    equal = 0
    for call, mine in zip(calls, amounts):
        try:
            peer = theirs(*call)
        except Exception as error:  # noqa: BLE001 - each library has its own
            peer = f"{type(error).__name__}: {error}"
        if same(mine, peer):
            equal += 1
        else:
            found[kind(*call, mine, peer)].append((call, mine, peer))
    print(f"{library} {importlib.metadata.version(library)}: {len(calls)} calls, {equal} equal, {len(calls) - equal} differ")
    assert len(calls) >= CALLS_MIN, "too few calls to mean anything"
    return found


def main(cache, binary, *options):
    rules = json.loads(KNOWN.read_text())
    counted = collections.Counter()
    wrong = []
    for source in (genai_prices, litellm_map):
        library, prices, calls, theirs = source(pathlib.Path(cache))
        for kind_name, cases in sorted(compare(binary, library, prices, calls, theirs).items()):
            for call, mine, peer in cases:
                fitting = [number for number, rule in enumerate(rules) if rule["library"] == library
                           and kind_name in rule["kinds"] and {call[0], "*"} & set(rule["providers"])]
                if fitting:
                    counted[fitting[0]] += 1
                else:
                    wrong.append(f"unexplained: {library} {' '.join(call)}: ours {mine}, theirs {peer}")
    for number, rule in enumerate(rules):
        print(f"  {counted[number]:5} {rule['library']}: {rule['reason']} Right: {rule['right']}.")
        if counted[number] != rule["calls"]:
            wrong.append(f"rule {number + 1} explains {counted[number]} calls, not {rule['calls']}")
            rule["calls"] = counted[number]
    if "--write" in options:
        KNOWN.write_text(json.dumps(rules, indent=1, ensure_ascii=False) + "\n")
    elif wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
