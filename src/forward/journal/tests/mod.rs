//! The journal on a real file system: starts after crashes and damage, the bound, release.

use std::path::PathBuf;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::forward::settled::EpochAnswer;

mod kept;

const GATEWAY: &str = "gw-1";
const BYTES_MAX: u64 = 64 << 20;

/// A folder that is removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("waybill-journal-{}", Uuid::new_v4().simple())))
    }

    fn open(&self) -> (Journal, Writer) {
        self.open_bounded(BYTES_MAX)
    }

    fn open_bounded(&self, bytes_max: u64) -> (Journal, Writer) {
        Journal::open(&self.0, GATEWAY, bytes_max).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<PathBuf> =
            names.filter(|path| path.extension().is_some_and(|is| is == "events")).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn event(number: u64, length: usize) -> Vec<u8> {
    format!(r#"{{"id":"e-{number}","pad":"{}"}}"#, "x".repeat(length)).into_bytes()
}

fn append(writer: &Writer, events: Vec<Vec<u8>>) -> Result<u64, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(writer.append(events, ACCEPTED_MS)).map(|appended| appended.first)
}

/// When [`append`] says that events were accepted.
const ACCEPTED_MS: i64 = 1;

/// Everything that can be read, by number.
fn all(journal: &Journal) -> Vec<(u64, Vec<u8>)> {
    let (mut all, mut from) = (Vec::new(), journal.oldest());
    loop {
        let records = journal.read(from, 7, 2_000).unwrap();
        let Some(last) = records.last() else { return all };
        from = last.sequence + 1;
        all.extend(records.into_iter().map(|record| (record.sequence, record.event)));
    }
}

fn settled(through: u64, highest: u64, holes: &str) -> Settled {
    let json = format!(
        r#"{{"epoch":"e","settled":{through},"highest":{highest},"missing":0,"holes":[{holes}],"holes_truncated":false}}"#
    );
    serde_json::from_str::<EpochAnswer>(&json).unwrap().into()
}

#[test]
fn what_was_appended_is_read_after_every_start_and_the_count_goes_on() {
    let place = Place::new();
    let mut expected = Vec::new();
    let mut epochs = Vec::new();
    for start in 0..4 {
        let (journal, writer) = place.open();
        assert_eq!(all(&journal), expected);
        assert_eq!(journal.durable(), start * 5);
        for (first, events) in [(1, 1), (2, 4)] {
            let events: Vec<_> = (0..events).map(|number| event(start * 5 + first + number, 100)).collect();
            assert_eq!(append(&writer, events.clone()), Ok(start * 5 + first));
            expected.extend((start * 5 + first..).zip(events));
        }
        assert_eq!(
            (all(&journal), journal.durable(), journal.damaged()),
            (expected.clone(), start * 5 + 5, 0)
        );
        epochs.push(journal.epoch());
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 1, "one epoch per journal");
    assert_eq!(all(&place.open().0)[12..14], expected[12..14]);
}

#[test]
fn many_at_once_get_numbers_of_their_own() {
    let place = Place::new();
    let (journal, writer) = place.open();
    let writer = Arc::new(writer);
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let writer = Arc::clone(&writer);
            std::thread::spawn(move || {
                (0..20)
                    .map(|number| append(&writer, vec![event(thread * 100 + number, 10); 3]).unwrap())
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut firsts: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, (0..160).map(|number| number * 3 + 1).collect::<Vec<_>>());
    assert_eq!(all(&journal).len(), 480);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_torn_tail_is_cut_off_and_its_numbers_are_given_anew(
        lengths in proptest::collection::vec(0_usize..400, 1..9), cut in any::<proptest::sample::Index>(),
    ) {
        let place = Place::new();
        let events: Vec<_> = lengths.iter().zip(1..).map(|(length, number)| event(number, *length)).collect();
        let writer = place.open().1;
        append(&writer, events.clone()).unwrap();
        drop(writer);
        let path = place.segments().pop().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let cut = cut.index(bytes.len());
        std::fs::write(&path, &bytes[..cut]).unwrap();

        let (journal, writer) = place.open();
        let left = all(&journal);
        let whole = events.iter().scan(0, |end, event| { *end += HEADER_BYTES + event.len(); Some(*end) }).filter(|end| *end <= cut).count();
        prop_assert_eq!(&left[..], &(1..).zip(events.iter().cloned()).take(whole).collect::<Vec<_>>()[..]);
        prop_assert_eq!(journal.damaged(), 0);
        prop_assert_eq!(append(&writer, vec![event(99, 5)]), Ok(whole as u64 + 1));
        drop((journal, writer));
        prop_assert_eq!(all(&place.open().0).len(), whole + 1);
    }

    #[test]
    fn damage_is_reported_by_number_kept_and_never_given_anew(
        lengths in proptest::collection::vec(0_usize..400, 1..9), at in any::<proptest::sample::Index>(), flip in 1_u8..,
    ) {
        let place = Place::new();
        let events: Vec<_> = lengths.iter().zip(1..).map(|(length, number)| event(number, *length)).collect();
        let writer = place.open().1;
        append(&writer, events.clone()).unwrap();
        drop(writer);
        let path = place.segments().pop().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();

        let hit = events.iter().scan(0, |end, event| { *end += HEADER_BYTES + event.len(); Some(*end) }).filter(|end| *end <= at).count();
        for _ in 0..2 {
            let (journal, _writer) = place.open();
            prop_assert_eq!(journal.damaged(), 1);
            let mut left: Vec<_> = (1..).zip(events.iter().cloned()).collect();
            left.remove(hit);
            prop_assert_eq!(all(&journal), left);
        }
        let (journal, writer) = place.open();
        let next = events.len() as u64 + 1;
        prop_assert_eq!(append(&writer, vec![event(next, 5)]), Ok(next));
        // Released once everything that can be read is settled, and set aside instead of removed.
        if place.segments().len() > 1 {
            journal.release(&settled(next - 2, next - 2, ""), i64::MAX).unwrap();
            prop_assert!(path.with_extension("damaged").exists());
        }
    }
}

#[test]
fn numbers_of_a_lost_end_are_never_given_again() {
    /// What `read.rs` puts in the place of blocks that the device cannot read.
    const BLOCK_BYTES: usize = 4096;
    let place = Place::new();
    let (journal, writer) = place.open();
    for number in 1..=25 {
        append(&writer, vec![event(number, 570)]).unwrap();
    }
    drop((journal, writer));
    let path = place.segments().pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let block = bytes.len() / BLOCK_BYTES * BLOCK_BYTES;
    bytes[block..].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();

    let whole = all(&place.open().0).len() as u64;
    assert!((15..22).contains(&whole), "{whole}");
    // Nobody can tell how many of the numbers after those were given: as many as there was room for.
    let skipped = place.open().0.durable();
    assert!(
        (25..whole + 2 + (BLOCK_BYTES / record::RECORD_BYTES_MIN) as u64).contains(&skipped),
        "{skipped}"
    );
    for start in 1..=3 {
        let (journal, writer) = place.open();
        assert_eq!(journal.damaged(), skipped - whole);
        assert_eq!(append(&writer, vec![event(99, 570)]), Ok(skipped + start));
        assert_eq!(all(&journal).len() as u64, whole + start);
    }
    let (journal, _writer) = place.open();
    journal
        .release(
            &settled(whole, skipped + 3, &format!(r#"{{"first":{},"last":{skipped}}}"#, whole + 1)),
            i64::MAX,
        )
        .unwrap();
    assert_eq!((journal.oldest(), path.with_extension("damaged").exists()), (skipped + 1, true));
}

#[test]
fn of_a_lost_end_before_another_segment_no_more_is_lost_than_was_there() {
    let place = Place::new();
    let (journal, writer) = place.open_bounded(1 << 20);
    for number in 1..=40 {
        append(&writer, vec![event(number, 10_000)]).unwrap();
    }
    drop((journal, writer));
    let path = place.segments().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 25_000..].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let (journal, writer) = place.open_bounded(1 << 20);
    assert_eq!((journal.damaged(), all(&journal).len(), journal.durable()), (3, 37, 40));
    assert_eq!(append(&writer, vec![event(41, 1)]), Ok(41));
}

#[test]
fn segments_are_released_when_all_of_them_is_settled() {
    let place = Place::new();
    let (journal, writer) = place.open_bounded(1 << 20);
    for number in 1..=60 {
        append(&writer, vec![event(number, 10_000)]).unwrap();
    }
    let segments = place.segments().len();
    assert!(segments >= 4, "an eighth of the bound each: {segments}");
    let second =
        |place: &Place| place.segments()[1].file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let last = second(&place) - 1;
    journal.release(&settled(last - 1, last - 1, ""), i64::MAX).unwrap();
    assert_eq!(place.segments().len(), segments, "one is missing");
    journal.release(&settled(0, 60, &format!(r#"{{"first":{last},"last":{last}}}"#)), i64::MAX).unwrap();
    assert_eq!(place.segments().len(), segments, "a hole");
    journal.release(&settled(last, last, ""), i64::MAX).unwrap();
    assert_eq!((place.segments().len(), journal.oldest()), (segments - 1, last + 1));
    assert_eq!(all(&journal).len() as u64, 60 - last);
    journal.release(&settled(60, 60, ""), i64::MAX).unwrap();
    assert_eq!(place.segments().len(), 1, "the newest stays: it carries the count on");
    drop((journal, writer));
    let (journal, writer) = place.open();
    assert_eq!((append(&writer, vec![event(61, 1)]), journal.durable()), (Ok(61), 61));
}

#[test]
fn the_bound_refuses_until_something_is_settled() {
    let place = Place::new();
    let (journal, writer) = place.open_bounded(1 << 20);
    let full = loop {
        if let Err(refusal) = append(&writer, vec![event(1, 30_000); 3]) {
            break refusal;
        }
    };
    assert!(matches!(full, Refusal::Full { bytes_max, .. } if bytes_max == 1 << 20), "{full}");
    assert!(journal.bytes().0 <= 1 << 20);
    assert_eq!(writer.refusal(), Some(full));
    let durable = journal.durable();
    assert_eq!(all(&journal).len() as u64, durable, "a body is taken as a whole or not at all");
    journal.release(&settled(durable, durable, ""), i64::MAX).unwrap();
    assert_eq!(append(&writer, vec![event(1, 30_000)]), Ok(durable + 1));
    assert_eq!(writer.refusal(), None);
}

#[test]
fn a_journal_has_one_writer_one_gateway_and_its_identity() {
    let place = Place::new();
    let (_journal, writer) = place.open();
    append(&writer, vec![event(1, 1)]).unwrap();
    let second = Journal::open(&place.0, GATEWAY, BYTES_MAX).unwrap_err();
    assert!(matches!(second, JournalError::Busy { .. }), "{second}");
    drop(writer);
    let other = Journal::open(&place.0, "gw-2", BYTES_MAX).unwrap_err();
    assert!(other.to_string().contains("the journal of gateway `gw-1`, not of `gw-2`"), "{other}");
    let identity = place.0.join("journal.json");
    let text = std::fs::read_to_string(&identity).unwrap();
    let digit = text.find("\"epoch\": \"0").unwrap() + "\"epoch\": \"".len();
    std::fs::write(&identity, [&text[..digit], "1", &text[digit + 1..]].concat()).unwrap();
    let damaged = Journal::open(&place.0, GATEWAY, BYTES_MAX).unwrap_err();
    assert!(damaged.to_string().contains("its sum is wrong"), "{damaged}");
    std::fs::remove_file(&identity).unwrap();
    let none = Journal::open(&place.0, GATEWAY, BYTES_MAX).unwrap_err();
    assert!(matches!(none, JournalError::NoIdentity { .. }), "{none}");
}

#[test]
fn segments_that_are_gone_are_lost_numbers_or_a_new_count() {
    let place = Place::new();
    let (journal, writer) = place.open_bounded(1 << 20);
    for number in 1..=40 {
        append(&writer, vec![event(number, 10_000)]).unwrap();
    }
    let epoch = journal.epoch();
    drop((journal, writer));
    let segments = place.segments();
    std::fs::remove_file(&segments[1]).unwrap();
    let (journal, writer) = place.open_bounded(1 << 20);
    assert!(journal.damaged() > 5, "{}", journal.damaged());
    assert_eq!(all(&journal).len() as u64, 40 - journal.damaged());
    drop((journal, writer));
    for segment in place.segments() {
        std::fs::remove_file(segment).unwrap();
    }
    let (journal, _writer) = place.open();
    assert_ne!(journal.epoch(), epoch, "numbers are never given twice in one epoch");
    assert_eq!(journal.durable(), 0);
}

#[test]
fn what_is_settled_makes_room_even_where_it_is_all_there_is() {
    let place = Place::new();
    let (journal, writer) = place.open_bounded(1 << 20);
    assert_eq!(append(&writer, vec![event(1, 600_000)]), Ok(1));
    let full = append(&writer, vec![event(2, 600_000)]).unwrap_err();
    assert!(matches!(full, Refusal::Full { .. }), "{full}");
    // The writer begins a new segment after it has answered.
    while journal.oldest() == 1 {
        journal.release(&settled(1, 1, ""), i64::MAX).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(append(&writer, vec![event(2, 600_000)]), Ok(2));
}

#[test]
fn a_segment_that_was_made_in_vain_is_taken_away() {
    let place = Place::new();
    let (journal, writer) = place.open();
    for number in 1..=5 {
        append(&writer, vec![event(number, 10)]).unwrap();
    }
    drop((journal, writer));
    std::fs::write(place.0.join("00000000000000000003.events"), b"").unwrap();
    for number in 6..=7 {
        let (journal, writer) = place.open();
        assert_eq!((journal.durable(), journal.damaged()), (number - 1, 0));
        assert_eq!(append(&writer, vec![event(number, 10)]), Ok(number));
        assert_eq!((all(&journal).len() as u64, place.segments().len()), (number, 1));
    }
}

#[test]
fn that_it_is_an_older_copy_is_known_after_a_start() {
    let place = Place::new();
    let (journal, writer) = place.open();
    assert!(!journal.older_copy());
    journal.mark_older_copy().unwrap();
    journal.mark_older_copy().unwrap();
    assert!(journal.older_copy());
    drop((journal, writer));
    assert!(place.open().0.older_copy());
}

/// A journal of 1 MiB with 60 events of 10 kB, in segments of an eighth of it.
fn sixty(place: &Place) -> (Journal, Writer) {
    let (journal, writer) = place.open_bounded(1 << 20);
    for number in 1..=60 {
        append(&writer, vec![event(number, 10_000)]).unwrap();
    }
    (journal, writer)
}

#[test]
fn what_stands_before_lost_zeros_is_not_damaged() {
    let place = Place::new();
    let (journal, _writer) = sixty(&place);
    let path = place.segments().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let from: usize = (1..=10).map(|number| HEADER_BYTES + event(number, 10_000).len()).sum();
    bytes[from..].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let next = journal.read(12, 7, 2_000).unwrap()[0].sequence;
    assert_eq!(journal.damaged(), next - 11);
    assert_eq!(all(&journal).len() as u64, 60 - (next - 11));
    assert_eq!(journal.damaged(), next - 11, "each counts once");
}

#[test]
fn that_the_writer_has_ended_is_told() {
    let place = Place::new();
    let (_journal, writer) = place.open();
    let ended = writer.ended();
    drop(writer);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ended);
}
