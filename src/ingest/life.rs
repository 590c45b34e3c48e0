//! Whether the stream still holds what the ledger recorded from it, or counts its sequences again.

use super::IngestError;
use super::stream::{self, UsageStream};
use crate::store::{Database, completeness};

/// What the stream is to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It holds the last message that the ledger has of it, or holds only later ones.
    Known,
    /// The ledger has nothing of it yet.
    New {
        /// Whether it has something of another life.
        others: bool,
    },
    /// It ends before the last message that the ledger has of it, or has another one in its place: it was restored from a
    /// backup, or lost its end in a power failure.
    RolledBack {
        /// The last sequence in the ledger.
        recorded: i64,
        /// The last one in the stream.
        last: i64,
    },
}

/// Compares the last message in the ledger with the stream.
///
/// # Errors
/// [`IngestError::Store`], [`IngestError::Stream`].
pub(super) async fn look(stream: &UsageStream, database: &Database) -> Result<Life, IngestError> {
    let mut tx = database.read_ingest().await?;
    let Some(recorded) = completeness::last(&mut tx, stream.incarnation).await? else {
        let others = completeness::other_lives(&mut tx, stream.incarnation).await?;
        return Ok(Life::New { others });
    };
    drop(tx);
    // Asked after the ledger: what that has, the stream had before.
    let last = stream::last_sequence(stream).await?;
    let rolled_back = Life::RolledBack { recorded: recorded.sequence, last };
    if last < recorded.sequence {
        return Ok(rolled_back);
    }
    let Some(published_at) = recorded.published_at else { return Ok(Life::Known) };
    match stream::published_at(stream, recorded.sequence).await? {
        // The database keeps microseconds.
        Some(now) if now.timestamp_micros() != published_at.timestamp_micros() => Ok(rolled_back),
        // Expired: what follows it is later.
        Some(_) | None => Ok(Life::Known),
    }
}
