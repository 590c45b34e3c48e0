//! What can go wrong between the stream and the journal.

use chrono::{DateTime, Utc};

use crate::domain::ids::CustomerId;
use crate::rating::BookError;
use crate::store::StoreError;

/// Why a message, a batch or the whole loop could not go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored price book contradicts itself.
    #[error("a stored price book cannot be used: {0}")]
    Book(#[from] BookError),
    /// A stored billing calendar is wrong.
    #[error("a stored billing calendar cannot be used: {0}")]
    Calendar(#[from] crate::domain::period::CalendarError),
    /// Usage lies in no billing period, although the missing ones were just made; nothing was folded.
    #[error("usage of customer {customer} at {at} lies in no billing period; look at its billing_periods")]
    NoPeriod {
        /// The customer.
        customer: CustomerId,
        /// An instant without a period.
        at: DateTime<Utc>,
    },
    /// Batches are not posted although it was tried for long.
    #[error(
        "{batches} batches are recorded and not posted: for a minute another program posts them, closes a period or repairs the sums; wait \
         for it, or end it if it is frozen, and the service posts them"
    )]
    Unposted {
        /// How many.
        batches: i64,
    },
    /// The stream or its consumer has other settings than correctness needs.
    #[error("{object} has settings that would lose or change usage: {}; correct them or let Waybill create it anew", drift.join("; "))]
    Drift {
        /// The stream or consumer.
        object: String,
        /// Field by field: is, must be.
        drift: Vec<String>,
    },
    /// The stream does not answer or refuses.
    #[error("{what}: {cause}")]
    Stream {
        /// What was tried.
        what: &'static str,
        /// What the client library said.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The batch could not be compressed.
    #[error("the batch could not be compressed: {0}")]
    Compress(std::io::Error),
    /// Rows that are kept in memory for posting cannot be coded or read back; nothing was posted.
    #[error(
        "rows that are kept for posting cannot be read: {0}; restart the program, which then reads them from the journal"
    )]
    Facts(#[from] postcard::Error),
    /// Posting half of a slice broke off; the other half was not posted either.
    #[error("posting half of a slice ended unexpectedly: {0}; please report it")]
    Half(#[from] tokio::task::JoinError),
    /// The program is stopping; nothing was recorded, the messages will be delivered again.
    #[error("stopping")]
    Stopping,
}

/// An answer of the stream that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("the answer makes no sense")]
pub struct Unusable;

impl IngestError {
    /// Wraps an error of the stream's client library.
    pub fn stream(what: &'static str) -> impl FnOnce(async_nats::Error) -> Self {
        move |cause| Self::Stream { what, cause }
    }

    /// Whether a stream that answers could not give the one message that was asked for: others may be readable.
    pub fn of_one_message(&self) -> bool {
        /// The server's code where it has no stream to ask at the moment.
        const UNAVAILABLE: usize = 503;
        let Self::Stream { cause, .. } = self else { return false };
        let said = cause.downcast_ref::<async_nats::jetstream::Error>();
        cause.is::<Unusable>() || said.is_some_and(|said| said.code() != UNAVAILABLE)
    }

    /// Whether the connection to the database was lost, or none was to be had.
    pub fn connection_lost(&self) -> bool {
        matches!(self, Self::Store(error) if error.connection_lost())
    }

    /// Whether a lock of the database was not to be had in time.
    pub fn lock_timed_out(&self) -> bool {
        matches!(self, Self::Store(error) if error.lock_timed_out())
    }

    /// Whether the same work may succeed when tried again as a whole.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::Stream { .. } => true,
            Self::Book(_)
            | Self::Calendar(_)
            | Self::NoPeriod { .. }
            | Self::Unposted { .. }
            | Self::Drift { .. }
            | Self::Compress(_)
            | Self::Facts(_)
            | Self::Half(_)
            | Self::Stopping => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_cannot_be_read_is_no_silent_stream() {
        let said = |code: usize| {
            let said = serde_json::json!({"code": code, "err_code": 10_000, "description": "x"});
            serde_json::from_value::<async_nats::jetstream::Error>(said).unwrap()
        };
        assert!(IngestError::stream("x")(said(500).into()).of_one_message());
        assert!(IngestError::stream("x")(Unusable.into()).of_one_message());
        assert!(!IngestError::stream("x")(said(503).into()).of_one_message());
        assert!(!IngestError::stream("x")("the connection is closed".into()).of_one_message());
        assert!(!IngestError::Stopping.of_one_message());
    }
}
