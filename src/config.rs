//! Configuration: flags and `WAYBILL_*` environment variables, checked at start.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;

use crate::domain::access::Role;
use crate::rating::import::{Format, UnknownFormat};

/// The stream that usage events travel in.
const DEFAULT_STREAM: &str = "USAGE";
/// Subjects are this, a dot, and the gateway's name.
const DEFAULT_SUBJECT_PREFIX: &str = "usage.v1";
/// How the command line names the starter cost book.
const STARTER: &str = "starter";
/// How long recording may take, in seconds.
const DEFAULT_ACK_WAIT_SECONDS: u32 = 60;
/// What the stream may hold, in bytes.
const DEFAULT_STREAM_BYTES: i64 = 15 << 30;
/// Longest name of a gateway.
const GATEWAY_NAME_MAX: usize = 64;

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to keep the ledger in (15 or newer), as postgres://user:password@host:port/database
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
}

/// Where the stream is.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// NATS server with JetStream to take usage events from (2.10 or newer), as nats://user:password@host:port
    #[arg(long, env = "WAYBILL_NATS_URL", hide_env_values = true)]
    pub nats_url: String,
    /// Name of the stream; made where it is missing
    #[arg(long, env = "WAYBILL_STREAM", default_value = DEFAULT_STREAM)]
    pub stream: String,
    /// What the stream's subjects start with; a dot and the gateway's name follow
    #[arg(long, env = "WAYBILL_SUBJECT_PREFIX", default_value = DEFAULT_SUBJECT_PREFIX)]
    pub subject_prefix: String,
    /// Copies of the stream in the NATS cluster; 3 where the power loss of one machine must lose nothing
    #[arg(long, env = "WAYBILL_STREAM_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub stream_replicas: u8,
    /// Bytes the stream may hold before it refuses new events; at most 60 % of its volume
    #[arg(long, env = "WAYBILL_STREAM_MAX_BYTES", default_value_t = DEFAULT_STREAM_BYTES, value_parser = clap::value_parser!(i64).range(1024 * 1024..))]
    pub stream_max_bytes: i64,
    /// Seconds a consumer may take to record a message before it is delivered again; longer than a transaction with its retries
    #[arg(long, env = "WAYBILL_ACK_WAIT_SECONDS", default_value_t = DEFAULT_ACK_WAIT_SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
    pub ack_wait_seconds: u32,
}

impl NatsArgs {
    /// A server of one machine with the stream's usual names and limits.
    pub fn local(nats_url: &str) -> Self {
        Self {
            nats_url: nats_url.to_owned(),
            stream: DEFAULT_STREAM.to_owned(),
            subject_prefix: DEFAULT_SUBJECT_PREFIX.to_owned(),
            stream_replicas: 1,
            stream_max_bytes: DEFAULT_STREAM_BYTES,
            ack_wait_seconds: DEFAULT_ACK_WAIT_SECONDS,
        }
    }
}

/// What must be on stable storage before it counts as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// Everything: a power failure takes nothing that was confirmed.
    #[default]
    Always,
    /// Whatever the server is set to: for tests, or where the loss is accepted.
    Any,
}

/// What is demanded of the servers before usage is taken.
#[derive(Debug, Clone, Default, Args)]
pub struct DemandArgs {
    /// Monitoring address of the NATS server, as http://host:port, several with commas; the only place that tells its `sync_interval`
    #[arg(long, env = "WAYBILL_NATS_MONITOR_URL")]
    pub nats_monitor_url: Option<String>,
    /// What NATS must force to disk before it confirms a message: always, or any for a server whose power failure may lose events
    #[arg(long, env = "WAYBILL_NATS_DURABILITY", value_enum, default_value = "always")]
    pub nats_durability: Durability,
    /// The same for PostgreSQL and its commits (`fsync`, `full_page_writes`, `synchronous_commit`): always, or any
    #[arg(long, env = "WAYBILL_POSTGRES_DURABILITY", value_enum, default_value = "always")]
    pub postgres_durability: Durability,
}

