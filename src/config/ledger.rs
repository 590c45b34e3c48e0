//! The commands that work on the ledger once and end, and the simulator.

use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;

use super::{DatabaseArgs, NatsArgs};
use crate::domain::access::Role;

/// A key to be made.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// What its holder may do: gateway, customer, finance or admin
    #[arg(long)]
    pub role: Role,
    /// What it is for, shown in lists
    #[arg(long)]
    pub name: String,
    /// The gateway that a gateway key speaks for
    #[arg(long)]
    pub gateway: Option<String>,
    /// The external id of the customer that a customer key speaks for
    #[arg(long)]
    pub customer: Option<String>,
}

/// A key to be revoked.
#[derive(Debug, Clone, Args)]
pub struct RevokeArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Its public id: the twelve characters after `wb_`
    pub public_id: String,
}

/// A proof to be made.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Fold the whole journal again too, and compare every row of the sums: half a minute of a core for a million events
    #[arg(long)]
    pub rebuild: bool,
    /// Replace the sums that differ from the journal, before everything is proven; refused where a closed period would change.
    /// Posting waits meanwhile, recording goes on
    #[arg(long, requires = "rebuild")]
    pub apply: bool,
}

/// Months of the journal to be dropped.
#[derive(Debug, Clone, Args)]
pub struct DropArgs {
    /// The database; its login must own the tables.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Months before this one, as 2026-08: the calendar months in which usage was recorded
    #[arg(long, value_parser = month)]
    pub before: NaiveDate,
    /// Drop estimates that were never corrected too: they stand for good
    #[arg(long)]
    pub estimates_stand: bool,
    /// Drop them; without it only what would become of them is shown
    #[arg(long)]
    pub apply: bool,
}

/// The first day of a month written like 2026-08.
fn month(text: &str) -> Result<NaiveDate, String> {
    let shown = || "write the month like 2026-08".to_owned();
    if text.len() != "2026-08".len() {
        return Err(shown());
    }
    format!("{text}-01").parse().map_err(|_| shown())
}

/// Periods to be closed.
#[derive(Debug, Clone, Args)]
pub struct CloseArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Hours after its end that a period stays open for late usage
    #[arg(long, default_value_t = 1)]
    pub grace_hours: u32,
}

/// Invoices to be listed.
#[derive(Debug, Clone, Args)]
pub struct ListInvoicesArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How many, newest first
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
}

/// Recorded usage to be rated again.
#[derive(Debug, Clone, Args)]
pub struct RerateArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Usage that happened at or after this time, as 2026-11-01T00:00:00Z
    #[arg(long)]
    pub from: DateTime<Utc>,
    /// Usage that happened before this time
    #[arg(long)]
    pub to: DateTime<Utc>,
    /// External id of the only customer to re-rate
    #[arg(long)]
    pub customer: Option<String>,
    /// The only provider to re-rate
    #[arg(long)]
    pub provider: Option<String>,
    /// The only model to re-rate; `gpt-5*` stands for every name that begins so
    #[arg(long)]
    pub model: Option<String>,
    /// Why, in up to 200 characters; it stands on the invoices' adjustment lines
    #[arg(long)]
    pub reason: Option<String>,
    /// Write the adjustments; without it they are only shown
    #[arg(long)]
    pub apply: bool,
}

/// Traffic to be published.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// The stream.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// How many events
    #[arg(long, default_value_t = 10_000)]
    pub events: usize,
    /// What the traffic is drawn from; ids and times also hang on when it runs, so every run brings new events
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Most events per message, 1 to 100; with --rate fewer, so that none waits longer than 10 ms for its message
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub per_message: u8,
    /// Compress messages with zstd
    #[arg(long)]
    pub zstd: bool,
    /// Events per second; without it as fast as the stream takes them
    #[arg(long)]
    pub rate: Option<u32>,
    /// Tasks start within this many days before now, at most 30
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=30))]
    pub days: u16,
}
