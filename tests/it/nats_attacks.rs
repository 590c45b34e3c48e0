//! What a gateway's credentials are good for on the shipped configuration of NATS: its own subject, and nothing else.
//!
//! | attack | with a gateway's credentials | test |
//! |---|---|---|
//! | N01 | publish to another's subject | `nothing_but_its_own_subject_can_be_published_to` |
//! | N02 | listen to others' events and deliveries | `nothing_but_its_own_inbox_can_be_listened_to` |
//! | N03 | call the stream's and the consumer's API | `nothing_but_its_own_subject_can_be_published_to` |
//! | N04 | forge acks | the same; with the right to: `recording::sequences_that_nobody_recorded_are_read_again` |
//! | N05 | guess message ids first | `nats_billing::guessed_message_ids_cost_only_who_relies_on_them` |
//! | N06 to N09 | rollup, TTL, expectations, schedules, counters, batches | `headers_give_no_power_over_the_stream` |
//! | N10 | have a message traced instead of stored | `headers_give_no_power_over_the_stream` |
//! | N11 | say another subject, stream or sequence in headers | the same; what is billed: `nats_billing::what_headers_say_is_not_believed` |
//! | N12, N13 | have the stream's answer sent to another subject, or to its API | `the_streams_answers_cannot_be_sent_elsewhere` |
//! | N14 | floods | `limits_hold_and_nobody_gets_in_without_a_user`, `nats_billing::floods_do_not_hold_up_the_billing_of_others` |
//! | N15 | publish without a reply subject | `the_streams_answers_cannot_be_sent_elsewhere` |
//! | N16 | malformed subjects | `nothing_but_its_own_subject_can_be_published_to` |
//! | N17 | publish captured messages again | `nats_billing::captured_messages_count_once_and_a_revoked_gateway_is_out_at_once` |
//! | N18 | other ports, other users, nobody | `limits_hold_and_nobody_gets_in_without_a_user`, `a_gateways_password_opens_no_other_account`, `nothing_but_clients_is_listened_for`, `who_looks_after_the_server_reaches_no_usage` |

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::context::AccountErrorKind;
use async_nats::jetstream::{self, Context};
use waybill::ingest::{self, StreamNames, UsageStream};

use crate::harness::{get, wait_until};
use crate::nats_raw::{Raw, published};
use crate::private_nats::PrivateNats;
use crate::world::{NATS_TIMEOUT, limits};

const OWN: &str = "usage.v1.gw-eu-1";
/// Within this a server would have answered, if it did at all.
const NO_ANSWER: Duration = Duration::from_secs(5);

/// The server, its stream as Waybill makes it with two messages of another gateway in it, and a connection as the gateway.
struct Attacked {
    nats: PrivateNats,
    context: Context,
    stream: UsageStream,
    gateway: Raw,
}

impl Attacked {
    async fn start() -> Self {
        let nats = PrivateNats::start().await;
        let mut context = ingest::jetstream(&nats.url(), "test").await.unwrap();
        context.set_timeout(NATS_TIMEOUT);
        let names = StreamNames { stream: "USAGE".to_owned(), prefix: "usage.v1".to_owned() };
        let stream = ingest::stream::open(&context, &names, limits()).await.unwrap();
        stream.consumer(limits()).await.unwrap();
        let gateway = Raw::connect(&nats.gateway_url()).await;
        let attacked = Self { nats, context, stream, gateway };
        for _ in 0..2 {
            attacked.victim_publishes().await;
        }
        attacked
    }

    async fn victim_publishes(&self) {
        self.context.publish("usage.v1.gw-victim", "{}".into()).await.unwrap().await.unwrap();
    }

    async fn messages(&self) -> u64 {
        self.stream.stream.get_info().await.unwrap().state.messages
    }