impl DemandArgs {
    /// The monitoring addresses, one by one.
    pub fn nats_monitor_urls(&self) -> impl Iterator<Item = &str> {
        let urls = self.nats_monitor_url.iter().flat_map(|urls| urls.split(','));
        urls.map(str::trim).filter(|url| !url.is_empty())
    }
}

/// What `waybill serve` runs, and where it listens.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct ServeArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The stream.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// What is demanded of both.
    #[command(flatten)]
    pub demands: DemandArgs,
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Serve the REST API and the pages (default: everything, when no role is named)
    #[arg(long)]
    pub api: bool,
    /// Record usage events from the stream
    #[arg(long)]
    pub consumer: bool,
    /// Post recorded usage into sums, try rejections again
    #[arg(long)]
    pub jobs: bool,
    /// Bring the schema up to date at start
    #[arg(long, env = "WAYBILL_MIGRATE", default_value_t = false)]
    pub migrate: bool,
}

/// Where the program listens.
#[derive(Debug, Clone, Copy, Args)]
pub struct ListenArgs {
    /// Address of the REST API and the pages
    #[arg(long, env = "WAYBILL_HTTP_ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Address of the Prometheus metrics; port 0 takes a free one
    #[arg(long, env = "WAYBILL_METRICS_ADDR", default_value = "127.0.0.1:9464")]
    pub metrics_addr: SocketAddr,
}

/// What `waybill dev` starts.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Folder for data, logs and keys of the private servers
    #[arg(long, env = "WAYBILL_HOME", default_value = ".waybill")]
    pub home: PathBuf,
    /// Load the demo: 1 loads it into an empty ledger, 0 starts empty
    #[arg(long, env = "WAYBILL_DEMO", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub demo: u8,
    /// An existing PostgreSQL database to use instead of a private server
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// An existing NATS server to use instead of a private one
    #[arg(long, env = "WAYBILL_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Monitoring address of that server, as http://host:port
    #[arg(long, env = "WAYBILL_NATS_MONITOR_URL")]
    pub nats_monitor_url: Option<String>,
    /// Address of the REST API and the pages
    #[arg(long, env = "WAYBILL_HTTP_ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Address of the Prometheus metrics; port 0 takes a free one
    #[arg(long, env = "WAYBILL_METRICS_ADDR", default_value = "127.0.0.1:0")]
    pub metrics_addr: SocketAddr,
}

/// A key to be made.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// What its holder may do: gateway, customer, finance or admin
    #[arg(long)]
    pub role: Role,
    /// What it is for, shown in lists
    #[arg(long)]
    pub name: String,
    /// The gateway that a gateway key speaks for
    #[arg(long)]
    pub gateway: Option<String>,
    /// The external id of the customer that a customer key speaks for
    #[arg(long)]
    pub customer: Option<String>,
}

/// A key to be revoked.
#[derive(Debug, Clone, Args)]
pub struct RevokeArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Its public id: the twelve characters after `wb_`
    pub public_id: String,
}

/// A price list in a file.
#[derive(Debug, Clone, Args)]
pub struct PriceFileArgs {
    /// The file
    pub file: PathBuf,
    /// Its form: json, csv, litellm, genai-prices or openrouter
    #[arg(long)]
    pub format: Format,
    /// Start of the prices that the file gives no date; without it now
    #[arg(long)]
    pub valid_from: Option<DateTime<Utc>>,
    /// Where the file is from, kept with each price; without it its name
    #[arg(long)]
    pub source: Option<String>,
}

/// A price list to be imported.
#[derive(Debug, Clone, Args)]
pub struct PriceImportArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The file.
    #[command(flatten)]
    pub file: PriceFileArgs,
    /// The price book
    #[arg(long)]
    pub book: String,
    /// Store it; without this only what would change is shown
    #[arg(long)]
    pub apply: bool,
}

/// How a command writes what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// Lines for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// JSON.
    Json,
}

