//! Recording and posting: from the stream to the journal, from the journal to the sums.
//!
//! Owns: the stream and its consumer, the outcome of every message, replay and repair.
//! Does not own: the meaning of a payload (`metering`), the choice of a price (`rating`), any SQL (`store`).
//! Invariants: ack follows commit; every event ends as recorded, duplicate or rejected, or its message is delivered
//! again; the database decides, the stream's own deduplication never does.

mod connection;
mod publisher;

pub use connection::connect;
pub use publisher::{PublishError, Published, Publisher};

/// The stream that usage events travel in.
pub const STREAM: &str = "USAGE";
/// Subjects are this, a dot, and the gateway's name.
pub const SUBJECT_PREFIX: &str = "usage.v1";
