//! The forwarder's journal: what was accepted, on disk, until the ledger has it.
//!
//! Owns: the folder and its lock, segments of records, the durable count, what was damaged, the bound.
//! Does not own: what an event may be, and when it is settled; the caller says both.
//! Settled segments are kept for a while, for a ledger that is restored to an older state, and go first where room is needed.
//! Invariants: an append is acknowledged after `fdatasync`, and after the folder's for a new segment; numbers count from 1
//! without a gap and are never given twice in one epoch (where the end of the newest file is lost, as many are skipped as it
//! can have held); a write that failed is cut off again before the next one; a file that
//! ends early loses what was never acknowledged and nothing else; whatever else cannot be read is reported by number,
//! kept on disk, and stays a hole in the gateway's count: it is never passed over in silence.
//!
//! ```text
//! lock                          held by the one process that writes
//! journal.json                  form, gateway, epoch, and their sum
//! 00000000000000000001.events   records from number 1 on (their form: record.rs)
//! 00000000000000024011.events   the newest one is written to
//! 00000000000000000001.damaged  settled, but for records that could not be read: for a person to look at
//! settled.json                  what the ledger had when it was last asked
//! published.json                up to where the stream has said that it has everything
//! older-copy                    there where the ledger or the stream had higher numbers: nothing is removed any more
//! ```

mod folder;
mod noted;
mod read;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

pub use record::Record;
pub use writer::{Appended, Refusal, Writer};

use super::settled::Settled;
use folder::Folder;
use record::{HEADER_BYTES, Item, Walk};
use state::{INDEX_EVERY_BYTES, Ledger, Segment, State};

/// A segment is full at this size, or at an eighth of the journal's bound.
const SEGMENT_BYTES: u64 = 16 << 20;

/// What keeps a journal from being used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes it.
    #[error("another process uses the journal {}; one forwarder per journal", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// Records without the file that says whose they are.
    #[error("{} is missing beside a journal that holds events; restore it, or start with a new folder", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
    /// A file that says something else than expected.
    #[error("{} cannot be used: {detail}; give the right --gateway and --journal, or start with a new folder", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// What reads has failed, not what it reads.
    #[error("reading the journal ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
    /// The file system.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl JournalError {
    /// Wraps an error of the file system.
    fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |cause| Self::Io { what, path: path.clone(), cause }
    }

    /// Whether a file is not there, or not ours to open.
    fn cannot_be_opened(&self) -> bool {
        let Self::Io { cause, .. } = self else { return false };
        matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
    }
}

/// The journal as everybody but its writer sees it; a clone shares it.
#[derive(Debug, Clone)]
pub struct Journal {
    epoch: Uuid,
    folder: Arc<Path>,
    bytes_max: u64,
    state: Arc<Mutex<State>>,
    durable: watch::Receiver<u64>,
}

impl Journal {
    /// Opens the journal of a gateway, made where it does not exist, and reads all of it that is not known to be settled: what a
    /// crash left half-written is cut off, what is damaged is reported.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, gateway: &str, bytes_max: u64) -> Result<(Self, Writer), JournalError> {
        let (folder, files) = Folder::open(path, gateway)?;
        let settled = noted_beside(folder.path(), folder.epoch).unwrap_or_default();
        let (mut state, next, sealed) = State::read(files, folder.epoch, &settled)?;
        let published = noted::published(folder.path(), folder.epoch).unwrap_or(0);
        if settled.highest().max(published) >= next {
            // The ledger or the stream had more than there is. Marked before the first new event: its number is one that the original gave.
            Folder::mark_older_copy(folder.path())?;
        }
        let active = state.segments.back().filter(|_| !sealed).map(|segment| segment.path.clone());
        let file = if let Some(path) = active {
            let failed = JournalError::io("cannot open", &path);
            // What a process wrote and was killed before it synced is published from now on: its numbers must not be given again.
            let opened =
                OpenOptions::new().write(true).open(&path).and_then(|file| file.sync_all().map(|()| file));
            opened.map_err(failed)?
        } else {
            let (path, file) = folder.create_segment(next)?;
            state.segments.push_back(Segment::empty(path, next));
            file
        };
        let (sender, durable) = watch::channel(next - 1);
        let (epoch, state) = (folder.epoch, Arc::new(Mutex::new(state)));
        let journal = Self { epoch, folder: folder.path().into(), bytes_max, state, durable };
        let segment_bytes = SEGMENT_BYTES.min(bytes_max / 8);
        let writer = Writer::start(folder, journal.clone(), file, segment_bytes, sender)?;
        Ok((journal, writer))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the count.
    pub const fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// Whether it was found to be an older copy of itself, in this run or before.
    pub fn older_copy(&self) -> bool {
        is_older_copy(&self.folder)
    }

