"""The invariants: each check returns sentences about what breaks it, none where it holds."""

import base64
import json
from collections import Counter, defaultdict
from fractions import Fraction

from ledger import amount, multirange, quantities


def recorded_rows(ledger):
    """Rows of events themselves, by identity; corrections and re-rates aside."""
    rows = defaultdict(list)
    for row in ledger.events:
        if row["kind"] in ("usage", "outcome"):
            rows[(row["source"], row["id"])].append(row)
    return rows


def row_content(ledger, row):
    """What the journal holds of an event, in the form of Event.content."""
    outcome = row["kind"] == "outcome"
    model = (None, None) if outcome else (row["provider"], row["model"])
    units = tuple(sorted(quantities(row).items()))
    customer = ledger.customers[row["customer_id"]]
    return (customer, model, units, row["task_id"] or None, row["task_type"] or None, row["outcome"] or None)


def no_loss(ledger, journals):
    """I1: whatever a gateway has sent is recorded, or a rejection where it cannot be. A conflict says that another event
    stands under the identity: where none does, that one is lost."""
    recorded = recorded_rows(ledger)
    kept = {(r["event_source"], r["event_id"]) for r in ledger.rejections if r["reason"] != "conflict"}
    rejected = {(row["event_source"], row["event_id"]) for row in ledger.rejections}
    raws = [bytes.fromhex(row["raw"][2:]) for row in ledger.rejections if row["event_index"] == "-1"]
    for event in journals.events:
        if event.note == "poison":
            if event.identity not in rejected:
                yield f"{event.identity} cannot be recorded and is no rejection"
        elif event.identity not in recorded and event.identity not in kept:
            yield f"{event.identity} ({event.note}) is nowhere"
    for body in journals.whole:
        if body.encode() not in raws:
            yield f"the message {body!r} is no rejection"


def refused(ledger, journals):
    """Not wrong, but worth a word: events that could have been recorded and are rejections only."""
    recorded = recorded_rows(ledger)
    reasons = {(row["event_source"], row["event_id"]): row["reason"] for row in ledger.rejections}
    for event in journals.events:
        if event.note != "poison" and event.identity not in recorded and event.identity in reasons:
            yield f"{event.identity}: {reasons[event.identity]}"


def no_double(ledger, journals):
    """I2: one row per identity, with the content of one of the events that carried it; the others are conflicts."""
    contents = defaultdict(set)
    for event in journals.events:
        if event.note != "poison":
            contents[event.identity].add(event.content())
    rejected = {(row["event_source"], row["event_id"]) for row in ledger.rejections}
    conflicts = {(r["event_source"], r["event_id"]) for r in ledger.rejections if r["reason"] == "conflict"}
    expected, found = Counter(), Counter()
    for identity, rows in recorded_rows(ledger).items():
        if len(rows) > 1:
            yield f"{identity} is recorded {len(rows)} times"
        if identity not in contents:
            yield f"{identity} was never sent"
            continue
        content = row_content(ledger, rows[0])
        if content not in contents[identity]:
            yield f"{identity} is recorded as {content}, was sent as {sorted(contents[identity], key=repr)}"
        if len(contents[identity]) > 1 and identity not in rejected:
            yield f"{identity} was sent with {len(contents[identity])} contents and none of them is a conflict"
        if len(contents[identity]) == 1 and identity in conflicts:
            yield f"{identity} was sent with one content and is a conflict"
        customer, model, units, *_ = content
        expected.update({(customer, model, name): count for name, count in units})
    for row in ledger.events:
        if row["kind"] == "usage":
            key = (ledger.customers[row["customer_id"]], (row["provider"], row["model"]))
            found.update({(*key, name): count for name, count in quantities(row).items()})
    for key in expected.keys() | found.keys():
        if expected[key] != found[key]:
            yield f"{key}: {found[key]} units are recorded, {expected[key]} were sent"


def amounts(ledger):
    """Part of I3: each row's amounts are its units at the rates of its prices."""
    for row in ledger.events:
        if row["kind"] not in ("usage", "reversal"):
            continue
        for side, price in (("cost", "cost_price_id"), ("charge", "sell_price_id")):
            must = amount(quantities(row), ledger.rates.get(row[price], {}))
            if must is None or must != Fraction(row[side]):
                yield f"{side} of {(row['source'], row['id'])} is {row[side]}, its price gives {must}"


def calls(row):
    """How many calls a row of the journal counts as."""
    if row["kind"] == "outcome":
        return 0
    return {"0": 1, "1000": -1}.get(row["part"], 0)


class Sums(defaultdict):
    """Calls, amounts and units per key."""

    def __init__(self):
        super().__init__(Counter)

    def add(self, key, count, row):
        self[key].update({"calls": count, "cost": Fraction(row["cost"]), "charge": Fraction(row["charge"])})
        self[key].update(quantities(row))

    def differences(self, other, what):
        # Keys whose sums are all zero need no row.
        for key in self.keys() | other.keys():
            for name in sorted(self[key].keys() | other[key].keys()):
                ours, theirs = self[key][name], other[key][name]
                if ours != theirs:
                    yield f"{what} {key}: {name} is {theirs}, the journal has {ours}"


def period_of(ledger):
    """A function from customer and time to the start of the billing period."""
    periods = defaultdict(list)
    for row in ledger.periods:
        periods[row["customer_id"]].append((row["start_at"], row["end_at"]))

    def find(customer, at):
        # All times are written in UTC and in one form, in which texts compare as times do, fractions included.
        return next((start for start, end in periods[customer] if start <= at < end), None)

    return find


