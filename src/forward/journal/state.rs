//! What the journal knows of its segments: where records are, what is damaged.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use super::folder::Folder;
use super::record::{Item, Walk};
use super::{JournalError, Settled, read};

/// A place of the index for about so many bytes of a segment.
pub const INDEX_EVERY_BYTES: u64 = 64 * 1024;

/// What the ledger has of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ledger {
    /// It never had all of it.
    Lacks,
    /// It had all of it once, which does not count any more: where the file cannot be opened, what was never settled does not wait
    /// for it.
    Forgot,
    /// It has all of it.
    Has,
}

/// One file of the journal.
#[derive(Debug)]
pub struct Segment {
    /// Where it is.
    pub path: PathBuf,
    /// Number of its first record.
    pub first: u64,
    /// The number after its last record.
    pub next: u64,
    /// Length up to which it is on disk for certain.
    pub bytes: u64,
    /// Some records, `(number, offset)`, in order.
    pub index: Vec<(u64, u64)>,
    /// Whether something in it cannot be read.
    pub damaged: bool,
    /// When its newest record was accepted, in milliseconds since 1970.
    pub newest_ms: i64,
    /// Whether the ledger has everything in it that can be read, and in all before it.
    pub ledger: Ledger,
    /// Whether the start took for granted what it holds: it is read before anything in it is.
    pub unread: bool,
}

impl Segment {
    /// One that nothing was written to yet.
    pub const fn empty(path: PathBuf, first: u64) -> Self {
        let newest_ms = i64::MIN;
        Self {
            path,
            first,
            next: first,
            bytes: 0,
            index: Vec::new(),
            damaged: false,
            newest_ms,
            ledger: Ledger::Lacks,
            unread: false,
        }
    }

    /// Whether it is kept for a ledger that is restored, and for nothing else.
    pub fn settled(&self) -> bool {
        self.ledger == Ledger::Has
    }

    /// Takes for granted that it holds the numbers before the next one's, and that they are settled.
    fn unread(&mut self, before: u64) -> io::Result<()> {
        let data = self.path.metadata()?;
        let written = data.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.newest_ms = i64::try_from(written.as_millis()).unwrap_or(i64::MAX);
        (self.next, self.bytes, self.ledger, self.unread) = (before, data.len(), Ledger::Has, true);
        Ok(())
    }

    /// Reads its file into its index; all its numbers are below `before`, which only the newest has not.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn read(&mut self, epoch: Uuid, before: Option<u64>) -> Result<Found, JournalError> {
        let read = || File::open(&self.path).and_then(|file| read::range(&file, 0..file.metadata()?.len()));
        let bytes = read().map_err(JournalError::io("cannot read", &self.path))?;
        let mut end = bytes.len();
        let mut found = Found::default();
        for item in Walk::new(&bytes, epoch.as_bytes(), self.first) {
            match item {
                Item::Whole { at, sequence, accepted_ms, .. } => {
                    self.note(sequence, at as u64);
                    (self.next, self.newest_ms) = (sequence + 1, accepted_ms);
                }
                Item::Damaged(range) => {
                    self.damaged = true;
                    self.next = range.end() + 1;
                    found.damage.push((range, "records that cannot be read"));
                }
                Item::Torn { at } if before.is_none() => {
                    cut(&self.path, at as u64)?;
                    tracing::warn!(
                        file = %self.path.display(), bytes = bytes.len() - at,
                        "the journal ended in a half-written record, which was never acknowledged; it is cut off"
                    );
                    end = at;
                }
                // The write of a segment that is full was acknowledged, so what is missing of it shows as a hole before the next.
                Item::Torn { .. } => self.damaged = true,
                Item::DamagedTail { numbers, .. } => {
                    (self.damaged, found.sealed) = (true, true);
                    let (first, last) = numbers.into_inner();
                    let last = before.map_or(last, |before| last.min(before.saturating_sub(1)));
                    self.next = last + 1;
                    found
                        .damage
                        .push((first..=last, "its end, with at most so many records, cannot be read"));
                }
            }
        }
        self.bytes = end as u64;
        Ok(found)
    }

    /// Notes where a record stands, if it is far enough from the last one noted.
    pub fn note(&mut self, sequence: u64, at: u64) {
        if self.index.last().is_none_or(|(_, last)| at >= last + INDEX_EVERY_BYTES) {
            self.index.push((sequence, at));
        }
    }
}

