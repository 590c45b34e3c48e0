//! The import table of the design: data flows one way through the modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module, and what of ours it may use besides itself.
const TABLE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("clock", &[]),
    ("config", &["domain", "rating"]),
    ("telemetry", &[]),
    ("shutdown", &[]),
    ("health", &[]),
    ("metering", &["domain"]),
    ("rating", &["domain"]),
    ("store", &["domain"]),
    ("ingest", &["domain", "metering", "rating", "store", "clock", "shutdown", "health"]),
    ("invoicing", &["domain", "metering", "rating", "store", "clock", "shutdown"]),
    ("reports", &["domain", "rating", "store"]),
    // Of ingest, http is given the publisher and its errors, nothing else: see PARTIAL.
    ("http", &["domain", "metering", "store", "invoicing", "reports", "clock", "health", "ingest"]),
    // A gateway sees the same bodies and problems at a forwarder as at the API, so it reads and refuses them with the same
    // code: see PARTIAL. It knows nothing of the store.
    ("forward", &["domain", "metering", "clock", "shutdown", "health", "ingest", "http"]),
    (
        "dev",
        &[
            "domain",
            "clock",
            "config",
            "telemetry",
            "shutdown",
            "health",
            "metering",
            "rating",
            "store",
            "ingest",
            "invoicing",
            "reports",
        ],
    ),
];

/// Modules of which another may use some names only.
const PARTIAL: &[(&str, &str, &[&str])] = &[
    ("http", "ingest", &["Publisher", "PublishError", "Published"]),
    ("forward", "ingest", &["Publisher", "PublishError", "Published"]),
    ("forward", "http", &["edge", "intake", "problem"]),
];

/// External crates, and the modules that may name them.
const EXTERNAL: &[(&str, &[&str])] = &[
    ("async_nats", &["ingest", "dev", "app"]),
    ("axum", &["http", "forward", "app"]),
    ("reqwest", &["forward", "ingest"]),
    ("utoipa_axum", &["http", "app"]),
    ("clap", &["config", "main"]),
];

/// Words that have no place in the pure core.
const PURE: &[&str] = &["domain", "metering", "rating"];
const IMPURE_WORDS: &[&str] = &[
    "sqlx::query",
    "tokio",
    "async fn",
    "async_nats",
    "axum",
    "Utc::now",
    "SystemTime",
    "Instant::now",
    "std::fs",
    "std::net",
];

/// The floats of the program, file by file: what is measured, and what refuses them. Quantities and money have none.
const FLOATS: &[(&str, &str)] = &[
    ("app/watch.rs", "gauges of lag and backlog"),
    ("forward/meters.rs", "gauges of what waits to be sent"),
    ("ingest/meters.rs", "a histogram of batch sizes"),
    ("metering/json.rs", "serde hands over fractions and exponents as floats, which are refused"),
    ("store/reports.rs", "fractions of percentiles, whose ranks come out exact"),
    ("telemetry.rs", "buckets of histograms"),
];
/// What a float is called in Rust, in PostgreSQL, and in features that would let one into JSON.
const FLOAT_WORDS: &[&str] = &[
    "f32",
    "f64",
    "float4",
    "float8",
    "double precision",
    "real",
    "serde-float",
    "serde-with-float",
    "float_roundtrip",
    "arbitrary_precision",
];

/// Modules that may hold SQL statements.
const SQL: &[&str] = &["store"];

struct Source {
    module: String,
    path: PathBuf,
    code: Vec<(usize, String)>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.retain(|path| !path.components().any(|part| part.as_os_str() == "tests"));
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            // What tests of the pure core read and run does not count.
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            Source { module, path: relative.to_owned(), code: code(text) }
        })
        .collect()
}

