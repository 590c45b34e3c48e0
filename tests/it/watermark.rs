//! The settled watermark: what of a gateway's own count is in the database, however its events ended.

use axum::Router;
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::health::Health;
use waybill::ingest::Publisher;
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::{catalog, commit, customers, gateways};

use crate::harness::wait_until;
use crate::http_bed::{Answer, get};
use crate::world::{World, usage_event};

struct Watched {
    world: World,
    router: Router,
    gateway: String,
    other: String,
    finance: String,
    admin: String,
    customer: String,
}

impl Watched {
    async fn start() -> Self {
        let world = World::patient().await;
        let mut tx = world.bed.database.begin().await.unwrap();
        let gateway = gateways::id_of(&mut tx, "gw-1").await.unwrap().unwrap();
        let other = gateways::id_of(&mut tx, "gw-2").await.unwrap().unwrap();
        let acme = customers::by_external_id(&mut tx, "acme").await.unwrap().unwrap().id;
        let mut key = async |holder| api_keys::create(&mut tx, holder, "test", None).await.unwrap().token;
        let (gateway, other) = (key(NewHolder::Gateway(gateway)).await, key(NewHolder::Gateway(other)).await);
        let (finance, admin) = (key(NewHolder::Finance).await, key(NewHolder::Admin).await);
        let customer = key(NewHolder::Customer(acme)).await;
        commit(tx).await.unwrap();
        let publisher = Publisher::new(world.context().clone(), &world.names.prefix);
        let state = waybill::http::AppState::new(
            world.bed.database.clone(),
            Clock::System,
            publisher,
            Health::default(),
        );
        let router = waybill::http::router(state).0;
        Self { world, router, gateway, other, finance, admin, customer }
    }

    async fn ask(&self, key: &str, path: &str) -> Answer {
        get(&self.router, key, path).await
    }

    /// The epochs of `gw-1` as `epoch: settled/highest/missing [holes]`, in order of their names.
    async fn told(&self) -> Vec<String> {
        let answer = self.ask(&self.gateway, "/v1/gateways/gw-1/watermark").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let mut epochs: Vec<String> = answer.json()["epochs"].as_array().unwrap().iter().map(shown).collect();
        epochs.sort();
        epochs
    }

    /// Publishes events with these numbers, in this order, and waits until they are recorded.
    async fn publish(&self, epoch: &str, numbers: &[i64]) {
        let events: Vec<Value> = numbers.iter().map(|number| numbered(epoch, *number)).collect();
        self.world.publish("gw-1", &json!(events)).await;
        self.world.settled().await;
    }
}

