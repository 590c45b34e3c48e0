//! The NATS server is killed, frozen, full, or at the limit of its stream.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use crate::bed::{Bed, Own};
use crate::harness::wait_until;
use crate::publisher::Load;
use crate::rounds::{rounds, seed, thorough};
use crate::servers::Volume;

/// How long recording may trail once the server is back.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// What the store of the server has for itself, MiB; a stream of the test fits.
const VOLUME_MEBIBYTES: u32 = 24;

async fn with_nats(name: &str) -> Bed {
    Bed::with(name, Own { nats: true, ..Own::default() }).await
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
        if thorough() {
            sleep(Duration::from_secs(1)).await;
        }
        bed.start_nats_again().await;
    }
    load.goes_on(30).await;
    let (_, program) = bed.nats.connections();
    assert!(program > u64::from(kills), "the program has connected {program} times over {kills} kills");
    load.stop().await;
    let took = bed.settled_within(BACK_WITHIN).await;
    println!(
        "f01: {kills} kills, {program} connections, all recorded {} ms after the last",
        took.as_millis()
    );
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
