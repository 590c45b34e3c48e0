//! Recording and posting: from the stream to the journal, from the journal to the sums, from hours to days.
//!
//! Owns: the stream and its consumer, whether their settings let usage be recorded at all, the outcome of every message,
//! replay and repair, the repair of sums, dropping old months.
//! Does not own: the meaning of a payload (`metering`), the choice of a price (`rating`), any SQL (`store`).
//! Invariants: ack follows commit; every event ends as recorded, duplicate or rejected, or its message is delivered
//! again; the database decides, the stream's own deduplication never does.

mod batch;
mod catalog;
pub mod compaction;
mod connection;
mod consumer;
mod decide;
mod discards;
mod error;
mod facts;
mod fetch;
mod headers;
mod life;
mod message;
mod meters;
mod monitor;
mod pace;
pub mod partitions;
mod pipeline;
pub mod posting;
mod publisher;
mod recent;
mod record;
pub mod refold;
pub mod repair;
pub mod replay;
mod settings;
mod slice;
mod sorted;
pub mod stream;
mod sums;
pub mod supervisor;
mod unreadable;

pub use connection::{connect, jetstream, jetstream_in_time, publishing_in_time};
pub use error::IngestError;
pub use pace::Nudge;
pub use publisher::{PublishError, Published, Publisher};
pub use recent::Recent;
pub use record::Recorder;
pub use settings::WrongSetting;
pub use stream::{StreamLimits, StreamNames, UsageStream};
