//! `waybill prices list`, `check` and `import` as an operator runs them.

use std::path::PathBuf;
use std::process::{Command, Output};

use chrono::TimeDelta;
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::price::quotation::NewPrice;
use waybill::store::{commit, prices};

use crate::harness::TestBed;

/// A database with a book of two models, and a folder for files.
struct Shell {
    bed: TestBed,
    folder: PathBuf,
}

impl Shell {
    async fn new() -> Self {
        let bed = TestBed::new().await;
        let folder = std::env::temp_dir().join(format!("waybill-{}", bed.stream));
        std::fs::create_dir(&folder).unwrap();
        let mut tx = bed.database.begin().await.unwrap();
        let book = json!({"name": "list", "kind": "cost", "currency": "USD"});
        prices::create_book(&mut tx, &serde_json::from_value(book).unwrap(), "test").await.unwrap();
        let new: Vec<NewPrice> = serde_json::from_value(published()).unwrap();
        prices::publish(&mut tx, "list", &new, Clock::System.now(), "test").await.unwrap();
        commit(tx).await.unwrap();
        Self { bed, folder }
    }

    /// Writes a file and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn prices(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.arg("prices").args(args).env("WAYBILL_DATABASE_URL", &self.bed.database_url);
        command.env("WAYBILL_LOG", "off").output().unwrap()
    }

    fn shown(&self, args: &[&str]) -> String {
        let output = self.prices(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code of a comparison, and what it printed and complained of.
    fn check(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.prices(&[&["check"], args].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn price(model: &str, input: &str, from: &str) -> Value {
    json!({"provider": "openai", "model": model, "per": 1_000_000, "rates": {"input": input, "output": "10"},
           "fees": {"web_search": "0.01"}, "valid_from": from})
}

fn published() -> Value {
    let mut gpt5 = price("gpt-5", "1.25", "2025-08-07T00:00:00Z");
    gpt5["aliases"] = json!(["gpt-5-2025-08-07"]);
    json!([
        gpt5,
        price("gpt-5", "1", "2026-06-01T00:00:00Z"),
        price("tiny", "0.000000001", "2025-01-01T00:00:00Z")
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_are_listed_in_every_form_and_narrowed() {
    let shell = Shell::new().await;
    let all = shell.shown(&["list"]);
    assert_eq!(all.lines().count(), 5, "{all}");
    assert!(all.contains("USD input 1.25, output 10, web_search 0.01"), "{all}");
    assert!(all.ends_with("3 prices; token rates are for 1000000 units, fees for one.\n"), "{all}");
    let count = |args: &[&str]| shell.shown(&[&["list"], args].concat()).lines().count() - 2;
    assert_eq!(count(&["--book", "list", "--provider", "OpenAI"]), 3);
    assert_eq!(count(&["--provider", "anthropic"]), 0);
    assert_eq!(count(&["--model", "gpt-*"]), 2);
    assert_eq!(count(&["--model", "gpt-5-2025-08-07"]), 2, "by an alias");
    assert_eq!(count(&["--model", "gpt-"]), 0);
    assert_eq!(count(&["--model", "gpt-5", "--at", "2026-06-01T00:00:00Z"]), 1);
    assert_eq!(count(&["--at", "2025-01-01T00:00:00Z"]), 1);
    let json: Value =
        serde_json::from_str(&shell.shown(&["list", "--model", "tiny", "--format", "json"])).unwrap();
    assert_eq!((&json[0]["rates"]["input"], &json[0]["book"]), (&json!("0.000000001"), &json!("list")));
    let missing = shell.prices(&["list", "--book", "nowhere"]);
    assert!(!missing.status.success());
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("there is no price book `nowhere`"),
        "{missing:?}"
    );
    // What is listed as CSV is the list itself.
    let csv = shell.file("list.csv", &shell.shown(&["list", "--format", "csv"]));
    for at in ["2025-06-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"] {
        let (code, out, err) = shell.check(&["list", &format!("csv:{csv}"), "--at", at]);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_names_the_prices_that_end_soon_with_none_to_follow() {
    let shell = Shell::new().await;
    let in_days = |days| (Clock::System.now() + TimeDelta::days(days)).to_rfc3339();
    let ends = |model: &str, days| {
        let mut ends = price(model, "1", "2025-01-01T00:00:00Z");
        ends["valid_to"] = json!(in_days(days));
        ends
    };
    let followed = [price("followed", "1", "2025-01-01T00:00:00Z"), price("followed", "2", &in_days(10))];
    let list = json!([ends("soon", 29), ends("late", 31), ends("gone", -1), followed[0], followed[1]]);
    let file = shell.file("ending.json", &list.to_string());
    let applied = shell.shown(&["import", &file, "--format", "json", "--book", "list", "--apply"]);
    assert!(applied.contains("4 added, 1 changed,"), "{applied}");
    let named = |args: &[&str]| {
        let shown = shell.shown(&[&["list"], args].concat());
        let lines = shown.lines().filter(|line| line.starts_with("ends "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let [soon] = &named(&[])[..] else { panic!("one of them: {:?}", named(&[])) };
    assert!(soon.starts_with("ends     openai soon (standard) in list at 2"), "{soon}");
    assert!(soon.ends_with(": no price follows"), "{soon}");
    assert_eq!(named(&["--model", "late"]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_says_what_differs_and_by_its_exit_code_whether() {
    let shell = Shell::new().await;
    let mut other = json!([
        price("gpt-5-2025-08-07", "1.3", "2025-01-01T00:00:00Z"),
        price("new", "3", "2025-01-01T00:00:00Z")
    ]);
    other[0]["rates"]["reasoning"] = json!("12");
    let file = format!("json:{}", shell.file("other.json", &other.to_string()));
    let (code, out, err) = shell.check(&["list", &file, "--at", "2026-06-01T00:00:00Z"]);
    assert_eq!((code, err.as_str()), (1, ""));
    for line in [
        "openai gpt-5, gpt-5-2025-08-07 in B (standard)",
        "    input            1 -> 1.3  +30.00 %",
        "    reasoning        10 -> 12  +20.00 %",
        "openai tiny (standard)",
        "    input            0.000000001 only in A",
        "openai new (standard)",
        "    web_search       0.01 only in B",
        "2 rates are equal, 2 differ, 3 are only in A, 3 only in B.",
    ] {
        assert!(out.lines().any(|shown| shown == line), "{line} in\n{out}");
    }
    let (code, json, _) = shell.check(&["list", &file, "--at", "2026-01-01T00:00:00Z", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["equal"]), (1, &json!(2)));
    assert_eq!(
        json["differences"][0],
        json!({"provider": "openai", "model": "gpt-5", "model_b": "gpt-5-2025-08-07", "conditions": "standard",
            "class": "input", "status": "differs", "a": "1.25", "b": "1.3", "currency": "USD", "per": 1_000_000,
            "percent": "+4.00"})
    );
    let (_, csv, _) = shell.check(&["list", &file, "--format", "csv"]);
    assert!(
        csv.starts_with("provider,model,model_b,conditions,class,status,a,b,currency,per,percent\n"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 9, "{csv}");
    assert_eq!(shell.check(&["starter", "starter"]).0, 0);
    assert_eq!(shell.check(&["starter", "list"]).0, 1);
    let mut tx = shell.bed.database.begin().await.unwrap();
    let euros = json!({"name": "euros", "kind": "cost", "currency": "EUR"});
    prices::create_book(&mut tx, &serde_json::from_value(euros).unwrap(), "test").await.unwrap();
    commit(tx).await.unwrap();
    for (a, b, says) in [
        ("list", "nowhere", "there is no price book `nowhere`"),
        ("list", "euros", "rates of two currencies cannot be compared"),
        ("list", "json:/no/such/file", "cannot read /no/such/file"),
        ("list", "prices.json", "write a file as FORM:FILE"),
        ("list", "xml:prices", "is no form of a price file"),
    ] {
        let (code, out, err) = shell.check(&[a, b]);
        assert_eq!((code, out.as_str()), (2, ""), "{a} {b}");
        assert!(err.contains(says), "{err}");
    }
    // Two lists need no database.
    let mut alone = Command::new(env!("CARGO_BIN_EXE_waybill"));
    let alone = alone
        .args(["prices", "check", "starter", &file])
        .env_remove("WAYBILL_DATABASE_URL")
        .output()
        .unwrap();
    assert_eq!(alone.status.code(), Some(1), "{alone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_says_what_it_takes_and_a_second_one_adds_nothing() {
    let shell = Shell::new().await;
    let map = shell.file(
        "map.json",
        r#"{"gpt-x": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1.5000020000000002e-05,
                      "output_cost_per_token": 3e-05, "output_cost_per_token_priority": 6e-05, "surcharge": 1},
            "free": {"litellm_provider": "openai", "input_cost_per_token": 0.0}}"#,
    );
    let import = |more: &[&str]| {
        let args =
            ["import", &map, "--format", "litellm", "--book", "list", "--valid-from", "2026-01-01T00:00:00Z"];
        shell.shown(&[&args, more].concat())
    };
    let dry = import(&[]);
    for line in [
        "added    openai gpt-x (standard) from 2026-01-01 00:00:00 UTC",
        "added    openai gpt-x (service_tier=priority) from 2026-01-01 00:00:00 UTC",
        "cleaned  openai gpt-x input_cost_per_token: 1.5000020000000002e-05 is 0.00001500002",
        "ignored  openai gpt-x surcharge: the key is not known here",
        "Nothing was stored; --apply does it.",
    ] {
        assert!(dry.lines().any(|shown| shown == line), "{line} in\n{dry}");
    }
    assert!(dry.contains("ignored  openai free as a whole"), "{dry}");
    assert!(dry.contains("3 added, 0 changed, 0 unchanged, 2 ignored, 0 refused."), "{dry}");
    let before = shell.shown(&["list", "--format", "csv"]);
    assert_eq!(import(&["--apply"]).lines().count(), dry.lines().count() - 1);
    let after = shell.shown(&["list", "--format", "csv"]);
    assert_eq!(after.lines().count(), before.lines().count() + 3);
    let again = import(&["--apply"]);
    assert!(again.contains("0 added, 0 changed, 3 unchanged, 2 ignored, 0 refused."), "{again}");
    assert!(!again.contains("added  "), "{again}");
    assert_eq!(shell.shown(&["list", "--format", "csv"]), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_starter_prices_make_their_book_and_what_is_refused_is_named() {
    let shell = Shell::new().await;
    let dry = shell.shown(&["import", "starter"]);
    assert!(dry.contains("book     provider-cost, a cost book in USD\n"), "{dry}");
    let missing = shell.prices(&["list", "--book", "provider-cost"]);
    assert!(!missing.status.success(), "a dry run makes no book");
    let applied = shell.shown(&["import", "starter", "--apply"]);
    assert!(applied.ends_with(" changed, 0 unchanged, 0 ignored, 0 refused.\n"), "{applied}");
    assert_eq!(shell.check(&["starter", "provider-cost"]).0, 0);
    let again = shell.shown(&["import", "starter", "--apply"]);
    assert!(again.lines().count() == 1 && again.starts_with("0 added, 0 changed,"), "{again}");

    let mut tx = shell.bed.database.begin().await.unwrap();
    let euros = json!({"name": "euros", "kind": "cost", "currency": "EUR"});
    prices::create_book(&mut tx, &serde_json::from_value(euros).unwrap(), "test").await.unwrap();
    commit(tx).await.unwrap();
    for (args, says) in [
        (&["starter", "--book", "euros"][..], "`euros` is in EUR, and the starter prices are in USD"),
        (&["starter", "--format", "json"], "the starter prices have a form"),
        (&["prices.json", "--book", "list"], "say the form of the file with --format"),
        (&["prices.json", "--format", "json"], "say with --book which price book"),
    ] {
        let refused = shell.prices(&[&["import"], args].concat());
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains(says), "{args:?}: {error}");
    }

    let mut priority = price("gpt-5", "9", "2025-08-07T00:00:00Z");
    priority["conditions"] = json!({"region": "eu", "context_above": 10});
    let mut promotion = price("gpt-9", "9", "2025-08-07T00:00:00Z");
    promotion["valid_to"] = json!("2025-09-01T00:00:00Z");
    let list = json!([
        price("gpt-5", "", "2025-08-07T00:00:00Z"),
        price("gpt-5", "9", "2025-08-07T00:00:00Z"),
        priority,
        promotion
    ]);
    let file = shell.file("list.json", &list.to_string());
    let shown = shell.shown(&["import", &file, "--format", "json", "--book", "list"]);
    let added = "added    openai gpt-9 (standard) from 2025-08-07 00:00:00 UTC to 2025-09-01 00:00:00 UTC";
    assert!(shown.lines().any(|line| line == added), "{shown}");
    let refused: Vec<&str> = shown.lines().filter(|line| line.starts_with("refused")).collect();
    let [refused] = refused[..] else { panic!("one is refused: {shown}") };
    assert!(
        refused.starts_with("refused  openai gpt-5 (standard) from 2025-08-07 00:00:00 UTC: valid_from: "),
        "{refused}"
    );
}
