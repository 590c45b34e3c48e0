//! Clients of the API, keys for them, and events of a test's own making.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::SecondsFormat;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waybill::clock::Clock;
use waybill::domain::ids::{CustomerId, GatewayId};
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::{Database, commit};

use crate::bed::{Bed, CUSTOMERS};
use crate::publisher::Gateway;

/// How long an answer may take before the client has had enough.
const ANSWER: Duration = Duration::from_secs(40);

/// What an API answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: bool,
    pub body: String,
}

/// Asks with a key, and reads the answer to its end; `None` where nobody answers.
pub async fn ask(http: SocketAddr, key: &str, path: &str, accept: &str) -> Option<Answer> {
    let asked = async {
        let mut stream = TcpStream::connect(http).await?;
        let headers =
            format!("Host: {http}\r\nAuthorization: Bearer {key}\r\nAccept: {accept}\r\nConnection: close");
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER, asked).await.ok()?.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, retry_after: head.contains("\r\nretry-after: "), body: body.to_owned() })
}

/// Asks with a key and goes away after a while, whatever has happened by then.
pub async fn ask_and_leave(http: SocketAddr, key: &str, path: &str, after: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {http}\r\nAuthorization: Bearer {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    tokio::time::sleep(after).await;
    // RST, as of a process that was killed.
    stream.set_zero_linger()
}

/// A finance key.
pub async fn finance_key(bed: &Bed) -> String {
    key(bed, NewHolder::Finance).await
}

/// A key of a gateway.
pub async fn gateway_key(bed: &Bed, name: &str) -> String {
    let id: i32 = sqlx::query_scalar("SELECT id FROM gateways WHERE name = $1")
        .bind(name)
        .fetch_one(&bed.pool)
        .await
        .unwrap();
    key(bed, NewHolder::Gateway(GatewayId(id))).await
}

/// A key of every customer.
pub async fn customer_keys(bed: &Bed) -> Vec<(&'static str, String)> {
    let mut keys = Vec::new();
    for name in CUSTOMERS {
        let id: i64 = sqlx::query_scalar("SELECT id FROM customers WHERE external_id = $1")
            .bind(name)
            .fetch_one(&bed.pool)
            .await
            .unwrap();
        keys.push((name, key(bed, NewHolder::Customer(CustomerId(id))).await));
    }
    keys
}

async fn key(bed: &Bed, holder: NewHolder) -> String {
    let database = Database::connect(bed.database_url()).await.unwrap();
    let mut tx = database.begin().await.unwrap();
    let token = api_keys::create(&mut tx, holder, "test", None).await.unwrap().token;
    commit(tx).await.unwrap();
    database.close().await;
    token
}

/// A usage event of a customer, in a task.
pub fn event(source: &str, id: &str, customer: &str, task: &str) -> Value {
    let time = Clock::System.now().to_rfc3339_opts(SecondsFormat::Micros, true);
    json!({"specversion": "1.0", "id": id, "source": source, "type": "llm.usage.v1", "subject": customer, "time": time,
           "data": {"provider": "openai", "model": "gpt-5", "usage": {"input": 1_000, "output": 10},
                    "task": {"id": task, "type": "refund"}}})
}

/// Writes good events down and publishes them in one message.
async fn publish(bed: &Bed, events: &[Value]) {
    let mut gateway = Gateway::new(bed, &bed.gateways[0], "canaries").await;
    gateway.send(Value::from(events).to_string(), &vec!["new"; events.len()], false).await;
}

/// Publishes usage of every customer in tasks that name it: nobody else may ever see them.
pub async fn publish_canaries(bed: &Bed) {
    let source = format!("{}/canary", bed.gateways[0]);
    let events: Vec<Value> = CUSTOMERS
        .iter()
        .flat_map(|customer| (0..5).map(move |number| (customer, number)))
        .map(|(customer, number)| {
            event(
                &source,
                &format!("canary-{customer}-{number}"),
                customer,
                &format!("canary-{customer}-{number}"),
            )
        })
        .collect();
    publish(bed, &events).await;
}
