//! Snapshots of the ledger while a test runs, which the auditor looks at one by one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::dump;
use crate::harness::wait_until;

/// How often one is taken, less often as a test goes on; how long one may take, and how many are kept.
const EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(20);
const KEPT_MAX: usize = 40;
/// The folder of one that is being taken.
const UNFINISHED: &str = "unfinished";

/// They are taken until this is dropped.
pub struct Snapshots {
    folder: PathBuf,
    taking: JoinHandle<()>,
}

impl Snapshots {
    /// Takes one now, then every second, into folders with numbers. Once there are many of them every other one goes, and
    /// they are taken half as often: however long a test runs, they are spread over all of it.
    pub fn take(database_url: String, folder: PathBuf) -> Self {
        // It is there where some were asked for.
        std::fs::create_dir_all(&folder).unwrap();
        let taking = tokio::spawn(take(database_url, folder.clone()));
        Self { folder, taking }
    }

    /// Takes no further ones: not before one shows something.
    pub async fn end(mut self) {
        wait_until("a snapshot of the ledger has a batch", async || {
            assert!(!self.taking.is_finished(), "snapshots are taken for as long as they are wanted");
            kept(&self.folder).iter().any(|snapshot| has_batches(snapshot)).then_some(())
        })
        .await;
        self.taking.abort();
        // Only its end is waited for.
        (&mut self.taking).await.ok();
        std::fs::remove_dir_all(self.folder.join(UNFINISHED)).ok();
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.taking.abort();
    }
}

async fn take(database_url: String, folder: PathBuf) {
    let (mut kept, mut every) = (kept(&folder), EVERY);
    // After those of an earlier look at the same ledger.
    let first = kept.last().map_or(0, |last| number_of(last) + 1);
    for number in first.. {
        let unfinished = folder.join(UNFINISHED);
        let taken = tokio::time::timeout(TIMEOUT, dump::ledger(&database_url, &unfinished)).await;
        // While the database is the one that fails, there is nothing to look at.
        if matches!(taken, Ok(Ok(()))) {
            let snapshot = folder.join(format!("{number:05}"));
            std::fs::rename(&unfinished, &snapshot).unwrap();
            kept.push(snapshot);
        }
        if kept.len() >= KEPT_MAX {
            for every_other in (1..kept.len()).step_by(2).rev() {
                std::fs::remove_dir_all(kept.remove(every_other)).unwrap();
            }
            every *= 2;
        }
        tokio::time::sleep(every).await;
    }
}

/// Those that are there, in order.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let taken = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut taken: Vec<PathBuf> = taken.filter(|path| !path.ends_with(UNFINISHED)).collect();
    taken.sort();
    taken
}

fn number_of(snapshot: &Path) -> u32 {
    snapshot.file_name().and_then(|name| name.to_str()).unwrap().parse().unwrap()
}

/// Whether there was a batch by then: a line beside that of the columns.
fn has_batches(snapshot: &Path) -> bool {
    // One that has just gone has none.
    let batches = std::fs::read_to_string(snapshot.join("ingest_batches.csv"));
    batches.is_ok_and(|batches| batches.lines().count() > 1)
}
