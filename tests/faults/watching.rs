//! What a test looks at while a fault lasts.

use std::time::Duration;

use nix::unistd::Pid;
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bed::Bed;
use crate::harness::wait_until;
use crate::protocol::Message;
use crate::service::Service;

/// The program could not record for a moment and said so.
pub const RETRYING: &str = "a batch could not be recorded; trying again";
/// The program has found that what was acknowledged is not recorded, and heals that.
const LACKING: &str = "the ledger lacks sequences that are acknowledged";

/// What the program has written to its log so far.
pub fn log(bed: &Bed) -> String {
    std::fs::read_to_string(bed.folder.join("serve.log")).unwrap_or_default()
}

/// How often the log says something.
pub fn said(bed: &Bed, text: &str) -> usize {
    log(bed).matches(text).count()
}

/// Waits until the log says something more often than before.
pub async fn says(bed: &Bed, text: &str, before: usize) {
    wait_until(&format!("the log says: {text}"), async || (said(bed, text) > before).then_some(())).await;
}

/// What the bed's own PostgreSQL has written to its log so far.
pub fn server_log(bed: &Bed) -> String {
    std::fs::read_to_string(bed.own_postgres.as_ref().unwrap().home().join("logs/postgres.log")).unwrap()
}

/// Part of a transaction that records what the stream delivers, with its rows on their way or written.
pub fn records(message: &Message) -> bool {
    // Rejections that are tried again are looked up first.
    message.follows("COPY usage_events") && !message.follows("FROM rejections r JOIN")
}

/// The COMMIT of one, on its way.
pub fn recording(message: &Message) -> bool {
    message.is_statement("COMMIT") && records(message)
}

/// The answer that one is committed.
pub fn recorded(message: &Message) -> bool {
    message.completes("COMMIT") && records(message)
}

/// Sequences that the ledger accounts for; `None` while it does not answer.
pub async fn accounted(bed: &Bed) -> Option<i64> {
    accounted_in(&bed.pool, None).await.ok()
}

/// The same, of one life of the stream where it is named.
pub async fn accounted_in(pool: &PgPool, life: Option<Uuid>) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT COALESCE(SUM(upper(r) - lower(r)), 0)::bigint
         FROM (SELECT unnest(range_agg(sequences)) AS r FROM ingest_batches
               WHERE $1::uuid IS NULL OR incarnation = $1) AS seen",
    )
    .bind(life)
    .fetch_one(pool)
    .await
}

/// Waits until what the stream has now, and at least one message, is accounted for, whatever comes meanwhile; returns how
/// long that took. A backlog may take its time, as long as recording goes on.
pub async fn caught_up(bed: &Bed) -> Duration {
    let started = Instant::now();
    let (last, _) = bed.stream_state().await.unwrap();
    let last = last.max(1);
    let mut before = accounted(bed).await.unwrap_or_default();
    while before < last {
        before =
            wait_until("recording goes on", async || accounted(bed).await.filter(|now| *now > before)).await;
    }
    started.elapsed()
}

/// Checks that nothing had to be read again because it was acknowledged too early: the auditor comes when that is healed.
pub fn nothing_lacked(bed: &Bed) {
    assert_eq!(said(bed, LACKING), 0, "{LACKING}: see {}", bed.folder.display());
}

/// Waits until the program has found that what was acknowledged is not recorded.
pub async fn something_lacks(bed: &Bed) {
    says(bed, LACKING, 0).await;
}

/// Checks that no message is acknowledged that the ledger does not have.
pub async fn nothing_unearned(bed: &Bed) {
    let acknowledged = bed.consumer_info().await.unwrap().ack_floor.stream_sequence;
    let accounted = accounted(bed).await.unwrap();
    assert!(
        i64::try_from(acknowledged).unwrap() <= accounted,
        "{acknowledged} acknowledged, {accounted} recorded"
    );
}

/// Deliveries of messages that had been delivered before, and deliveries altogether.
pub async fn repeated(bed: &Bed) -> (u64, u64) {
    let delivered = bed.consumer_info().await.unwrap().delivered;
    let again = delivered.consumer_sequence.saturating_sub(delivered.stream_sequence);
    (again, delivered.consumer_sequence)
}

/// The same, told.
pub async fn redelivered(bed: &Bed) -> (u64, u64) {
    let (again, all) = repeated(bed).await;
    println!("{again} of {all} deliveries were repeated");
    (again, all)
}

/// Rejections that no event deserved: the database refused them, or something was not there for a moment.
pub async fn unstorable(bed: &Bed) -> i64 {
    bed.number("SELECT count(*) FROM rejections WHERE reason = 'unstorable'").await
}

/// The processor time a process has used so far, in clock ticks (hundredths of a second).
pub fn cpu_ticks(service: &Service) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The most memory a process has had so far, in MiB.
pub fn peak_mib(service: &Service) -> u64 {
    status_mib(service.pid(), "VmHWM:").unwrap()
}

/// A line of a process's status in MiB; `None` where it has ended.
pub fn status_mib(pid: Pid, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1_024)
}
