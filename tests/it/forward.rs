//! `waybill forward` as a process: killed, without NATS, without the API, without space; what it accepted is counted once.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::forward_bed::{
    Forwarder, all_recorded, body, event, ids, recorded, recorded_exactly, segments, setting, watermark,
};
use crate::harness::{everything, get, wait_until};
use crate::private_nats::PrivateNats;
use crate::program::free_address;
use crate::world::{World, gpt5_prices};

/// How often the forwarder is killed.
const KILLS: usize = 8;
/// Events that are accepted at least between two kills.
const EVENTS_PER_ROUND: usize = 40;

/// What a gateway that repeats every body until it is accepted has sent.
#[derive(Default)]
struct Gateway {
    /// Where the forwarder is at the moment.
    forwarder: Mutex<Option<Arc<Forwarder>>>,
    accepted: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

impl Gateway {
    /// Sends bodies of 1 to 9 events, one after the other, until told to stop.
    async fn run(&self, name: &str) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let ids = ids(&format!("{name}-{number}"), number % 9 + 1);
            loop {
                let forwarder = self.forwarder.lock().unwrap().clone();
                let answered = match &forwarder {
                    Some(forwarder) => forwarder.try_post(&body(&ids)).await,
                    None => None,
                };
                if matches!(answered, Some((202, _))) {
                    self.accepted.lock().unwrap().extend(ids);
                    break;
                }
                drop(forwarder);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    async fn accepts_more(&self, count: usize) {
        let before = self.accepted();
        wait_until("more events are accepted", async || (self.accepted() >= before + count).then_some(()))
            .await;
    }

    fn kill(&self) {
        self.forwarder.lock().unwrap().take().unwrap().kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_with_nats_coming_and_going_it_loses_and_doubles_nothing() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer();
    // With the credentials of the gateway, which may publish to its own subject and nothing else.
    let setting = setting(&world, nats.gateway_url()).await;
    let gateway = Arc::new(Gateway::default());
    *gateway.forwarder.lock().unwrap() = Some(Arc::new(setting.start().await));
    let senders: Vec<_> = (0..3)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.run(&format!("s{number}")).await })
        })
        .collect();
    for round in 0..KILLS {
        match round % 4 {
            1 => nats.kill().await,
            3 => nats.stop().await,
            _ => {}
        }
        gateway.accepts_more(EVENTS_PER_ROUND).await;
        gateway.kill();
        *gateway.forwarder.lock().unwrap() = Some(Arc::new(setting.start().await));
        gateway.accepts_more(EVENTS_PER_ROUND).await;
        if round % 2 == 1 {
            nats.start_again().await;
        }
    }
    gateway.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let forwarder = gateway.forwarder.lock().unwrap().take().unwrap();
    forwarder.settled().await;
    let accepted = gateway.accepted.lock().unwrap().clone();
    assert!(accepted.len() >= 2 * KILLS * EVENTS_PER_ROUND);
    recorded_exactly(&world, &accepted).await;
    let epochs = watermark(&setting).await;
    assert_eq!(epochs.len(), 1, "one epoch per journal");
    assert_eq!(epochs[0].0, epochs[0].1, "no holes");
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_it_accepts_up_to_its_bound_and_says_so() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer();
    let mut setting = setting(&world, nats.gateway_url()).await;
    setting.more = vec![
        ("WAYBILL_FORWARD_JOURNAL_MAX_BYTES", (2 << 20).to_string()),
        ("WAYBILL_FORWARD_JOURNAL_KEEP_HOURS", "0".to_owned()),
    ];
    nats.stop().await;
    // It starts without NATS, too.
    let forwarder = setting.start().await;
    let mut accepted = BTreeSet::new();
    let refusal = loop {
        let ids = ids(&format!("b{}", accepted.len()), 100);
        match forwarder.try_post(&body(&ids)).await.unwrap() {
            (202, _) => accepted.extend(ids),
            refusal => break refusal,
        }
    };
    assert_eq!((refusal.0, &refusal.1["code"]), (507, &json!("journal_full")), "{}", refusal.1);
    let said = refusal.1["detail"].as_str().unwrap();
    assert!(
        said.contains("may hold 2097152") && said.contains("Nothing of this body was accepted"),
        "{said}"
    );
    let unready = get(forwarder.events, "/readyz").await.unwrap();
    assert!(unready.contains(" 503 ") && unready.contains("\"stream\":\"not connected"), "{unready}");
    wait_until("the metrics show it", async || {
        (forwarder.metric("waybill_forward_journal_bytes").await > 1_900_000.0).then_some(())
    })
    .await;
    assert!(segments(&setting.journal()) > 5, "an eighth of the bound each");

    // With NATS back, but nobody to say what is settled, everything stays.
    setting.api.stop().await;
    nats.start_again().await;
    all_recorded(&world, &accepted).await;
    assert_eq!(forwarder.try_post(&body(&ids("late", 100))).await.unwrap().0, 507);
    setting.api.start().await;
    forwarder.settled().await;
    wait_until("it is ready", async || {
        get(forwarder.events, "/readyz").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
    wait_until("what is settled is removed", async || (segments(&setting.journal()) == 1).then_some(()))
        .await;
    let late = ids("late", 100);
    forwarder.post(&late).await;
    accepted.extend(late);
    forwarder.settled().await;
    recorded_exactly(&world, &accepted).await;
    world.settled().await;
    world.verified().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_refused_and_nothing_accepted_is_lost() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    // A limit on the size of its files stands for the disk: writes fail in the middle, as they do there.
    let limit = ["sh", "-c", "trap '' XFSZ; ulimit -S -f 128; exec \"$0\" \"$@\""];
    let forwarder = setting.start_wrapped(&limit).await;
    let mut accepted = BTreeSet::new();
    let refusal = loop {
        let ids = ids(&format!("b{}", accepted.len()), 7);
        match forwarder.try_post(&body(&ids)).await.unwrap() {
            (202, _) => accepted.extend(ids),
            refusal => break refusal,
        }
    };
    assert_eq!((refusal.0, &refusal.1["code"]), (507, &json!("disk_full")), "{}", refusal.1);
    assert!(!accepted.is_empty());
    let unready = get(forwarder.events, "/readyz").await.unwrap();
    assert!(unready.contains(" 503 ") && unready.contains("disk of the journal is full"), "{unready}");
    // What was accepted goes its way meanwhile.
    all_recorded(&world, &accepted).await;
    // Space returns, and it notices by itself.
    let pid = forwarder.pid();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:"]).status().unwrap().success());
    wait_until("it is ready", async || {
        get(forwarder.events, "/readyz").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
    let more = ids("more", 200);
    forwarder.post(&more).await;
    accepted.extend(more);
    forwarder.settled().await;
    // Killed right here, the journal is still whole.
    drop(forwarder);
    let forwarder = setting.start().await;
    forwarder.post(&ids("last", 1)).await;
    accepted.extend(ids("last", 1));
    forwarder.settled().await;
    assert_eq!(forwarder.metric("waybill_forward_damaged_events").await.to_string(), "0");
    recorded_exactly(&world, &accepted).await;
    let epochs = watermark(&setting).await;
    assert_eq!(epochs[0].0, epochs[0].1, "a refused write leaves no hole in the count");
    world.verified().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_journal_itself_has_filled_takes_events_again_once_they_are_settled() {
    // A small disk of the process's own, which needs no right of ours where the system lets users have namespaces.
    let unshare = ["unshare", "--map-root-user", "--mount"];
    if !Command::new(unshare[0]).args(&unshare[1..]).arg("true").status().is_ok_and(|status| status.success())
    {
        // Past what the test runner keeps to itself.
        std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: this system gives no mount namespace\n")
            .ok();
        assert!(!everything(), "this system gives no mount namespace");
        return;
    }
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer();
    let setting = setting(&world, nats.gateway_url()).await;
    std::fs::create_dir(setting.journal()).unwrap();
    nats.stop().await;
    let mount = "mount -t tmpfs -o size=1m disk \"$WAYBILL_FORWARD_JOURNAL\" && exec \"$0\" \"$@\"";
    let forwarder = setting.start_wrapped(&[&unshare[..], &["sh", "-c", mount]].concat()).await;
    let mut accepted = BTreeSet::new();
    let refusal = loop {
        let ids = ids(&format!("b{}", accepted.len()), 100);
        match forwarder.try_post(&body(&ids)).await.unwrap() {
            (202, _) => accepted.extend(ids),
            refusal => break refusal,
        }
    };
    assert_eq!((refusal.0, &refusal.1["code"]), (507, &json!("disk_full")), "{}", refusal.1);
    assert!(accepted.len() > 1_000);
    nats.start_again().await;
    forwarder.settled().await;
    wait_until("it is ready", async || {
        get(forwarder.events, "/readyz").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
    let more = ids("more", 400);
    forwarder.post(&more).await;
    accepted.extend(more);
    forwarder.settled().await;
    recorded_exactly(&world, &accepted).await;
    let epochs = watermark(&setting).await;
    assert_eq!(epochs[0].0, epochs[0].1, "no holes");
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_as_the_api_does_and_the_rest_is_kept() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let forwarder = setting.start().await;
    for (sent, status, code) in [
        (String::new(), 400, "invalid_body"),
        ("[{}".to_owned(), 400, "invalid_body"),
        (format!("[{}]", vec!["{}"; 501].join(",")), 413, "body_too_large"),
        (" ".repeat((1 << 20) + 1), 413, "body_too_large"),
        ("{}".to_owned(), 422, "no_valid_event"),
    ] {
        let (is, answer) = forwarder.try_post(&sent).await.unwrap();
        assert_eq!((is, &answer["code"]), (status, &json!(code)), "{answer}");
    }
    let with = |field: &str, value: Value| {
        let mut event = event(field);
        event[field] = value;
        event
    };
    let mut own_count = event("own-count");
    (own_count["sequence"], own_count["epoch"]) = (json!("77"), json!("mine"));
    let mut no_count = event("no-count");
    (no_count["sequence"], no_count["epoch"]) = (Value::Null, Value::Null);
    let mut unpriced = event("unpriced");
    unpriced["data"]["model"] = json!("gpt-99");
    let mut long = event("long");
    long["data"]["provider_usage"] = json!("x".repeat(65_000));
    let mut newer = event("newer");
    newer["type"] = json!("llm.usage.v9");
    let bodies = json!([
        event("good"),
        with("id", json!("a b")),
        with("id", Value::Null),
        with("source", json!("gw-1")),
        with("source", json!("gw-eu-10")),
        with("subject", json!("")),
        with("time", json!("yesterday")),
        with("sequence", json!(0)),
        long,
        unpriced,
        newer,
        own_count,
        no_count,
    ]);
    let (status, answer) = forwarder.try_post(&bodies.to_string()).await.unwrap();
    assert_eq!((status, &answer["accepted"], &answer["refused"]), (202, &json!(5), &json!(8)), "{answer}");
    assert_eq!(answer["sequence"], 1);
    let results = answer["results"].as_array().unwrap();
    let shown: Vec<&str> = results
        .iter()
        .map(|result| result["reason"].as_str().or(result["status"].as_str()).unwrap())
        .collect();
    let expected = [
        "accepted",
        "charset",
        "no_id",
        "not_allowed",
        "not_allowed",
        "length",
        "time",
        "range",
        "too_large",
        "accepted",
        "accepted",
        "accepted",
        "accepted",
    ];
    assert_eq!(shown, expected);
    forwarder.settled().await;
    assert_eq!(recorded(&world).await, BTreeSet::from(["good", "own-count", "no-count"].map(str::to_owned)));
    let mut rejected = world.open_rejections().await;
    rejected.sort();
    assert_eq!(rejected, ["unpriced", "version"], "what only the ledger can judge is kept there");
    assert_eq!(watermark(&setting).await, [(5, 5)], "the count is the journal's");

    let zstd = zstd::bulk::compress(body(&ids("packed", 3)).as_bytes(), 1).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |media: &'static str| {
        let request = client.post(format!("http://{}/v1/events", forwarder.events)).body(zstd.clone());
        request.header("content-type", media).header("content-encoding", "zstd").send()
    };
    assert_eq!(post("application/cloudevents-batch+json").await.unwrap().status(), 202);
    assert_eq!(post("text/plain").await.unwrap().status(), 415);
    let nowhere = get(forwarder.events, "/v1/customers").await.unwrap();
    assert!(nowhere.contains(" 404 ") && nowhere.contains("no_route"), "{nowhere}");
    assert!(get(forwarder.metrics, "/readyz").await.unwrap().contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_on_a_unix_socket_and_stops_when_told() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let socket = setting.folder.join("events.sock");
    // Left behind by a run that was killed.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.arg("forward");
        setting.environment(&mut command, &format!("unix:{}", socket.display()), free_address());
        command
    };
    let mut child = start().spawn().unwrap();
    let sent = body(&ids("unix", 2));
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sent}",
        sent.len()
    );
    let answer = wait_until("the socket answers", async || {
        let mut stream = UnixStream::connect(&socket).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let second = |journal: &Path| {
        let mut second = start();
        second.env("WAYBILL_FORWARD_JOURNAL", journal).stderr(std::process::Stdio::piped());
        String::from_utf8(second.output().unwrap().stderr).unwrap()
    };
    let same = second(&setting.journal());
    assert!(same.contains("one forwarder per journal"), "{same}");
    // The socket of one that runs is not taken away.
    let other = second(&setting.folder.join("other"));
    assert!(other.contains("another process listens on") && other.contains("events.sock"), "{other}");
    UnixStream::connect(&socket).await.unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    // A stop waits for what is on its way.
    wait_until("all is recorded", async || (recorded(&world).await.len() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_on_a_socket_left_behind_one_has_it() {
    let world = World::idle().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let socket = setting.folder.join("events.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut both = ["one", "other"].map(|journal| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.arg("forward");
        setting.environment(&mut command, &format!("unix:{}", socket.display()), free_address());
        command.env("WAYBILL_FORWARD_JOURNAL", setting.folder.join(journal));
        command.env("WAYBILL_FORWARD_SOCKET_MODE", "0600").spawn().unwrap()
    });
    wait_until("one of them ends", async || {
        both.iter_mut().find_map(|child| child.try_wait().unwrap()).map(|status| assert!(!status.success()))
    })
    .await;
    wait_until("the other listens", async || UnixStream::connect(&socket).await.ok()).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for mut child in both {
        child.kill().ok();
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_are_refused_with_a_sentence() {
    let world = World::idle().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let address = free_address();
    for (name, value, sentence) in [
        ("WAYBILL_FORWARD_LISTEN", "0.0.0.0:8090".to_owned(), "other machines reach"),
        ("WAYBILL_FORWARD_LISTEN", "unix:".to_owned(), "a path must follow"),
        ("WAYBILL_FORWARD_LISTEN", "localhost:8090".to_owned(), "give an IP address and a port"),
        ("WAYBILL_FORWARD_SOCKET_MODE", "rw".to_owned(), "give three octal digits"),
        ("WAYBILL_FORWARD_JOURNAL_MAX_BYTES", (1 << 20).to_string(), "is not in 2097152.."),
        ("WAYBILL_FORWARD_LISTEN", address.to_string(), "metrics need an address of their own"),
        ("WAYBILL_FORWARD_GATEWAY", "gw.eu".to_owned(), "WAYBILL_FORWARD_GATEWAY must be 1 to 64"),
        ("WAYBILL_FORWARD_API_URL", "waybill.example".to_owned(), "must start with http:// or https://"),
        ("WAYBILL_FORWARD_NATS_URL", "http://nats".to_owned(), "must start with nats:// or tls://"),
        ("WAYBILL_FORWARD_JOURNAL", "/proc/journal".to_owned(), "cannot create /proc/journal"),
        ("WAYBILL_FORWARD_RESEND_SECONDS", u64::MAX.to_string(), "is not in 1..=86400"),
        ("WAYBILL_FORWARD_POLL_MS", u64::MAX.to_string(), "is not in 10..=60000"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.arg("forward");
        setting.environment(&mut command, "127.0.0.1:0", address);
        let output = command.env(name, value).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(sentence), "{name}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_read_is_told_and_its_events_grow_old() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let forwarder = setting.start().await;
    forwarder.post(&ids("early", 5)).await;
    forwarder.settled().await;
    // The writer has the file open; who reads opens it anew.
    let segment = setting.journal().join("00000000000000000001.events");
    let away = setting.folder.join("away");
    std::fs::rename(&segment, &away).unwrap();
    forwarder.post(&ids("later", 5)).await;
    wait_until("it is told", async || {
        let parts = get(forwarder.metrics, "/readyz").await?;
        (parts.contains(" 200 ") && parts.contains("the journal cannot be read")).then_some(())
    })
    .await;
    wait_until("what waits grows old", async || {
        let old = forwarder.metric("waybill_forward_oldest_unsettled_seconds").await >= 2.0;
        (old && forwarder.metric("waybill_forward_unsettled_events").await >= 5.0).then_some(())
    })
    .await;
    std::fs::rename(&away, &segment).unwrap();
    forwarder.settled().await;
    let all = ids("early", 5).into_iter().chain(ids("later", 5)).collect();
    recorded_exactly(&world, &all).await;
    wait_until("all is well", async || {
        let well = get(forwarder.metrics, "/readyz").await?.contains("\"delivery\":\"ok\"");
        (well && forwarder.metric("waybill_forward_oldest_unsettled_seconds").await < 0.1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_there_is_no_connection_is_told() {
    let nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    let good = nats.gateway_url();
    let (before, host) = good.rsplit_once('@').unwrap();
    let user = before.rsplit_once(':').unwrap().0;
    let setting = setting(&world, format!("{user}:wrong@{host}")).await;
    let forwarder = setting.start().await;
    forwarder.post(&ids("kept", 1)).await;
    wait_until("it says that the password is wrong", async || {
        let answer = get(forwarder.events, "/readyz").await?;
        answer.contains("authorization violation").then_some(())
    })
    .await;
}

/// Before it publishes it asks the ledger, which may keep it waiting, while it takes events already.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_told_to_stop_while_it_starts_stops_in_order() {
    let world = World::idle().await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    // Lets everybody in and answers nobody.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    setting.more = vec![("WAYBILL_FORWARD_API_URL", format!("http://{}", silent.local_addr().unwrap()))];
    let forwarder = setting.start().await;
    let ended = forwarder.terminated().await;
    assert!(ended.success(), "{ended}");
}
