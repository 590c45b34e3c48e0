//! `waybill partitions`: the months of the journal, and dropping old ones.

use std::process::ExitCode;

use super::{answered, ledger};
use crate::config::{DatabaseArgs, DropArgs};
use crate::ingest::partitions::{self, Outcome, Request};
use crate::store::Rights;
use crate::store::partitions::{Month, Obstacle};

/// Who acts, for the audit log.
const ACTOR: &str = "command line";
/// Bytes in what sizes are shown in.
const MEBIBYTE: i64 = 1 << 20;

/// Prints the months of the journal, and what keeps each from being dropped.
///
/// # Errors
/// Where the database does not answer.
pub async fn list(args: &DatabaseArgs) -> anyhow::Result<()> {
    for (month, obstacles) in partitions::list(&ledger(&args.database_url, Rights::Auditor).await?).await? {
        let verdict = if obstacles.is_empty() { "may be dropped".to_owned() } else { reasons(&obstacles) };
        println!("{}  {verdict}", shown(&month));
    }
    Ok(())
}

/// Drops old months, or says what would become of them; the exit code is 1 where one may not be dropped, and 2 where that
/// could not be looked at.
pub async fn drop_before(args: &DropArgs) -> ExitCode {
    answered(dropped(args).await)
}

/// `true` where each of the months was dropped, or may be.
async fn dropped(args: &DropArgs) -> anyhow::Result<bool> {
    let request = Request { before: args.before, estimates_stand: args.estimates_stand, apply: args.apply };
    let database = ledger(&args.database.database_url, Rights::Owner).await?;
    let done = partitions::drop_before(&database, request, ACTOR).await?;
    let mut complete = true;
    for (month, outcome) in &done {
        let verdict = match outcome {
            Outcome::Dropped => "archived and dropped".to_owned(),
            Outcome::Possible => "would be archived and dropped".to_owned(),
            Outcome::Refused(obstacles) => {
                complete = false;
                format!("NOT dropped: {}", reasons(obstacles))
            }
            Outcome::Busy => {
                complete = false;
                "NOT dropped: somebody reads the journal for long; try again later".to_owned()
            }
        };
        println!("{}  {verdict}", shown(month));
    }
    if done.is_empty() {
        println!("There is no month before {}.", args.before.format("%Y-%m"));
    } else if !args.apply {
        println!(
            "Nothing was changed; with --apply this is done. Raw events and what was received are gone then."
        );
    }
    Ok(complete)
}

fn shown(month: &Month) -> String {
    format!(
        "{}  {:>12} rows {:>8} MiB, {:>8} batches {:>8} MiB",
        month.first_day.format("%Y-%m"),
        month.rows,
        month.bytes / MEBIBYTE,
        month.batches,
        month.payload_bytes / MEBIBYTE
    )
}

fn reasons(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
