"""The ledger as it was dumped: CSV files of one snapshot, read without knowing more of them than is asked."""

import csv
import json
from fractions import Fraction
from pathlib import Path

MAIN_CLASSES = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")
# What a class without a rate of its own is charged as.
PARENT = {"reasoning": "output", "cache_write_1h": "cache_write_5m", "cache_write_5m": "input", "cache_read": "input"}

csv.field_size_limit(1 << 28)


class Ledger:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.events = self.table("usage_events")
        self.batches = self.table("ingest_batches")
        self.rejections = self.table("rejections")
        self.rollups = self.table("usage_rollups")
        self.tasks = self.table("tasks")
        self.gateway_sequences = self.table("gateway_sequences")
        self.gateways = {row["id"]: row["name"] for row in self.table("gateways")}
        self.customers = {row["id"]: row["external_id"] for row in self.table("customers")}
        self.periods = self.table("billing_periods")
        self.rates = {}
        for row in self.table("price_rates"):
            self.rates.setdefault(row["price_id"], {})[row["class"]] = Fraction(row["rate"])
        self.posted = {row["id"] for row in self.batches if row["posted_at"]}
        # Of batches that are not posted as a whole, the customers with odd ids may be.
        self.half_posted = {row["batch_id"] for row in self.table("half_postings") if row["posted_closing"]}
        self.incarnation = {row["id"]: row["incarnation"] for row in self.batches}

    def is_posted(self, event):
        batch = event["batch_id"]
        return batch in self.posted or batch in self.half_posted and int(event["customer_id"]) % 2 == 1

    def table(self, name):
        with open(self.folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def quantities(row):
    """Units per class of a row of the journal, of a rollup or of a task, those that are not zero."""
    found = {name: int(row[name]) for name in MAIN_CLASSES if int(row[name])}
    rare = json.loads(row["rare"]) if row["rare"] else {}
    found.update({name: int(units) for name, units in rare.items() if int(units)})
    return found


def amount(units, rates):
    """What units cost at these rates, exactly; None where a class has no rate."""
    total = Fraction(0)
    for name, count in units.items():
        while name not in rates:
            if name not in PARENT:
                return None
            name = PARENT[name]
        total += count * rates[name]
    return total


def multirange(text):
    """The half-open ranges of an int8multirange."""
    ranges = []
    for part in text.strip("{}").split("),["):
        part = part.strip("[)")
        if part:
            low, high = part.split(",")
            ranges.append((int(low), int(high)))
    return ranges
