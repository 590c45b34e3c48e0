//! Tests over real servers: one binary. Run them with `make test`, or `cargo run -- dev exec -- cargo test`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; clippy knows tests by their functions only"
)]

mod architecture;
mod bad_inputs;
mod compaction;
mod coverage;
mod dev;
mod forward;
mod forward_bed;
mod forward_ledger;
mod forward_watched;
mod halves;
mod harness;
mod http_access;
mod http_bed;
mod http_events;
mod http_prices;
mod http_reports;
mod http_resources;
mod http_writes;
mod invariance;
mod invoicing;
mod ledger;
mod lost_connections;
mod markups;
mod member_login;
mod nats_attacks;
mod nats_billing;
mod nats_raw;
mod overrides;
mod partitions;
mod period_prices;
mod price_commands;
mod prices;
mod private_nats;
mod program;
mod published;
mod read_again;
mod real_data;
mod rebuild;
mod recording;
mod recording_bounds;
mod recording_corrections;
mod replay;
mod reports;
mod request_fees;
mod rerate;
mod rerate_beside;
mod roles;
mod servers;
mod setup;
mod supervision;
mod unreadable;
mod watermark;
mod world;