fn shown(epoch: &Value) -> String {
    let holes: Vec<String> = epoch["holes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hole| format!("{}-{}", hole["first"], hole["last"]))
        .collect();
    let [settled, highest, missing] =
        ["settled", "highest", "missing"].map(|field| epoch[field].as_i64().unwrap());
    format!("{}: {settled}/{highest}/{missing} {holes:?}", epoch["epoch"].as_str().unwrap()).replace('"', "")
}

fn numbered(epoch: &str, number: i64) -> Value {
    let mut event = usage_event(&format!("{epoch}-{number}"));
    event["sequence"] = json!(number);
    event["epoch"] = json!(epoch);
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn it_rises_as_holes_are_filled_in_any_order_and_per_epoch() {
    let watched = Watched::start().await;
    assert_eq!(watched.told().await, Vec::<String>::new(), "nothing was counted yet");
    watched.publish("a", &[3, 1]).await;
    assert_eq!(watched.told().await, ["a: 1/3/1 [2-2]"]);
    watched.publish("b", &[5, 6, 9]).await;
    assert_eq!(watched.told().await, ["a: 1/3/1 [2-2]", "b: 0/9/6 [1-4, 7-8]"]);
    watched.publish("a", &[2, 5, 4]).await;
    assert_eq!(watched.told().await, ["a: 5/5/0 []", "b: 0/9/6 [1-4, 7-8]"]);
    // The same again, and events that count nothing, change nothing.
    watched.publish("a", &[4, 1, 2, 5, 3]).await;
    watched.world.publish("gw-1", &usage_event("uncounted")).await;
    watched.world.settled().await;
    assert_eq!(watched.told().await[0], "a: 5/5/0 []");
    let times = watched.ask(&watched.gateway, "/v1/gateways/gw-1/watermark?epoch=a").await.json();
    assert_eq!(times["epochs"].as_array().unwrap().len(), 1);
    let at = |field: &str| times["epochs"][0][field].as_str().unwrap().to_owned();
    assert!(at("first_seen_at") < at("seen_at"), "{times}");
    watched.world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_conflicts_and_rejections_are_settled_as_well() {
    let watched = Watched::start().await;
    let mut copy = numbered("a", 1);
    copy["sequence"] = json!(2);
    let mut conflict = copy.clone();
    conflict["sequence"] = json!(3);
    conflict["data"]["usage"]["input"] = json!(1);
    let mut unpriced = numbered("a", 4);
    unpriced["data"]["model"] = json!("gpt-99");
    let mut foreign = numbered("a", 5);
    foreign["source"] = json!("gw-2");
    let mut unmetered = numbered("a", 6);
    unmetered["data"]["usage"] = json!({});
    let mut nobody = numbered("a", 7);
    nobody["subject"] = json!("nobody");
    let message =
        json!([numbered("a", 1), copy, conflict, unpriced, foreign, unmetered, nobody, numbered("a", 8)]);
    watched.world.publish("gw-1", &message).await;
    watched.world.settled().await;
    let mut rejected = watched.world.open_rejections().await;
    rejected.sort();
    assert_eq!(rejected, ["conflict", "not_allowed", "unknown_customer", "unmetered", "unpriced"]);
    assert_eq!(watched.world.recorded_events().await, 2);
    assert_eq!(watched.told().await, ["a: 8/8/0 []"]);
    // The other gateway, whose name one of them gave, has counted nothing.
    let other = watched.ask(&watched.other, "/v1/gateways/gw-2/watermark").await.json();
    assert_eq!(other["epochs"], json!([]));
    // What no number can be read of settles none.
    watched.world.publish_raw("gw-1", async_nats::HeaderMap::new(), b"{\"sequence\":9".to_vec()).await;
    let mut zero = numbered("a", 9);
    zero["sequence"] = json!(0);
    watched.world.publish("gw-1", &zero).await;
    watched.world.settled().await;
    assert_eq!(watched.told().await, ["a: 8/8/0 []"]);
}

/// Its place was given when it was rejected.
#[tokio::test(flavor = "multi_thread")]
async fn who_sent_a_rejection_is_not_heard_of_again_when_it_is_tried_again() {
    let watched = Watched::start().await;
    let world = &watched.world;
    let unpriced = |epoch: &str| {
        let mut event = numbered(epoch, 1);
        event["data"]["model"] = json!("gpt-99");
        event
    };
    world.publish("gw-1", &unpriced("a")).await;
    world.settled().await;
    // As many epochs as an hour may have: the next one is not followed.
    world
        .bed
        .run(
            "UPDATE gateway_sequences SET seen_at = '2026-01-01Z';
             INSERT INTO gateway_sequences (gateway_id, epoch, seen)
             SELECT id, 'epoch ' || n, '{[1,2)}' FROM gateways, generate_series(1, 500) n WHERE name = 'gw-1'",
        )
        .await;
    world.publish("gw-1", &unpriced("b")).await;
    world.settled().await;
    let noted = "SELECT (SELECT seen_at = '2026-01-01Z' FROM gateway_sequences WHERE epoch = 'a'),
                        (SELECT events FROM gateway_floods)";
    assert_eq!(sqlx::query_as::<_, (bool, i64)>(noted).fetch_one(&world.pool).await.unwrap(), (true, 1));
    let mut tx = world.bed.database.begin().await.unwrap();
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    let tried = "SELECT count(*) FROM rejections WHERE attempts = 2";
    wait_until("both are tried", async || {
        (sqlx::query_scalar::<_, i64>(tried).fetch_one(&world.pool).await.unwrap() == 2).then_some(())
    })
    .await;
    assert_eq!(sqlx::query_as::<_, (bool, i64)>(noted).fetch_one(&world.pool).await.unwrap(), (true, 1));
    // It comes again.
    world.publish("gw-1", &unpriced("a")).await;
    world.settled().await;
    assert_eq!(sqlx::query_as::<_, (bool, i64)>(noted).fetch_one(&world.pool).await.unwrap(), (false, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_of_holes_are_cut_and_say_so() {
    let watched = Watched::start().await;
    for chunk in (1..=1002).collect::<Vec<i64>>().chunks(200) {
        watched.publish("a", &chunk.iter().map(|number| number * 2).collect::<Vec<_>>()).await;
    }
    let answer = watched.ask(&watched.gateway, "/v1/gateways/gw-1/watermark").await.json();
    let epoch = &answer["epochs"][0];
    assert_eq!(
        (&epoch["settled"], &epoch["highest"], &epoch["missing"]),
        (&json!(0), &json!(2004), &json!(1002))
    );
    let holes = epoch["holes"].as_array().unwrap();
    assert_eq!(
        (holes.len(), &holes[999]["last"], &epoch["holes_truncated"]),
        (1000, &json!(1999), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_sees_its_own_finance_all_and_nobody_else_any() {
    let watched = Watched::start().await;
    watched.publish("a", &[1]).await;
    let path = "/v1/gateways/gw-1/watermark";
    for key in [&watched.gateway, &watched.finance, &watched.admin] {
        let answer = watched.ask(key, path).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["epochs"][0]["settled"]), (200, &json!(1)));
    }
    let foreign = watched.ask(&watched.other, path).await;
    assert_eq!(foreign.problem(), (404, "not_found".to_owned()));
    for (key, path) in [
        (&watched.other, "/v1/gateways/none/watermark"),
        (&watched.gateway, "/v1/gateways/none/watermark"),
        (&watched.finance, "/v1/gateways/none/watermark"),
    ] {
        assert_eq!(watched.ask(key, path).await.comparable(), foreign.comparable(), "{path}");
    }
    assert_eq!(watched.ask(&watched.customer, path).await.problem(), (403, "forbidden".to_owned()));
    assert_eq!(watched.ask("wb_nothing", path).await.problem().0, 401);
    let wrong = watched.ask(&watched.gateway, "/v1/gateways/gw-1/watermark?gateway=gw-2").await;
    assert_eq!(wrong.problem(), (400, "invalid_request".to_owned()));
}
