//! Tests over real servers: one binary. Run them with `make test`, or `cargo run -- dev exec -- cargo test`.

#![expect(clippy::expect_used, clippy::panic, reason = "a test says what it needs by failing")]

mod harness;
mod http_access;
mod http_bed;
mod http_resources;
mod http_writes;
mod servers;
mod setup;
