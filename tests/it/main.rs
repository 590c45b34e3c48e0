//! Tests over real servers: one binary. Run them with `make test`, or `cargo run -- dev exec -- cargo test`.

mod architecture;
mod bad_inputs;
mod harness;
mod http_access;
mod http_bed;
mod http_reports;
mod http_resources;
mod http_writes;
mod invoicing;
mod ledger;
mod real_data;
mod reports;
mod servers;
mod setup;
mod world;
