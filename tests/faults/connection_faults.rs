//! Connections that end, or lose what they carry, at the worst moment.

use crate::bed::{Bed, Verdict};
use crate::harness::wait_until;
use crate::protocol::{Message, Way};
use crate::proxy::End;
use crate::publisher::Load;
use crate::rounds::{rounds, seed};
use crate::service::Serve;
use crate::watching::{nothing_lacked, recorded, recording};

/// F25: the connection is cut between COMMIT and its answer, and just before it.
async fn f25(bed: &mut Bed, serve: Serve, rounds: u32) -> Verdict {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f25")).start(bed).await;
    for _ in 0..rounds {
        // Committed, and the program does not learn of it.
        let answer = bed.postgres.hold(Way::ToClient, recorded);
        answer.reached("a recording transaction is committed").await.end(End::Reset);
        // Not committed, and the program cannot know either.
        let commit = bed.postgres.hold(Way::ToServer, recording);
        commit.reached("a recording transaction is about to be committed").await.end(End::Cut);
    }
    load.stop().await;
    bed.settled().await;
    bed.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn f25_a_commit_whose_answer_is_lost_records_nothing_twice() {
    let mut bed = Bed::new("f25").await;
    let serve = bed.serve();
    f25(&mut bed, serve, rounds(100)).await.clean();
    nothing_lacked(&bed);
}

/// F23: acknowledgements vanish until everything has been delivered again.
async fn f23(bed: &mut Bed, serve: Serve) -> (Verdict, i64) {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let losing = bed.nats.lose(Way::ToServer, Message::is_ack);
    Load::seeded(seed("f23")).sent(bed).await;
    bed.settled().await;
    let (sent, _) = bed.stream_state().await.unwrap();
    wait_until("every message is acknowledged twice", async || {
        (losing.lost() >= 2 * u64::try_from(sent).unwrap()).then_some(())
    })
    .await;
    drop(losing);
    bed.acknowledged().await;
    bed.settled().await;
    let duplicates = bed.number("SELECT sum(duplicates)::bigint FROM ingest_batches").await;
    (bed.audit().await, duplicates)
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_lost_acknowledgements_bring_copies_and_nothing_else() {
    let mut bed = Bed::new("f23").await;
    let serve = bed.serve();
    let (verdict, duplicates) = f23(&mut bed, serve).await;
    verdict.clean();
    let recorded = bed.number("SELECT count(*) FROM usage_events WHERE part = 0").await;
    assert!(duplicates >= recorded, "{duplicates} copies of {recorded} events");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f25_control_without_the_look_up_the_batch_is_recorded_again() {
    let mut bed = Bed::new("f25-control").await;
    let serve = bed.serve_sabotaged("double");
    f25(&mut bed, serve, 2).await.violates("I2");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f23_control_without_the_look_up_copies_are_recorded_again() {
    let mut bed = Bed::new("f23-control").await;
    let serve = bed.serve_sabotaged("double");
    f23(&mut bed, serve).await.0.violates("I2");
}
