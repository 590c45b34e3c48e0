//! Everything a checkout needs to run by itself.
//!
//! Owns: the private PostgreSQL and NATS servers of `waybill dev` and of the tests, and where they come from.
//! Does not own: the service that runs on them (`app`), what travels through them (`ingest`).
//! Invariants: a private server ends with the process that started it, however that ends; nothing is installed that a
//! user did not allow; a wait ends when its condition holds or its deadline passes, never after a fixed time.

pub mod demo;
pub mod exec;
pub mod keys;
pub mod packing;
pub mod servers;
pub mod simulate;
pub mod traffic;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Only its owner may read a file that holds keys or passwords.
const OWNER_ONLY: u32 = 0o600;

/// Writes a file whole or not at all, readable by its owner only.
fn write_for_owner(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> Result<(), DevError> {
    let new = path.with_extension("new");
    let written = || {
        let file = File::options().write(true).create(true).truncate(true).mode(OWNER_ONLY).open(&new)?;
        write(&file)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(DevError::io("cannot write", path))
}

/// Why the private servers are not there.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file or folder could not be used.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried, as the beginning of a sentence.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process runs servers in the same home.
    #[error("another waybill runs in {}: stop it, or set WAYBILL_HOME to another folder", home.display())]
    Busy {
        /// The home both want.
        home: PathBuf,
    },
    /// A server's programs are neither installed nor could they be fetched.
    #[error(
        "{what} was not found and could not be fetched ({tried}): install it, or run `docker compose up`"
    )]
    Missing {
        /// The server and the version it must have.
        what: String,
        /// What went wrong on each way to fetch it.
        tried: String,
    },
    /// The kept data can be read by another major version only.
    #[error(
        "the data in {} was written by PostgreSQL {major}, which is not here any more: install it, or delete that folder",
        data.display()
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// The major version that wrote it.
        major: u32,
    },
    /// A program could not be run, or ended with an error.
    #[error("`{program}` failed: {detail}")]
    Failed {
        /// The program.
        program: String,
        /// What it said.
        detail: String,
    },
    /// A server ended by itself.
    #[error("{server} ended by itself; the end of {} says:\n{tail}", log.display())]
    Exited {
        /// The server.
        server: &'static str,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A server runs but does not answer.
    #[error("{server} did not answer within {seconds} s ({detail}); the end of {} says:\n{tail}", log.display())]
    NotReady {
        /// The server.
        server: &'static str,
        /// How long it was waited for.
        seconds: u64,
        /// The last answer.
        detail: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The database did not do as asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The starter book or the demo's books were not taken.
    #[error(transparent)]
    Prices(#[from] crate::store::prices::PricesError),
    /// The starter book in the program cannot be read.
    #[error("the starter cost book cannot be read: {0}")]
    StarterBook(serde_json::Error),
    /// The demo's traffic was not taken.
    #[error(transparent)]
    Publish(#[from] crate::ingest::PublishError),
}

impl DevError {
    /// Turns an I/O error on `path` into a sentence that begins with `what`.
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}
