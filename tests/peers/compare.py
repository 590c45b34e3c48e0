"""Amounts of ours beside those of genai-prices and LiteLLM, on the same calls at the same prices.

Their price sets go through our importers, generated provider payloads through our decoders and our rating
(`waybill prices quote`). What each library does otherwise is in `rules_*.py`, computed from its own prices; for every
call, how we read the list plus what the library does otherwise must be exactly what the library says. differences.json
tells why, where in the library, who is right, and how many calls differ for it; `--write` notes the numbers.
"""

import collections
import importlib
import importlib.metadata
import json
import logging
import pathlib
import re
import subprocess
import sys
import warnings
from decimal import Decimal

KNOWN = pathlib.Path(__file__).with_name("differences.json")
CALLS_MIN = 2_000
SHOWN_MAX = 20
# How a failure of ours is told from its text.
FAILURES = (("unknown model", r"knows no model"), ("no price for it", r"but none for"), ("no price then", r"has no price of"),
            ("no rate", r"has no rate for \d+ (\w+)"))


class Failure:
    """No amount, and why."""

    def __init__(self, kind, text, of=None):
        self.kind, self.text, self.of = kind, text, of

    def __str__(self):
        return f"none ({self.text})"


def failure_of_ours(text):
    for kind, pattern in FAILURES:
        if found := re.search(pattern, text):
            return Failure(kind, text, *found.groups())
    return Failure(text.split(":")[0], text)


def ours(binary, form, prices, calls):
    lines = "".join(json.dumps({"at": call.at.isoformat(), "data": call.event()}) + "\n" for call in calls)
    command = [binary, "prices", "quote", str(prices), "--format", form, "--valid-from", "2020-01-01T00:00:00Z"]
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: {run.stderr}")
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(calls)
    return [Decimal(answer["amount"]) if "amount" in answer else failure_of_ours(answer["error"]) for answer in answers]


def theirs(side, call):
    try:
        return side.amount(call)
    except Exception as error:  # noqa: BLE001 - each library has its own
        return Failure(type(error).__name__, f"{type(error).__name__}: {error}")


def causes(rules, call, mine, peer):
    """The causes of a difference, none where there is none; `None` where they do not explain it exactly."""
    if isinstance(mine, Failure) or isinstance(peer, Failure):
        fitting = [name for name, fits in rules.STATES.items() if fits(call, mine, peer)]
        return fitting if len(fitting) == 1 else None
    near = lambda left, right: abs(left - right) <= rules.tolerance(max(left, right))
    at = rules.amount(call)
    if not near(at, mine):
        return None
    found = []
    for number, name in enumerate(rules.DEVIATIONS, 1):
        after = rules.amount(call, rules.DEVIATIONS[:number])
        if not near(after, at):
            found.append(name)
        at = after
    return found if near(at, peer) else None


def compare(binary, cache, module, rules, counted):
    """Counts the calls by cause; the calls that no cause explains."""
    side = importlib.import_module(module)
    prices = side.write_prices(cache / f"{side.LIBRARY}.json")
    calls = list(side.calls())
    assert len(calls) >= CALLS_MIN, "too few calls to mean anything"
    equal, unexplained = 0, []
    for call, mine in zip(calls, ours(binary, side.LIBRARY, prices, calls)):
        peer = theirs(side, call)
        found = causes(rules, call, mine, peer)
        if found is None:
            unexplained.append(f"unexplained: {side.LIBRARY}: {call.name()}: ours {mine}, theirs {peer}")
        elif not found:
            equal += 1
        counted.update((side.LIBRARY, name) for name in found or [])
    formats = len({call.format for call in calls})
    print(f"{side.LIBRARY} {importlib.metadata.version(side.LIBRARY)}: {len(calls)} calls of "
          f"{len({(call.provider, call.model) for call in calls})} models in {formats} formats; {equal} equal, "
          f"{len(calls) - equal - len(unexplained)} differ for known causes, {len(unexplained)} unexplained")
    return len(calls), unexplained


def main(cache, binary, *options):
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    known = json.loads(KNOWN.read_text())
    wrong = []
    for module, rules in (("genai", "rules_genai"), ("litellm_map", "rules_litellm")):
        counted = collections.Counter()
        total, unexplained = compare(binary, pathlib.Path(cache), module, importlib.import_module(rules), counted)
        wrong += unexplained
        library = importlib.import_module(module).LIBRARY
        entry = known[library]
        if entry["calls"] != total:
            wrong.append(f"{library}: {total} calls, not {entry['calls']}")
            entry["calls"] = total
        for difference in entry["differences"]:
            found = counted.pop((library, difference["cause"]), 0)
            print(f"  {found:6}  {difference['cause']} (right: {difference['right']})")
            if found != difference["calls"]:
                wrong.append(f"{library}: {found} calls for `{difference['cause']}`, not {difference['calls']}")
                difference["calls"] = found
        wrong += [f"{name}: `{cause}` explains {found} calls, but is not in {KNOWN.name}" for (name, cause), found in counted.items()]
    if "--write" in options:
        KNOWN.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    unexplained = [line for line in wrong if line.startswith("unexplained") or "is not in" in line]
    failed = unexplained if "--write" in options else wrong
    if failed:
        sys.exit("\n".join([*failed[:SHOWN_MAX], f"{len(failed)} in all; a changed number is noted with --write"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
