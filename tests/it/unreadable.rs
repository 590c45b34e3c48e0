//! Messages whose headers the client library cannot read: it ends its connection at each of them, or takes it for the end of
//! a request. They are recorded or rejected like any other, and hold up nobody.

use serde_json::json;
use waybill::ingest::repair;
use waybill::ingest::stream::CONSUMER;

use crate::harness::wait_until;
use crate::nats_raw::Raw;
use crate::world::{Outcome, World, gpt5_prices, limits, usage_event};

/// What the server stores unread.
const HEADS: [&[u8]; 10] = [
    b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\na blank: x\r\n\r\n",
    b"NATS/2.0\r\nX: y\r\n\r\n",
    b"X: y\r\n\r\n",
    b"\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 nothing\r\n\r\n",
];
const NOT_JSON: &[u8] = b"not JSON";

/// What the stream of a world is filled with, in its order.
struct Filled<'a> {
    world: &'a World,
    raw: Raw,
    subject: String,
    messages: u64,
}

impl<'a> Filled<'a> {
    async fn new(world: &'a World) -> Self {
        let raw = Raw::connect(&world.bed.nats_url).await;
        Self { world, raw, subject: format!("{}.gw-1", world.names.prefix), messages: 0 }
    }

    /// Adds a message and returns its sequence.
    async fn add(&mut self, head: &[u8], body: &[u8]) -> i64 {
        self.raw.publish_with(&self.subject, head, body).await;
        self.messages += 1;
        i64::try_from(self.messages).unwrap()
    }

    /// Waits until the stream has all of them.
    async fn stored(&mut self) {
        self.raw.flush().await;
        wait_until("everything is stored", async || {
            (self.world.stream_length().await == self.messages).then_some(())
        })
        .await;
    }

    /// Waits until every message is accounted for and acknowledged.
    async fn done(&self) {
        self.world.settled().await;
        wait_until("everything is acknowledged", async || {
            // A busy server may not answer in time.
            let info = self.world.stream.progress().await.ok()?;
            (info.ack_floor.stream_sequence == self.messages && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }
}

fn event(id: &str) -> Vec<u8> {
    usage_event(id).to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_cannot_be_read_stop_nobody() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let mut filled = Filled::new(&world).await;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (number, head) in HEADS.iter().cycle().take(40).enumerate() {
        if number == 20 {
            world.start_consumer();
        }
        for copy in 0..5 {
            good.push(filled.add(b"", &event(&format!("plain-{number}-{copy}"))).await);
        }
        good.push(filled.add(head, &event(&format!("headers-{number}"))).await);
        bad.push(filled.add(head, NOT_JSON).await);
    }
    filled.stored().await;
    filled.done().await;
    for sequence in &good {
        assert_eq!(world.outcomes(*sequence, 1).await, [Outcome::Recorded], "{sequence}");
    }
    for sequence in &bad {
        assert_eq!(world.outcomes(*sequence, 1).await, [Outcome::Rejected("json")], "{sequence}");
        assert_eq!(world.rejected_bytes(*sequence).await, NOT_JSON);
    }
    let kept: Vec<(String, serde_json::Value)> =
        sqlx::query_as("SELECT detail, headers FROM rejections ORDER BY stream_seq LIMIT 2")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    assert_eq!(kept[0].1, json!({"X": ["\u{fffd}\u{fffd}"]}));
    assert_eq!(kept[1].1, json!({"(unreadable)": ["no colon"]}));
    assert!(kept[1].0.starts_with("the headers of the message cannot be read, and "), "{}", kept[1].0);
    world.verified().await;
}

/// As a gateway's library with such a fault would send them.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_such_messages_is_recorded_in_time() {
    const MESSAGES: usize = 6_000;
    let world = World::start().await;
    let mut filled = Filled::new(&world).await;
    for (number, head) in HEADS.iter().cycle().take(MESSAGES).enumerate() {
        filled.add(head, &event(&format!("headers-{number}"))).await;
    }
    filled.add(b"", &event("last")).await;
    filled.stored().await;
    filled.done().await;
    assert_eq!(world.recorded_events().await, i64::try_from(MESSAGES).unwrap() + 1);
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    world.verified().await;
}

/// What such headers say of the body is believed where it can be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_behind_such_headers_is_recorded() {
    let world = World::start().await;
    let mut filled = Filled::new(&world).await;
    let compressed = zstd::encode_all(&event("compressed")[..], 3).unwrap();
    let said = filled.add(b"NATS/1.0\r\nBad \xff\r\nContent-Encoding: zstd\r\n\r\n", &compressed).await;
    let unsaid = filled.add(b"NATS/1.0\r\nContent-Encoding zstd\r\n\r\n", &compressed).await;
    filled.stored().await;
    filled.done().await;
    assert_eq!(world.outcomes(said, 1).await, [Outcome::Recorded]);
    assert_eq!(world.outcomes(unsaid, 1).await, [Outcome::Rejected("encoding")]);
    assert_eq!(world.rejected_bytes(unsaid).await, compressed);
    world.verified().await;
}

/// After a crash between commit and acknowledgement, or where the acknowledgement was lost: nobody else could give it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_and_cannot_arrive_is_acknowledged() {
    let world = World::start().await;
    let mut filled = Filled::new(&world).await;
    for (number, head) in HEADS.iter().enumerate() {
        filled.add(b"", &event(&format!("plain-{number}"))).await;
        filled.add(head, &event(&format!("headers-{number}"))).await;
    }
    filled.stored().await;
    filled.done().await;
    world.stop_consumers().await;
    world.stream.stream.delete_consumer(CONSUMER).await.unwrap();
    world.start_consumer();
    wait_until("the consumer is made", async || world.stream.progress().await.ok()).await;
    filled.done().await;
    assert_eq!(world.recorded_events().await, 2 * i64::try_from(HEADS.len()).unwrap());
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_with_such_headers_are_read_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let mut filled = Filled::new(&world).await;
    let messages = HEADS.len();
    for (number, head) in HEADS.iter().enumerate() {
        filled.add(head, &event(&format!("headers-{number}"))).await;
    }
    filled.stored().await;
    world.stream.consumer(limits()).await.unwrap();
    filled.raw.take(&world.names.stream, CONSUMER, messages).await;
    let acknowledged = async || {
        let info = world.stream.progress().await.ok()?;
        (info.ack_floor.stream_sequence == u64::try_from(messages).unwrap()).then_some(())
    };
    wait_until("all are acknowledged", acknowledged).await;
    let repaired = repair::repair(&world.stream, limits(), &world.recorder).await.unwrap();
    let messages = i64::try_from(messages).unwrap();
    assert_eq!((repaired.unaccounted, repaired.repaired, repaired.gone), (messages, messages, 0));
    world.settled().await;
    assert_eq!(world.recorded_events().await, messages);
    world.verified().await;
}
