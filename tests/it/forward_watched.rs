//! What a forwarder shows of its parts while one of them does not work.

use std::process::Command;

use crate::forward_bed::{body, ids, setting};
use crate::harness::{get, wait_until};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_is_shown_though_nobody_is_refused() {
    let world = World::idle().await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    // Segments are an eighth of the bound.
    setting.more = vec![("WAYBILL_FORWARD_JOURNAL_MAX_BYTES", (2 << 20).to_string())];
    let forwarder = setting.start().await;
    let shows = async |lines: &[&str]| {
        wait_until("it is shown", async || {
            let text = get(forwarder.metrics, "/metrics").await?;
            lines.iter().all(|line| text.lines().any(|shown| shown == *line)).then_some(())
        })
        .await;
    };
    shows(&["waybill_part_up{part=\"journal\"} 1", "waybill_part_up{part=\"stream\"} 1"]).await;
    // Who opens it to write waits for somebody who reads it, as the writer of the journal does at the next segment.
    let body = body(&ids("e", 100));
    let mut next = 1;
    let hanging = loop {
        let segment = setting.journal().join(format!("{next:020}.events"));
        if next > 1 {
            assert!(Command::new("mkfifo").arg(&segment).status().unwrap().success());
        }
        let posted = forwarder.try_post(&body);
        tokio::pin!(posted);
        let answered = tokio::select! {
            answered = &mut posted => answered,
            () = shows(&["waybill_part_up{part=\"journal\"} 0"]) => break segment,
        };
        assert_eq!(answered.unwrap().0, 202);
        if next > 1 {
            std::fs::remove_file(&segment).unwrap();
        }
        next += 100;
    };
    shows(&["waybill_part_up{part=\"stream\"} 1", "waybill_part_up{part=\"watermark\"} 1"]).await;
    assert_eq!(forwarder.metric("waybill_forward_refused_events_total").await.to_string(), "0");
    // It answers again: with an error, because no file of that kind can be synced.
    drop(std::fs::File::open(&hanging).unwrap());
    std::fs::remove_file(&hanging).unwrap();
    shows(&["waybill_part_up{part=\"journal\"} 1"]).await;
}
