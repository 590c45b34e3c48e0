//! The forwarder: takes a gateway's events beside it, keeps them on disk, and publishes them until the ledger has them.
//!
//! Owns: the journal, the local listener, stamping and packing, publishing again what was lost on the way.
//! Does not own: how a body of events is read and refused (`http::intake`, `http::problem`: a gateway sees no difference), the
//! connection to the stream (`ingest::Publisher`), what is settled (the API says so).
//! Invariants: 202 follows the disk's word; an event leaves the journal when the ledger has it and not before; every failure
//! (stream, API, disk, process) ends in waiting, refusing in a clear sentence, or publishing twice, never in forgetting; nothing is
//! published again while nobody says that the ledger lacks it, also after a start.
//!
//! ```text
//! POST /v1/events ─> listener ─> journal (fsync) ─> 202
//!                                   │  ▲ release
//!                                   ▼  │
//!                               delivery ─> usage.v1.<gateway> ─> … ─> GET /v1/gateways/<gateway>/watermark
//! ```

mod delivery;
mod heard;
pub mod journal;
mod listener;
mod meters;
mod settled;
mod stamp;
mod unsettled;
mod watermark;
mod way;

pub use delivery::Delivery;
pub use journal::{Journal, JournalError, Writer};
pub use listener::{Local, probes, router};
pub use settled::Settled;
pub use watermark::{WATERMARK, WatermarkClient, WatermarkError};

/// Most bytes of a message's body: what the stream takes less the room for its headers.
const MESSAGE_BYTES_MAX: usize = 65_536 - 512;
/// Most events of a message.
const EVENTS_PER_MESSAGE: usize = 100;
/// Most bytes of a message's events, such that it fits with every stamp and without compression.
const EVENTS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - EVENTS_PER_MESSAGE * stamp::STAMP_BYTES_MAX;
/// No event that is accepted is shorter: what its envelope must have takes more.
const EVENT_BYTES_MIN: usize = 80;
