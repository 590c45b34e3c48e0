//! The one writer of the journal: a thread that writes what has come together, syncs it once, and answers.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::folder::Folder;
use super::record::encode;
use super::{Journal, JournalError, Segment, record_bytes};
use crate::forward::meters;

/// Appends that wait to be written at a time; more are turned away.
const QUEUE_APPENDS: usize = 256;
/// About as many bytes are written and synced at once.
const COMMIT_BYTES: u64 = 4 << 20;
/// How often a disk that was full is tried again while nobody asks.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// What must fit on it then.
const PROBE_BYTES: usize = 64 * 1024;
/// A disk that has not answered for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// Events that are on disk for certain: consecutive numbers from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The number of the first of them.
    pub first: u64,
}

/// Why events were not appended: none of them was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound is reached.
    #[error(
        "The journal holds {bytes} bytes of events that the ledger does not have yet, and may hold {bytes_max}; it takes events again as they are settled."
    )]
    Full {
        /// What it takes.
        bytes: u64,
        /// What it may take.
        bytes_max: u64,
    },
    /// The file system takes no more.
    #[error("The disk of the journal is full; it takes events again when there is space.")]
    NoSpace,
    /// The file system fails.
    #[error("The journal cannot be written: {0}. The events are not known to be accepted; send them again.")]
    Failed(String),
    /// More asks at once than can be written.
    #[error("The journal cannot keep up; send the events again in a moment.")]
    Busy,
    /// The file system neither writes nor fails.
    #[error("The disk of the journal has not answered for {0} s; it takes events again when it does.")]
    Hangs(u64),
    /// The forwarder ends.
    #[error("The forwarder is stopping; send the events again when it runs.")]
    Stopping,
}

struct Append {
    events: Vec<Vec<u8>>,
    accepted_ms: i64,
    answer: oneshot::Sender<Result<Appended, Refusal>>,
}

impl Append {
    fn bytes(&self) -> u64 {
        self.events.iter().map(|event| record_bytes(event.len())).sum()
    }
}

/// Appends to the journal; when it is dropped the thread ends.
#[derive(Debug)]
pub struct Writer {
    queue: SyncSender<Append>,
    /// The last refusal, while it lasts.
    refusal: watch::Receiver<Option<Refusal>>,
    /// Since when the disk is waited for, while it is.
    working: Arc<Mutex<Option<Instant>>>,
    _thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread on the newest segment of a journal.
    pub(super) fn start(
        folder: Folder,
        journal: Journal,
        file: File,
        segment_bytes: u64,
        durable: watch::Sender<u64>,
    ) -> Result<Self, JournalError> {
        let (queue, appends) = sync_channel(QUEUE_APPENDS);
        let (refusing, refusal) = watch::channel(None);
        let next = journal.durable() + 1;
        meters::newest(next - 1);
        let failed = JournalError::io("cannot start the writer of", folder.path());
        let working = Arc::new(Mutex::new(None));
        let mut commits = Commits {
            folder,
            journal,
            file,
            next,
            segment_bytes,
            durable,
            refusing,
            working: Arc::clone(&working),
            unclean: false,
            unsynced: false,
        };
        let thread = std::thread::Builder::new().name("journal".to_owned());
        let thread = thread.spawn(move || commits.run(&appends)).map_err(failed)?;
        Ok(Self { queue, refusal, working, _thread: thread })
    }

    /// Appends events, all or none, and returns once they are on disk for certain.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was appended then. Where the disk failed in between, what is refused may still be found after a
    /// crash and be forwarded: the same events with the same ids count once.
    pub async fn append(&self, events: Vec<Vec<u8>>, accepted_ms: i64) -> Result<Appended, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Append { events, accepted_ms, answer }).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Disconnected(_) => Refusal::Stopping,
        })?;
        answered.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Why events are refused at the moment, or nobody is answered; `None` where they are accepted.
    pub fn refusal(&self) -> Option<Refusal> {
        let working = *self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let hangs = working.map(|since| since.elapsed()).filter(|hangs| *hangs >= HANGS_AFTER);
        hangs.map(|hangs| Refusal::Hangs(hangs.as_secs())).or_else(|| self.refusal.borrow().clone())
    }

    /// Resolves when the thread has ended, whatever ended it.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        // The thread holds the other end.
        let mut refusal = self.refusal.clone();
        async move { while refusal.changed().await.is_ok() {} }
    }
}

