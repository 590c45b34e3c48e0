//! Which settings of stream, consumer and server would lose or change usage: compared one by one, all of them named.
//!
//! They are read as the server gives them, so that a setting this program does not know is seen too. Why each value is as
//! it is: `reliability` d.2. Limits retention keeps acknowledged messages, so a database that was restored can read them
//! again; `discard new` makes a full stream refuse instead of forget; unlimited deliveries, because a finite number loses
//! the message that reaches it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::fetch::{FETCH_BYTES_MAX, FETCH_EXPIRES, FETCH_MESSAGES_MAX};
use super::stream::{ACK_PENDING_MAX, INCARNATION, MESSAGE_BYTES_MAX, StreamLimits, StreamNames};
use crate::store::settings::WrongServer;

/// The least age that messages may reach: longer than a restore of the database may take.
const MAX_AGE_LEAST: Duration = Duration::from_hours(7 * 24);
/// The least number of waiting requests: those of a few consumers side by side.
const WAITING_LEAST: i64 = 16;
/// The oldest NATS server whose JetStream has what the consumer asks for; the configuration that Waybill ships is for 2.11.
const SERVER_LEAST: [u64; 3] = [2, 10, 0];
/// The first server that keeps its word about `sync_interval: always` when it compacts its files.
const SERVER_SYNCED: [u64; 3] = [2, 15, 1];
/// The first server that refuses requests it does not fully understand, unless it is told not to.
const SERVER_STRICT: [u64; 3] = [2, 12, 0];
/// The first servers of the series 2.12 and of those after it that compact compressed blocks without damaging them.
const SERVERS_COMPRESSING: [[u64; 3]; 2] = [[2, 12, 12], [2, 14, 3]];
/// The first series that the latter of them is of.
const SERIES_COMPRESSING: [u64; 3] = [2, 13, 0];
/// Rights that publishers may have over what is stored; every other `allow_…` is refused, known or not.
const ALLOWED: [&str; 1] = ["allow_direct"];

/// A setting that would lose or change usage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrongSetting {
    /// Whose: `stream`, `consumer`, `nats` or `postgres`.
    pub object: &'static str,
    /// Its name, as the server's own documentation has it.
    pub setting: String,
    /// What it is and what it must be.
    pub detail: String,
}

impl std::fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.object, self.setting, self.detail)
    }
}

impl From<WrongServer> for WrongSetting {
    fn from(wrong: WrongServer) -> Self {
        Self { object: "postgres", setting: wrong.setting.to_owned(), detail: wrong.detail }
    }
}

/// Compares settings one by one and keeps each that differs.
struct Comparison<'a> {
    object: &'static str,
    is: &'a Value,
    wrong: Vec<WrongSetting>,
}

impl<'a> Comparison<'a> {
    const fn new(object: &'static str, is: &'a Value) -> Self {
        Self { object, is, wrong: Vec::new() }
    }

    fn differs(&mut self, setting: &str, detail: String) {
        self.wrong.push(WrongSetting { object: self.object, setting: setting.to_owned(), detail });
    }

    fn must_be(&mut self, setting: &str, must: &Value) {
        let is = &self.is[setting];
        // What is not set is not sent.
        if is != must && !(unset(is) && unset(must)) {
            self.differs(setting, format!("is {}, must be {}", shown(is), shown(must)));
        }
    }

    fn must_be_unset(&mut self, settings: &[&str]) {
        for setting in settings {
            self.must_be(setting, &Value::Null);
        }
    }

    fn number(&self, setting: &str) -> i64 {
        self.is[setting].as_i64().unwrap_or_default()
    }
}

/// Whether a value stands for a setting that nobody has set.
fn unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty() || text == "default" || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(unset),
    }
}

