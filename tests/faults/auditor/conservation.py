"""I3: rollups and tasks are the sums of the journal, and its amounts are units times rates."""

from collections import defaultdict

from ledger import amount, exact, quantities, shown, within
from times import day_of, hour_of

# Which price makes an amount, and which of the customer's books it may be from.
SIDES = {"cost": ("cost_price_id", ("cost_book_id",)), "charge": ("sell_price_id", ("sell_book_id", "override_book_id"))}


def amounts(ledger):
    """Each row's prices are those of its model, of its customer's books and of its time, and its amounts are its units at
    their rates. Prices name one model each: no ledger here has aliases or patterns."""
    for row in ledger.events:
        if row["kind"] not in ("usage", "reversal"):
            continue
        units, at = quantities(row), row["occurred_at"]
        books = [books for books in ledger.assignments[row["customer_id"]] if within(books, at)]
        for side, (column, kinds) in SIDES.items():
            price, what = ledger.prices.get(row[column]), (row["source"], row["id"])
            if price is None:
                yield f"{side} of {what} is by price {row[column]!r}, which there is not"
                continue
            if (price["provider"], price["model"]) != (row["provider"], row["model"]):
                yield f"{side} of {what} is by a price of {price['provider']} {price['model']}, its model is {row['model']}"
            if not within(price, at):
                yield f"{side} of {what} is by a price that does not apply at {at}"
            if not any(price["book_id"] == book[kind] for book in books for kind in kinds):
                yield f"{side} of {what} is by a price of book {price['book_id']}, which is not its customer's"
            must = amount(units, ledger.rates.get(row[column], {}))
            if must is None or must != exact(row[side]):
                yield f"{side} of {what} is {row[side]}, its price gives {'none' if must is None else shown(must)}"


def corrections(ledger):
    """Each correction takes back its estimate, part by part. No gateway here corrects an estimate twice, and no ledger here
    has re-rates."""
    events, taken = defaultdict(dict), defaultdict(dict)
    for row in ledger.events:
        if row["kind"] == "usage":
            events[row["event_key"]][int(row["part"])] = row
        elif row["kind"] == "reversal":
            taken[row["event_key"]][int(row["part"]) - 1000] = row
    corrected = set()
    for key, parts in events.items():
        estimate = parts[min(parts)]["corrects_key"]
        if not estimate:
            continue
        must = {part: (estimate, *standing(row, -1)) for part, row in events.get(estimate, {}).items()}
        found = {part: (row["corrects_key"], *standing(row, 1)) for part, row in taken.pop(key, {}).items()}
        if found != must:
            yield f"event {key} takes back {found}, what stood is {must}"
        if estimate in corrected:
            yield f"event {key} corrects {estimate}, which another one corrects too"
        corrected.add(estimate)
    for key in taken:
        yield f"event {key} takes something back and corrects nothing"


def standing(row, sign):
    units = {name: sign * count for name, count in quantities(row).items()}
    return units, *((row[column], sign * exact(row[side])) for side, (column, _) in SIDES.items())


def calls(row):
    """How many calls a row of the journal counts as."""
    if row["kind"] == "outcome":
        return 0
    return {"0": 1, "1000": -1}.get(row["part"], 0)


def figures_of(row, count):
    """What sums are made of: calls, amounts and units."""
    return {"calls": count, "cost": exact(row["cost"]), "charge": exact(row["charge"]), **quantities(row)}


class Sums(defaultdict):
    """Figures per key."""

    def __init__(self):
        super().__init__(dict)

    def add(self, key, figures):
        sums = self[key]
        for name, count in figures.items():
            sums[name] = sums.get(name, 0) + count

    def differences(self, other, what, source="the journal"):
        # Keys whose sums are all zero need no row.
        for key in self.keys() | other.keys():
            for name in sorted(self[key].keys() | other[key].keys()):
                ours, theirs = self[key].get(name, 0), other[key].get(name, 0)
                if ours != theirs:
                    text = shown if name in SIDES else str
                    yield f"{what} {key}: {name} is {text(theirs)}, {source} has {text(ours)}"


