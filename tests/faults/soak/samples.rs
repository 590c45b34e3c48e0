//! What the programs hold while they run: memory, file handles, connections, and how far they are behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::unistd::Pid;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::sent::Sending;
use crate::bed::Bed;
use crate::service::Supervised;
use crate::watching::status_mib;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);
/// How long the database may take to answer; while it is the one that fails, the last answer stands.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// MiB of memory and file handles of a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    pub memory_mib: u64,
    pub handles: u64,
}

/// One look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub seconds: u64,
    /// What each of the two programs has, and MiB of NATS.
    pub programs: [Held; 2],
    pub nats_mib: u64,
    /// Connections of the programs to PostgreSQL.
    pub connections: i64,
    /// Events that were made, confirmed by the stream, recorded, and posted.
    pub made: u64,
    pub confirmed: u64,
    pub recorded: i64,
    pub posted: i64,
}

/// Looks until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    pub fn start(bed: &Bed, services: &[Arc<Supervised>; 2], sending: &Sending) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looker = Looker {
            stop: Arc::clone(&stop),
            pool: bed.pool.clone(),
            services: services.clone(),
            nats_pid: bed.own_nats.as_ref().map(|nats| nats.home().join("nats.pid")).unwrap_or_default(),
            made: Arc::clone(&sending.made),
            confirmed: Arc::clone(&sending.confirmed),
        };
        Self { stop, looking: tokio::spawn(looker.run()) }
    }

    pub async fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.await.unwrap()
    }
}

struct Looker {
    stop: Arc<AtomicBool>,
    pool: PgPool,
    services: [Arc<Supervised>; 2],
    nats_pid: std::path::PathBuf,
    made: Arc<AtomicU64>,
    confirmed: Arc<AtomicU64>,
}

impl Looker {
    async fn run(self) -> Vec<Sample> {
        let started = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let before = samples.last().copied().unwrap_or_default();
            samples.push(self.look(started.elapsed().as_secs(), before).await);
            tokio::time::sleep(EVERY).await;
        }
        samples
    }

    async fn look(&self, seconds: u64, before: Sample) -> Sample {
        let programs = self.services.each_ref().map(|service| held(service.now(|service| service.pid())));
        let ledger = sqlx::query_as(
            "SELECT (SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name ~ '^waybill-(ingest|api)'),
                    COALESCE(sum(recorded), 0)::bigint,
                    COALESCE(sum(recorded) FILTER (WHERE posted_at IS NOT NULL), 0)::bigint FROM ingest_batches",
        )
        .fetch_one(&self.pool);
        let ledger = tokio::time::timeout(ANSWER_TIMEOUT, ledger).await;
        let before_ledger = (before.connections, before.recorded, before.posted);
        let (connections, recorded, posted) = ledger.ok().and_then(Result::ok).unwrap_or(before_ledger);
        let nats = std::fs::read_to_string(&self.nats_pid).unwrap_or_default();
        Sample {
            seconds,
            programs,
            nats_mib: nats.trim().parse().map_or(0, |pid| memory_mib(Pid::from_raw(pid))),
            connections,
            made: self.made.load(Ordering::Relaxed),
            confirmed: self.confirmed.load(Ordering::Relaxed),
            recorded,
            posted,
        }
    }
}

fn held(pid: Pid) -> Held {
    let handles = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
    Held { memory_mib: memory_mib(pid), handles }
}

fn memory_mib(pid: Pid) -> u64 {
    status_mib(pid, "VmRSS:").unwrap_or_default()
}
