//! Faults: real processes, real servers, and a proxy that does to them what networks, disks and kills do. See README.md.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; clippy knows tests by their functions only"
)]

mod api;
mod auditing;
mod bed;
mod cluster;
mod cluster_bed;
mod connection_faults;
mod crash_points;
mod dump;
#[expect(dead_code, reason = "shared with the other integration tests")]
#[path = "../it/harness.rs"]
mod harness;
mod invoices;
mod nats_server;
mod network;
mod postgres_server;
mod process;
mod protocol;
mod proxy;
mod publisher;
mod restores;
mod rounds;
mod servers;
mod service;
mod snapshots;
mod soak;
mod stream_life;
mod transactions;
mod watching;
mod workers;
