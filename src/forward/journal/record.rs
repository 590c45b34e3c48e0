//! The form of a record, and reading records back whatever happened to the file.
//!
//! A record is a header of 28 bytes and the event. The header, numbers with the least significant byte first: length of the
//! event (u32), its sequence (u64), when it was accepted in milliseconds since 1970 (i64), CRC-32 of the event, CRC-32
//! of the journal's epoch and the 24 bytes before. Two sums, so that a damaged byte is told from a file that ends early:
//! only the latter can be what a crash left of a write that was never acknowledged.

use std::ops::{Range, RangeInclusive};

use crate::forward::EVENT_BYTES_MIN;

/// Length of a header.
pub const HEADER_BYTES: usize = 28;
/// No record is shorter.
pub const RECORD_BYTES_MIN: usize = HEADER_BYTES + EVENT_BYTES_MIN;
/// Length of the zeros at the end of a record that a power loss leaves where the size was written and the data was not.
const ZERO_TAIL_BYTES: usize = 512;

/// An event of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, counting from 1 without a gap.
    pub sequence: u64,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: i64,
    /// Its bytes as they came.
    pub event: Vec<u8>,
}

/// Appends a record.
pub fn encode(out: &mut Vec<u8>, epoch: &[u8; 16], sequence: u64, accepted_ms: i64, event: &[u8]) {
    let start = out.len();
    // The length of an event is bounded far below this where it is accepted.
    out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&accepted_ms.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(event).to_le_bytes());
    let sum = header_sum(epoch, &out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(event);
}

fn header_sum(epoch: &[u8; 16], fields: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(epoch);
    hasher.update(fields);
    hasher.finalize()
}

/// A header whose sum is right.
#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    sequence: u64,
    accepted_ms: i64,
    sum: u32,
}

impl Header {
    fn read(bytes: &[u8], epoch: &[u8; 16]) -> Option<Self> {
        let (fields, sum) = bytes.get(..HEADER_BYTES)?.split_at(HEADER_BYTES - 4);
        if u32::from_le_bytes(sum.try_into().ok()?) != header_sum(epoch, fields) {
            return None;
        }
        Some(Self {
            length: usize::try_from(u32::from_le_bytes(fields[..4].try_into().ok()?)).ok()?,
            sequence: u64::from_le_bytes(fields[4..12].try_into().ok()?),
            accepted_ms: i64::from_le_bytes(fields[12..20].try_into().ok()?),
            sum: u32::from_le_bytes(fields[20..24].try_into().ok()?),
        })
    }
}

/// What stands at a place of the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole record.
    Whole {
        /// Where it begins.
        at: usize,
        /// Its number.
        sequence: u64,
        /// When it was accepted, in milliseconds since 1970.
        accepted_ms: i64,
        /// Where its event is.
        event: Range<usize>,
    },
    /// These numbers were here and cannot be read; an empty range where only bytes between records are damaged.
    Damaged(RangeInclusive<u64>),
    /// From here on the file holds the beginning of a record, or zeros: a write that was never acknowledged.
    Torn {
        /// Where it begins.
        at: usize,
    },
    /// From here to the end the file holds something else.
    DamagedTail {
        /// Where it begins.
        at: usize,
        /// The numbers that may be lost with it: the first is for certain.
        numbers: RangeInclusive<u64>,
    },
}

/// Goes through the bytes of a segment, record by record.
#[derive(Debug)]
pub struct Walk<'a> {
    bytes: &'a [u8],
    epoch: &'a [u8; 16],
    at: usize,
    expected: u64,
    ended: bool,
}

