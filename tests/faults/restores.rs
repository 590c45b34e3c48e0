//! F42: the database is restored to what it was earlier: what was acknowledged since is in no batch any more.

use std::path::PathBuf;

use crate::bed::Bed;
use crate::harness::{wait_until, wait_until_done};
use crate::postgres_server::{ack_floor, own_postgres, start_again};
use crate::publisher::{Load, Sending};
use crate::rounds::seed;
use crate::servers::copy;
use crate::service::Serve;
use crate::watching::{accounted, caught_up};

/// What is acknowledged after the backup, and lost with the restore, at least.
const LOST_MIN: u64 = 100;

/// Where the data of the bed's PostgreSQL is, and a cold copy of it: the simplest backup.
fn data_and_backup(bed: &Bed) -> (PathBuf, PathBuf) {
    let data = bed.own_postgres.as_ref().unwrap().data();
    let backup = data.with_extension("backup");
    (data, backup)
}

/// Gateways at work, some of whose events are recorded and in the backup.
async fn backed_up(bed: &mut Bed, serve: &Serve, name: &str) -> Sending {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed(name)).start(bed).await;
    caught_up(bed).await;
    assert!(service.terminate().success());
    bed.own_postgres.as_mut().unwrap().stop().await;
    let (data, backup) = data_and_backup(bed);
    copy(&data, &backup);
    start_again(bed).await;
    load
}

/// Records more, and puts the database back to what the backup has; the last sequence that is acknowledged by then.
async fn restored(bed: &mut Bed, serve: &Serve) -> u64 {
    let service = serve.start();
    service.ready().await;
    let before = caught_up_to(bed).await.max(ack_floor(bed).await.unwrap());
    wait_until("much more is acknowledged", async || {
        (ack_floor(bed).await? > before + LOST_MIN).then_some(())
    })
    .await;
    assert!(service.terminate().success());
    bed.own_postgres.as_mut().unwrap().stop().await;
    let (data, backup) = data_and_backup(bed);
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    start_again(bed).await;
    let (lost, left) = (ack_floor(bed).await.unwrap(), caught_up_to(bed).await);
    assert!(left + LOST_MIN <= lost, "the restore has lost messages that are acknowledged: {left} of {lost}");
    lost
}

async fn caught_up_to(bed: &Bed) -> u64 {
    u64::try_from(accounted(bed).await.unwrap()).unwrap()
}

/// What was acknowledged comes back, by itself when the program starts, and by `waybill repair`.
#[tokio::test(flavor = "multi_thread")]
async fn f42_what_a_restore_has_lost_comes_back() {
    let mut bed = Bed::with("f42", own_postgres()).await;
    let serve = bed.serve();
    let load = backed_up(&mut bed, &serve, "f42").await;
    for by_command in [false, true] {
        let lost = restored(&mut bed, &serve).await;
        if by_command {
            let repaired = serve.run(&["repair"]);
            assert!(repaired.contains("read again and recorded"), "{repaired}");
            assert!(caught_up_to(&bed).await >= lost, "{repaired}");
        } else {
            let service = serve.start();
            wait_until_done("what was lost comes back by itself", async || {
                let there = caught_up_to(&bed).await;
                (there < lost).then(|| format!("{there} of {lost} messages are there"))
            })
            .await;
            assert!(service.terminate().success());
        }
    }
    let service = serve.start();
    service.ready().await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f42_control_what_nobody_reads_again_stays_lost() {
    let mut bed = Bed::with("f42-control", own_postgres()).await;
    let serve = bed.serve_sabotaged("no_repair");
    let load = backed_up(&mut bed, &serve, "f42-control").await;
    restored(&mut bed, &serve).await;
    let _service = serve.start();
    load.stop().await;
    bed.acknowledged().await;
    bed.posted().await;
    let verdict = bed.audit().await;
    verdict.violates("I1");
    verdict.violates("I9");
}
