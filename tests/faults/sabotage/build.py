"""Builds a deliberately wrong program: `build.py REPOSITORY TARGET` copies the repository into TARGET/sabotaged, makes the
edits below, builds, and prints the path of the program. Each edit does nothing but where WAYBILL_SABOTAGE names it, so one
build serves all controls. An edit whose place has changed stops with its name: find the new place. So does one that no
test uses. `build.py REPOSITORY TARGET check` looks only whether it would build."""

import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = "waybill-sabotaged"
COPIED = ("src", "migrations", ".sqlx", "openapi", "docs", "Cargo.toml", "Cargo.lock", "README.md")

# Fault, file, text that is there once, what takes its place.
EDITS = [
    # Acknowledges before the commit; a repair would heal it, so there is none.
    ("ack_first", "src/ingest/pipeline.rs",
     "        let outcome = match self.tell(self.recorder.record(self.origin, batch)).await {",
     """        if crate::sabotage::on("ack_first") {
            self.acks.send(replies.clone()).await;
        }
        let outcome = match self.tell(self.recorder.record(self.origin, batch)).await {"""),
    # Leaves what is missing.
    ("no_repair", "src/ingest/repair.rs",
     "            let present = self.skip_expired(stream, &missing.first).await?;",
     """            if crate::sabotage::on("no_repair") {
                return Ok(round);
            }
            let present = self.skip_expired(stream, &missing.first).await?;"""),
    # Takes a batch that could not be recorded for recorded.
    ("ack_failed", "src/ingest/record.rs",
     "            let Err(error) = first else { continue };",
     """            let Err(error) = first else { continue };
            if crate::sabotage::on("ack_failed") {
                return Ok(Tried::Done(Recorded::default()));
            }"""),
    # Marks batches as posted in a transaction before the one that adds them to the sums.
    ("post_apart", "src/ingest/posting.rs",
     "    let done = match work {",
     """    if crate::sabotage::on("post_apart") && matches!(work, Work::Posting) {
        posting::mark_posted(&mut tx, &slice).await?;
        commit(tx).await?;
        tx = database.begin_ingest().await?;
    }
    let done = match work {"""),
    ("post_apart", "src/ingest/slice.rs",
     "        let open = posting::take_odd_half(tx, slice).await?;",
     """        let open = if crate::sabotage::on("post_apart") {
            slice.batches.iter().map(|batch| batch.id).collect()
        } else {
            posting::take_odd_half(tx, slice).await?
        };"""),
    ("post_apart", "src/ingest/slice.rs",
     "    posting::mark_posted(tx, slice).await?;",
     """    if !crate::sabotage::on("post_apart") {
        posting::mark_posted(tx, slice).await?;
    }"""),
    # Adds half of a slice without saying so.
    ("half_unmarked", "src/ingest/slice.rs",
     "    posting::mark_odd_half(&mut tx, &open).await?;",
     """    if !crate::sabotage::on("half_unmarked") {
        posting::mark_odd_half(&mut tx, &open).await?;
    }"""),
    # Takes what has a lower sequence than something else for known.
    ("skip_below", "src/ingest/sorted.rs",
     "                    match known(tx, &compared, &held, &seen).await? {",
     """                    let below = crate::sabotage::on("skip_below") && crate::sabotage::below_highest(candidate.event.stream_seq);
                    let known = known(tx, &compared, &held, &seen).await?;
                    match if below { Known::Duplicate } else { known } {"""),
    # Records what the journal has already, under another key.
    ("double", "src/ingest/sorted.rs",
     "        let existing = self.existing(tx, with).await?;",
     """        let mut existing = self.existing(tx, with).await?;
        if crate::sabotage::on("double") {
            existing.0.clear();
        }"""),
    ("double", "src/store/journal/copy.rs",
     "        out.uuid(event.key.0);",
     """        if crate::sabotage::on("double") {
            out.uuid(uuid::Uuid::new_v4());
        } else {
            out.uuid(event.key.0);
        }"""),
    # Estimates are not found under such keys.
    ("double", "src/ingest/record.rs",
     "        journal::correct(tx, batch.id, &sorted.corrections()).await?;",
     """        if !crate::sabotage::on("double") {
            journal::correct(tx, batch.id, &sorted.corrections()).await?;
        }"""),
    # One of two writers takes the keys the other way round.
    ("reversed", "src/ingest/record.rs",
     "        events.sort_unstable_by_key(|event| event.key);",
     """        events.sort_unstable_by_key(|event| event.key);
        if crate::sabotage::on("reversed") {
            events.reverse();
        }"""),
    # Goes on after a statement has failed.
    ("swallow", "src/ingest/record.rs",
     "        self.write(&mut tx, origin, batch, &sorted, opening.booked_on).await?;",
     """        let written = self.write(&mut tx, origin, batch, &sorted, opening.booked_on).await;
        if !crate::sabotage::on("swallow") {
            written?;
        }"""),
    # Commits without asking whether the transaction stands.
    ("unasked", "src/store/mod.rs",
     "    still_stands(&mut tx).await?;",
     """    if !crate::sabotage::on("unasked") {
        still_stands(&mut tx).await?;
    }"""),
    # Never asks whether the NATS server is still there.
    ("deaf", "src/ingest/connection.rs",
     ".ping_interval(Duration::from_secs(5))",
     ".ping_interval(Duration::from_secs(if crate::sabotage::on(\"deaf\") { 86_400 } else { 5 }))"),
    # Drops what it does for a client that goes away, wherever it is.
    ("cut_short", "src/http/edge.rs",
     "    let work = tokio::spawn(CURRENT_REQUEST.scope(id.clone(), next.run(request)).instrument(span.clone()));",
     """    let work = CURRENT_REQUEST.scope(id.clone(), next.run(request)).instrument(span.clone());
    let work = async {
        if crate::sabotage::on("cut_short") { Ok(work.await) } else { tokio::spawn(work).await }
    };"""),
    # Gives connections back to the pool with their transactions.
    ("no_rollback", "src/store/roles.rs",
     "        Ok(false) => true,",
     """        _ if crate::sabotage::on("no_rollback") => true,
        Ok(false) => true,"""),
]