impl<'a> Walk<'a> {
    /// Starts at a record's first byte; `expected` is its number.
    pub const fn new(bytes: &'a [u8], epoch: &'a [u8; 16], expected: u64) -> Self {
        Self { bytes, epoch, at: 0, expected, ended: false }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// A header at `at` that may follow what was read so far.
    fn plausible(&self, at: usize) -> Option<Header> {
        let header = Header::read(self.bytes.get(at..)?, self.epoch)?;
        let ahead = header.sequence.checked_sub(self.expected)?;
        // No more records can be missing than there was room for in the file.
        (ahead <= self.bytes.len() as u64).then_some(header)
    }

    fn end(&mut self, item: Item) -> Item {
        self.ended = true;
        item
    }

    /// What to make of bytes that are no header: the next record that is one, or the end.
    fn resync(&mut self) -> Item {
        let rest = self.rest();
        // Zeros of any length: the writer, too, leaves some where it was killed while it tried whether the disk has room.
        if rest.len() < HEADER_BYTES || is_zero(rest) {
            let at = self.at;
            return self.end(Item::Torn { at });
        }
        let next = (self.at + 1..self.bytes.len()).find_map(|at| Some((at, self.plausible(at)?)));
        let (first, at) = (self.expected, self.at);
        let Some((next_at, header)) = next else {
            let numbers = first..=first + records_max(rest) - 1;
            return self.end(Item::DamagedTail { at, numbers });
        };
        self.at = next_at;
        self.expected = header.sequence;
        Item::Damaged(lost(first, header.sequence))
    }
}

/// How many records the end of a file can hold of which not even the first has a header that is right: one where everything
/// else says that it is one, else as many as there is room for, because a number that is skipped is a hole, and one that is given
/// twice vouches for an event that it is not.
fn records_max(tail: &[u8]) -> u64 {
    let field = |at: usize| tail.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let body = tail.get(HEADER_BYTES..).unwrap_or_default();
    let one = field(0).is_some_and(|length| usize::try_from(length) == Ok(body.len()))
        || field(20).is_some_and(|sum| sum == crc32fast::hash(body));
    if one { 1 } else { (tail.len() / RECORD_BYTES_MIN).max(1) as u64 }
}

/// The numbers from `first` to before `next`.
const fn lost(first: u64, next: u64) -> RangeInclusive<u64> {
    // Numbers count from 1, so this cannot go below zero.
    first..=next.saturating_sub(1)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl Iterator for Walk<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.ended || self.rest().is_empty() {
            return None;
        }
        let Some(header) = self.plausible(self.at) else { return Some(self.resync()) };
        if header.sequence > self.expected {
            let first = std::mem::replace(&mut self.expected, header.sequence);
            return Some(Item::Damaged(lost(first, header.sequence)));
        }
        let start = self.at;
        let event = start + HEADER_BYTES..start + HEADER_BYTES + header.length;
        let Some(body) = self.bytes.get(event.clone()) else {
            return Some(self.end(Item::Torn { at: start }));
        };
        if crc32fast::hash(body) != header.sum {
            let last = event.end == self.bytes.len();
            if last && body.len() >= ZERO_TAIL_BYTES && is_zero(&body[body.len() - ZERO_TAIL_BYTES..]) {
                return Some(self.end(Item::Torn { at: start }));
            }
            self.at = event.end;
            self.expected += 1;
            return Some(Item::Damaged(header.sequence..=header.sequence));
        }
        self.at = event.end;
        self.expected += 1;
        let Header { sequence, accepted_ms, .. } = header;
        Some(Item::Whole { at: start, sequence, accepted_ms, event })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: [u8; 16] = *b"an epoch of ours";
    const FIRST: u64 = 41;

    fn file(events: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (event, sequence) in events.iter().zip(FIRST..) {
            encode(&mut bytes, &EPOCH, sequence, 1_700_000_000_000, event);
        }
        bytes
    }

    /// The events by number, and what else was found.
    fn read(bytes: &[u8]) -> (Vec<(u64, Vec<u8>)>, Vec<Item>) {
        let (mut whole, mut other) = (Vec::new(), Vec::new());
        for item in Walk::new(bytes, &EPOCH, FIRST) {
            match item {
                Item::Whole { sequence, event, .. } => whole.push((sequence, bytes[event].to_vec())),
                item => other.push(item),
            }
        }
        (whole, other)
    }

    fn events() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let event = proptest::collection::vec(any::<u8>(), 0..700)
            .prop_map(|inner| [b"{".as_slice(), &inner, b"}"].concat());
        proptest::collection::vec(event, 1..12)
    }

    fn numbered(events: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
        (FIRST..).zip(events.iter().cloned()).collect()
    }

    proptest! {
        #[test]
        fn what_a_cut_leaves_whole_is_read_and_nothing_else_is_made_of_it(
            events in events(), cut in any::<proptest::sample::Index>(),
        ) {
            let bytes = file(&events);
            let cut = cut.index(bytes.len() + 1);
            let (whole, other) = read(&bytes[..cut]);
            let fits = (0..=events.len()).rev().find(|count| file(&events[..*count]).len() <= cut).unwrap();
            prop_assert_eq!(whole, numbered(&events[..fits]));
            let end = file(&events[..fits]).len();
            let torn = if end == cut { vec![] } else { vec![Item::Torn { at: end }] };
            prop_assert_eq!(other, torn);
        }

        #[test]
        fn a_damaged_byte_costs_its_record_only_and_is_always_reported(
            events in events(), at in any::<proptest::sample::Index>(), flip in 1_u8..,
        ) {
            let mut bytes = file(&events);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let hit = (1..=events.len()).find(|count| file(&events[..*count]).len() > at).unwrap() - 1;
            let sequence = FIRST + hit as u64;
            let (whole, other) = read(&bytes);
            let mut left = numbered(&events);
            left.remove(hit);
            prop_assert_eq!(whole, left);
            prop_assert_eq!(other.len(), 1);
            let tail = Item::DamagedTail { at: file(&events[..hit]).len(), numbers: sequence..=sequence };
            prop_assert!(
                other[0] == Item::Damaged(sequence..=sequence) || (hit + 1 == events.len() && other[0] == tail),
                "{:?}", other
            );
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let (whole, _) = read(&bytes);
            prop_assert_eq!(whole, vec![]);
        }
    }

    #[test]
    fn zeros_after_a_power_loss_are_torn_and_damage_in_several_records_is_counted() {
        let events = vec![b"{\"a\":1}".to_vec(), vec![b'x'; 900], b"{}".to_vec(), b"{}".to_vec()];
        let end = file(&events[..1]).len();
        for zeros in [1, HEADER_BYTES, 100, ZERO_TAIL_BYTES - 1, 4096] {
            let mut bytes = file(&events[..1]);
            bytes.resize(end + zeros, 0);
            assert_eq!(read(&bytes).1, [Item::Torn { at: end }], "{zeros}");
        }

        let mut bytes = file(&events[..2]);
        let length = bytes.len();
        bytes[length - 600..].fill(0);
        assert_eq!(read(&bytes).1, [Item::Torn { at: end }], "a record whose data never reached the disk");

        let mut bytes = file(&events);
        let third = file(&events[..2]).len();
        bytes[third - 5..third + 10].fill(b'!');
        let (whole, other) = read(&bytes);
        assert_eq!(whole.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [41, 44]);
        assert_eq!(other, [Item::Damaged(42..=42), Item::Damaged(43..=43)]);
    }

    #[test]
    fn records_of_another_journal_are_damage() {
        let bytes = file(&[b"{}".to_vec()]);
        let found: Vec<Item> = Walk::new(&bytes, b"some other epoch", FIRST).collect();
        assert_eq!(found, [Item::DamagedTail { at: 0, numbers: FIRST..=FIRST }]);
    }
}
