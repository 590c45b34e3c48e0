//! Segments that are settled and kept: for how long, what a start believes of them, and what becomes of those that are gone.

use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

/// How long something that must not wait may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn what_is_settled_is_kept_until_its_room_is_needed() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    let segments = place.segments().len();
    journal.release(&settled(60, 60, ""), ACCEPTED_MS).unwrap();
    assert_eq!((place.segments().len(), all(&journal).len()), (segments, 60), "not old enough");
    let kept = journal.kept_bytes();
    assert!(kept > 400_000, "all but the newest segment: {kept}");
    // A ledger that has forgotten them: they are not given away.
    journal.unsettle();
    let full = (61..1_000).find(|number| append(&writer, vec![event(*number, 10_000)]).is_err()).unwrap();
    assert_eq!((journal.kept_bytes(), all(&journal).len() as u64), (0, full - 1));
    journal.release(&settled(60, 60, ""), ACCEPTED_MS).unwrap();
    assert_eq!(journal.kept_bytes(), kept);
    let taken = (full..1_000).find(|number| append(&writer, vec![event(*number, 10_000)]).is_err()).unwrap();
    assert!(taken > 60 + 90, "all the room that the bound gives is for what is not settled: {taken}");
    assert_eq!(journal.kept_bytes(), 0);
    assert!(journal.bytes().0 <= 1 << 20 && journal.oldest() <= 61);
}

#[test]
fn what_the_ledger_had_is_known_after_a_start() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    assert_eq!(journal.noted_settled(), None);
    let some = settled(50, 60, r#"{"first":51,"last":52}"#);
    journal.note_settled(&some).unwrap();
    drop((journal, writer));
    // What is settled is not read at a start, and when it is its damage shows.
    let path = place.segments().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (journal, writer) = place.open_bounded(1 << 20);
    assert_eq!((journal.noted_settled(), journal.damaged(), journal.durable()), (Some(some.clone()), 0, 60));
    assert!(journal.kept_bytes() > 300_000, "{}", journal.kept_bytes());
    assert_eq!((all(&journal).len(), journal.damaged()), (59, 1));
    journal.release(&some, i64::MAX).unwrap();
    assert!(path.with_extension("damaged").exists() && journal.oldest() == 40);
    drop((journal, writer));
    let noted = place.0.join("settled.json");
    let text = std::fs::read_to_string(&noted).unwrap();
    std::fs::write(&noted, text.replace("50", "59")).unwrap();
    assert_eq!(place.open().0.noted_settled(), None, "its sum is wrong");
}

#[test]
fn what_a_settled_segment_lacks_shows_when_it_is_read_after_all() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    let some = settled(50, 60, r#"{"first":51,"last":52}"#);
    journal.note_settled(&some).unwrap();
    drop((journal, writer));
    // Its last records are gone, at the border of a record.
    let path = place.segments().remove(0);
    let whole: usize = (1..=10).map(|number| HEADER_BYTES + event(number, 10_000).len()).sum();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(whole as u64).unwrap();
    let (journal, _writer) = place.open_bounded(1 << 20);
    assert_eq!((journal.damaged(), journal.oldest(), journal.oldest_unsettled()), (0, 1, 40));
    journal.unsettle();
    assert_eq!(journal.oldest_unsettled(), 1);
    assert_eq!((all(&journal).len(), journal.damaged()), (57, 3), "11 to 13 are lost");
    journal.release(&some, i64::MAX).unwrap();
    assert_eq!(journal.oldest(), 40, "what is lost holds nothing up");
}

#[test]
fn what_a_newer_ledger_had_marks_an_older_copy_before_it_gives_a_number() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    journal.note_settled(&settled(70, 70, "")).unwrap();
    drop((journal, writer));
    let (journal, writer) = place.open_bounded(1 << 20);
    assert!(journal.older_copy() && journal.noted_settled().is_none());
    assert!(journal.kept_bytes() > 300_000, "its own numbers that the original has settled");
    journal.release_through(60).unwrap();
    assert!(journal.oldest() >= 40 && journal.kept_bytes() == 0);
    append(&writer, (61..=100).map(|number| event(number, 10_000)).collect()).unwrap();
    drop((journal, writer));
    let (journal, _writer) = place.open_bounded(1 << 20);
    assert!(journal.older_copy());
    journal.release_through(journal.durable()).unwrap();
    assert_eq!(journal.kept_bytes(), 0, "what it noted before is not believed of its new numbers");
    assert!(all(&journal).len() > 40);
}

#[test]
fn up_to_where_all_is_published_is_known_after_a_start_of_this_journal_and_of_no_other() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    assert_eq!(journal.noted_published(), 0);
    journal.note_published(60).unwrap();
    drop((journal, writer));
    let (journal, writer) = place.open_bounded(1 << 20);
    assert_eq!((journal.noted_published(), journal.noted_settled()), (60, None));
    drop((journal, writer));
    let noted = place.0.join("published.json");
    let other = Place::new();
    drop(other.open());
    std::fs::copy(&noted, other.0.join("published.json")).unwrap();
    let (journal, _writer) = other.open();
    assert!(journal.noted_published() == 0 && !journal.older_copy(), "of another epoch");
    let text = std::fs::read_to_string(&noted).unwrap();
    std::fs::write(&noted, text.replace("60", "59")).unwrap();
    assert_eq!(place.open_bounded(1 << 20).0.noted_published(), 0, "its sum is wrong");
}

