//! A fault every half a minute, of a kind that the seed chooses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::bed::Bed;
use crate::proxy::{End, Mode};
use crate::service::Supervised;

/// Pauses between two faults, in seconds.
const PAUSE_SECONDS: std::ops::Range<u64> = 15..45;
/// How long a fault lasts that has a length.
const LASTS: Duration = Duration::from_secs(8);
/// What is added to each message to and from PostgreSQL while it is far away.
const DELAY: Duration = Duration::from_millis(20);
/// How long a server stays away that was killed.
const AWAY: Duration = Duration::from_secs(2);
/// How often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(200);

static STOPPED: AtomicBool = AtomicBool::new(false);

/// What can happen.
#[derive(Debug, Clone, Copy)]
enum Fault {
    ProgramKilled,
    ProgramFrozen,
    ProgramStopped,
    PostgresReset,
    PostgresSilent,
    PostgresFar,
    BackendEnded,
    PostgresKilled,
    NatsReset,
    NatsSilent,
    NatsKilled,
    GatewaysReset,
}

const FAULTS: [Fault; 12] = [
    Fault::ProgramKilled,
    Fault::ProgramFrozen,
    Fault::ProgramStopped,
    Fault::PostgresReset,
    Fault::PostgresSilent,
    Fault::PostgresFar,
    Fault::BackendEnded,
    Fault::PostgresKilled,
    Fault::NatsReset,
    Fault::NatsSilent,
    Fault::NatsKilled,
    Fault::GatewaysReset,
];

/// No further faults.
pub fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Makes trouble until it is told to stop; the last fault is over then. Faults of a program are those of `victim`: the other
/// one runs on all the time, or nothing would show what it collects. Returns the names of what happened.
pub async fn make(bed: &mut Bed, victim: &Supervised, seed: u64) -> Vec<String> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut happened, started) = (Vec::new(), Instant::now());
    loop {
        let pause = Instant::now() + Duration::from_secs(random.random_range(PAUSE_SECONDS));
        while Instant::now() < pause {
            if STOPPED.load(Ordering::Relaxed) {
                return happened;
            }
            tokio::time::sleep(TICK).await;
        }
        let fault = FAULTS[random.random_range(0..FAULTS.len())];
        let seconds = started.elapsed().as_secs();
        eprintln!("{seconds:>5} s {fault:?}");
        happened.push(format!("{fault:?}"));
        strike(bed, victim, fault).await;
    }
}

async fn strike(bed: &mut Bed, victim: &Supervised, fault: Fault) {
    match fault {
        Fault::ProgramKilled => victim.now(|service| service.signal(Signal::SIGKILL)),
        Fault::ProgramStopped => victim.now(|service| service.signal(Signal::SIGTERM)),
        Fault::ProgramFrozen => {
            victim.now(|service| service.freeze());
            tokio::time::sleep(LASTS).await;
            victim.now(|service| service.thaw());
        }
        Fault::PostgresReset => bed.postgres.end_all(End::Reset),
        Fault::PostgresSilent => during(bed, |bed, mode| bed.postgres.set_both(mode), Mode::Blackhole).await,
        Fault::PostgresFar => during(bed, |bed, mode| bed.postgres.set_both(mode), Mode::Delay(DELAY)).await,
        Fault::BackendEnded => {
            let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name LIKE 'waybill-ingest%' LIMIT 1";
            sqlx::query(ended).execute(&bed.pool).await.ok();
        }
        Fault::PostgresKilled => {
            let postgres = bed.own_postgres.as_mut().unwrap();
            postgres.kill().await;
            tokio::time::sleep(AWAY).await;
            postgres.start_again().await;
            bed.postgres.retarget(postgres.address());
        }
        Fault::NatsReset => bed.nats.end_all(End::Reset),
        Fault::NatsSilent => during(bed, |bed, mode| bed.nats.set_both(mode), Mode::Blackhole).await,
        Fault::NatsKilled => {
            bed.own_nats.as_mut().unwrap().kill().await;
            tokio::time::sleep(AWAY).await;
            bed.start_nats_again().await;
        }
        Fault::GatewaysReset => bed.intake.end_all(End::Reset),
    }
}

/// A way of the network to be, for a while.
async fn during(bed: &Bed, set: impl Fn(&Bed, Mode), mode: Mode) {
    set(bed, mode);
    tokio::time::sleep(LASTS).await;
    set(bed, Mode::Pass);
}