fn shown(value: &Value) -> String {
    if value.is_null() { "not set".to_owned() } else { value.to_string() }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The settings of the stream that are wrong.
pub(super) fn stream(config: &Value, names: &StreamNames, limits: StreamLimits) -> Vec<WrongSetting> {
    let mut compare = Comparison::new("stream", config);
    compare.must_be("subjects", &json!([format!("{}.*", names.prefix)]));
    compare.must_be("retention", &json!("limits"));
    compare.must_be("discard", &json!("new"));
    compare.must_be("storage", &json!("file"));
    compare.must_be("num_replicas", &json!(limits.replicas));
    compare.must_be("max_msgs", &json!(-1));
    compare.must_be("max_msgs_per_subject", &json!(-1));
    compare.must_be("max_msg_size", &json!(MESSAGE_BYTES_MAX));
    for setting in ["deny_delete", "deny_purge", "allow_direct"] {
        compare.must_be(setting, &json!(true));
    }
    compare.must_be_unset(&[
        "no_ack",
        "sealed",
        "persist_mode",
        "discard_new_per_subject",
        "mirror",
        "sources",
        "subject_transform",
        "republish",
        "subject_delete_marker_ttl",
    ]);
    let rights = config.as_object().into_iter().flat_map(|fields| fields.iter());
    for (setting, _) in rights.filter(|(setting, value)| setting.starts_with("allow_") && !unset(value)) {
        if !ALLOWED.contains(&setting.as_str()) {
            compare.differs(setting, "is true, must be false".to_owned());
        }
    }
    if compare.number("max_bytes") <= 0 {
        compare.differs("max_bytes", "is unlimited, must be less than its volume holds".to_owned());
    }
    if compare.number("first_seq") > 1 {
        compare.differs("first_seq", "is set, must not be: completeness counts from 1".to_owned());
    }
    let max_age = compare.number("max_age");
    if max_age != 0 && max_age < nanoseconds(MAX_AGE_LEAST) {
        let is = Duration::from_nanos(max_age.unsigned_abs());
        compare.differs("max_age", format!("is {is:?}, must be at least {MAX_AGE_LEAST:?}"));
    }
    if compare.number("duplicate_window") == 0 {
        compare.differs("duplicate_window", "is 0, must be above".to_owned());
    }
    if incarnation(config).is_none() {
        compare.differs(
            "metadata",
            format!("lacks {INCARNATION}, a UUID of its own for each life of the stream; let Waybill make the stream, or set one"),
        );
    }
    compare.wrong
}

/// Which life of the stream its settings name.
pub(super) fn incarnation(config: &Value) -> Option<uuid::Uuid> {
    config["metadata"][INCARNATION].as_str().and_then(|text| uuid::Uuid::parse_str(text).ok())
}

/// Whether the stream is compressed by a server that may damage it: `versions` are those of the servers that are known.
pub(super) fn compression<'a>(
    config: &Value,
    versions: impl IntoIterator<Item = &'a str>,
) -> Option<WrongSetting> {
    let is = &config["compression"];
    if unset(is) {
        return None;
    }
    let [early, late] = SERVERS_COMPRESSING;
    let damages = |version: &&str| {
        let numbers = numbers(version);
        numbers < early || (numbers >= SERIES_COMPRESSING && numbers < late)
    };
    let version = versions.into_iter().find(damages)?;
    let (is, early, late) = (shown(is), dotted(early), dotted(late));
    Some(WrongSetting {
        object: "stream",
        setting: "compression".to_owned(),
        detail: format!(
            "is {is}, must be none: NATS {version} may damage compressed messages; {early} of its series, {late} and newer do not"
        ),
    })
}

/// What to do where the stream may hold other than what is asked for: its own limit counts once it exists, so that it can
/// be changed while it runs.
pub(super) fn other_size(config: &Value, names: &StreamNames, limits: StreamLimits) -> Option<String> {
    let (is, wanted) = (config["max_bytes"].as_i64()?, limits.bytes_max);
    (is > 0 && is != wanted).then(|| {
        format!(
            "stream {name} may hold {is} bytes, WAYBILL_STREAM_MAX_BYTES says {wanted}, which counts only where the stream is made: run `nats stream edit {name} --max-bytes={wanted}` (within max_file_store of the servers), or set the variable to {is}",
            name = names.stream
        )
    })
}

