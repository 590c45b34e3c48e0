//! Faults of a NATS cluster with three copies of the stream, under load.
//!
//! Three servers on one disk show that the logic is right, not that disks and machines fail independently.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use waybill::ingest::stream::CONSUMER;

use crate::bed::{Bed, Own};
use crate::cluster_bed::{CATCH_UP_PATIENCE, Cluster, NODES};
use crate::harness::{wait_until, wait_until_within};
use crate::publisher::{Load, Sending};
use crate::rounds::{rounds, seed, thorough};
use crate::service::{Service, is_ready};
use crate::watching::accounted_in;

/// How long publishing may fail after a leader is killed: until a new one is elected, which takes 4 to 9 s.
const ELECTION_MAX: Duration = Duration::from_secs(15);
/// The same after one is frozen: the gateways may all be connected to it, which they notice within 15 s, and may try it
/// once more, for 5 s.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// How much later than confirmed a message may be recorded while servers are restarted in order.
const RESTART_LAG_MAX: Duration = Duration::from_secs(10);
/// How long everything may take once all servers are back.
const HEAL_MAX: Duration = Duration::from_mins(1);
/// Messages that must be confirmed before what is tested goes on.
const SOME: u64 = 30;
/// How long they may take, whatever one server does.
const CONFIRMS_WITHIN: Duration = Duration::from_secs(30);

/// A cluster, the program and gateways at work, the auditor watching.
struct Running {
    bed: Bed,
    service: Service,
    load: Sending,
}

fn own_cluster() -> Own {
    Own { cluster: true, ..Own::default() }
}

impl Running {
    async fn start(name: &str) -> Self {
        Self::over(name, Bed::with(name, own_cluster()).await).await
    }

    /// With no other test beside it, because it compares times.
    async fn alone(name: &str) -> Self {
        Self::over(name, Bed::alone_with(name, own_cluster()).await).await
    }

    async fn over(name: &str, mut bed: Bed) -> Self {
        assert!(bed.cluster.as_ref().unwrap().synced().await, "acknowledged means on disk");
        let service = bed.serve().start();
        service.ready().await;
        bed.take_snapshots();
        let load = Load::endless(seed(name)).start(&bed).await;
        let running = Self { bed, service, load };
        running.confirms_more().await;
        running
    }

    fn cluster(&mut self) -> &mut Cluster {
        self.bed.cluster.as_mut().unwrap()
    }

    /// Which server leads the stream, as the others say.
    async fn leader(&self) -> usize {
        let name = &self.bed.names.stream;
        wait_until("the stream has a leader", async || self.bed.cluster.as_ref().unwrap().leader(name).await)
            .await
    }

    /// Waits until more messages are confirmed; returns how long that took.
    async fn confirms_more(&self) -> Duration {
        self.confirms_more_within(CONFIRMS_WITHIN).await
    }

    /// The same, within a limit.
    async fn confirms_more_within(&self, limit: Duration) -> Duration {
        let (before, started) = (self.load.confirmed(), Instant::now());
        wait_until_within("messages are confirmed", limit, async || {
            (self.load.confirmed() >= before + SOME).then_some(())
        })
        .await;
        started.elapsed()
    }

    /// Waits until the consumer has a leader, as whoever restarts servers has to: a server that is healthy says nothing of
    /// that, and where the next one goes meanwhile nothing is delivered for twice as long.
    async fn consumes(&self) {
        wait_until("the consumer has a leader", async || {
            self.bed.consumer_info().await?.cluster?.leader.map(|_| ())
        })
        .await;
    }