/// Prices to be listed.
#[derive(Debug, Clone, Args)]
pub struct PriceListArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Only of this price book
    #[arg(long)]
    pub book: Option<String>,
    /// Only of this provider
    #[arg(long)]
    pub provider: Option<String>,
    /// Only of this model, by its name or an alias; with * at its end, of all whose names begin so
    #[arg(long)]
    pub model: Option<String>,
    /// Only prices that are valid at this time (RFC 3339); without it all that stand, past and future ones too
    #[arg(long)]
    pub at: Option<DateTime<Utc>>,
    /// Lines for people (token rates for 1,000,000 units, fees for one), or what the API answers
    #[arg(long, value_enum, default_value = "table")]
    pub format: Shown,
}

/// Two lists of prices to be compared.
#[derive(Debug, Clone, Args)]
pub struct PriceCheckArgs {
    /// PostgreSQL with the price books; needed where one is named
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A price book's name, `starter` for the prices that ship with the program, or FORM:FILE with a form of `prices import`
    pub a: PriceSource,
    /// The other one
    pub b: PriceSource,
    /// The time whose prices are compared (RFC 3339); without it now
    #[arg(long)]
    pub at: Option<DateTime<Utc>>,
    /// How to write the differences; token rates are for 1,000,000 units, fees for one
    #[arg(long, value_enum, default_value = "table")]
    pub format: Shown,
}

/// Where a list of prices is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PriceSource {
    /// A price book in the database.
    Book(String),
    /// The starter cost book.
    Starter,
    /// A file.
    File {
        /// Its form.
        format: Format,
        /// Where it is.
        path: PathBuf,
    },
}

impl FromStr for PriceSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == STARTER {
            return Ok(Self::Starter);
        }
        if let Some((format, path)) = text.split_once(':') {
            let format = format.parse().map_err(|error: UnknownFormat| error.to_string())?;
            return Ok(Self::File { format, path: path.into() });
        }
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || !text.bytes().all(named) {
            return Err(
                "is no name of a price book; write a file as FORM:FILE, as in litellm:prices.json".to_owned()
            );
        }
        Ok(Self::Book(text.to_owned()))
    }
}

impl fmt::Display for PriceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Book(name) => f.write_str(name),
            Self::Starter => f.write_str(STARTER),
            Self::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A proof to be made.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Fold the whole journal again too, and compare every row of the sums: half a minute of a core for a million events
    #[arg(long)]
    pub rebuild: bool,
    /// Replace the sums that differ from the journal, before everything is proven; refused where a closed period would change.
    /// Posting waits meanwhile, recording goes on
    #[arg(long, requires = "rebuild")]
    pub apply: bool,
}

/// Months of the journal to be dropped.
#[derive(Debug, Clone, Args)]
pub struct DropArgs {
    /// The database; its login must own the tables.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Months before this one, as 2026-08: the calendar months in which usage was recorded
    #[arg(long, value_parser = month)]
    pub before: NaiveDate,
    /// Drop estimates that were never corrected too: they stand for good
    #[arg(long)]
    pub estimates_stand: bool,
    /// Drop them; without it only what would become of them is shown
    #[arg(long)]
    pub apply: bool,
}

/// The first day of a month written like 2026-08.
fn month(text: &str) -> Result<NaiveDate, String> {
    let shown = || "write the month like 2026-08".to_owned();
    if text.len() != "2026-08".len() {
        return Err(shown());
    }
    format!("{text}-01").parse().map_err(|_| shown())
}

/// Periods to be closed.
#[derive(Debug, Clone, Args)]
pub struct CloseArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Hours after its end that a period stays open for late usage
    #[arg(long, default_value_t = 1)]
    pub grace_hours: u32,
}

/// Invoices to be listed.
#[derive(Debug, Clone, Args)]
pub struct ListInvoicesArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How many, newest first
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
}

