//! What the ledger had when it was last asked, kept beside the journal: a start while nobody answers need not publish again what is
//! settled. It only spares work: where it is missing or cannot be read, nothing counts as settled until the ledger says so.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::JournalError;
use super::folder::FILE_MODE;
use crate::forward::settled::Settled;

/// Its name.
const SETTLED: &str = "settled.json";

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    epoch: Uuid,
    settled: Settled,
    /// CRC-32 of the epoch and what is settled.
    sum: u32,
}

impl Noted {
    fn new(epoch: Uuid, settled: Settled) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(epoch.as_bytes());
        hasher.update(format!("{settled:?}").as_bytes());
        Self { epoch, settled, sum: hasher.finalize() }
    }
}

/// What was noted last for an epoch.
pub fn read(folder: &Path, epoch: Uuid) -> Option<Settled> {
    let noted: Noted = serde_json::from_slice(&std::fs::read(folder.join(SETTLED)).ok()?).ok()?;
    let expected = Noted::new(noted.epoch, noted.settled);
    (noted.epoch == epoch && noted.sum == expected.sum).then_some(expected.settled)
}

/// Notes what is settled, whole or not at all.
///
/// # Errors
/// [`JournalError::Io`].
pub fn write(folder: &Path, epoch: Uuid, settled: &Settled) -> Result<(), JournalError> {
    let path = folder.join(SETTLED);
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
        file.write_all(&serde_json::to_vec(&Noted::new(epoch, settled.clone()))?)?;
        // The folder is not synced: where a crash brings the one before back, it spares less work.
        file.sync_data()?;
        std::fs::rename(&new, &path)
    };
    written().map_err(JournalError::io("cannot write", &path))
}