/// What was found in the file of a segment, beside records.
#[derive(Debug, Default)]
pub struct Found {
    /// Numbers that were accepted and cannot be read, and why.
    pub damage: Vec<(RangeInclusive<u64>, &'static str)>,
    /// Whether the file must not be written to any more.
    pub sealed: bool,
}

/// What is known of all of them.
#[derive(Debug, Default)]
pub struct State {
    /// In order; the last one is written to.
    pub segments: VecDeque<Segment>,
    /// Numbers that were accepted and cannot be read, in order.
    pub damaged: Vec<RangeInclusive<u64>>,
}

impl State {
    /// Reads the files of a folder, `(first number, path)` in order, but for those whose numbers are all settled; returns with
    /// what they hold the next number to give, and whether the newest file must not be written to any more.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn read(
        files: Vec<(u64, PathBuf)>,
        epoch: Uuid,
        settled: &Settled,
    ) -> Result<(Self, u64, bool), JournalError> {
        let mut state = Self::default();
        let mut next = files.first().map_or(1, |(first, _)| *first);
        let filled = |(_, path): &(u64, PathBuf)| path.metadata().is_ok_and(|data| data.len() > 0);
        let newest = files.iter().rposition(filled);
        let mut sealed = false;
        let firsts: Vec<u64> = files.iter().map(|(first, _)| *first).collect();
        for (number, (first, path)) in files.into_iter().enumerate() {
            if first < next && newest.is_none_or(|newest| number > newest) {
                // Made for a write that then failed; what came later went on in the file before.
                std::fs::remove_file(&path).map_err(JournalError::io("cannot remove", &path))?;
                continue;
            }
            if first > next {
                state.report(next..=first - 1, &path, "numbers that no segment holds");
                next = first;
            }
            let mut segment = Segment::empty(path, first);
            // Where another follows that holds something, its first number says where this one ends.
            let before =
                newest.filter(|newest| number < *newest).and_then(|_| firsts.get(number + 1).copied());
            // Days of events are kept for a ledger that is restored: they are read if it is.
            if let Some(before) =
                before.filter(|before| *before > first && settled.covers(first..=before - 1))
            {
                segment.unread(before).map_err(JournalError::io("cannot look at", &segment.path))?;
            } else {
                let found = segment.read(epoch, before)?;
                sealed = found.sealed;
                state.report_found(found, &segment.path);
            }
            next = next.max(segment.next);
            state.segments.push_back(segment);
        }
        Ok((state, next, sealed))
    }

    /// What the segments take on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// What those of them take that are settled and kept all the same.
    pub fn kept_bytes(&self) -> u64 {
        self.segments.iter().take_while(|segment| segment.settled()).map(|segment| segment.bytes).sum()
    }

    /// How many of them are not settled; the newest counts.
    pub fn unsettled(&self) -> usize {
        self.segments.iter().skip_while(|segment| segment.settled()).count()
    }

    /// The oldest segment, where it is settled.
    pub fn oldest_kept(&self) -> Option<&Segment> {
        self.segments.front().filter(|segment| segment.settled())
    }

    /// Marks the oldest segments that are settled; the newest never is, because it carries the count on. What was settled once is
    /// not looked at again.
    pub fn settle(&mut self, settled: &Settled) {
        let known = self.segments.iter().take_while(|segment| segment.settled()).count();
        for number in known..self.segments.len().saturating_sub(1) {
            let segment = &self.segments[number];
            let done = |number| settled.contains(number) || self.is_damaged(number);
            if !(settled.through() + 1 >= segment.next || (segment.first..segment.next).all(done)) {
                return;
            }
            self.segments[number].ledger = Ledger::Has;
        }
    }

    /// Removes the oldest segment, or sets it aside where it is damaged; returns how many bytes that makes free.
    ///
    /// # Errors
    /// [`JournalError::Io`]; it is there as before then.
    pub fn remove_oldest(&mut self) -> Result<u64, JournalError> {
        let Some(oldest) = self.segments.front() else { return Ok(0) };
        Folder::remove_segment(&oldest.path, oldest.damaged)?;
        Ok(self.segments.pop_front().map_or(0, |oldest| oldest.bytes))
    }

    /// Puts a segment in the place of what the start took for granted of it, where that is still there and still so; says what it
    /// lacks.
    pub fn put_read(&mut self, mut segment: Segment, found: Found) {
        let Some(taken) = self.segments.iter_mut().find(|taken| taken.first == segment.first && taken.unread)
        else {
            return;
        };
        segment.ledger = taken.ledger;
        let path = segment.path.clone();
        *taken = segment;
        self.report_found(found, &path);
    }

    /// Whether a number was accepted and cannot be read.
    pub fn is_damaged(&self, sequence: u64) -> bool {
        self.damaged.iter().any(|range| range.contains(&sequence))
    }

    /// Says what was found in the file of a segment.
    fn report_found(&mut self, found: Found, file: &Path) {
        for (range, what) in found.damage {
            self.report(range, file, what);
        }
    }

    /// Says, once, which accepted events are lost.
    pub fn report(&mut self, range: RangeInclusive<u64>, file: &Path, what: &str) {
        tracing::error!(
            file = %file.display(), first = range.start(), last = range.end(),
            "the journal is damaged: {what}; events of these numbers were accepted and are not forwarded, the file is kept"
        );
        if range.is_empty() {
            return;
        }
        self.damaged.push(range);
        self.damaged.sort_unstable_by_key(|range| *range.start());
        // A number that is in two of them counts once.
        self.damaged.dedup_by(|later, earlier| {
            let joined = later.start() <= earlier.end();
            if joined {
                *earlier = *earlier.start()..=*earlier.end().max(later.end());
            }
            joined
        });
    }

    /// Damage that came up after the start, in the segment that begins with `first`.
    pub fn found_damaged(&mut self, first: u64, range: RangeInclusive<u64>, what: &str) {
        if range.is_empty() || range.clone().all(|sequence| self.is_damaged(sequence)) {
            return;
        }
        let Some(segment) = self.segments.iter_mut().find(|segment| segment.first == first) else { return };
        segment.damaged = true;
        let path = segment.path.clone();
        self.report(range, &path, what);
    }
}

/// Shortens a file, durably.
fn cut(path: &Path, length: u64) -> Result<(), JournalError> {
    let cut = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(length)?;
        file.sync_all()
    };
    cut().map_err(JournalError::io("cannot shorten", path))
}