    /// Notes for every run to come that it is an older copy of itself.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn mark_older_copy(&self) -> Result<(), JournalError> {
        if self.older_copy() { Ok(()) } else { Folder::mark_older_copy(&self.folder) }
    }

    /// The number of the last event that is on disk for certain; 0 before the first.
    pub fn durable(&self) -> u64 {
        *self.durable.borrow()
    }

    /// Tells of every change of [`Self::durable`].
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// What it takes on disk, and may take, in bytes.
    pub fn bytes(&self) -> (u64, u64) {
        (self.state().bytes(), self.bytes_max)
    }

    /// How much of that is settled, and goes where its room is needed.
    pub fn kept_bytes(&self) -> u64 {
        self.state().kept_bytes()
    }

    /// How many accepted events cannot be read any more, at most.
    pub fn damaged(&self) -> u64 {
        self.state().damaged.iter().map(|range| range.clone().count() as u64).sum()
    }

    /// The number of the oldest event that is kept, or of the next one where none is.
    pub fn oldest(&self) -> u64 {
        self.state().segments.front().map_or(1, |segment| segment.first)
    }

    /// The number of the first event of the oldest segment that is not settled.
    pub fn oldest_unsettled(&self) -> u64 {
        let state = self.state();
        let first = state.segments.iter().find(|segment| !segment.settled()).map(|segment| segment.first);
        first.unwrap_or(self.durable() + 1)
    }

    /// The lowest number that is not settled and cannot be read.
    pub fn unsettled_damage(&self) -> Option<u64> {
        let from = self.oldest_unsettled();
        let state = self.state();
        state.damaged.iter().find(|range| *range.end() >= from).map(|range| *range.start())
    }

    /// Reads events from a number on, in order, at most so many and about so many bytes, one at least; those that are damaged
    /// are left out. Empty only where nothing readable follows.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn read(&self, from: u64, events_max: usize, bytes_max: usize) -> Result<Vec<Record>, JournalError> {
        let mut from = from;
        loop {
            let Some(piece) = self.piece(from, bytes_max) else { return Ok(Vec::new()) };
            let read = if piece.unread {
                // Then once more, with the records' places.
                self.read_unread(&piece).map(|()| (Vec::new(), from))
            } else {
                self.read_piece(&piece, from, events_max, bytes_max).map(|records| (records, piece.after))
            };
            match read {
                Ok((records, _)) if !records.is_empty() => return Ok(records),
                // Nothing readable in what was looked at: on with what follows.
                Ok((_, next)) => from = next,
                Err(error) => from = self.passed_over(&piece, from, error)?,
            }
        }
    }

    /// Reads a segment of which the start took for granted what it holds. Nobody who appends waits for that: a disk can take long.
    fn read_unread(&self, piece: &Piece) -> Result<(), JournalError> {
        let mut segment = Segment::empty(piece.path.clone(), piece.first);
        let mut found = segment.read(self.epoch, Some(piece.after))?;
        if segment.next < piece.after {
            found.damage.push((segment.next..=piece.after - 1, "numbers that no segment holds"));
            (segment.next, segment.damaged) = (piece.after, true);
        }
        self.state().put_read(segment, found);
        Ok(())
    }

    /// Where to go on after a piece that could not be read.
    ///
    /// # Errors
    /// The one that was met, where it is to be tried again.
    fn passed_over(&self, piece: &Piece, from: u64, error: JournalError) -> Result<u64, JournalError> {
        let mut state = self.state();
        let Some(segment) = state.segments.iter().find(|segment| segment.first == piece.first) else {
            // Settled, and removed at this moment, because its room was needed.
            return Ok(from);
        };
        // Kept for a ledger that is restored: for what is gone of that, nothing new waits.
        if segment.ledger == Ledger::Lacks || !error.cannot_be_opened() {
            return Err(error);
        }
        let next = segment.next;
        state.found_damaged(piece.first, from.max(piece.first)..=next - 1, &error.to_string());
        Ok(next)
    }

    /// Where to look for a number.
    fn piece(&self, from: u64, bytes_max: usize) -> Option<Piece> {
        let state = self.state();
        let segment = state.segments.iter().find(|segment| segment.next > from)?;
        let (path, first, unread) = (segment.path.clone(), segment.first, segment.unread);
        if unread {
            let (end, after) = (segment.bytes, segment.next);
            return Some(Piece { path, first, expected: first, start: 0, end, after, unread });
        }
        let noted = segment.index.partition_point(|(sequence, _)| *sequence <= from);
        let (expected, start) = noted.checked_sub(1).map_or((segment.first, 0), |noted| segment.index[noted]);
        // The record itself can lie a whole step behind the place that was noted.
        let reach = start + INDEX_EVERY_BYTES + (bytes_max as u64);
        let (end, after) = segment.index[noted..]
            .iter()
            .find(|(_, at)| *at >= reach)
            .map_or((segment.bytes, segment.next), |(sequence, at)| (*at, *sequence));
        Some(Piece { path, first, expected, start, end, after, unread })
    }

    fn read_piece(
        &self,
        piece: &Piece,
        from: u64,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, JournalError> {
        let failed = JournalError::io("cannot read", &piece.path);
        let bytes = File::open(&piece.path).and_then(|file| read::range(&file, piece.start..piece.end));
        let bytes = bytes.map_err(failed)?;
        let (mut records, mut size, mut next) = (Vec::new(), 0, piece.expected);
        for item in Walk::new(&bytes, self.epoch.as_bytes(), piece.expected) {
            match item {
                Item::Whole { sequence, accepted_ms, event, .. } => {
                    next = sequence + 1;
                    if sequence < from {
                        continue;
                    }
                    if records.len() == events_max || (size + event.len() > bytes_max && !records.is_empty())
                    {
                        break;
                    }
                    size += event.len();
                    records.push(Record { sequence, accepted_ms, event: bytes[event].to_vec() });
                }
                Item::Damaged(range) => {
                    next = range.end() + 1;
                    self.found_damaged(piece, range);
                }
                Item::Torn { .. } => self.found_damaged(piece, next..=piece.after - 1),
                Item::DamagedTail { numbers, .. } => {
                    self.found_damaged(piece, *numbers.start()..=piece.after - 1);
                }
            }
        }
        Ok(records)
    }

    fn found_damaged(&self, piece: &Piece, range: RangeInclusive<u64>) {
        self.state().found_damaged(piece.first, range, "records that cannot be read");
    }

    /// Removes the oldest segments whose events are all settled, and were accepted before a time, in milliseconds since 1970. Of the
    /// others it notes that they may go where their room is needed.
    ///
    /// # Errors
    /// [`JournalError::Io`]; what was removed before stays so.
    pub fn release(&self, settled: &Settled, accepted_before_ms: i64) -> Result<(), JournalError> {
        let mut state = self.state();
        state.settle(settled);
        while state.oldest_kept().is_some_and(|oldest| oldest.newest_ms < accepted_before_ms) {
            state.remove_oldest()?;
        }
        Ok(())
    }

    /// Removes the oldest segments that are settled and hold no number above this one, whenever they were accepted.
    ///
    /// # Errors
    /// [`JournalError::Io`]; what was removed before stays so.
    pub fn release_through(&self, last: u64) -> Result<(), JournalError> {
        let mut state = self.state();
        while state.oldest_kept().is_some_and(|oldest| oldest.next <= last.saturating_add(1)) {
            state.remove_oldest()?;
        }
        Ok(())
    }

    /// Takes back that anything is settled: the ledger has forgotten some of it.
    pub fn unsettle(&self) {
        for segment in self.state().segments.iter_mut().filter(|segment| segment.settled()) {
            segment.ledger = Ledger::Forgot;
        }
    }

    /// Removes the oldest settled segments until so many bytes are free; returns how many are. Nothing is removed where all of
    /// them would not do.
    fn give_room(&self, bytes: u64) -> u64 {
        let mut state = self.state();
        let mut free = 0;
        if state.kept_bytes() < bytes {
            return free;
        }
        while free < bytes && state.oldest_kept().is_some() {
            match state.remove_oldest() {
                Ok(removed) => free += removed,
                Err(error) => {
                    tracing::warn!(%error, "room cannot be made for events");
                    break;
                }
            }
        }
        free
    }

    /// What [`Self::note_settled`] noted last; nothing of an older copy.
    pub fn noted_settled(&self) -> Option<Settled> {
        noted_beside(&self.folder, self.epoch)
    }

    /// Notes for the next start what the ledger has.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn note_settled(&self, settled: &Settled) -> Result<(), JournalError> {
        noted::note_settled(&self.folder, self.epoch, settled)
    }

    /// What [`Self::note_published`] noted last; 0 of an older copy.
    pub fn noted_published(&self) -> u64 {
        let noted = || noted::published(&self.folder, self.epoch);
        if self.older_copy() { 0 } else { noted().unwrap_or(0) }
    }

    /// Notes for the next start up to which number the stream has said that it has everything.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn note_published(&self, through: u64) -> Result<(), JournalError> {
        noted::note_published(&self.folder, self.epoch, through)
    }
}

fn is_older_copy(folder: &Path) -> bool {
    folder.join(folder::OLDER_COPY).exists()
}

/// What was noted to be settled, unless the journal is an older copy: then numbers stand for other events now.
fn noted_beside(folder: &Path, epoch: Uuid) -> Option<Settled> {
    if is_older_copy(folder) { None } else { noted::settled(folder, epoch) }
}

/// A part of a segment, or all of it, that begins with a record.
#[derive(Debug)]
struct Piece {
    path: PathBuf,
    /// The segment's first number, by which it is found again.
    first: u64,
    /// The number of the record at `start`.
    expected: u64,
    start: u64,
    end: u64,
    /// The number after the piece's last record.
    after: u64,
    /// Whether it is a whole segment whose records are not known yet.
    unread: bool,
}

/// What a record of an event takes on disk, in bytes.
const fn record_bytes(event: usize) -> u64 {
    (HEADER_BYTES + event) as u64
}