/// Recorded usage to be rated again.
#[derive(Debug, Clone, Args)]
pub struct RerateArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Usage that happened at or after this time, as 2026-11-01T00:00:00Z
    #[arg(long)]
    pub from: DateTime<Utc>,
    /// Usage that happened before this time
    #[arg(long)]
    pub to: DateTime<Utc>,
    /// External id of the only customer to re-rate
    #[arg(long)]
    pub customer: Option<String>,
    /// The only provider to re-rate
    #[arg(long)]
    pub provider: Option<String>,
    /// The only model to re-rate; `gpt-5*` stands for every name that begins so
    #[arg(long)]
    pub model: Option<String>,
    /// Why, in up to 200 characters; it stands on the invoices' adjustment lines
    #[arg(long)]
    pub reason: Option<String>,
    /// Write the adjustments; without it they are only shown
    #[arg(long)]
    pub apply: bool,
}

/// Traffic to be published.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// The stream.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// How many events
    #[arg(long, default_value_t = 10_000)]
    pub events: usize,
    /// The same seed gives the same events
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Most events per message, 1 to 100; with --rate fewer, so that none waits longer than 10 ms for its message
    #[arg(long, default_value_t = 100)]
    pub per_message: usize,
    /// Compress messages with zstd
    #[arg(long)]
    pub zstd: bool,
    /// Events per second; without it as fast as the stream takes them
    #[arg(long)]
    pub rate: Option<u32>,
    /// Tasks start within this many days before now, at most 30
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=30))]
    pub days: u16,
}

/// A forwarder beside a gateway.
#[derive(Debug, Clone, Args)]
pub struct ForwardArgs {
    /// The gateway whose events it takes: the last token of its subject, what their `source` begins with
    #[arg(long, env = "WAYBILL_FORWARD_GATEWAY")]
    pub gateway: String,
    /// Folder of the journal, made where it is missing; one forwarder per folder, on a disk of this machine
    #[arg(long, env = "WAYBILL_FORWARD_JOURNAL")]
    pub journal: PathBuf,
    /// Bytes the journal may take before events are refused: about 630 for each event that waits
    #[arg(long, env = "WAYBILL_FORWARD_JOURNAL_MAX_BYTES", default_value_t = 4 << 30, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub journal_max_bytes: u64,
    /// Where events are taken: an address of this machine, or `unix:` and the path of a socket
    #[arg(long, env = "WAYBILL_FORWARD_LISTEN", default_value = "127.0.0.1:8090")]
    pub listen: Listen,
    /// Take events from other machines too: whoever reaches the address can report usage
    #[arg(long, env = "WAYBILL_FORWARD_ALLOW_REMOTE", default_value_t = false)]
    pub allow_remote: bool,
    /// Address of the Prometheus metrics and the probes; port 0 takes a free one
    #[arg(long, env = "WAYBILL_FORWARD_METRICS_ADDR", default_value = "127.0.0.1:9465")]
    pub metrics_addr: SocketAddr,
    /// NATS server with the stream, with the gateway's own user, as nats://user:password@host:port
    #[arg(long, env = "WAYBILL_FORWARD_NATS_URL", hide_env_values = true)]
    pub nats_url: String,
    /// What the stream's subjects start with; a dot and the gateway's name follow
    #[arg(long, env = "WAYBILL_SUBJECT_PREFIX", default_value = DEFAULT_SUBJECT_PREFIX)]
    pub subject_prefix: String,
    /// The API that tells the settled watermark, as https://host:port
    #[arg(long, env = "WAYBILL_FORWARD_API_URL")]
    pub api_url: String,
    /// The gateway's API key
    #[arg(long, env = "WAYBILL_FORWARD_KEY", hide_env_values = true)]
    pub key: String,
    /// Milliseconds between two looks at the watermark
    #[arg(long, env = "WAYBILL_FORWARD_POLL_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..))]
    pub poll_ms: u64,
    /// Seconds a hole in the watermark may last before its events are published again; longer than the consumer's ack wait
    #[arg(long, env = "WAYBILL_FORWARD_RESEND_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub resend_seconds: u64,
}