    /// Whatever was tried: what was in the stream is there, nothing new but on the gateway's own subject, settings are as they
    /// were, and the consumer has every message still before it.
    async fn unharmed(&self) {
        let now = ingest::stream::open(&self.context, &self.stream.names, limits()).await.unwrap();
        assert_eq!(now.incarnation, self.stream.incarnation, "the same life of the stream");
        self.stream.consumer(limits()).await.unwrap();
        let state = self.stream.stream.get_info().await.unwrap().state;
        assert_eq!((state.first_sequence, state.messages), (1, state.last_sequence), "nothing is gone");
        for sequence in 1..=state.last_sequence {
            let subject = self.stream.stream.get_raw_message(sequence).await.unwrap().subject;
            assert_eq!(
                subject.as_str(),
                if sequence <= 2 { "usage.v1.gw-victim" } else { OWN },
                "{sequence}"
            );
        }
        let consumer = self.stream.consumer(limits()).await.unwrap().get_info().await.unwrap();
        assert_eq!((consumer.num_pending, consumer.ack_floor.stream_sequence), (state.messages, 0));
        assert!(!consumer.paused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_its_own_subject_can_be_published_to() {
    let mut attacked = Attacked::start().await;
    let own = attacked.gateway.acknowledged(OWN, &[], "{}").await;
    assert_eq!(own, r#"{"stream":"USAGE","seq":3}"#, "the control: what is allowed works");
    let api = |call: &str| format!("$JS.API.{call}");
    let subjects = [
        // N01, N16
        "usage.v1.gw-victim",
        "usage.v1.gw-eu-1.x",
        "usage.v1.gw-eu-10",
        "usage.v1",
        "usage.v1.*",
        "usage.v1.>",
        "usage.v2.gw-eu-1",
        "USAGE.V1.GW-EU-1",
        "usage..gw-eu-1",
        ".usage.v1.gw-eu-1",
        "usage.v1.gw-eu-1.",
        "usage.v1.gw-eu-1\u{200b}",
        "usage.v1.gw-e\u{fc}-1",
        ">",
        "other",
        &format!("usage.v1.gw-eu-1{}", ".x".repeat(253)),
        // N02: answering in another's place
        "_INBOX.x",
        "_INBOX_gw-victim.1",
        "_INBOX_gw-eu-1.1",
        // N04
        "$JS.ACK.USAGE.biller.1.1.1.1700000000000000000.1",
        "$JS.ACK.USAGE.>",
        "$JS.FC.USAGE.biller.x",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "$KV.x.y",
        "$O.x.y",
    ]
    .map(str::to_owned);
    // N03
    let calls = [
        "INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        "STREAM.INFO.USAGE",
        "STREAM.CREATE.OTHER",
        "STREAM.UPDATE.USAGE",
        "STREAM.PURGE.USAGE",
        "STREAM.DELETE.USAGE",
        "STREAM.MSG.DELETE.USAGE",
        "STREAM.MSG.GET.USAGE",
        "DIRECT.GET.USAGE",
        "DIRECT.GET.USAGE.usage.v1.gw-victim",
        "STREAM.SNAPSHOT.USAGE",
        "STREAM.RESTORE.USAGE",
        "STREAM.LEADER.STEPDOWN.USAGE",
        "CONSUMER.CREATE.USAGE",
        "CONSUMER.CREATE.USAGE.x",
        "CONSUMER.DURABLE.CREATE.USAGE.x",
        "CONSUMER.DELETE.USAGE.biller",
        "CONSUMER.PAUSE.USAGE.biller",
        "CONSUMER.RESET.USAGE.biller",
        "CONSUMER.UNPIN.USAGE.biller",
        "CONSUMER.INFO.USAGE.biller",
        "CONSUMER.NAMES.USAGE",
        "CONSUMER.LEADER.STEPDOWN.USAGE.biller",
        "CONSUMER.MSG.NEXT.USAGE.biller",
        "META.LEADER.STEPDOWN",
        "SERVER.REMOVE",
        "ACCOUNT.PURGE.WAYBILL",
    ]
    .map(api);
    for subject in subjects.iter().chain(&calls) {
        for body in ["", "+ACK", "-NAK", "+TERM", "+NXT", r#"{"seq":1}"#] {
            let said = attacked.gateway.said(&format!("PUB {subject} {}\r\n{body}", body.len())).await;
            assert!(said.contains("Permissions Violation for Publish"), "{subject}: {said}");
        }
    }
    // N16: no subject at all ends the connection.
    for subject in ["", "usage.v1.gw-eu-1 x y z"] {
        let mut gateway = Raw::connect(&attacked.nats.gateway_url()).await;
        let said = gateway.said(&format!("PUB {subject} 2\r\n{{}}")).await;
        assert!(said.contains("-ERR") || said.contains("(closed)"), "{subject}: {said}");
    }
    assert_eq!(attacked.messages().await, 3);
    attacked.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_its_own_inbox_can_be_listened_to() {
    let mut attacked = Attacked::start().await;
    // N02
    for subject in [
        ">",
        "*",
        "usage.>",
        "usage.v1.*",
        OWN,
        "_INBOX.>",
        "_INBOX_gw-victim.>",
        "_INBOX_*.>",
        "$SYS.>",
        "$JS.>",
        "$JS.ACK.>",
        "$JS.API.>",
        "$JS.EVENT.>",
        "_R_.>",
        "$KV.>",
    ] {
        for command in [format!("SUB {subject} 7"), format!("SUB {subject} queue 8")] {
            let said = attacked.gateway.said(&command).await;
            assert!(said.contains("Permissions Violation for Subscription"), "{command}: {said}");
        }
    }
    // Even where it listened to everything it may, it hears nothing of what others publish.
    assert_eq!(attacked.gateway.said("SUB _INBOX_gw-eu-1.> 9").await, "");
    attacked.victim_publishes().await;
    attacked.context.client().publish("_INBOX_gw-eu-1.1", "from another account".into()).await.unwrap();
    attacked.context.client().flush().await.unwrap();
    assert_eq!(attacked.gateway.said("UNSUB 10").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_give_no_power_over_the_stream() {
    let mut attacked = Attacked::start().await;
    // N06 to N09: refused, or meaningless; in no case does it reach what is stored.
    let refused: [&[(&str, &str)]; 9] = [
        &[("Nats-Rollup", "all")],
        &[("Nats-Rollup", "sub")],
        &[("Nats-TTL", "1s")],
        &[("Nats-Schedule", "@every 1s"), ("Nats-Schedule-Target", "usage.v1.gw-victim")],
        &[("Nats-Incr", "+1")],
        &[("Nats-Expected-Stream", "OTHER")],
        &[("Nats-Expected-Last-Sequence", "999")],
        &[("Nats-Expected-Last-Msg-Id", "nothing")],
        // N11, where the server itself would believe it.
        &[("Nats-Stream-Source", "USAGE 1 > > usage.v1.gw-victim")],
    ];
    for headers in refused {
        let before = attacked.messages().await;
        let said = attacked.gateway.acknowledged(OWN, headers, "{}").await;
        assert!(said.contains("\"error\""), "{headers:?}: {said}");
        assert_eq!(attacked.messages().await, before, "{headers:?}");
    }
    // A batch that is never committed stores nothing.
    let batch = [("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", "1")];
    let said = attacked.gateway.acknowledged_or_silent(OWN, &batch, "{}").await.unwrap_or_default();
    assert!(said.is_empty() || said.contains("\"error\""), "{said}");
    assert_eq!(attacked.messages().await, 2);
    // N10: a message that is only traced is not stored, and nobody says that it is.
    let traced = [("Nats-Trace-Dest", "usage.v1.gw-victim"), ("Nats-Trace-Only", "true")];
    let said = attacked.gateway.acknowledged_or_silent(OWN, &traced, "{}").await;
    let stored = attacked.messages().await - 2;
    assert_eq!(u64::from(said.is_some_and(|said| said.contains("\"seq\""))), stored, "an ack means stored");
    // N11: what else names another subject, stream or sequence is stored as the gateway's own.
    let spoofed = [
        ("Nats-Subject", "usage.v1.gw-victim"),
        ("Nats-Sequence", "1"),
        ("Nats-Request-Info", r#"{"acc":"WAYBILL"}"#),
    ];
    let before = attacked.messages().await;
    let said = attacked.gateway.acknowledged(OWN, &spoofed, "{}").await;
    assert!(!said.contains("\"error\""), "{said}");
    assert_eq!(attacked.messages().await, before + 1);
    attacked.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_answers_cannot_be_sent_elsewhere() {
    let mut attacked = Attacked::start().await;
    // N12, N13: the stream's acknowledgement as a message of another gateway, as an order to the stream, as a forged ack.
    let replies = [
        "usage.v1.gw-victim",
        "$JS.API.STREAM.PURGE.USAGE",
        "$JS.API.STREAM.MSG.DELETE.USAGE",
        "$JS.API.STREAM.DELETE.USAGE",
        "$JS.API.CONSUMER.DELETE.USAGE.biller",
        OWN,
    ];
    for reply in replies {
        for body in ["{}", r#"{"seq":1}"#] {
            assert_eq!(attacked.gateway.said(&published(OWN, reply, &[], body)).await, "", "{reply}");
        }
    }
    let acked = published(OWN, "$JS.ACK.USAGE.biller.1.1.1.1.1", &[], "{}");
    let said = attacked.gateway.said(&acked).await;
    assert!(said.contains("Permissions Violation for Publish with Reply"), "{said}");
    // N15: without a reply subject it is stored as well, and nobody is told.
    assert_eq!(attacked.gateway.said(&format!("PUB {OWN} 2\r\n{{}}")).await, "");
    wait_until("what may be stored is", async || (attacked.messages().await == 2 + 12 + 1).then_some(()))
        .await;
    attacked.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_nobody_gets_in_without_a_user() {
    let attacked = Attacked::start().await;
    let url = attacked.nats.gateway_url();
    let (_, address) = url.rsplit_once('@').unwrap();
    // N18
    for credentials in
        ["", "gw-eu-1:wrong", "waybill:", "gw-eu-1:", "SYS:x", "admin:", "admin:x", "gw-victim:x"]
    {
        let said = Raw::connect(&format!("nats://{credentials}@{address}")).await.said("").await;
        assert!(
            said.contains("Authorization Violation") || said.contains("(closed)"),
            "{credentials}: {said}"
        );
    }
    // N14
    let mut gateway = Raw::connect(&url).await;
    let said = gateway.said(&format!("PUB {OWN} 65537\r\n{}", "x".repeat(65_537))).await;
    assert!(said.contains("Maximum Payload Violation"), "{said}");
    let mut gateway = Raw::connect(&url).await;
    let said = gateway.said(&format!("PUB {OWN}.{} 2\r\n{{}}", "x".repeat(4096))).await;
    assert!(said.contains("Maximum Control Line Exceeded") || said.contains("(closed)"), "{said}");
    let mut gateway = Raw::connect(&url).await;
    let mut refused = String::new();
    for number in 0..102 {
        refused += &gateway.said(&format!("SUB _INBOX_gw-eu-1.{number} {number}")).await;
    }
    assert!(refused.to_lowercase().contains("maximum subscriptions exceeded"), "{refused}");
    attacked.unharmed().await;
    // The account has no JetStream of its own either.
    let client =
        ingest::connect(&url, async_nats::ConnectOptions::new().custom_inbox_prefix("_INBOX_gw-eu-1")).await;
    let context = jetstream::ContextBuilder::new().timeout(NO_ANSWER).build(client.unwrap());
    assert_eq!(context.query_account().await.unwrap_err().kind(), AccountErrorKind::TimedOut);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateways_password_opens_no_other_account() {
    const OTHER: &str = "gw-us-1";
    let nats = PrivateNats::start().await;
    nats.add_gateway(OTHER).await;
    let (one, other) = (nats.gateway_url(), nats.gateway_url_of(OTHER));
    assert_eq!(Raw::connect(&other).await.said("PING").await, "", "the control: with its own it gets in");
    let password = |url: &str| url.rsplit_once('@').unwrap().0.rsplit_once(':').unwrap().1.to_owned();
    let (_, address) = one.rsplit_once('@').unwrap();
    for (user, password) in [(OTHER, password(&one)), ("gw-eu-1", password(&other))] {
        let said = Raw::connect(&format!("nats://{user}:{password}@{address}")).await.said("").await;
        assert!(said.contains("Authorization Violation") || said.contains("(closed)"), "{user}: {said}");
    }
}

/// The user of the system account, who may take a server out of a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn who_looks_after_the_server_reaches_no_usage() {
    let attacked = Attacked::start().await;
    let mut admin = Raw::connect(&attacked.nats.admin_url()).await;
    let told = admin.acknowledged("$SYS.REQ.SERVER.PING", &[], "").await;
    assert!(told.contains(r#""server":{"name":"waybill""#), "{told}");
    // One server alone has no leader to step down: the answer is the server's, not that of the rights.
    for call in ["$JS.API.SERVER.REMOVE", "$JS.API.META.LEADER.STEPDOWN"] {
        let said = admin.said(&format!("PUB {call} 2\r\n{{}}")).await;
        assert_eq!(said, "", "{call}");
    }
    for subject in [
        OWN,
        "$JS.API.ACCOUNT.PURGE.WAYBILL",
        "$JS.API.ACCOUNT.STREAM.MOVE.WAYBILL.USAGE",
        "$JS.API.STREAM.DELETE.USAGE",
        "$JS.API.STREAM.MSG.GET.USAGE",
    ] {
        let said = admin.said(&format!("PUB {subject} 2\r\n{{}}")).await;
        assert!(said.contains("Permissions Violation for Publish"), "{subject}: {said}");
    }
    // What it listens to is what its own account says.
    assert_eq!(admin.said("SUB usage.> 7\r\nSUB $JS.> 8").await, "");
    attacked.victim_publishes().await;
    assert_eq!(admin.said("UNSUB 9").await, "");
    let state = attacked.stream.stream.get_info().await.unwrap().state;
    assert_eq!((state.first_sequence, state.messages), (1, 3), "nothing is gone");
}

/// No route, leaf node, websocket or MQTT port is there to be attacked, and monitoring is for this machine only.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_clients_is_listened_for() {
    let nats = PrivateNats::start().await;
    let url = nats.url();
    let (_, client) = url.rsplit_once('@').unwrap();
    let expected = [client.to_owned(), nats.monitor().to_string()];
    assert_eq!(nats.listening(), BTreeSet::from(expected));
    let said = get(nats.monitor(), "/varz").await.unwrap();
    for open in ["no_auth_user", "\"tls_required\": true"] {
        assert!(!said.contains(open), "{said}");
    }
    assert!(said.contains("\"auth_required\": true"), "{said}");
}