def used(repository):
    """The names that tests give to `serve_sabotaged`."""
    texts = (path.read_text("utf-8") for path in (repository / "tests/faults").glob("*.rs"))
    given = (names for text in texts for names in re.findall(r'serve_sabotaged\(\s*"([^"]*)"', text))
    return {name for names in given for name in names.split(",")}


def edited(repository):
    """The files that the edits change, as they are then."""
    texts, names = {}, {fault for fault, *_ in EDITS}
    if odd := names ^ used(repository):
        sys.exit(f"sabotage {', '.join(sorted(odd))}: not both made here and used by a test")
    for fault, file, place, instead in EDITS:
        text = texts.setdefault(file, (repository / file).read_text("utf-8"))
        if text.count(place) != 1:
            sys.exit(f"sabotage {fault}: {file} has {text.count(place)} times, not once:\n{place}")
        texts[file] = text.replace(place, instead)
    return texts


def build(repository, target, verb):
    copy = target / "sabotaged"
    texts = edited(repository)
    library = (repository / "src/lib.rs").read_text("utf-8")
    texts["src/lib.rs"] = library + "\npub mod sabotage;\n"
    texts["src/sabotage.rs"] = (Path(__file__).parent / "sabotage.rs").read_text("utf-8")
    manifest = (repository / "Cargo.toml").read_text("utf-8")
    # Benchmarks and tests stay behind; the name keeps the program beside the right one.
    before, _, after = manifest.partition("[[bench]]")
    # A package of another name, or cargo takes what it built of the copy for what it would build here.
    before = before.replace('name = "waybill"\n', f'name = "{PROGRAM}"\n', 1).replace('default-run = "waybill"\n', "")
    targets = f'[lib]\nname = "waybill"\n\n[[bin]]\nname = "{PROGRAM}"\npath = "src/main.rs"\n\n'
    texts["Cargo.toml"] = before + targets + "[profile.dev]" + after.partition("[profile.dev]")[2]
    bring(repository, copy, texts)
    command = ["cargo", verb, "--quiet", "--bin", PROGRAM, "--target-dir", str(target)]
    subprocess.run(command, cwd=copy, check=True, env={**os.environ, "SQLX_OFFLINE": "true"})
    if verb == "build":
        print(target / "debug" / PROGRAM)


def bring(repository, copy, texts):
    """Copies what has changed, so that the next build has little to do."""
    wanted = {}
    for name in COPIED:
        source = repository / name
        files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        wanted.update({str(path.relative_to(repository)): path.read_bytes() for path in files})
    wanted.update({name: text.encode() for name, text in texts.items()})
    for path in [path for path in copy.rglob("*") if path.is_file()] if copy.exists() else []:
        if str(path.relative_to(copy)) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = copy / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    repository, target, *verb = sys.argv[1:]
    build(Path(repository).resolve(), Path(target).resolve(), *verb or ["build"])