def periods_of(ledger):
    """A function from customer, time and how many periods were closed to the starts of two periods: the one that is billed,
    and the one that the time lies in. What comes after its period was closed is billed in the one that is open then."""
    periods = defaultdict(list)
    for row in ledger.periods:
        closing = int(row["closing"]) if row["closing"] else None
        periods[row["customer_id"]].append((row["start_at"], row["end_at"], closing))

    def find(customer, at, closed):
        # All times are written in UTC and in one form, in which texts compare as times do, fractions included.
        own = next((start for start, end, _ in periods[customer] if start <= at < end), None)
        ends = [(closing, end) for _, end, closing in periods[customer] if closing is not None and closing <= closed]
        return (own if own is None or not ends else max(own, max(ends)[1])), own

    return find


def key_of(row, hour):
    return (row["customer_id"], row["booked_period"], row["service_period"], hour, row["cost_price_id"],
            row["sell_price_id"], row["project"], row["task_type"], row["kind"])


def rollups(ledger, journal):
    """Every hour is the sum of its rows of the journal, whether it is summed into its day or not; a day is that of its
    hours."""
    by_hour, days, by_day = Sums(), Sums(), Sums()
    for row in ledger.rollups:
        found = by_day if row["whole_day"] == "t" else by_hour
        found.add(key_of(row, row["hour"]), figures_of(row, int(row["events"])))
    for row in ledger.hours:
        figures = figures_of(row, int(row["events"]))
        by_hour.add(key_of(row, row["hour"]), figures)
        # A period may begin within a day.
        day = max(day_of(row["hour"], ledger.zones[row["customer_id"]]), row["service_period"])
        days.add(key_of(row, day), figures)
        if row["day"] != day:
            yield f"hour {row['hour']} of customer {row['customer_id']} is summed into {row['day']}, its day is {day}"
    yield from journal.differences(by_hour, "rollup")
    yield from days.differences(by_day, "rollup of a day", "the hours of it")


def conservation(ledger):
    """I3: rollups and tasks are the sums over the raw events of the batches that are posted, to the last digit."""
    yield from amounts(ledger)
    yield from corrections(ledger)
    find = periods_of(ledger)
    journal, tasks, task_sums = Sums(), Sums(), Sums()
    outcomes = defaultdict(list)
    for row in ledger.events:
        customer, at, closed = row["customer_id"], row["occurred_at"], ledger.posted_closing(row)
        if closed is None:
            continue
        figures = figures_of(row, calls(row))
        if row["kind"] != "outcome":
            restated = row["kind"] in ("retraction", "restatement")
            key = (customer, *find(customer, at, closed), hour_of(at, ledger.zones[customer]), row["cost_price_id"],
                   row["sell_price_id"], row["project"], row["task_type"], "adjustment" if restated else "usage")
            journal.add(key, figures)
        if row["task_id"]:
            tasks.add((customer, row["task_id"]), figures)
            if row["kind"] == "outcome":
                outcomes[(customer, row["task_id"])].append((at, row["outcome"], find(customer, at, closed)[0]))
    for row in ledger.tasks:
        key = (row["customer_id"], row["task_id"])
        task_sums.add(key, figures_of(row, int(row["calls"])))
        # The latest one stands, of two at one instant the first in the alphabet; of two that are alike either may.
        last = max((at for at, *_ in outcomes[key]), default="")
        first = min((outcome for at, outcome, _ in outcomes[key] if at == last), default="")
        must = [outcome for outcome in outcomes[key] if outcome[:2] == (last, first)] or [("", "", "")]
        found = (row["ended_at"], row["outcome"], row["outcome_period"])
        if found not in must:
            yield f"task {key}: its end is {found}, the journal has {must}"
    yield from rollups(ledger, journal)
    yield from tasks.differences(task_sums, "task")