    /// Ends the load, waits until everything is in the ledger, and lets the auditor judge; the program must never have ended.
    async fn judged(self) {
        let Self { mut bed, mut service, load } = self;
        let confirmed = load.stop().await;
        let healed = bed.settled_within(HEAL_MAX).await;
        println!("{confirmed} messages confirmed, settled {healed:?} after the last");
        assert!(service.ended().is_none(), "the program has ended");
        service.ready().await;
        wait_until("nothing waits for its acknowledgement", async || {
            let consumer = bed.consumer_info().await?;
            (consumer.num_ack_pending == 0 && consumer.num_pending == 0).then_some(())
        })
        .await;
        let lives = bed.number("SELECT count(DISTINCT incarnation) FROM ingest_batches").await;
        assert_eq!(lives, 1, "a change of the leader is no other life of the stream");
        bed.audit().await.clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_a_leader_that_is_killed_costs_an_election_and_no_event() {
    let mut running = Running::alone("f04").await;
    for _ in 0..rounds(15) {
        let leader = running.leader().await;
        running.cluster().kill(leader);
        let outage = running.confirms_more().await;
        println!("n{leader} killed, {SOME} messages confirmed after {outage:?}");
        assert!(outage < ELECTION_MAX, "{outage:?}");
        running.cluster().start_again(leader).await;
        running.confirms_more().await;
    }
    running.judged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_a_leader_that_was_frozen_cannot_confirm_what_the_new_one_does_not_have() {
    let mut running = Running::alone("f05").await;
    for _ in 0..rounds(5) {
        let frozen = running.leader().await;
        running.cluster().freeze(frozen);
        let since = Instant::now();
        // The gateways of the frozen server notice by themselves, and go to another.
        let outage = running.confirms_more().await;
        println!("n{frozen} frozen, {SOME} messages confirmed after {outage:?}");
        assert!(outage < SILENCE_MAX, "{outage:?}");
        if thorough() {
            tokio::time::sleep_until(since + Duration::from_secs(30)).await;
        }
        assert_ne!(running.leader().await, frozen, "another leads");
        running.cluster().thaw(frozen);
        running.cluster().healthy(frozen).await;
        running.confirms_more().await;
    }
    running.judged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_without_a_quorum_nothing_is_confirmed_and_afterwards_everything_is_there() {
    let mut running = Running::start("f06").await;
    for _ in 0..rounds(2) {
        let leader = running.leader().await;
        let lost = [leader, (leader + 1) % NODES];
        for number in lost {
            running.cluster().kill(number);
        }
        // What was on its way when the last quorum ended has been confirmed by then.
        let http = running.service.http;
        wait_until("it is not ready", async || is_ready(http).await.filter(|ready| !ready)).await;
        let confirmed = running.load.confirmed();
        let outage = Duration::from_secs(if thorough() { 60 } else { 2 });
        tokio::time::sleep(outage).await;
        assert_eq!(running.load.confirmed(), confirmed, "confirmed by a server alone");
        for number in lost {
            running.cluster().launch(number);
        }
        for number in lost {
            running.cluster().healthy(number).await;
        }
        // They have to agree on leaders again.
        running.confirms_more_within(CATCH_UP_PATIENCE).await;
        running.service.ready().await;
    }
    running.judged().await;
}

/// How far the ledger trails what is confirmed, at worst, measured again and again.
struct Lag {
    stop: Arc<AtomicBool>,
    measuring: JoinHandle<Duration>,
}

impl Lag {
    fn measure(pool: PgPool, confirmed: impl Fn() -> u64 + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let measuring = tokio::spawn(async move {
            let mut worst = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let (target, since) = (i64::try_from(confirmed()).unwrap(), Instant::now());
                while accounted_in(&pool, None).await.unwrap() < target {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                worst = worst.max(since.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            worst
        });
        Self { stop, measuring }
    }

    async fn worst(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.measuring.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_a_rolling_restart_is_noticed_by_nobody() {
    let mut running = Running::alone("f18").await;
    let lag = Lag::measure(running.bed.pool.clone(), running.load.counter());
    let stepdown = StepDowns::start(&running.bed);
    for _ in 0..rounds(2) {
        for number in 0..NODES {
            running.cluster().retire(number).await;
            running.cluster().start_again(number).await;
            running.confirms_more().await;
            running.consumes().await;
        }
    }
    let stepped_down = wait_until("a leader has stepped down", async || {
        let done = stepdown.done.load(Ordering::Relaxed);
        (done > 0).then_some(done)
    })
    .await;
    stepdown.stop().await;
    println!("{stepped_down} leaders have stepped down");
    let worst = lag.worst().await;
    println!("recorded {worst:?} after it was confirmed, at worst");
    assert!(worst < RESTART_LAG_MAX, "{worst:?}");
    running.judged().await;
}

/// Leaders of the stream and of the consumer that are asked to step down, one after the other.
struct StepDowns {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    asking: JoinHandle<()>,
}

impl StepDowns {
    fn start(bed: &Bed) -> Self {
        /// Pause between two of them.
        const EVERY: Duration = Duration::from_secs(5);
        let (client, stream) = (bed.context.client(), bed.names.stream.clone());
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let asking = tokio::spawn(async move {
            let subjects = [
                format!("$JS.API.CONSUMER.LEADER.STEPDOWN.{stream}.{CONSUMER}"),
                format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"),
            ];
            for subject in subjects.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let answer = client.request(subject.clone(), "".into()).await;
                if answer.is_ok_and(|answer| answer.payload.windows(7).any(|part| part == b"success")) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { stop, done, asking }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.await.unwrap();
    }
}