/// Where a forwarder takes events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(_) => Err("a path must follow `unix:`".to_owned()),
            None => text.parse().map(Self::Tcp).map_err(|_| "give host:port, or unix:/path".to_owned()),
        }
    }
}

impl ForwardArgs {
    /// Refuses a configuration that contradicts itself.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=GATEWAY_NAME_MAX).contains(&self.gateway.len()) || !self.gateway.bytes().all(named) {
            return Err(ConfigError::Gateway);
        }
        if let Listen::Tcp(address) = self.listen {
            if !address.ip().is_loopback() && !self.allow_remote {
                return Err(ConfigError::Remote(address));
            }
            if address == self.metrics_addr && address.port() != 0 {
                return Err(ConfigError::SameForwardAddress(address));
            }
        }
        scheme("WAYBILL_FORWARD_API_URL", &self.api_url, &["http", "https"], "http:// or https://")?;
        scheme("WAYBILL_FORWARD_NATS_URL", &self.nats_url, &["nats", "tls", "ws", "wss"], "nats:// or tls://")
    }
}

/// The roles of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// The REST API and the pages.
    pub api: bool,
    /// Recording.
    pub consumer: bool,
    /// Posting and replay.
    pub jobs: bool,
}

/// A configuration that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Metrics would be served with the API.
    #[error("WAYBILL_METRICS_ADDR and WAYBILL_HTTP_ADDR are both {0}; metrics need an address of their own")]
    SameAddress(SocketAddr),
    /// The same of a forwarder.
    #[error(
        "WAYBILL_FORWARD_METRICS_ADDR and WAYBILL_FORWARD_LISTEN are both {0}; metrics need an address of their own"
    )]
    SameForwardAddress(SocketAddr),
    /// A name that no gateway can have.
    #[error("WAYBILL_FORWARD_GATEWAY must be 1 to {GATEWAY_NAME_MAX} of A-Z a-z 0-9 _ -")]
    Gateway,
    /// A forwarder that anybody could send to.
    #[error(
        "WAYBILL_FORWARD_LISTEN is {0}, which other machines reach, and a forwarder asks for no key; listen on 127.0.0.1 or a Unix socket, or set WAYBILL_FORWARD_ALLOW_REMOTE=true"
    )]
    Remote(SocketAddr),
    /// A connection URL of another kind.
    #[error("{variable} starts with `{scheme}`; it must start with {expected}")]
    Scheme {
        /// The variable.
        variable: &'static str,
        /// What it starts with.
        scheme: String,
        /// What it must start with.
        expected: &'static str,
    },
}

impl ServeArgs {
    /// The roles: the ones named, or all where none is.
    pub const fn roles(&self) -> Roles {
        if self.api || self.consumer || self.jobs {
            Roles { api: self.api, consumer: self.consumer, jobs: self.jobs }
        } else {
            Roles { api: true, consumer: true, jobs: true }
        }
    }

    /// Refuses a configuration that contradicts itself.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let ListenArgs { http_addr, metrics_addr } = self.listen;
        if http_addr == metrics_addr && http_addr.port() != 0 {
            return Err(ConfigError::SameAddress(http_addr));
        }
        scheme(
            "WAYBILL_DATABASE_URL",
            &self.database.database_url,
            &["postgres", "postgresql"],
            "postgres://",
        )?;
        scheme("WAYBILL_NATS_URL", &self.nats.nats_url, &["nats", "tls", "ws", "wss"], "nats:// or tls://")?;
        for url in self.demands.nats_monitor_urls() {
            scheme("WAYBILL_NATS_MONITOR_URL", url, &["http", "https"], "http:// or https://")?;
        }
        Ok(())
    }
}

fn scheme(
    variable: &'static str,
    url: &str,
    known: &[&str],
    expected: &'static str,
) -> Result<(), ConfigError> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if known.contains(&scheme) {
        Ok(())
    } else {
        Err(ConfigError::Scheme { variable, scheme: scheme.chars().take(16).collect(), expected })
    }
}
