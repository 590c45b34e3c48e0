//! What was heard of the journal's numbers, kept beside it: what the ledger had when it was last asked, and up to where the stream
//! has said that it has everything. A start while nobody answers need not publish any of that again. It only spares work: where it is
//! missing or cannot be read, nothing counts as settled, or as published, until somebody says so.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::JournalError;
use super::folder::FILE_MODE;
use crate::forward::settled::Settled;

/// The name of what is settled.
const SETTLED: &str = "settled.json";
/// The name of what is published.
const PUBLISHED: &str = "published.json";

/// What the file of what is settled holds.
#[derive(Debug, Serialize, Deserialize)]
struct NotedSettled {
    epoch: Uuid,
    settled: Settled,
    /// CRC-32 of the epoch and what is settled.
    sum: u32,
}

/// What the file of what is published holds.
#[derive(Debug, Serialize, Deserialize)]
struct NotedPublished {
    epoch: Uuid,
    /// The stream has said that it has everything up to this number.
    through: u64,
    /// CRC-32 of the epoch and that number.
    sum: u32,
}

/// CRC-32 of an epoch and what is noted for it.
fn sum(epoch: Uuid, noted: &impl Debug) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(epoch.as_bytes());
    hasher.update(format!("{noted:?}").as_bytes());
    hasher.finalize()
}

/// What was noted last to be settled, for an epoch.
pub fn settled(folder: &Path, epoch: Uuid) -> Option<Settled> {
    let noted: NotedSettled = serde_json::from_slice(&std::fs::read(folder.join(SETTLED)).ok()?).ok()?;
    (noted.epoch == epoch && noted.sum == sum(epoch, &noted.settled)).then_some(noted.settled)
}

/// Up to which number of an epoch everything was noted to be published.
pub fn published(folder: &Path, epoch: Uuid) -> Option<u64> {
    let noted: NotedPublished = serde_json::from_slice(&std::fs::read(folder.join(PUBLISHED)).ok()?).ok()?;
    (noted.epoch == epoch && noted.sum == sum(epoch, &noted.through)).then_some(noted.through)
}

/// Notes what is settled, whole or not at all.
///
/// # Errors
/// [`JournalError::Io`].
pub fn note_settled(folder: &Path, epoch: Uuid, settled: &Settled) -> Result<(), JournalError> {
    let noted = NotedSettled { epoch, settled: settled.clone(), sum: sum(epoch, settled) };
    write(&folder.join(SETTLED), &noted)
}

/// Notes up to which number everything is published, whole or not at all.
///
/// # Errors
/// [`JournalError::Io`].
pub fn note_published(folder: &Path, epoch: Uuid, through: u64) -> Result<(), JournalError> {
    write(&folder.join(PUBLISHED), &NotedPublished { epoch, through, sum: sum(epoch, &through) })
}

fn write(path: &Path, noted: &impl Serialize) -> Result<(), JournalError> {
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
        file.write_all(&serde_json::to_vec(noted)?)?;
        // The folder is not synced: where a crash brings the one before back, it spares less work.
        file.sync_data()?;
        std::fs::rename(&new, path)
    };
    written().map_err(JournalError::io("cannot write", path))
}
