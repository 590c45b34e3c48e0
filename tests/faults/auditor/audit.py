"""Judges a ledger: `audit.py FOLDER`, with the journals of the gateways in `journals/`, the dump of the ledger in `end/`
and snapshots that were taken on the way in `snapshots/*/`.

Prints what differs. Exit code 0: every invariant holds; 1: a line `VIOLATED name: …` for each that does not. Shares no
code with the program that it judges; needs Python 3.10, the time zones of the system, and nothing else."""

import sys
from itertools import islice
from pathlib import Path

from checks import accounted, gap_free, no_double, no_loss, refused
from conservation import conservation
from journals import Journals
from ledger import Ledger

EXAMPLES = 10


def snapshots(folder):
    for path in sorted(folder.glob("[0-9]*")):
        for found in conservation(Ledger(path)):
            yield f"snapshot {path.name}: {found}"


def main(folder):
    ledger, journals = Ledger(folder / "end"), Journals(folder / "journals")
    checks = {
        "I1": no_loss(ledger, journals),
        "I2": no_double(ledger, journals),
        "I3": conservation(ledger),
        "I9": accounted(ledger),
        "I10": gap_free(ledger, journals),
        "I12": snapshots(folder / "snapshots"),
    }
    violated = False
    for name, found in checks.items():
        examples = list(islice(found, EXAMPLES + 1))
        if examples:
            violated = True
            more = "and more" if len(examples) > EXAMPLES else f"{len(examples)} in all"
            print(f"VIOLATED {name}: {more}")
            for example in examples[:EXAMPLES]:
                print(f"    {example}")
    rejections = list(refused(ledger, journals))
    if rejections:
        print(f"REFUSED {len(rejections)}: {rejections[0]}")
    taken = len(list((folder / "snapshots").glob("[0-9]*")))
    print(f"{journals.messages} messages, {len(journals.events)} events sent; {len(ledger.batches)} batches, "
          f"{len(ledger.events)} rows, {len(ledger.rejections)} rejections; {taken} snapshots")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
