"""Judges the sums of a soak: `soak.py FOLDER`, with what the gateway says it sent in `journals/totals.csv` and sums of the
ledger in `end/`. As audit.py, for more events than can be looked at one by one: counts and sums by customer and model.

I1 and I2: exactly the events that were sent are recorded, with their units. I3: rollups and tasks are the sums of the
journal, and amounts are units times rates, to the last digit. I9: every message of the stream is in one batch."""

import csv
import sys
from collections import Counter, defaultdict
from pathlib import Path

from ledger import amount, exact, multirange, shown

CLASSES = ("input", "cache_read", "output", "reasoning")
AMOUNTS = ("cost", "charge")


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sent(folder):
    """Calls and units per customer and model, as the gateway says; cached and reasoning tokens are parts of the others."""
    totals = {}
    for row in table(folder / "journals/totals.csv"):
        prompt, cached, completion, reasoning = (int(row[n]) for n in ("prompt", "cached", "completion", "reasoning"))
        units = {"calls": int(row["calls"]), "input": prompt - cached, "cache_read": cached,
                 "output": completion - reasoning, "reasoning": reasoning}
        totals[(row["customer"], row["model"])] = Counter(units)
    return totals


def sums(rows, key):
    """Calls, units and amounts per key."""
    found = defaultdict(Counter)
    for row in rows:
        found[key(row)].update({name: int(row[name]) for name in ("calls", *CLASSES)})
        found[key(row)].update({name: exact(row[name]) for name in AMOUNTS})
    return found


def differences(what, expected, found, names):
    for key in expected.keys() | found.keys():
        for name in names:
            ours, theirs = expected.get(key, Counter())[name], found.get(key, Counter())[name]
            if ours != theirs:
                text = shown if name in AMOUNTS else str
                yield f"{what} {key}: {name} is {text(theirs)}, must be {text(ours)}"


def main(folder):
    end = folder / "end"
    journal_rows = table(end / "journal_sums.csv")
    journal = sums(journal_rows, lambda row: (row["customer"], row["model"]))
    by_customer = sums(journal_rows, lambda row: row["customer"])
    by_price = sums(journal_rows, lambda row: (row["customer"], row["cost_price_id"], row["sell_price_id"]))
    rollups = sums(table(end / "rollup_sums.csv"), lambda row: (row["customer"], row["cost_price_id"], row["sell_price_id"]))
    tasks = sums(table(end / "task_sums.csv"), lambda row: row["customer"])
    rates = defaultdict(dict)
    for row in table(end / "price_rates.csv"):
        rates[row["price_id"]][row["class"]] = exact(row["rate"])
    everything = ("calls", *CLASSES, *AMOUNTS)
    found = {"I1 and I2": list(differences("recorded", sent(folder), journal, ("calls", *CLASSES))),
             "I3": list(differences("rollups of", by_price, rollups, everything))
             + list(differences("tasks of", by_customer, tasks, everything)), "I9": []}
    for row in journal_rows:
        units = {name: int(row[name]) for name in CLASSES if int(row[name])}
        for side, price in (("cost", "cost_price_id"), ("charge", "sell_price_id")):
            must = amount(units, rates[row[price]])
            if must is None or must != exact(row[side]):
                must = "none" if must is None else shown(must)
                found["I3"].append(f"{side} of {row['customer']} with price {row[price]} is {row[side]}, must be {must}")
    (batches,) = table(end / "batch_sums.csv")
    covered, last = multirange(batches["sequences"]), int((folder / "end/last_sequence").read_text("utf-8"))
    if covered != [(1, last + 1)]:
        found["I9"].append(f"the batches have sequences {covered[:5]}, the stream has 1 to {last}")
    ended = [int(batches[name]) for name in ("events", "recorded", "duplicates", "rejected")]
    calls = sum(figures["calls"] for figures in journal.values())
    if ended[0] != sum(ended[1:]) or ended[1] != calls:
        found["I9"].append(f"{ended[0]} events ended as {ended[1:]}; {calls} are recorded")
    for name, sentences in found.items():
        if sentences:
            print(f"VIOLATED {name}: {len(sentences)} in all")
            for sentence in sentences[:10]:
                print(f"    {sentence}")
    print(f"{calls} events recorded, {ended[2]} copies, {ended[3]} rejected, {batches['batches']} batches, "
          f"{last} messages")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