def conservation(ledger):
    """I3: rollups and tasks are the sums over the raw events of the batches that are posted, to the last digit."""
    yield from amounts(ledger)
    find = period_of(ledger)
    journal, rollups, tasks, task_sums = Sums(), Sums(), Sums(), Sums()
    outcomes = defaultdict(list)
    for row in ledger.events:
        if not ledger.is_posted(row):
            continue
        if row["kind"] != "outcome":
            restated = row["kind"] in ("retraction", "restatement")
            key = (row["customer_id"], find(row["customer_id"], row["occurred_at"]), row["cost_price_id"],
                   row["sell_price_id"], row["project"], row["task_type"], "adjustment" if restated else "usage")
            journal.add(key, calls(row), row)
        if row["task_id"]:
            tasks.add((row["customer_id"], row["task_id"]), calls(row), row)
            if row["kind"] == "outcome":
                outcomes[(row["customer_id"], row["task_id"])].append((row["occurred_at"], row["outcome"]))
    for row in ledger.rollups:
        key = (row["customer_id"], row["service_period"], row["cost_price_id"], row["sell_price_id"],
               row["project"], row["task_type"], row["kind"])
        rollups.add(key, int(row["events"]), row)
    for row in ledger.tasks:
        key = (row["customer_id"], row["task_id"])
        task_sums.add(key, int(row["calls"]), row)
        # The latest one stands, of two at one instant the first in the alphabet.
        last = max((at for at, _ in outcomes[key]), default=None)
        must = min((outcome for at, outcome in outcomes[key] if at == last), default="")
        if row["outcome"] != must:
            yield f"task {key}: its outcome is {row['outcome']!r}, the journal has {must!r}"
    yield from journal.differences(rollups, "rollup")
    yield from tasks.differences(task_sums, "task")


def stream_messages(folder):
    with open(folder / "stream.jsonl", encoding="utf-8") as file:
        for line in map(json.loads, file):
            body = base64.b64decode(line["body"])
            try:
                events = json.loads(body)
            except ValueError:
                events = None
            yield line["incarnation"], line["sequence"], events


def accounted(ledger):
    """I9: every sequence is in a batch, every event of every message is recorded, rejected, or a copy of one that is;
    and the batches count what they hold."""
    seen = defaultdict(set)
    for row in ledger.batches:
        for low, high in multirange(row["sequences"]):
            seen[row["incarnation"]].update(range(low, high))
    for incarnation, sequences in seen.items():
        holes = sorted(set(range(1, max(sequences, default=0) + 1)) - sequences)
        if holes:
            yield f"incarnation {incarnation}: sequences {holes[:20]} are in no batch"
    at = {(ledger.incarnation.get(r["batch_id"]), r["stream_seq"], r["event_index"]): r for r in ledger.events
          if r["kind"] in ("usage", "outcome")}
    rejected = {(r["incarnation"], r["stream_seq"], r["event_index"]) for r in ledger.rejections}
    recorded = recorded_rows(ledger)
    rejections = {(row["event_source"], row["event_id"]) for row in ledger.rejections}
    for incarnation, sequence, events in stream_messages(ledger.folder):
        if sequence not in seen[incarnation]:
            yield f"incarnation {incarnation}: sequence {sequence} is in the stream and in no batch"
        whole = (incarnation, str(sequence), "-1")
        if events is None:
            if whole not in rejected:
                yield f"sequence {sequence} is no JSON and no rejection"
            continue
        for index, event in enumerate(events if isinstance(events, list) else [events]):
            position = (incarnation, str(sequence), str(index))
            identity = (event.get("source"), event.get("id"))
            if position in at and (at[position]["source"], at[position]["id"]) != identity:
                yield f"{position} is {identity} and recorded as {(at[position]['source'], at[position]['id'])}"
            if position in at and position in rejected:
                yield f"{position} is recorded and rejected"
            if position not in at and position not in rejected and identity not in recorded and identity not in rejections:
                yield f"{position} with {identity} is neither recorded nor rejected nor a copy"
    rows, refusals = Counter(), Counter(row["batch_id"] for row in ledger.rejections)
    rows.update(row["batch_id"] for row in ledger.events if row["kind"] in ("usage", "outcome") and row["part"] == "0")
    for batch in sorted((rows.keys() | refusals.keys()) - ledger.incarnation.keys()):
        yield f"batch {batch} is missing, {rows[batch]} events and {refusals[batch]} rejections are of it"
    for row in ledger.batches:
        counts = tuple(int(row[name]) for name in ("events", "recorded", "duplicates", "rejected"))
        if counts[0] != sum(counts[1:]):
            yield f"batch {row['id']} has {counts[0]} events that end as {counts[1:]}"
        if rows[row["id"]] != counts[1] or refusals[row["id"]] != counts[3]:
            held = (rows[row["id"]], refusals[row["id"]])
            yield f"batch {row['id']} says {counts[1]} recorded and {counts[3]} rejected, and has {held}"


def gap_free(ledger, journals):
    """I10: of each gateway and epoch every number that was sent has been seen, without a hole."""
    seen = {(ledger.gateways[r["gateway_id"]], r["epoch"]): multirange(r["seen"]) for r in ledger.gateway_sequences}
    last = defaultdict(int)
    for event in journals.events:
        if event.sequence is not None:
            key = (event.gateway, event.epoch)
            last[key] = max(last[key], event.sequence)
    for key, highest in last.items():
        if seen.get(key) != [(1, highest + 1)]:
            yield f"{key} has sent 1 to {highest}, seen is {seen.get(key)}"
