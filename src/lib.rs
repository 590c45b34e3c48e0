//! Waybill meters, prices and bills AI tokens.
//!
//! Data flows down this list, and imports point up it; `tests/it/architecture.rs` holds the table.
//!
//! ```text
//! domain     pure: money, token classes, periods, events, prices
//! metering   pure: wire format and provider payloads -> usage events
//! rating     pure: usage part x price book at a time -> exact amount
//! store      all SQL
//! ingest     stream -> metering -> rating -> store -> ack; posting, replay, repair
//! invoicing  closes periods, computes and finalizes invoices
//! reports    usage, cost per task, margin
//! http       the REST API, and its reference
//! forward    beside a gateway: events -> journal on disk -> stream, until the ledger has them
//! dev        private servers, demo, simulator
//! app        wires it all
//! ```
//!
//! Beside it, for all that need them:
//!
//! ```text
//! config     flags and variables, one type per command
//! clock      the time, passed in
//! telemetry  logs and metrics
//! health     what the parts say about themselves, for the probes
//! shutdown   how the parts stop, and that none ends unseen
//! ```

pub mod app;
pub mod clock;
pub mod config;
pub mod dev;
pub mod domain;
pub mod forward;
pub mod health;
pub mod http;
pub mod ingest;
pub mod invoicing;
pub mod metering;
pub mod rating;
pub mod reports;
pub mod shutdown;
pub mod store;
pub mod telemetry;
