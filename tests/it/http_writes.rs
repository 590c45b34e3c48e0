//! Requests that are repeated, and events that are published.

use async_nats::jetstream;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use chrono::TimeDelta;
use serde_json::{Value, json};
use waybill::app::tidy;
use waybill::shutdown::Shutdown;
use waybill::store::api_keys;
use waybill::store::idempotency::{self, Claim};

use crate::harness::{API_CONNECTIONS, connected, wait_until};
use crate::http_bed::{Answer, Api};

fn customer(external_id: &str) -> Value {
    json!({"external_id": external_id, "name": "x"})
}

#[tokio::test]
async fn a_repeated_request_has_its_effect_once() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let first = api.post_once(admin, "/v1/customers", &customer("c-1"), "key").await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert!(!first.headers.contains_key("idempotent-replayed"));
    let again = api.post_once(admin, "/v1/customers", &customer("c-1"), "key").await;
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    assert_eq!(again.headers[header::LOCATION], first.headers[header::LOCATION]);
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(api.number("SELECT count(*) FROM audit_log WHERE action = 'customer.create'").await, 1);

    let reused = (422, "idempotency_key_reused".to_owned());
    assert_eq!(api.post_once(admin, "/v1/customers", &customer("c-2"), "key").await.problem(), reused);
    assert_eq!(api.post_once(admin, "/v1/gateways", &json!({"name": "g"}), "key").await.problem(), reused);
    api.clock.advance(TimeDelta::hours(24));
    let new = api.post_once(admin, "/v1/customers", &customer("c-2"), "key").await;
    assert_eq!(new.status, StatusCode::CREATED);
}

#[tokio::test]
async fn answers_past_their_time_are_removed() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    api.post_once(admin, "/v1/customers", &customer("c-1"), "old").await;
    // More than one transaction takes.
    api.sql(
        "INSERT INTO idempotency_keys (api_key_id, key, request_hash, status, body, created_at)
         SELECT k.id, 'older ' || n, '', 200, '', '2026-11-20Z' FROM (SELECT min(id) AS id FROM api_keys) k, generate_series(1, 2500) n",
    )
    .await;
    api.clock.advance(TimeDelta::hours(24));
    api.post_once(admin, "/v1/customers", &customer("c-2"), "new").await;
    let shutdown = Shutdown::new();
    let tidying = tokio::spawn(tidy::run(api.bed.database.clone(), api.clock.clone(), shutdown.clone()));
    wait_until("the old ones are gone", async || {
        (api.number("SELECT count(*) FROM idempotency_keys").await == 1).then_some(())
    })
    .await;
    shutdown.stop();
    tidying.await.unwrap();
    let again = api.post_once(admin, "/v1/customers", &customer("c-2"), "new").await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
}

#[tokio::test]
async fn a_refusal_is_not_kept_and_keys_belong_to_their_caller() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    assert_eq!(
        api.post_once(admin, "/v1/customers", &customer(""), "key").await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(
        api.post_once(admin, "/v1/customers", &customer("c-1"), "key").await.status,
        StatusCode::CREATED
    );
    let other = api.post(admin, "/v1/api-keys", &json!({"role": "admin", "name": "x"})).await.json();
    let other = other["token"].as_str().unwrap();
    assert_eq!(
        api.post_once(other, "/v1/customers", &customer("c-2"), "key").await.status,
        StatusCode::CREATED
    );
    for key in ["", &"x".repeat(256)] {
        let answer = api.post_once(admin, "/v1/customers", &customer("c-3"), key).await;
        assert_eq!(answer.problem(), (400, "invalid_request".to_owned()));
    }
}

#[tokio::test]
async fn a_key_whose_first_request_runs_is_not_run_again() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let mut tx = api.bed.database.begin().await.unwrap();
    let id = api_keys::find(&mut tx, &admin[3..15]).await.unwrap().unwrap().id;
    let claim = idempotency::claim(&mut tx, id, "key", b"first", api.clock.now()).await.unwrap();
    assert_eq!(claim, Claim::First);
    let second = api.post_once(admin, "/v1/customers", &customer("c-1"), "key").await;
    assert_eq!(second.problem(), (409, "idempotency_key_running".to_owned()));
    assert_eq!(second.headers[header::RETRY_AFTER], "1");
    tx.rollback().await.unwrap();
    let third = api.post_once(admin, "/v1/customers", &customer("c-1"), "key").await;
    assert_eq!(third.status, StatusCode::CREATED, "a request that failed leaves its key free");
}