#[test]
fn what_the_stream_has_beyond_the_journal_marks_an_older_copy() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    journal.note_published(61).unwrap();
    drop((journal, writer));
    let (journal, writer) = place.open_bounded(1 << 20);
    assert_eq!((journal.older_copy(), journal.noted_published()), (true, 0));
    // By now the number is one of its own.
    append(&writer, vec![event(61, 10)]).unwrap();
    drop((journal, writer));
    assert_eq!(place.open_bounded(1 << 20).0.noted_published(), 0);
}

#[test]
fn what_cannot_be_read_was_never_published() {
    let place = Place::new();
    let (journal, _writer) = sixty(&place);
    assert_eq!(journal.unsettled_damage(), None);
    let path = place.segments().remove(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(all(&journal).len(), 59);
    assert_eq!(journal.unsettled_damage(), Some(14));
    // The rest of its segment, and all before, the ledger has.
    journal.release(&settled(13, 60, r#"{"first":14,"last":14}"#), ACCEPTED_MS).unwrap();
    assert_eq!(journal.unsettled_damage(), None);
}

#[test]
fn a_kept_segment_that_is_gone_holds_nothing_up() {
    for full in [false, true] {
        let place = Place::new();
        let (journal, writer) = sixty(&place);
        journal.release(&settled(60, 60, ""), ACCEPTED_MS).unwrap();
        std::fs::remove_file(&place.segments()[0]).unwrap();
        if full {
            // Up to the bound, which all but the last segment makes room for.
            for number in 61..=150 {
                assert_eq!(append(&writer, vec![event(number, 10_000)]), Ok(number));
            }
            assert_eq!((journal.oldest(), journal.kept_bytes()), (53, 0));
        } else {
            journal.release(&settled(60, 60, ""), i64::MAX).unwrap();
            assert_eq!((place.segments().len(), journal.oldest()), (1, 53));
        }
    }
}

#[test]
fn a_damaged_segment_that_is_gone_holds_nothing_up() {
    let place = Place::new();
    let (journal, _writer) = sixty(&place);
    journal.release(&settled(60, 60, ""), ACCEPTED_MS).unwrap();
    let path = place.segments().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!((all(&journal).len(), journal.damaged()), (59, 1));
    std::fs::remove_file(&path).unwrap();
    journal.release(&settled(60, 60, ""), i64::MAX).unwrap();
    assert_eq!(place.segments().len(), 1);
}

#[test]
fn what_a_restored_ledger_asks_for_is_read_around_a_kept_segment_that_is_gone() {
    for started in [false, true] {
        let place = Place::new();
        let (mut journal, mut writer) = sixty(&place);
        journal.release(&settled(39, 39, ""), ACCEPTED_MS).unwrap();
        if started {
            journal.note_settled(&settled(39, 39, "")).unwrap();
            drop((journal, writer));
            (journal, writer) = place.open_bounded(1 << 20);
        }
        std::fs::remove_file(&place.segments()[1]).unwrap();
        journal.unsettle();
        let left: Vec<u64> = all(&journal).into_iter().map(|(number, _)| number).collect();
        assert_eq!(left, (1..=13).chain(27..=60).collect::<Vec<_>>(), "started: {started}");
        assert_eq!(journal.damaged(), 13);
        assert_eq!((all(&journal).len(), journal.damaged()), (47, 13), "each counts once");
        // What the ledger never had is waited for.
        let unsettled =
            place.segments().into_iter().find(|path| path.to_string_lossy().ends_with("40.events"));
        let unsettled = unsettled.unwrap();
        std::fs::rename(&unsettled, unsettled.with_extension("away")).unwrap();
        assert!(matches!(journal.read(40, 7, 2_000), Err(JournalError::Io { .. })));
        std::fs::rename(unsettled.with_extension("away"), &unsettled).unwrap();
        assert_eq!((all(&journal).len(), journal.damaged()), (47, 13));
        journal.release(&settled(60, 60, ""), i64::MAX).unwrap();
        assert_eq!(place.segments().len(), 1);
        assert_eq!(append(&writer, vec![event(61, 1)]), Ok(61));
    }
}

#[test]
fn nobody_waits_for_a_kept_segment_that_is_read() {
    let place = Place::new();
    let (journal, writer) = sixty(&place);
    journal.note_settled(&settled(60, 60, "")).unwrap();
    drop((journal, writer));
    let (journal, writer) = place.open_bounded(1 << 20);
    journal.unsettle();
    // Opening it blocks until somebody opens it to write.
    let path = place.segments().remove(0);
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let (reader, (begins, begun)) = (journal.clone(), mpsc::channel());
    let reading = std::thread::spawn(move || {
        begins.send(()).unwrap();
        reader.read(1, 7, 2_000)
    });
    begun.recv().unwrap();
    let (answers, answered) = mpsc::channel();
    std::thread::spawn(move || {
        for number in 61..=90 {
            answers.send(append(&writer, vec![event(number, 10)])).ok();
        }
    });
    let until = Instant::now() + ANSWERED_WITHIN;
    let all_answered = (61..=90).all(|number| {
        answered.recv_timeout(until.saturating_duration_since(Instant::now())) == Ok(Ok(number))
    });
    let blocked = !reading.is_finished();
    // What reads finds nothing in it, and goes on after it.
    let opened = OpenOptions::new().write(true).open(&path).unwrap();
    let read = reading.join().unwrap().unwrap();
    drop(opened);
    assert!(all_answered && blocked, "answered: {all_answered}, blocked: {blocked}");
    assert_eq!((read[0].sequence, journal.damaged()), (14, 13));
}