/// The lines of a text that are code, with their numbers; a `use` declaration is one line however many it takes.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut code: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let words = line.trim_start();
        if words.starts_with("//") {
            continue;
        }
        match code.last_mut() {
            Some((_, declaration)) if open => declaration.push_str(words),
            _ => {
                let declared = words
                    .strip_prefix("pub")
                    .map_or(words, |rest| rest.trim_start_matches(|c: char| c != ' ').trim_start());
                open = declared.starts_with("use ");
                code.push((number + 1, line.to_owned()));
            }
        }
        open = open && !words.contains(';');
    }
    code
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What a line names of the crate's modules: `crate::store::journal` gives (`store`, `journal`), a group each of its items, and
/// as many `super::` as lead out of the module, `depth`, the same as `crate::`.
fn uses(line: &str, depth: usize) -> Vec<(String, String)> {
    let out = "super::".repeat(depth);
    let roots = ["crate::", out.as_str()].into_iter().filter(|root| !root.is_empty());
    let trees = roots.flat_map(|root| line.match_indices(root).map(|(at, _)| &line[at + root.len()..]));
    let paths = trees.flat_map(branches).map(|path| {
        let mut names = path.into_iter();
        (names.next().unwrap_or_default(), names.next().unwrap_or_default())
    });
    paths.filter(|(module, _)| !module.is_empty()).collect()
}

/// The paths that a tree of a `use` declaration, or the path at the start of a text, stands for.
fn branches(tree: &str) -> Vec<Vec<String>> {
    if let Some(group) = tree.strip_prefix('{') {
        let named = items(group).into_iter().map(str::trim).filter(|item| !item.is_empty());
        return named.flat_map(branches).collect();
    }
    let name: String = tree.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return vec![Vec::new()];
    }
    let Some(rest) = tree[name.len()..].strip_prefix("::") else { return vec![vec![name]] };
    branches(rest).into_iter().map(|path| [vec![name.clone()], path].concat()).collect()
}

/// The items of a group, up to its closing brace.
fn items(group: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            '}' => {
                items.push(&group[start..at]);
                return items;
            }
            _ => {}
        }
    }
    items.push(&group[start..]);
    items
}

/// How many modules deep a file's own module is.
fn depth(path: &Path) -> usize {
    let own = path.file_name().is_some_and(|name| name != "mod.rs");
    path.components().count() - usize::from(!own)
}

/// Every breach of the rules in some sources, as sentences.
fn breaches(sources: &[Source]) -> Vec<String> {
    let table: BTreeMap<_, BTreeSet<_>> =
        TABLE.iter().map(|(module, may)| (*module, may.iter().copied().collect())).collect();
    let mut breaches = Vec::new();
    for source in sources {
        let module = source.module.as_str();
        // app wires everything, main and lib only name modules.
        let free = ["app", "main", "lib"].contains(&module);
        let Some(may) = table.get(module).cloned().or(free.then(BTreeSet::new)) else {
            breaches.push(format!("src/{}: module `{module}` is not in the table", source.path.display()));
            continue;
        };
        for (number, line) in &source.code {
            let mut report =
                |what: String| breaches.push(format!("src/{}:{number}: {what}", source.path.display()));
            for (used, name) in uses(line, depth(&source.path)) {
                let known = table.contains_key(used.as_str()) || used == "app";
                if free || !known || used == module {
                    continue;
                }
                if !may.contains(used.as_str()) {
                    report(format!("`{module}` may not use `{used}`"));
                }
                for (_, _, names) in PARTIAL.iter().filter(|(who, whom, _)| *who == module && *whom == used) {
                    if !names.contains(&name.as_str()) {
                        report(format!("`{module}` may use only {names:?} of `{used}`, not `{name}`"));
                    }
                }
            }
            for (external, modules) in EXTERNAL {
                if line.contains(&format!("{external}::")) && !modules.contains(&module) {
                    report(format!("`{module}` may not name `{external}`"));
                }
            }
            if PURE.contains(&module) {
                for word in IMPURE_WORDS.iter().filter(|word| line.contains(**word)) {
                    report(format!("`{module}` is pure and may not name `{word}`"));
                }
            }
            if !SQL.contains(&module) && line.contains("sqlx::query") {
                report(format!("SQL belongs in `store`, not in `{module}`"));
            }
        }
    }
    breaches
}