#[tokio::test]
async fn parallel_requests_with_one_key_make_one_effect() {
    let api = Api::start().await;
    connected(&api.bed.database).await;
    let body = customer("c-1");
    let requests =
        (0..API_CONNECTIONS).map(|_| api.post_once(&api.keys.admin, "/v1/customers", &body, "key"));
    let answers = futures_util::future::join_all(requests).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED);
    assert!(made.clone().count() >= 1);
    assert_eq!(made.filter(|answer| !answer.headers.contains_key("idempotent-replayed")).count(), 1);
    let others = answers.iter().filter(|answer| answer.status != StatusCode::CREATED);
    for answer in others {
        assert_eq!(answer.problem(), (409, "idempotency_key_running".to_owned()));
    }
}

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "gw-1/pod-3", "type": "llm.usage.v1", "subject": "acme",
        "time": "2026-11-23T11:00:00Z", "data": {"provider": "openai", "model": "gpt-5", "usage": {"input": 5, "output": 2}}})
}

async fn stored(api: &Api, sequence: &Value) -> Value {
    let message = api.stream.stream.get_raw_message(sequence.as_u64().unwrap()).await.unwrap();
    assert_eq!(message.subject.as_str(), format!("{}.gw-1", api.bed.subject_prefix));
    serde_json::from_slice(&message.payload).unwrap()
}

async fn publish(api: &Api, body: &Value) -> Answer {
    api.post(&api.keys.gateway, "/v1/events", body).await
}

#[tokio::test]
async fn valid_events_reach_the_stream_as_they_are() {
    let api = Api::start().await;
    let answer = publish(&api, &event("e-1")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let receipt = answer.json();
    assert_eq!(receipt["results"], json!([{"index": 0, "id": "e-1", "status": "accepted"}]));
    assert_eq!(stored(&api, &receipt["sequence"]).await, event("e-1"));

    let mut bad = event("e-3");
    bad["data"]["usage"]["input"] = json!(-1);
    let mut foreign = event("e-4");
    foreign["source"] = json!("gw-2");
    let mut old = event("e-5");
    old["time"] = json!("2026-10-01T00:00:00Z");
    let receipt = publish(&api, &json!([event("e-2"), bad, foreign, old])).await.json();
    let reasons: Vec<&Value> =
        receipt["results"].as_array().unwrap().iter().map(|result| &result["reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &json!("negative"), &json!("not_allowed"), &json!("too_old")]);
    assert_eq!((&receipt["accepted"], &receipt["refused"]), (&json!(1), &json!(3)));
    assert_eq!(stored(&api, &receipt["sequence"]).await, event("e-2"));
}

#[tokio::test]
async fn bodies_of_events_have_their_own_limits_and_forms() {
    let api = Api::start().await;
    let post = async |body: Vec<u8>, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(Method::POST).uri("/v1/events");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let key = format!("Bearer {}", api.keys.gateway);
        api.raw(request.header(header::AUTHORIZATION, key).body(Body::from(body)).unwrap()).await
    };
    let batch = [("content-type", "application/cloudevents-batch+json; charset=utf-8")];
    let whole = json!([event("b-1"), event("b-2")]).to_string().into_bytes();
    assert_eq!(post(whole.clone(), &batch).await.status, StatusCode::ACCEPTED);
    let json_type = ("content-type", "application/json");
    let zipped = zstd::bulk::compress(&whole, 3).unwrap();
    let packed = [json_type, ("content-encoding", "zstd")];
    assert_eq!(post(zipped, &packed).await.json()["accepted"], 2);

    let bomb = zstd::bulk::compress(&vec![b' '; 64 * 1024 * 1024], 3).unwrap();
    assert_eq!(post(bomb, &packed).await.problem(), (413, "body_too_large".to_owned()));
    assert_eq!(
        post(vec![b' '; 64 * 1024 + 1], &[json_type]).await.problem(),
        (413, "body_too_large".to_owned())
    );
    let many = format!("[{}]", vec!["{}"; 501].join(","));
    assert_eq!(post(many.into_bytes(), &[json_type]).await.problem(), (413, "body_too_large".to_owned()));
    assert_eq!(post(b"[{},".to_vec(), &[json_type]).await.problem(), (400, "invalid_body".to_owned()));
    let unsupported = (415, "unsupported_media_type".to_owned());
    assert_eq!(post(whole.clone(), &[]).await.problem(), unsupported);
    assert_eq!(post(whole.clone(), &[("content-type", "text/plain")]).await.problem(), unsupported);
    assert_eq!(post(whole, &[json_type, ("content-encoding", "gzip")]).await.problem(), unsupported);

    let nothing = publish(&api, &json!([{}, 5])).await;
    assert_eq!(nothing.problem(), (422, "no_valid_event".to_owned()));
    assert_eq!(nothing.json()["errors"].as_array().unwrap().len(), 2);
    assert_eq!(nothing.json()["errors"][1]["field"], "[1]");
}

#[tokio::test]
async fn a_stream_that_does_not_answer_is_unavailable() {
    let api = Api::start().await;
    let client = jetstream::new(api.bed.nats.clone());
    client.delete_stream(&api.bed.stream).await.unwrap();
    let answer = publish(&api, &event("e-1")).await;
    assert_eq!(answer.problem(), (503, "unavailable".to_owned()));
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
}