/// The settings of the consumer that are wrong; `info` is the server's whole answer.
pub(super) fn consumer(info: &Value, limits: StreamLimits) -> Vec<WrongSetting> {
    let mut compare = Comparison::new("consumer", &info["config"]);
    compare.must_be("ack_policy", &json!("explicit"));
    compare.must_be("deliver_policy", &json!("all"));
    compare.must_be("replay_policy", &json!("instant"));
    compare.must_be("max_deliver", &json!(-1));
    let ack_wait = compare.number("ack_wait");
    if ack_wait != nanoseconds(limits.ack_wait) {
        let (is, must) = (Duration::from_nanos(ack_wait.unsigned_abs()), limits.ack_wait);
        compare.differs("ack_wait", format!("is {is:?}, must be {must:?}; edit the consumer, or set WAYBILL_ACK_WAIT_SECONDS to what it has"));
    }
    for (setting, least) in [("max_ack_pending", ACK_PENDING_MAX), ("max_waiting", WAITING_LEAST)] {
        let is = compare.number(setting);
        if is != -1 && is < least {
            compare.differs(setting, format!("is {is}, must be at least {least}"));
        }
    }
    // Requests for more are refused, all of them.
    for (setting, asked) in [("max_batch", FETCH_MESSAGES_MAX), ("max_bytes", FETCH_BYTES_MAX)] {
        let (is, least) = (compare.number(setting), i64::try_from(asked).unwrap_or(i64::MAX));
        if is > 0 && is < least {
            compare.differs(setting, format!("is {is}, must be at least {least} or not set"));
        }
    }
    let max_expires = compare.number("max_expires");
    if max_expires > 0 && max_expires < nanoseconds(FETCH_EXPIRES) {
        let is = Duration::from_nanos(max_expires.unsigned_abs());
        compare.differs("max_expires", format!("is {is:?}, must be at least {FETCH_EXPIRES:?} or not set"));
    }
    compare.must_be_unset(&[
        "filter_subject",
        "filter_subjects",
        "backoff",
        "headers_only",
        "inactive_threshold",
        "deliver_subject",
        "rate_limit_bps",
        "mem_storage",
        "priority_policy",
    ]);
    let replicas = compare.number("num_replicas");
    let wanted = i64::try_from(limits.replicas).unwrap_or(i64::MAX);
    if replicas != 0 && replicas != wanted {
        compare.differs("num_replicas", format!("is {replicas}, must be {wanted} or not set"));
    }
    if info["paused"] == true {
        let until = shown(&compare.is["pause_until"]);
        compare.differs("pause_until", format!("is {until}, must not be: nothing is delivered; resume it"));
    }
    compare.wrong
}

/// What the monitoring of a server tells about what it keeps.
#[derive(Debug, Default)]
pub(super) struct ServerSettings {
    /// Which server it is, as its clients are told too.
    pub id: String,
    /// How many servers keep JetStream together, itself included.
    pub cluster: usize,
    /// Which release it is.
    pub version: String,
    /// What is wrong.
    pub wrong: Vec<WrongSetting>,
    /// What may be: a sentence for the log.
    pub doubt: Option<String>,
}

/// The settings of a server that are wrong; `varz` is what its monitoring says of it, `synced` whether a power failure
/// must take nothing.
pub(super) fn server(varz: &Value, synced: bool) -> ServerSettings {
    let jetstream = &varz["jetstream"]["config"];
    let mut compare = Comparison::new("nats", jetstream);
    let version = varz["version"].as_str().unwrap_or_default();
    let numbers = numbers(version);
    if numbers < SERVER_LEAST {
        compare.differs("version", format!("is {version:?}, must be {} or newer", dotted(SERVER_LEAST)));
    }
    let cluster = varz["jetstream"]["meta"]["cluster_size"].as_u64().unwrap_or_default();
    let mut told = ServerSettings {
        id: varz["server_id"].as_str().unwrap_or_default().to_owned(),
        cluster: usize::try_from(cluster).unwrap_or(usize::MAX).max(1),
        version: version.to_owned(),
        wrong: Vec::new(),
        doubt: None,
    };
    if jetstream.is_null() {
        compare.differs("jetstream", "is not enabled, must be".to_owned());
        return ServerSettings { wrong: compare.wrong, ..told };
    }
    if synced {
        let must = "must be always: a power failure would take confirmed events (WAYBILL_NATS_DURABILITY=any accepts that)";
        if jetstream["sync_always"] != true {
            let every = Duration::from_nanos(jetstream["sync_interval"].as_u64().unwrap_or_default());
            compare.differs("sync_interval", format!("is {every:?}, {must}"));
        }
    }
    if numbers >= SERVER_STRICT {
        compare.must_be("strict", &json!(true));
    }
    told.doubt = (synced && numbers >= SERVER_LEAST && numbers < SERVER_SYNCED).then(|| {
        format!(
            "NATS {version} does not force everything to disk when it compacts its files, whatever sync_interval says; use {} or newer",
            dotted(SERVER_SYNCED)
        )
    });
    told.wrong = compare.wrong;
    told
}

/// How many servers have not told their settings, of those that tell of each other; `connected` is the one that serves us.
pub(super) fn untold<'a>(told: impl IntoIterator<Item = &'a ServerSettings>, connected: &str) -> usize {
    let (mut ids, mut cluster) = (BTreeSet::new(), 1);
    for server in told {
        ids.insert(server.id.as_str());
        cluster = server.cluster.max(cluster);
    }
    // Those that told may be of another cluster altogether.
    let other = !connected.is_empty() && !ids.contains(connected);
    cluster.saturating_sub(ids.len()).max(usize::from(other))
}