#[test]
fn imports_follow_the_table() {
    let breaches = breaches(&sources());
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn a_breach_is_found() {
    let source = |module: &str, line: &str| Source {
        module: module.to_owned(),
        path: PathBuf::from(format!("{module}/x.rs")),
        code: code(line),
    };
    for (module, line) in [
        ("domain", "use crate::store::Database;"),
        ("store", "use crate::{domain::ids, ingest::Recorder};"),
        ("store", "use crate::{\n    domain::{ids, money},\n    ingest::Recorder,\n};"),
        ("store", "pub(super) use crate::{domain::{ids, money}, ingest::Recorder};"),
        ("store", "use super::super::ingest::Recorder;"),
        ("http", "use crate::ingest::{Publisher, Recorder};"),
        ("http", "use crate::ingest::{\n    Publisher,\n    Recorder,\n};"),
        ("http", "use super::super::ingest::{self as taking};"),
        ("rating", "let now = chrono::Utc::now();"),
        ("reports", "sqlx::query!(\"SELECT 1\")"),
        ("store", "use async_nats::Client;"),
        ("shop", "fn main() {}"),
    ] {
        assert_eq!(breaches(&[source(module, line)]).len(), 1, "{module}: {line}");
    }
    for line in ["use crate::store::{\n    Database,\n    commit,\n};", "use super::http::Nothing;"] {
        assert_eq!(breaches(&[source("ingest", line)]), Vec::<String>::new(), "{line}");
    }
}

/// Whether a line holds a word as a word of its own, or as the type of a literal (`1.5_f64`, `1f32`).
fn names_float(line: &str) -> bool {
    let bytes = line.as_bytes();
    let part = |at: Option<&u8>| at.is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    FLOAT_WORDS.iter().any(|word| {
        line.match_indices(word).any(|(at, _)| {
            let before = at.checked_sub(1).and_then(|before| bytes.get(before));
            let literal = line[..at].trim_end_matches('_').ends_with(|last: char| last.is_ascii_digit());
            let conversion =
                line[..at].ends_with("to_") || line[..at].ends_with("as_") || line[..at].ends_with("from_");
            (literal || conversion || !part(before)) && !part(bytes.get(at + word.len()))
        })
    })
}

#[test]
fn floats_stay_with_what_is_measured_or_refused() {
    let mut found = BTreeSet::new();
    for source in sources() {
        for (number, line) in &source.code {
            if names_float(line) {
                let file = source.path.to_str().unwrap().to_owned();
                assert!(
                    FLOATS.iter().any(|(allowed, _)| *allowed == file),
                    "src/{file}:{number}: a float, and no reason in FLOATS: {line}"
                );
                found.insert(file);
            }
        }
    }
    let listed: BTreeSet<String> = FLOATS.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(found, listed, "FLOATS names the files that have one, and no others");

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut others = vec![root.join("Cargo.toml")];
    others.extend(std::fs::read_dir(root.join("migrations")).unwrap().map(|entry| entry.unwrap().path()));
    for path in others {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = |line: &&str| !line.trim_start().starts_with(['#', '-']);
        let floats: Vec<&str> = text
            .lines()
            .filter(code)
            .map(|line| line.split(" # ").next().unwrap_or(line).split("--").next().unwrap_or(line))
            .filter(|line| names_float(line))
            .collect();
        assert!(floats.is_empty(), "{}: {floats:?}", path.display());
    }
}

#[test]
fn a_float_is_found() {
    for line in [
        "let x: f64 = 0.1;",
        "1.5_f64",
        "2f32",
        "amount.to_f64()",
        "value.as_f64()",
        "cost double precision,",
        "a real",
    ] {
        assert!(names_float(line), "{line}");
    }
    for line in ["let really = 1;", "buf64(x)", "realm text", "0xf64a"] {
        assert!(!names_float(line), "{line}");
    }
}
