"""The invariants of events: each check returns sentences about what breaks it, none where it holds."""

import base64
import json
from collections import Counter, defaultdict

from journals import content_or_none, identity
from ledger import multirange, quantities

# Why an event is no row that could be one: something else is recorded, or the database itself does not take it.
REFUSED = ("conflict", "unstorable")


def no_loss(ledger, journals):
    """I1: whatever a gateway has sent is recorded, or a rejection where it cannot be. A conflict says that another event
    stands under the identity: where none does, that one is lost."""
    kept = {(r["event_source"], r["event_id"]) for r in ledger.rejections if r["reason"] != "conflict"}
    rejected = {(row["event_source"], row["event_id"]) for row in ledger.rejections}
    raws = {bytes.fromhex(row["raw"][2:]) for row in ledger.rejections if row["event_index"] == "-1"}
    for event in journals.events:
        if event.note == "poison":
            if event.identity not in rejected:
                yield f"{event.identity} cannot be recorded and is no rejection"
        elif event.identity not in ledger.recorded and event.identity not in kept:
            yield f"{event.identity} ({event.note}) is nowhere"
    for body in journals.whole:
        if body.encode() not in raws:
            yield f"the message {body!r} is no rejection"


def refused(ledger, journals):
    """Not wrong, but worth a word: events that could have been recorded and are rejections only."""
    reasons = {(row["event_source"], row["event_id"]): row["reason"] for row in ledger.rejections}
    for event in journals.events:
        if event.note != "poison" and event.identity not in ledger.recorded and event.identity in reasons:
            yield f"{event.identity}: {reasons[event.identity]}"


def refused_contents(ledger):
    """By identity, the contents that were refused."""
    found = defaultdict(set)
    for row in ledger.rejections:
        if row["reason"] in REFUSED:
            text = json.loads(bytes.fromhex(row["raw"][2:]))
            found[(row["event_source"], row["event_id"])].add(content_or_none(text))
    return found


def no_double(ledger, journals):
    """I2: one row per identity, with the content of one of the events that carried it; the others are conflicts. The units
    of each customer, model and class are those that were sent."""
    contents = defaultdict(lambda: defaultdict(set))
    for event in journals.events:
        if event.note != "poison":
            contents[event.identity][event.content()].add(event.project())
    for sender, rows in ledger.recorded.items():
        if len(rows) > 1:
            yield f"{sender} is recorded {len(rows)} times"
        if sender not in contents:
            yield f"{sender} was never sent"
    reasons = defaultdict(set)
    for row in ledger.rejections:
        reasons[(row["event_source"], row["event_id"])].add(row["reason"])
    refused, expected = refused_contents(ledger), Counter()
    for sender, sent in contents.items():
        stands = ledger.contents.get(sender)
        if stands is None:
            # A conflict alone stands for nothing.
            if not reasons[sender] - {"conflict"}:
                expected.update(units_by_class(next(iter(sent))))
            continue
        expected.update(units_by_class(stands if stands in sent else next(iter(sent))))
        if stands not in sent:
            yield f"{sender} is recorded as {stands}, was sent as {sorted(sent, key=repr)}"
        elif (project := ledger.recorded[sender][0]["project"] or None) not in sent[stands]:
            yield f"{sender} is recorded with project {project}, was sent with {sorted(sent[stands], key=repr)}"
        for other in sent:
            if other != stands and other not in refused[sender]:
                yield f"{sender} was sent as {other} too, which is no conflict; recorded is {stands}"
        if len(sent) == 1 and "conflict" in reasons[sender]:
            yield f"{sender} was sent with one content and is a conflict"
    found = Counter()
    for row in ledger.events:
        if row["kind"] == "usage":
            key = (ledger.customers[row["customer_id"]], (row["provider"], row["model"]))
            found.update({(*key, name): count for name, count in quantities(row).items()})
    for key in expected.keys() | found.keys():
        if expected[key] != found[key]:
            yield f"{key}: {found[key]} units are recorded, {expected[key]} were sent"
    yield from corrected(ledger, journals)


def corrected(ledger, journals):
    """Part of I2: estimates are recorded as such, and corrections as those of the estimates that they name."""
    for event in journals.events:
        rows = ledger.recorded.get(event.identity)
        if event.note == "poison" or rows is None:
            continue
        row, data = rows[0], event.text["data"]
        if (row["estimated"] == "t") != (data.get("usage_source") == "estimated"):
            yield f"{event.identity} is {'an' if row['estimated'] == 't' else 'no'} estimate, was sent otherwise"
        estimate = ledger.recorded.get((event.identity[0], data.get("corrects")), [None])[0]
        must = estimate["event_key"] if estimate else data.get("corrects", "")
        if row["corrects_key"] != must:
            yield f"{event.identity} corrects {row['corrects_key']!r}, must be {must!r}"


def units_by_class(content):
    """The units of an event, by customer, model and class."""
    customer, _, model, units, *_ = content
    return {(customer, model, name): count for name, count in units}