/// The three numbers of a version such as `2.15.1` or `2.12.0-RC.1`.
fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version
        .trim_start_matches('v')
        .splitn(3, '.')
        .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>());
    std::array::from_fn(|_| parts.next().and_then(|part| part.parse().ok()).unwrap_or_default())
}

fn dotted(version: [u64; 3]) -> String {
    version.map(|number| number.to_string()).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> StreamNames {
        StreamNames { stream: "USAGE".to_owned(), prefix: "usage.v1".to_owned() }
    }

    fn limits() -> StreamLimits {
        StreamLimits { replicas: 1, bytes_max: 1 << 30, ack_wait: Duration::from_mins(1) }
    }

    /// As the server gives the stream that Waybill makes.
    fn good_stream() -> Value {
        json!({"name": "USAGE", "subjects": ["usage.v1.*"], "retention": "limits", "discard": "new", "storage": "file",
            "num_replicas": 1, "max_msgs": -1, "max_msgs_per_subject": -1, "max_msg_size": 65_536, "max_bytes": 1 << 30,
            "max_age": nanoseconds(MAX_AGE_LEAST), "duplicate_window": 120_000_000_000_i64, "deny_delete": true,
            "deny_purge": true, "allow_direct": true, "mirror_direct": false, "sealed": false, "compression": "none",
            "consumer_limits": {}, "allow_msg_ttl": false,
            "metadata": {"waybill_incarnation": "0198c3a2-0000-7000-8000-000000000000", "_nats.level": "4"}})
    }

    fn good_consumer() -> Value {
        json!({"paused": false, "config": {"ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
            "max_deliver": -1, "ack_wait": 60_000_000_000_i64, "max_ack_pending": ACK_PENDING_MAX, "max_waiting": 64,
            "num_replicas": 0}})
    }

    /// Each change alone is named by its setting, and nothing else is.
    fn each_is_named(good: &Value, changes: &Value, wrong: impl Fn(&Value) -> Vec<WrongSetting>) {
        assert_eq!(wrong(good), []);
        for change in changes.as_array().unwrap() {
            let mut other = good.clone();
            let (pointer, value) = change.as_object().unwrap().iter().next().unwrap();
            let (parent, setting) = pointer.rsplit_once('/').unwrap();
            other.pointer_mut(parent).unwrap()[setting] = value.clone();
            let named: Vec<String> = wrong(&other).into_iter().map(|wrong| wrong.setting).collect();
            let expected = if setting == "paused" { "pause_until" } else { setting };
            assert_eq!(named, [expected], "{change}");
        }
    }

    #[test]
    fn every_wrong_setting_of_a_stream_is_named() {
        let changes = json!([
            {"/subjects": ["usage.v1.>"]}, {"/retention": "workqueue"}, {"/retention": "interest"}, {"/discard": "old"},
            {"/storage": "memory"}, {"/num_replicas": 3}, {"/max_msgs": 5}, {"/max_msgs_per_subject": 1},
            {"/max_msg_size": -1}, {"/max_bytes": -1}, {"/max_age": 1}, {"/duplicate_window": 0}, {"/no_ack": true},
            {"/sealed": true}, {"/persist_mode": "async"}, {"/deny_delete": false}, {"/deny_purge": false},
            {"/allow_direct": false}, {"/allow_rollup_hdrs": true}, {"/allow_msg_ttl": true}, {"/allow_atomic": true},
            {"/allow_batched": true}, {"/allow_msg_schedules": true}, {"/allow_msg_counter": true},
            {"/allow_what_is_not_known_yet": true}, {"/mirror": {"name": "X"}}, {"/sources": [{"name": "X"}]},
            {"/subject_transform": {"src": "a", "dest": "b"}}, {"/republish": {"src": "a", "dest": "b"}},
            {"/first_seq": 7}, {"/discard_new_per_subject": true}, {"/metadata": {}},
        ]);
        each_is_named(&good_stream(), &changes, |config| stream(config, &names(), limits()));
        let all = stream(&json!({}), &names(), limits());
        assert!(all.len() > 10, "all of them together, not the first: {all:?}");
    }

    #[test]
    fn every_wrong_setting_of_a_consumer_is_named() {
        let changes = json!([
            {"/config/ack_policy": "all"}, {"/config/deliver_policy": "new"}, {"/config/max_deliver": 5},
            {"/config/ack_wait": 1_000_000_000}, {"/config/max_ack_pending": 10}, {"/config/filter_subject": "usage.v1.a"},
            {"/config/filter_subjects": ["usage.v1.a", "usage.v1.b"]}, {"/config/backoff": [1]},
            {"/config/headers_only": true}, {"/config/inactive_threshold": 1}, {"/config/mem_storage": true},
            {"/config/rate_limit_bps": 1024}, {"/config/num_replicas": 5}, {"/paused": true},
            {"/config/max_batch": FETCH_MESSAGES_MAX - 1}, {"/config/max_bytes": FETCH_BYTES_MAX - 1},
            {"/config/max_expires": nanoseconds(FETCH_EXPIRES) - 1},
        ]);
        each_is_named(&good_consumer(), &changes, |info| consumer(info, limits()));
        let mut bounded = good_consumer();
        bounded["config"]["max_batch"] = json!(FETCH_MESSAGES_MAX);
        bounded["config"]["max_bytes"] = json!(FETCH_BYTES_MAX);
        bounded["config"]["max_expires"] = json!(nanoseconds(FETCH_EXPIRES));
        assert_eq!(consumer(&bounded, limits()), [], "what is asked for is within");
    }

    #[test]
    fn compression_is_refused_on_servers_that_damage_it() {
        let compressed = json!({"compression": "s2"});
        for (versions, refused) in [
            (&["2.12.12"][..], false),
            (&["2.14.3"], false),
            (&["2.15.1", "2.12.15"], false),
            (&["2.10.0"], true),
            (&["2.12.11"], true),
            (&["2.14.2"], true),
            (&["2.15.1", "2.11.9"], true),
            (&[""], true),
        ] {
            let wrong = compression(&compressed, versions.iter().copied());
            assert_eq!(wrong.is_some(), refused, "{versions:?}: {wrong:?}");
            assert_eq!(compression(&good_stream(), versions.iter().copied()), None);
        }
    }

    #[test]
    fn another_size_than_asked_for_is_no_fault_and_said_with_both_figures() {
        let said = |bytes: i64| other_size(&json!({"max_bytes": bytes}), &names(), limits());
        assert_eq!(said(1 << 30), None);
        assert_eq!(said(-1), None, "a fault of its own");
        let said = said(5 << 20).unwrap();
        assert!(said.contains("USAGE") && said.contains("5242880") && said.contains("1073741824"), "{said}");
    }

    #[test]
    fn a_server_must_sync_and_be_new_enough() {
        let varz = |version: &str, always: bool| {
            json!({"version": version, "jetstream": {"config":
                {"sync_always": always, "sync_interval": 120_000_000_000_i64, "strict": true}}})
        };
        let named = |varz: &Value, synced| -> Vec<String> {
            server(varz, synced).wrong.into_iter().map(|wrong| wrong.setting).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(named(&varz("2.15.1", true), true), none);
        assert_eq!(named(&varz("2.15.1", false), true), ["sync_interval"]);
        assert_eq!(named(&varz("2.15.1", false), false), none);
        assert_eq!(named(&varz("2.9.25", true), true), ["version"]);
        assert_eq!(named(&json!({"version": "2.15.1"}), true), ["jetstream"]);
        assert!(server(&varz("2.14.5", true), true).doubt.is_some(), "its compaction does not sync");
        assert!(server(&varz("2.15.1", true), true).doubt.is_none());
        assert!(server(&varz("2.14.5", true), false).doubt.is_none(), "nobody asked");
    }

    #[test]
    fn servers_that_nobody_heard_of_are_counted() {
        let told = |id: &str, cluster: u64| {
            server(
                &json!({"version": "2.15.1", "server_id": id, "jetstream": {"config": {},
                    "meta": {"cluster_size": cluster}}}),
                true,
            )
        };
        assert_eq!(untold(&[told("A", 0)], "A"), 0, "a server by itself");
        assert_eq!(untold(&[told("A", 3), told("B", 3), told("C", 3)], "B"), 0);
        assert_eq!(untold(&[told("A", 3)], "A"), 2, "one address for three");
        assert_eq!(untold(&[told("A", 3), told("A", 3), told("A", 3)], "A"), 2, "one server by three names");
        assert_eq!(untold(&[told("X", 0)], "A"), 1, "another server than ours");
        assert_eq!(untold(&[told("A", 0)], ""), 0, "not connected");
        assert_eq!(untold(&[], "A"), 1);
    }
}
