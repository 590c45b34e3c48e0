//! Rejections that are tried again, and what they are tried again with.

use chrono::TimeDelta;
use serde_json::json;
use waybill::store::{catalog, commit};

use crate::harness::wait_until;
use crate::world::{World, now, usage_event};

/// What is under way was judged by the window; that it is waived in the meantime must not count as answered by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_waived_while_a_rejection_is_tried_again_is_waived() {
    let world = World::start().await;
    let mut late = usage_event("late");
    late["time"] = json!(now() - TimeDelta::days(60));
    world.publish("gw-1", &late).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["too_old"]);

    let held = world.recording_held().await;
    world.bed.run("UPDATE rejections SET replay_requested = true").await;
    wait_until("it is tried again", async || world.recorder.oldest_attempt().map(drop)).await;
    world.bed.run("UPDATE rejections SET replay_requested = true, window_waived = true").await;
    held.rollback().await.unwrap();
    wait_until("it is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    assert!(world.open_rejections().await.is_empty());
    world.verified().await;
}

/// A restore brings an older version back, and what was published after it is lost; whoever still holds the catalog of then
/// must see that the next one is another.
#[tokio::test]
async fn no_version_of_the_catalog_is_counted_twice() {
    let world = World::idle().await;
    let mut counted = Vec::new();
    for _ in 0..2 {
        world.bed.run("UPDATE catalog_version SET version = 5").await;
        let mut tx = world.bed.database.begin().await.unwrap();
        counted.push(catalog::bump(&mut tx).await.unwrap());
        commit(tx).await.unwrap();
    }
    assert!(counted[0] > 5 && counted[1] > counted[0], "{counted:?}");
    // Where the clock is behind what was counted it goes on by one.
    world.bed.run("UPDATE catalog_version SET version = 9007199254740990").await;
    let mut tx = world.bed.database.begin().await.unwrap();
    assert_eq!(catalog::bump(&mut tx).await.unwrap(), 9_007_199_254_740_991);
}
