//! The network between the program or the gateways and NATS goes silent, resets, loses, or is cut.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, NATS_CONNECTIONS, Verdict};
use crate::harness::wait_until;
use crate::protocol::{Kind, Way};
use crate::proxy::{End, Losing, Mode, Proxy};
use crate::publisher::{Load, copies_not_meant};
use crate::rounds::{rounds, seed, thorough};
use crate::service::Serve;

/// How long a dead connection may go unnoticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// Gateways whose confirmations vanish.
const LOSING_GATEWAYS: usize = 12;
/// What the program may have open more than before, once everything is as before: connections of pools come and go.
const FILES_MORE: usize = 12;

/// F21: connections that stay open and carry nothing, while everybody goes on sending.
#[tokio::test(flavor = "multi_thread")]
async fn f21_silent_connections_are_noticed_and_replaced() {
    let mut bed = Bed::alone("f21").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f21")).start(&bed).await;
    for _ in 0..rounds(5) {
        load.goes_on(30).await;
        let opened = |proxy: &Proxy| proxy.connections().1;
        let (program, gateways) = (opened(&bed.nats), opened(&bed.intake));
        let began = Instant::now();
        bed.nats.silence();
        bed.intake.silence();
        let confirmed = load.confirmed();
        wait_until("program and gateways connect anew", async || {
            let all = opened(&bed.nats) >= program + NATS_CONNECTIONS && opened(&bed.intake) >= gateways + 3;
            all.then_some(())
        })
        .await;
        let noticed = began.elapsed();
        println!("f21: noticed after {} ms", noticed.as_millis());
        assert!(noticed <= NOTICED_WITHIN, "noticed after {noticed:?}");
        assert!(noticed > Duration::from_secs(2) && load.confirmed() <= confirmed + 3, "they were silent");
        load.goes_on(30).await;
    }
    bed.is_alone_no_longer();
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// The control: a client that never asks, as that of async-nats up to 0.48 never did while it had something to send
/// (nats.rs#1593), stays on a dead connection, until the watchdog tries another one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f21_control_without_pings_only_the_watchdog_notices() {
    let mut bed = Bed::new("f21-control").await;
    let service = bed.serve_sabotaged("deaf").start();
    service.ready().await;
    let load = Load::endless(seed("f21-control")).start(&bed).await;
    load.goes_on(30).await;
    let (_, before) = bed.nats.connections();
    bed.nats.silence();
    sleep(NOTICED_WITHIN).await;
    assert_eq!(bed.nats.connections().1, before, "it noticed by itself: the test proves nothing");
    wait_until("the watchdog connects anew", async || (bed.nats.connections().1 > before).then_some(()))
        .await;
    load.goes_on(30).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// F22: connections are reset again and again.
#[tokio::test(flavor = "multi_thread")]
async fn f22_a_storm_of_resets_leaves_nothing_behind() {
    let mut bed = Bed::new("f22").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let seed = seed("f22");
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load::endless(seed).start(&bed).await;
    load.goes_on(30).await;
    let (files, (_, before)) = (service.open_files(), bed.nats.connections());
    let pauses = if thorough() { 200..2_000 } else { 50..600 };
    let storm = Duration::from_secs(if thorough() { 120 } else { 5 });
    let (began, mut resets) = (Instant::now(), 0_u32);
    while began.elapsed() < storm {
        sleep(Duration::from_millis(random.random_range(pauses.clone()))).await;
        bed.nats.end_all(End::Reset);
        bed.intake.end_all(End::Reset);
        resets += 1;
    }
    load.goes_on(30).await;
    let (_, after) = bed.nats.connections();
    println!("f22: {resets} resets, {} connections of the program", after - before);
    assert!(
        after - before >= u64::from(resets / 4),
        "{resets} resets brought {before} to {after} connections"
    );
    load.stop().await;
    bed.settled().await;
    service.ready().await;
    wait_until("the program has no more open than before the storm", async || {
        (service.open_files() <= files + FILES_MORE).then_some(())
    })
    .await;
    bed.audit().await.clean();
}

/// F24: the stream's confirmations vanish on their way to the gateways, which publish again. What the auditor says, how many
/// are lost, and how many copies came.
async fn f24(bed: &mut Bed, serve: Serve) -> (Verdict, u64, u64) {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    // Each of them loses about one, and waits seconds before it publishes again.
    let load = Load { gateways: LOSING_GATEWAYS, ..Load::endless(seed("f24")) }.start(bed).await;
    load.goes_on(30).await;
    let wanted = LOSING_GATEWAYS as u64 * u64::from(rounds(5));
    // Every other one, so that no gateway waits for ever.
    let passed = AtomicU64::new(0);
    let losing = bed.intake.lose(Way::ToClient, move |message| {
        message.kind == Kind::Deliver && passed.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)
    });
    wait_until_lost(&losing, wanted).await;
    let lost = losing.lost();
    drop(losing);
    load.goes_on(30).await;
    let confirmed = load.stop().await;
    bed.settled().await;
    let (messages, _) = bed.stream_state().await.unwrap();
    let messages = u64::try_from(messages).unwrap();
    assert!(messages >= confirmed + lost, "{messages} in the stream, {confirmed} confirmed");
    println!("f24: {lost} confirmations lost; {confirmed} messages were sent as {messages}");
    let copies = copies_not_meant(bed).await;
    (bed.audit().await, lost, u64::try_from(copies).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_a_lost_confirmation_brings_a_copy_that_is_not_billed() {
    let mut bed = Bed::new("f24").await;
    let serve = bed.serve();
    let (verdict, lost, copies) = f24(&mut bed, serve).await;
    verdict.clean();
    assert!(copies >= lost, "{copies} copies for {lost} lost confirmations");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f24_control_without_the_look_up_the_copy_is_recorded_again() {
    let mut bed = Bed::new("f24-control").await;
    let serve = bed.serve_sabotaged("double");
    f24(&mut bed, serve).await.0.violates("I2");
}

/// F28: the program is cut off from one of its servers while the other works.
#[tokio::test(flavor = "multi_thread")]
async fn f28_readiness_tells_which_side_is_cut_off() {
    let mut bed = Bed::new("f28").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    // Slowly: what collects while nobody records is not the point.
    let load = Load { pause: Duration::from_millis(200), ..Load::endless(seed("f28")) }.start(&bed).await;
    for silent in if thorough() { &[false, true][..] } else { &[false][..] } {
        load.goes_on(10).await;
        cut(&bed.nats, *silent);
        let only_stream =
            ["\"stream\":\"the stream does not answer\"", "\"database\":\"ok\"", "\"ingest\":\"ok\""];
        service.refuses(&only_stream).await;
        // It stays so for as long as it is true.
        sleep(Duration::from_secs(if thorough() { 30 } else { 2 })).await;
        service.refuses(&only_stream[..2]).await;
        mend(&bed.nats);
        service.ready().await;

        load.goes_on(10).await;
        cut(&bed.postgres, *silent);
        service.refuses(&["\"database\":\"does not answer\"", "\"stream\":\"ok\""]).await;
        mend(&bed.postgres);
        service.ready().await;
    }
    load.goes_on(10).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

async fn wait_until_lost(losing: &Losing, wanted: u64) {
    let mut lost = 0;
    while lost < wanted {
        lost = wait_until("another confirmation is lost", async || {
            (losing.lost() > lost).then(|| losing.lost())
        })
        .await;
    }
}

fn cut(proxy: &Proxy, silently: bool) {
    if silently {
        proxy.set_both(Mode::Blackhole);
    } else {
        proxy.refuse(true);
        proxy.end_all(End::Reset);
    }
}

fn mend(proxy: &Proxy) {
    proxy.refuse(false);
    proxy.set_both(Mode::Pass);
}