def stream_messages(folder):
    """Life, sequence and events of each message of the stream; None for one that is no JSON."""
    with open(folder / "stream.jsonl", encoding="utf-8") as file:
        for line in map(json.loads, file):
            body = base64.b64decode(line["body"])
            try:
                events = json.loads(body)
            except ValueError:
                yield line["incarnation"], line["sequence"], None
                continue
            yield line["incarnation"], line["sequence"], events if isinstance(events, list) else [events]


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
    ends, counts = Ends(ledger), {}
    for incarnation, sequence, events in stream_messages(ledger.folder):
        counts[(incarnation, sequence)] = 1 if events is None else len(events)
        if sequence not in seen[incarnation]:
            yield f"incarnation {incarnation}: sequence {sequence} is in the stream and in no batch"
        if events is None:
            if (incarnation, str(sequence), "-1") not in ends.rejected:
                yield f"sequence {sequence} is no JSON and no rejection"
            continue
        for index, event in enumerate(events):
            yield from ends.of((incarnation, str(sequence), str(index)), event)
    yield from counted(ledger, counts)
    yield from held(ledger)


class Ends:
    """How the events of the stream ended, by their places in it: life, sequence, and index in the message."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.recorded = {(ledger.incarnation.get(r["batch_id"]), r["stream_seq"], r["event_index"]): r
                         for r in ledger.events if r["kind"] in ("usage", "outcome")}
        self.rejected = {(r["incarnation"], r["stream_seq"], r["event_index"]): r["reason"] for r in ledger.rejections}
        self.resolved = {(r["incarnation"], r["stream_seq"], r["event_index"]) for r in ledger.rejections if r["resolved_at"]}

    def of(self, place, event):
        """What is wrong with the end of an event."""
        sender, row, reason = identity(event), self.recorded.get(place), self.rejected.get(place)
        content, stands = content_or_none(event), self.ledger.contents.get(sender)
        if row is not None:
            recorded = (row["source"], row["id"])
            if recorded != sender:
                yield f"{place} is {sender} and recorded as {recorded}"
            elif content != stands:
                yield f"{place} with {sender} is {content} and recorded as {stands}"
            # A correction that came before its estimate may come again with it, before it is tried again.
            if reason is not None and place not in self.resolved:
                yield f"{place} is recorded and rejected"
        elif reason is None and stands is None:
            yield f"{place} with {sender} is neither recorded nor rejected nor a copy"
        elif reason == "conflict" and content == stands:
            yield f"{place} with {sender} is a conflict and a copy of what is recorded"
        elif reason not in REFUSED and content != stands and (reason is None or content and stands):
            yield f"{place} with {sender} is {content} and {reason or 'nothing'}, no conflict; recorded is {stands}"


def counted(ledger, counts):
    """Part of I9: a batch has the events of all its messages, as far as the stream still has them. One may be in it twice,
    where it was delivered again while it waited; none is there in part."""
    once = delivered_once(ledger)
    for row in ledger.batches:
        places = [(row["incarnation"], s) for low, high in multirange(row["sequences"]) for s in range(low, high)]
        if not places or not all(place in counts for place in places):
            continue
        events, sent = int(row["events"]), sum(counts[place] for place in places)
        again = row["incarnation"] != once and events >= sent + min(counts[place] for place in places)
        if events != sent and not again:
            yield f"batch {row['id']} has {events} events, its messages have {sent}"


def delivered_once(ledger):
    """The life of the stream of which no message was delivered or read twice; None where that is not known. A consumer that
    was made anew counts from the start: then sequences are in more than one batch."""
    path = ledger.folder / "deliveries.json"
    told = json.loads(path.read_text("utf-8")) if path.exists() else None
    if told is None:
        return None
    life = told["incarnation"]
    batches = [row for row in ledger.batches if row["incarnation"] == life]
    ranges = [part for row in batches for part in multirange(row["sequences"])]
    overlap = sum(high - low for low, high in ranges) != len({s for low, high in ranges for s in range(low, high)})
    repaired = any(row["origin"] == "repair" for row in batches)
    return life if told["deliveries"] == told["last_sequence"] and not overlap and not repaired else None


def held(ledger):
    """Part of I9: batches have the rows and rejections that they say."""
    rows, refusals = Counter(), Counter(row["batch_id"] for row in ledger.rejections)
    rows.update(row["batch_id"] for row in ledger.events if row["kind"] in ("usage", "outcome") and row["part"] == "0")
    for batch in sorted((rows.keys() | refusals.keys()) - ledger.incarnation.keys()):
        yield f"batch {batch} is missing, {rows[batch]} events and {refusals[batch]} rejections are of it"
    for row in ledger.batches:
        events, recorded, copies, rejected = (int(row[n]) for n in ("events", "recorded", "duplicates", "rejected"))
        if events != recorded + copies + rejected:
            yield f"batch {row['id']} has {events} events that end as {(recorded, copies, rejected)}"
        if rows[row["id"]] != recorded or refusals[row["id"]] != rejected:
            has = (rows[row["id"]], refusals[row["id"]])
            yield f"batch {row['id']} says {recorded} recorded and {rejected} rejected, and has {has}"


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
