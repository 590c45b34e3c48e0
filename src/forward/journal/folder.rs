//! The journal's folder: its lock, its epoch, its segment files, and what is on disk for certain.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::JournalError;

/// The form of the journal that this release writes and reads.
const FORM: u32 = 1;
/// Says which journal this is.
const IDENTITY: &str = "journal.json";
/// Held locked by the process that writes the journal.
const LOCK: &str = "lock";
/// Ending of a segment.
const SEGMENT: &str = "events";
/// Ending of a segment that held damage, kept for whoever wants to save what can be saved.
const DAMAGED: &str = "damaged";
/// Its name; there where the journal was found to be an older copy of itself.
pub const OLDER_COPY: &str = "older-copy";
/// How long a process that was killed a moment ago may still hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two tries.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Events are nobody else's business.
const FOLDER_MODE: u32 = 0o700;
/// Nor is any file in it.
pub const FILE_MODE: u32 = 0o600;

/// What `journal.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    form: u32,
    gateway: String,
    epoch: Uuid,
    /// CRC-32 of gateway and epoch: another epoch would make every record unreadable.
    sum: u32,
}

impl Identity {
    fn new(gateway: &str, epoch: Uuid) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(gateway.as_bytes());
        hasher.update(epoch.as_bytes());
        Self { form: FORM, gateway: gateway.to_owned(), epoch, sum: hasher.finalize() }
    }
}

/// A locked folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Names the count: one per journal.
    pub epoch: Uuid,
    // Held until the end.
    _lock: File,
}

impl Folder {
    /// Opens it, or makes it with a first, empty segment; returns it with its segments, `(first number, path)` in order, at
    /// least one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, gateway: &str) -> Result<(Self, Vec<(u64, PathBuf)>), JournalError> {
        let path = std::path::absolute(path).map_err(JournalError::io("cannot find", path))?;
        let made = path.ancestors().take_while(|folder| !folder.exists()).count();
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&path)
            .map_err(JournalError::io("cannot create", &path))?;
        let lock = lock(&path)?;
        sync_names(&path, made)?;
        let mut segments = segments(&path)?;
        let identity = path.join(IDENTITY);
        let known = match std::fs::read(&identity) {
            Ok(bytes) => Some(read_identity(&identity, &bytes, gateway)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(JournalError::io("cannot read", &identity)(error)),
        };
        let used = segments.iter().any(|(_, path)| path.metadata().is_ok_and(|data| data.len() > 0));
        let epoch = match known {
            // There always is a segment, because its name carries the count on: without one the count starts anew.
            Some(epoch) if !segments.is_empty() => epoch,
            None if used => return Err(JournalError::NoIdentity { path: identity }),
            _ => {
                if known.is_some() {
                    tracing::error!(path = %path.display(), "the journal's segments are gone; a new count begins");
                }
                if segments.is_empty() {
                    let (segment, _) = create_segment(&path, 1)?;
                    segments.push((1, segment));
                }
                write_identity(&path, &identity, gateway)?
            }
        };
        Ok((Self { path, epoch, _lock: lock }, segments))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the segment that begins with a number, empty, and its name durable.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create_segment(&self, first: u64) -> Result<(PathBuf, File), JournalError> {
        create_segment(&self.path, first)
    }

    /// Notes, durably, that the journal of a folder is an older copy of itself.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn mark_older_copy(folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(OLDER_COPY);
        let marked = || -> io::Result<()> {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(FILE_MODE)
                .open(&path)?
                .sync_all()?;
            File::open(folder)?.sync_all()
        };
        marked().map_err(JournalError::io("cannot make", &path))
    }

    /// Removes a segment that is of no more use; one that holds damage is set aside.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove_segment(path: &Path, damaged: bool) -> Result<(), JournalError> {
        // Where a crash brings the file back, its events are published again, and counted once.
        let removed = if damaged {
            std::fs::rename(path, path.with_extension(DAMAGED))
        } else {
            std::fs::remove_file(path)
        };
        match removed {
            // Somebody else has removed it: what stands behind it goes all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), "a segment of the journal that was to be removed is gone already");
                Ok(())
            }
            removed => removed.map_err(JournalError::io("cannot remove", path)),
        }
    }
}

fn create_segment(folder: &Path, first: u64) -> Result<(PathBuf, File), JournalError> {
    let path = folder.join(format!("{first:020}.{SEGMENT}"));
    let made_before = path.exists();
    let made = || -> io::Result<File> {
        // One that is there was made for a write that then failed: it holds nothing that was acknowledged.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&path)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(file)
    };
    match made() {
        Ok(file) => Ok((path, file)),
        Err(error) => {
            // A later write may still go on in the file before: this name would then stand for numbers that it has not.
            if !made_before {
                let _ = std::fs::remove_file(&path);
            }
            Err(JournalError::io("cannot make", &path)(error))
        }
    }
}

/// Makes durable the names in a folder, its own, and those of the `made` folders that lead to it: a run that was killed may
/// have made the segment that is written to next, and not have come so far.
fn sync_names(folder: &Path, made: usize) -> Result<(), JournalError> {
    for path in folder.ancestors().take(made.max(1) + 1) {
        match File::open(path).and_then(|opened| opened.sync_all()) {
            // A folder above ours that we may not read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path != folder => {}
            synced => synced.map_err(JournalError::io("cannot sync", path))?,
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, JournalError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
    let file = file.map_err(JournalError::io("cannot write", &path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(JournalError::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(JournalError::io("cannot lock", &path)(error)),
        }
    }
}

fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let failed = JournalError::io("cannot list", folder);
    let listed = || -> io::Result<Vec<(u64, PathBuf)>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if let Some(first) = number.filter(|_| path.extension().is_some_and(|is| is == SEGMENT)) {
                segments.push((first, path));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    };
    listed().map_err(failed)
}

fn read_identity(path: &Path, bytes: &[u8], gateway: &str) -> Result<Uuid, JournalError> {
    let identity: Identity = serde_json::from_slice(bytes)
        .map_err(|error| JournalError::Identity { path: path.to_owned(), detail: error.to_string() })?;
    let wrong = |detail: String| Err(JournalError::Identity { path: path.to_owned(), detail });
    if identity.form != FORM {
        return wrong(format!("it has form {}, this release knows {FORM}", identity.form));
    }
    if identity.sum != Identity::new(&identity.gateway, identity.epoch).sum {
        return wrong("its sum is wrong".to_owned());
    }
    if identity.gateway != gateway {
        return wrong(format!("it is the journal of gateway `{}`, not of `{gateway}`", identity.gateway));
    }
    Ok(identity.epoch)
}

/// Writes a new identity, whole or not at all.
fn write_identity(folder: &Path, path: &Path, gateway: &str) -> Result<Uuid, JournalError> {
    let identity = Identity::new(gateway, Uuid::now_v7());
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&new)?;
        serde_json::to_writer_pretty(&mut file, &identity)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    written().map_err(JournalError::io("cannot write", path))?;
    Ok(identity.epoch)
}
