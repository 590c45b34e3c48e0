//! Faults in a gateway's own count: shown where they tell something, bounded where they would fill the database, and
//! never a reason not to bill.

use serde_json::{Value, json};
use waybill::store::Scope;
use waybill::store::gateways::{self, GatewayRow};
use waybill::store::journal::{EPOCHS_PER_HOUR_MAX, RANGES_MAX};

use crate::world::{World, usage_event};

fn counted(id: &str, epoch: &str, number: i64) -> Value {
    let mut event = usage_event(id);
    event["epoch"] = json!(epoch);
    event["sequence"] = json!(number);
    event
}

async fn gateway(world: &World) -> GatewayRow {
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    gateways::list(&mut tx, Some("gw-1"), None, 1).await.unwrap().remove(0)
}

/// What is kept of the counts: epochs, ranges of them all, rows of floods.
async fn kept(world: &World) -> (i64, i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM gateway_sequences),
                (SELECT count(*) FROM gateway_sequences, unnest(seen)), (SELECT count(*) FROM gateway_floods)",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn anomalies_of_a_gateways_count_are_shown() {
    let world = World::patient().await;
    world.publish("gw-1", &usage_event("uncounted")).await;
    for (id, number) in [("a", 1), ("b", 5), ("c", 4), ("d", 3), ("e", 2)] {
        world.publish("gw-1", &counted(id, "e1", number)).await;
    }
    world.settled().await;
    let sound = gateway(&world).await;
    assert_eq!((sound.missing, sound.repeated, sound.unfollowed), (0, 0, 0), "any order is as good");

    // A copy is a copy; other events with its number are not: in another message, and in one message.
    world.publish("gw-1", &counted("a", "e1", 1)).await;
    world.publish("gw-1", &counted("f", "e1", 1)).await;
    let twins = json!([counted("g", "e1", 6), counted("h", "e1", 6)]);
    world.publish("gw-1", &twins).await;
    // A jump, and jumps that add up to more than 64 bits hold.
    world.publish("gw-1", &counted("i", "e1", 1_000_000_007)).await;
    world.settled().await;
    let faulty = gateway(&world).await;
    assert_eq!((faulty.missing, faulty.repeated, faulty.unfollowed), (1_000_000_000, 2, 0));
    for epoch in 2..=12 {
        world
            .publish("gw-1", &counted(&format!("j-{epoch}"), &format!("e{epoch}"), 1_000_000_000_000_000_000))
            .await;
    }
    world.settled().await;
    assert_eq!(gateway(&world).await.missing, i64::MAX);
    assert_eq!(world.recorded_events().await, 1 + 5 + 1 + 2 + 1 + 11, "all of them are billed");
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_epochs_or_holes_is_recorded_and_bounded() {
    let world = World::patient().await;
    world.publish("gw-1", &counted("sound-1", "sound", 1)).await;
    world.settled().await;
    // New epochs, within one message and over many.
    let epochs = EPOCHS_PER_HOUR_MAX + 100;
    let flood: Vec<Value> =
        (1..=epochs).map(|n| counted(&format!("epoch-{n}"), &format!("e-{n}"), 1)).collect();
    for message in flood.chunks(100) {
        world.publish("gw-1", &json!(message)).await;
    }
    world.settled().await;
    assert_eq!(kept(&world).await, (EPOCHS_PER_HOUR_MAX, EPOCHS_PER_HOUR_MAX, 1));
    assert_eq!(gateway(&world).await.unfollowed, 101);

    // An epoch that is followed goes on being followed, up to a bound of holes.
    let holes = RANGES_MAX + 100;
    let odd: Vec<Value> = (1..=holes).map(|n| counted(&format!("odd-{n}"), "sound", 2 * n + 1)).collect();
    // One batch may hold all the messages that are there; of the first half every number is within the bound.
    for half in odd.chunks(odd.len() / 2) {
        for message in half.chunks(100) {
            world.publish("gw-1", &json!(message)).await;
        }
        world.settled().await;
    }
    let (_, ranges, floods) = kept(&world).await;
    let of_the_others = EPOCHS_PER_HOUR_MAX - 1;
    assert!(ranges - of_the_others <= RANGES_MAX, "{ranges} ranges");
    assert_eq!(floods, 1);
    let faulty = gateway(&world).await;
    let followed: i64 = sqlx::query_scalar(
        "SELECT sum(upper(r) - lower(r))::bigint FROM gateway_sequences, unnest(seen) AS r WHERE epoch = 'sound'",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(
        faulty.unfollowed - 101 + followed,
        1 + holes,
        "each number is followed or counted as not followed"
    );
    // What closes holes is taken also then.
    world.publish("gw-1", &counted("even", "sound", 2)).await;
    world.settled().await;
    assert_eq!(gateway(&world).await.unfollowed, faulty.unfollowed);
    assert_eq!(gateway(&world).await.missing, faulty.missing - 1);
    // One row each, but for what is beyond the bound; and everything is billed.
    assert_eq!(world.recorded_events().await, 1 + epochs + holes + 1);
    world.verified().await;
}
