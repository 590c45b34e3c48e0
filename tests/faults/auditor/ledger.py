"""The ledger as it was dumped: CSV files of one snapshot, read without knowing more of them than is asked."""

import csv
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from times import instant

MAIN_CLASSES = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")
# Places that amounts and rates have: so often ten times as much is a whole number.
PLACES = 15
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
        self.hours = self.table("usage_hours")
        self.tasks = self.table("tasks")
        self.gateway_sequences = self.table("gateway_sequences")
        self.gateways = {row["id"]: row["name"] for row in self.table("gateways")}
        customers = self.table("customers")
        self.customers = {row["id"]: row["external_id"] for row in customers}
        self.zones = {row["id"]: row["time_zone"] for row in customers}
        self.periods = self.table("billing_periods")
        self.assignments = defaultdict(list)
        for row in self.table("book_assignments"):
            self.assignments[row["customer_id"]].append(row)
        self.prices = {row["id"]: row for row in self.table("prices")}
        self.rates = {}
        for row in self.table("price_rates"):
            self.rates.setdefault(row["price_id"], {})[row["class"]] = exact(row["rate"])
        # How many periods were closed when a batch was posted.
        self.posted = {row["id"]: int(row["posted_closing"]) for row in self.batches if row["posted_at"]}
        # Of batches that are not posted as a whole, the customers with odd ids may be.
        halves = self.table("half_postings")
        self.half_posted = {row["batch_id"]: int(row["posted_closing"]) for row in halves if row["posted_closing"]}
        self.incarnation = {row["id"]: row["incarnation"] for row in self.batches}

    def posted_closing(self, event):
        """How many periods were closed when a row of the journal was posted; None where it is not."""
        batch = event["batch_id"]
        if batch in self.posted:
            return self.posted[batch]
        return self.half_posted.get(batch) if int(event["customer_id"]) % 2 == 1 else None

    @cached_property
    def recorded(self):
        """Rows of events themselves, by identity; corrections and re-rates aside."""
        rows = defaultdict(list)
        for row in self.events:
            if row["kind"] in ("usage", "outcome"):
                rows[(row["source"], row["id"])].append(row)
        return dict(rows)

    @cached_property
    def contents(self):
        """What is recorded under an identity, in the form of journals.content."""
        return {identity: self.content(rows[0]) for identity, rows in self.recorded.items()}

    def content(self, row):
        model = (None, None) if row["kind"] == "outcome" else (row["provider"], row["model"])
        units = tuple(sorted(quantities(row).items()))
        task = (row["task_id"] or None, row["task_type"] or None, row["task_parent"] or None)
        customer = self.customers[row["customer_id"]]
        return (customer, instant(row["occurred_at"]), model, units, task, row["outcome"] or None)

    def table(self, name):
        with open(self.folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def within(row, at):
    """Whether a time lies in the validity of a row. Both are written in UTC and in one form, in which texts compare as
    times do, fractions included."""
    return row["valid_from"] <= at and (not row["valid_to"] or at < row["valid_to"])


def quantities(row):
    """Units per class of a row of the journal, of a rollup or of a task, those that are not zero."""
    found = {name: int(row[name]) for name in MAIN_CLASSES if row[name] != "0"}
    if row["rare"]:
        found.update({name: int(units) for name, units in json.loads(row["rare"]).items() if int(units)})
    return found


def exact(text):
    """An amount or a rate as a whole number of its last place: nothing is rounded."""
    whole, _, places = text.partition(".")
    if len(places) > PLACES:
        raise ValueError(f"{text} has more than {PLACES} places")
    return int(whole + places.ljust(PLACES, "0"))


def shown(number):
    """The reverse, for people."""
    whole, places = divmod(abs(number), 10**PLACES)
    return f"{'-' if number < 0 else ''}{whole}.{places:0{PLACES}}"


def amount(units, rates):
    """What units cost at these rates; None where a class has no rate."""
    total = 0
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
