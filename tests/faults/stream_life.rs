//! Somebody changes, deletes, restores or repeats what is in NATS: settings, the consumer, the stream itself.

use std::io::Write;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::bed::{Bed, CUSTOMERS};
use crate::publisher::Load;
use crate::rounds::seed;

async fn stream_config(bed: &Bed) -> Config {
    bed.context.get_stream(&bed.names.stream).await.unwrap().cached_info().config.clone()
}

/// F17: a message is published again with its id, within the stream's window for copies and after it.
#[tokio::test(flavor = "multi_thread")]
async fn f17_a_retry_after_the_window_for_copies_is_billed_once() {
    const MESSAGES: usize = 20;
    const WINDOW: Duration = Duration::from_secs(1);
    let mut bed = Bed::new("f17").await;
    let short = Config { duplicate_window: WINDOW, ..stream_config(&bed).await };
    bed.context.update_stream(short).await.unwrap();
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f17")).start(&bed).await;
    let gateway = bed.gateways[0].clone();
    let mut journal = std::fs::File::create(bed.folder.join("journals/f17.jsonl")).unwrap();
    let bodies: Vec<String> = (1..=MESSAGES).map(|number| event(&gateway, number).to_string()).collect();
    // Whether the stream takes each for a copy: first, at once again, after the window.
    for (note, copy) in [("new", false), ("copy", true), ("copy", false)] {
        if note == "copy" && !copy {
            sleep(WINDOW + Duration::from_secs(1)).await;
        }
        for (number, body) in bodies.iter().enumerate() {
            let sending = json!({"message": number, "gateway": gateway, "body": body, "notes": [note]});
            writeln!(journal, "{sending}").unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{gateway}:{number}"));
            let subject = format!("{}.{gateway}", bed.names.prefix);
            let sent = bed.context.publish_with_headers(subject, headers, body.clone().into()).await;
            assert_eq!(sent.unwrap().await.unwrap().duplicate, copy, "{note} of {number}");
        }
    }
    load.stop().await;
    bed.settled().await;
    let recorded = bed.number("SELECT count(*) FROM usage_events WHERE id LIKE 'f17-%'").await;
    assert_eq!(recorded, i64::try_from(MESSAGES).unwrap());
    let copies = bed.number("SELECT sum(duplicates)::bigint FROM ingest_batches").await;
    assert!(copies >= recorded, "{copies} copies of {recorded} came after the window");
    bed.audit().await.clean();
}

fn event(gateway: &str, number: usize) -> Value {
    let now = waybill::clock::Clock::System.now().to_rfc3339();
    json!({"specversion": "1.0", "id": format!("f17-{number}"), "source": format!("{gateway}/retries"),
        "type": "llm.usage.v1", "subject": CUSTOMERS[0], "time": now, "sequence": number, "epoch": "f17",
        "data": {"provider": "openai", "model": "gpt-5", "status": "ok",
                 "usage": {"input": 100 + number, "output": 10}}})
}
