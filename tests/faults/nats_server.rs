//! The NATS server is killed, frozen, full, or at the limit of its stream.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, NATS_CONNECTIONS, Own};
use crate::harness::wait_until;
use crate::publisher::Load;
use crate::rounds::{rounds, seed, thorough};
use crate::servers::Volume;
use crate::service::metric;

/// How long recording may trail once the server is back.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// What the store of the server has for itself, MiB; a stream of the test fits.
const VOLUME_MEBIBYTES: u32 = 24;

async fn with_nats(name: &str) -> Bed {
    Bed::with(name, Own { nats: true, ..Own::default() }).await
}

/// Waits until everything is recorded and posted; returns how long it took. It may take only so long in a thorough run: the
/// short selection would measure what runs beside it.
async fn settled_in_time(bed: &Bed) -> Duration {
    if thorough() { bed.settled_within(BACK_WITHIN).await } else { bed.settled().await }
}

/// F01: the server is killed again and again while gateways publish.
#[tokio::test(flavor = "multi_thread")]
async fn f01_a_server_that_is_killed_again_and_again_loses_nothing_it_has_confirmed() {
    let mut bed = with_nats("f01").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let seed = seed("f01");
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load { pause: Duration::from_millis(5), ..Load::endless(seed) }.start(&bed).await;
    let kills = 3 * rounds(15);
    for _ in 0..kills {
        load.goes_on(30).await;
        if thorough() {
            sleep(Duration::from_millis(random.random_range(3_000..10_000))).await;
        }
        bed.own_nats.as_mut().unwrap().kill().await;
        // No further one reaches a server that is dead.
        let carried = bed.nats.carried();
        if thorough() {
            sleep(Duration::from_secs(1)).await;
        }
        bed.start_nats_again().await;
        wait_until("the program is connected to the server that was started", async || {
            (bed.nats.carried() >= carried + NATS_CONNECTIONS).then_some(())
        })
        .await;
    }
    load.goes_on(30).await;
    let program = bed.nats.carried();
    load.stop().await;
    let took = settled_in_time(&bed).await;
    println!(
        "f01: {kills} kills, {program} connections, all recorded {} ms after the last",
        took.as_millis()
    );
    bed.audit().await.clean();
}

/// F03: the server stands still while gateways publish.
#[tokio::test(flavor = "multi_thread")]
async fn f03_a_server_that_stands_still_confirms_nothing_and_goes_on_where_it_was() {
    let mut bed = with_nats("f03").await;
    let service = bed.serve().env("WAYBILL_LOG", &"info,waybill=debug,async_nats=debug").start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f03")).start(&bed).await;
    // Shorter than what is noticed; and longer, but for gateways, which wait five seconds for an answer.
    let spans: &[u64] = if thorough() { &[40, 180] } else { &[] };
    let short = std::iter::repeat_n(&5, usize::try_from(rounds(10)).unwrap());
    for span in short.chain(spans).map(|span| Duration::from_secs(*span)) {
        load.goes_on(30).await;
        let (unconfirmed, began) = (load.unconfirmed(), Instant::now());
        bed.own_nats.as_ref().unwrap().freeze();
        let confirmed = load.confirmed();
        if span >= Duration::from_secs(40) {
            service.refuses(&["\"stream\":\"the stream does not answer\""]).await;
            let noticed = began.elapsed();
            assert!(noticed <= Duration::from_secs(20), "noticed after {noticed:?}");
        }
        wait_until("every gateway has waited in vain", async || {
            (load.unconfirmed() >= unconfirmed + 3).then_some(())
        })
        .await;
        sleep(span.saturating_sub(began.elapsed())).await;
        // What the server had sent already arrived: of each gateway one at most was on its way.
        let more = load.confirmed() - confirmed;
        assert!(more <= 3, "{more} messages count as sent while the server stands still");
        bed.own_nats.as_ref().unwrap().thaw();
        let thawed = Instant::now();
        load.goes_on(30).await;
        service.ready().await;
        let back = thawed.elapsed();
        let (last, _) = bed.stream_state().await.unwrap();
        bed.recorded(last).await;
        let recorded = thawed.elapsed();
        println!(
            "f03: still for {} s, back after {} ms, recording after {} ms",
            span.as_secs(),
            back.as_millis(),
            recorded.as_millis()
        );
        assert!(back <= Duration::from_secs(20), "back after {back:?}");
    }
    load.stop().await;
    settled_in_time(&bed).await;
    bed.audit().await.clean();
}