/// Who waits for a write: the first number, where its record begins in what is written, and the way back.
type Waiting = (u64, usize, oneshot::Sender<Result<Appended, Refusal>>);

/// What the thread works with.
struct Commits {
    folder: Folder,
    journal: Journal,
    file: File,
    /// The number of the next record.
    next: u64,
    segment_bytes: u64,
    durable: watch::Sender<u64>,
    refusing: watch::Sender<Option<Refusal>>,
    working: Arc<Mutex<Option<Instant>>>,
    /// Whether something of a failed write may stand behind the end of the newest segment.
    unclean: bool,
    /// Whether the newest segment could not be synced.
    unsynced: bool,
}

impl Commits {
    fn run(&mut self, appends: &Receiver<Append>) {
        loop {
            let first = match appends.recv_timeout(PROBE_EVERY) {
                Ok(append) => append,
                Err(RecvTimeoutError::Timeout) => {
                    self.working(true);
                    self.probe();
                    self.working(false);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut bytes = first.bytes();
            let mut together = vec![first];
            while bytes < COMMIT_BYTES {
                let Ok(append) = appends.try_recv() else { break };
                bytes += append.bytes();
                together.push(append);
            }
            self.working(true);
            self.commit(together);
            self.working(false);
        }
    }

    /// Notes whether the disk is waited for.
    fn working(&self, is: bool) {
        *self.working.lock().unwrap_or_else(PoisonError::into_inner) = is.then(Instant::now);
    }

    /// Writes what fits under the bound, and answers everybody. What is settled is kept in the room that is left over.
    fn commit(&mut self, together: Vec<Append>) {
        let (mut taken, bytes_max) = self.journal.bytes();
        let (mut out, mut answers, mut next) = (Vec::new(), Vec::new(), self.next);
        let (mut full, mut newest_ms) = (false, i64::MIN);
        for append in together {
            let Append { ref events, accepted_ms, .. } = append;
            let missing = (taken + append.bytes()).saturating_sub(bytes_max);
            if missing > 0 {
                taken -= self.journal.give_room(missing);
            }
            if taken + append.bytes() > bytes_max {
                let refusal = Refusal::Full { bytes: taken - self.journal.kept_bytes(), bytes_max };
                self.refuse(&refusal, append.answer);
                full = true;
                continue;
            }
            taken += append.bytes();
            newest_ms = newest_ms.max(accepted_ms);
            let first = next;
            let from = out.len();
            for event in events {
                encode(&mut out, self.journal.epoch().as_bytes(), next, accepted_ms, event);
                next += 1;
            }
            answers.push((first, from, append.answer));
        }
        if !answers.is_empty() {
            self.write_and_answer(&out, (next, newest_ms), answers);
        }
        // The newest segment is never removed: where it is all there is to settle, the bound would stay reached for ever.
        if full && self.journal.state().unsettled() <= 1 {
            self.end_segment();
        }
    }

    fn write_and_answer(&mut self, out: &[u8], (next, newest_ms): (u64, i64), answers: Vec<Waiting>) {
        let mut written = self.write(out);
        while written.as_ref().is_err_and(is_full) && self.journal.give_room(1) > 0 {
            written = self.write(out);
        }
        match written {
            Ok(()) => {
                let noted: Vec<(u64, u64)> =
                    answers.iter().map(|(first, from, _)| (*first, *from as u64)).collect();
                self.written(out.len() as u64, (next, newest_ms), &noted);
                self.refusing.send_if_modified(|refusal| refusal.take().is_some());
                for (first, _, answer) in answers {
                    // Whoever asked may have gone; the events are kept all the same.
                    let _ = answer.send(Ok(Appended { first }));
                }
            }
            Err(error) => {
                let refusal = refusal(&error);
                for (_, _, answer) in answers {
                    self.refuse(&refusal, answer);
                }
                self.make_room(&error);
            }
        }
    }

    fn refuse(&self, refusal: &Refusal, answer: oneshot::Sender<Result<Appended, Refusal>>) {
        let news = self.refusing.send_replace(Some(refusal.clone())).is_none();
        if news {
            tracing::error!(%refusal, "events are refused");
        }
        let _ = answer.send(Err(refusal.clone()));
    }

    /// Writes and syncs at the end of the newest segment, or of a new one.
    fn write(&mut self, out: &[u8]) -> io::Result<()> {
        self.clean()?;
        let mut end = self.newest();
        if end > 0 && end + out.len() as u64 > self.segment_bytes {
            self.roll()?;
            end = 0;
        }
        self.unclean = true;
        self.file.write_all_at(out, end)?;
        self.sync()?;
        self.unclean = false;
        Ok(())
    }

    /// Where the newest segment ends.
    fn newest(&self) -> u64 {
        self.journal.state().segments.back().map_or(0, |segment| segment.bytes)
    }

    /// Cuts off what a failed write may have left: the next record must follow the last one that was acknowledged.
    fn clean(&mut self) -> io::Result<()> {
        if self.unclean {
            let end = self.newest();
            self.file.set_len(end)?;
            self.file.sync_all()?;
            self.unclean = false;
        }
        if self.unsynced {
            // After a failed sync the system may hold pages for clean that never reached the disk: nothing more is
            // written to this file.
            self.roll()?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.unsynced = true)
    }

    /// Begins a new segment; one that is still empty is made anew.
    fn roll(&mut self) -> io::Result<()> {
        let (path, file) = self.folder.create_segment(self.next).map_err(|error| match error {
            JournalError::Io { cause, .. } => cause,
            other => io::Error::other(other),
        })?;
        self.file = file;
        let mut state = self.journal.state();
        if state.segments.back().is_none_or(|segment| segment.first != self.next) {
            state.segments.push_back(Segment::empty(path, self.next));
        }
        Ok(())
    }

    /// Makes what is on disk now known.
    fn written(&mut self, bytes: u64, (next, newest_ms): (u64, i64), noted: &[(u64, u64)]) {
        self.next = next;
        if let Some(segment) = self.journal.state().segments.back_mut() {
            for (sequence, from) in noted {
                segment.note(*sequence, segment.bytes + from);
            }
            segment.bytes += bytes;
            (segment.next, segment.newest_ms) = (next, newest_ms);
        }
        meters::newest(next - 1);
        self.durable.send_replace(next - 1);
    }

    /// While events are refused, looks whether they still would be.
    fn probe(&mut self) {
        let gone = match &*self.refusing.borrow() {
            None => return,
            Some(Refusal::Full { .. }) => None,
            Some(_) => Some(()),
        };
        let works = match gone {
            None => {
                let (bytes, bytes_max) = self.journal.bytes();
                // What is settled is room only where it can be removed.
                let missing = (bytes + PROBE_BYTES as u64).saturating_sub(bytes_max);
                missing == 0 || self.journal.give_room(missing) >= missing
            }
            Some(()) => match self.fits() {
                Ok(()) => true,
                Err(error) => {
                    self.make_room(&error);
                    false
                }
            },
        };
        if works {
            tracing::info!("events are accepted again");
            self.refusing.send_replace(None);
        }
    }

    /// On a full disk removes what is settled, and ends the newest segment, so that it can be removed once it is: else the disk
    /// would stay as full as the journal has made it.
    fn make_room(&mut self, error: &io::Error) {
        if is_full(error) {
            self.journal.give_room(1);
            self.end_segment();
        }
    }

    /// Goes on in a new segment, so that the newest one can be removed.
    fn end_segment(&mut self) {
        if self.newest() > 0 {
            let ended = self.clean().and_then(|()| self.roll());
            if let Err(error) = ended {
                tracing::debug!(%error, "the newest segment could not be ended; trying again");
            }
        }
    }

    /// Writes something that is no record behind the end, and takes it away again.
    fn fits(&mut self) -> io::Result<()> {
        self.clean()?;
        let end = self.newest();
        self.unclean = true;
        self.file.write_all_at(&vec![0; PROBE_BYTES], end)?;
        self.sync()?;
        self.file.set_len(end)?;
        self.sync()?;
        self.unclean = false;
        Ok(())
    }
}

/// Whether room on the disk would help.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What a failed write means for whoever asked.
fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        // A limit on the size of files is a full disk as well.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Refusal::NoSpace,
        _ => Refusal::Failed(error.to_string()),
    }
}