/// F10: the disk of the server is full while gateways publish.
#[tokio::test(flavor = "multi_thread")]
async fn f10_a_server_whose_disk_is_full_confirms_nothing_that_it_cannot_keep() {
    let Some(volume) = Volume::mount(VOLUME_MEBIBYTES) else { return };
    let own = Own { nats: true, nats_volume: Some(volume), ..Own::default() };
    let mut bed = Bed::with("f10", own).await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f10")).start(&bed).await;
    load.goes_on(30).await;
    let failed = load.refused() + load.unconfirmed();
    let ballast = bed.own_nats.as_ref().unwrap().volume().unwrap().fill();
    wait_until("gateways are told that nothing is stored", async || {
        (load.refused() + load.unconfirmed() >= failed + 3).then_some(())
    })
    .await;
    if thorough() {
        sleep(Duration::from_mins(2)).await;
    }
    println!("f10: {} refused, {} not confirmed", load.refused(), load.unconfirmed());
    std::fs::remove_file(ballast).unwrap();
    // What a gateway has sent before waits for its time-out still: only the next one tells.
    let (confirmed, failed) = (load.confirmed(), load.refused() + load.unconfirmed());
    let stays_broken = wait_until("gateways go on, or fail again", async || {
        let again = load.refused() + load.unconfirmed() >= failed + 2 * 3;
        (load.confirmed() > confirmed || again).then_some(again)
    })
    .await;
    println!("f10: the server {}", if stays_broken { "must be started again" } else { "goes on by itself" });
    if stays_broken {
        bed.own_nats.as_mut().unwrap().stop().await;
        bed.start_nats_again().await;
    }
    load.goes_on(30).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// F11: the stream has reached its limit while nobody records.
#[tokio::test(flavor = "multi_thread")]
async fn f11_a_stream_at_its_limit_refuses_and_what_it_refused_is_delivered_later() {
    const ROOM_BYTES: f64 = 300_000.0;
    const FULL_BYTES: f64 = 280_000.0;
    let mut bed = Bed::new("f11").await;
    let mut service = bed.serve().start();
    service.ready().await;
    service.kill();
    let watching = bed.serve().roles(&["--api", "--jobs"]).start();
    watching.ready().await;
    let stream = bed.context.get_stream(&bed.names.stream).await.unwrap();
    let wide = stream.cached_info().config.clone();
    let mut narrow = wide.clone();
    narrow.max_bytes = 300_000;
    bed.context.update_stream(narrow).await.unwrap();
    bed.take_snapshots();
    let load = Load { pause: Duration::from_millis(5), ..Load::endless(seed("f11")) }.start(&bed).await;
    wait_until("every gateway is told that the stream is full", async || {
        (load.refused() >= 30).then_some(())
    })
    .await;
    wait_until("metrics show that it is full, and that nobody records", async || {
        let bytes = metric(watching.metrics, "waybill_stream_bytes").await?;
        let most = metric(watching.metrics, "waybill_stream_bytes_max").await?;
        let lag = metric(watching.metrics, "waybill_stream_lag_messages").await?;
        (bytes > FULL_BYTES && most <= ROOM_BYTES && lag > 10.0).then_some(())
    })
    .await;
    assert_eq!(bed.number("SELECT count(*) FROM ingest_batches").await, 0, "nobody records yet");
    let service = bed.serve().start();
    service.ready().await;
    // Smaller messages may still fit.
    wait_until("what the stream has is recorded", async || {
        (bed.consumer_info().await?.num_pending == 0).then_some(())
    })
    .await;
    bed.context.update_stream(wide).await.unwrap();
    load.goes_on(30).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}
