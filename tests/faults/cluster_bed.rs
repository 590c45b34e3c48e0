//! Three NATS servers on the shipped configuration of a cluster: each can be killed, frozen and started again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use uuid::Uuid;
use waybill::dev::servers::nats_program;
use waybill::ingest;

use crate::harness::{free_addresses, get, wait_until, wait_until_within};

/// Servers of a cluster.
pub const NODES: usize = 3;
/// How long a server may take to tell about itself.
const ANSWER: Duration = Duration::from_secs(5);
/// How long they may take to agree on a leader: some seconds where nothing else runs.
const START_PATIENCE: Duration = Duration::from_secs(40);
/// How long one that is started again may take to catch up with the others, where much else runs.
pub const CATCH_UP_PATIENCE: Duration = Duration::from_mins(2);
/// How often it is tried.
const STARTS: usize = 3;
/// How often it is looked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What each server is started with: the shipped configuration, and less time for clients to go in lame duck mode.
const NODE_CONF: &str = "node.conf";
const NODE: &str = "include ./nats-cluster.conf\nlame_duck_grace_period: 1s\n";
/// What the configuration takes for passwords here.
const PASSWORD: &str = "cluster-test";

/// One server; killed when dropped.
struct Node {
    child: Option<Child>,
    client: SocketAddr,
    monitor: SocketAddr,
    route: SocketAddr,
    frozen: bool,
}

/// The cluster; its folder is removed when dropped.
pub struct Cluster {
    home: PathBuf,
    program: PathBuf,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts it and waits until it has a leader for its streams. Somebody else may take an address in the moment before its
    /// server does, and servers that start on a busy machine may fail to agree: then it starts anew, with other addresses.
    pub async fn start() -> Self {
        let program = nats_program().await.unwrap();
        let mut cluster = Self::launch_all(&program);
        for _ in 1..STARTS {
            if cluster.all_healthy().await {
                break;
            }
            println!("the cluster did not start:\n{}", cluster.logs());
            cluster = Self::launch_all(&program);
        }
        for number in 0..NODES {
            cluster.healthy(number).await;
        }
        wait_until("the cluster has a leader", async || {
            let client = ingest::connect(&cluster.url(), async_nats::ConnectOptions::new()).await.ok()?;
            async_nats::jetstream::new(client).query_account().await.ok()
        })
        .await;
        cluster
    }

    fn launch_all(program: &Path) -> Self {
        let home = std::env::temp_dir().join(format!("waybill-cluster-{}", Uuid::new_v4().simple()));
        let node = || {
            let [client, monitor, route] = free_addresses();
            Node { child: None, client, monitor, route, frozen: false }
        };
        let nodes = std::iter::repeat_with(node).take(NODES).collect();
        let mut cluster = Self { home, program: program.to_owned(), nodes };
        (0..NODES).for_each(|number| cluster.launch(number));
        cluster
    }

    /// Waits until all servers are healthy; false where one of them has ended, or it takes too long.
    async fn all_healthy(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < START_PATIENCE {
            let mut healthy = true;
            for node in &mut self.nodes {
                let child = node.child.as_mut().expect("the server was started");
                if child.try_wait().unwrap().is_some() {
                    return false;
                }
                healthy &= is_healthy(node.monitor).await;
            }
            if healthy {
                return true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        false
    }

    /// What the servers said.
    fn logs(&self) -> String {
        let logs = (0..NODES).map(|number| self.home.join(format!("n{number}")).join("log"));
        logs.filter_map(|log| std::fs::read_to_string(log).ok()).collect::<Vec<_>>().join("\n")
    }

    /// Starts a server with the data it has.
    pub fn launch(&mut self, number: usize) {
        let folder = self.home.join(format!("n{number}"));
        std::fs::create_dir_all(&folder).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dev/servers");
        for name in ["nats.conf", "nats-cluster.conf"] {
            std::fs::copy(shipped.join(name), folder.join(name)).unwrap();
        }
        std::fs::write(folder.join(NODE_CONF), NODE).unwrap();
        let quoted = |text: &str| format!("\"{text}\"");
        let routes = self.nodes.iter().map(|node| quoted(&format!("nats://route:{PASSWORD}@{}", node.route)));
        let routes = format!("[{}]", routes.collect::<Vec<_>>().join(", "));
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let node = &mut self.nodes[number];
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(folder.join(NODE_CONF))
            .env("WAYBILL_NATS_NAME", format!("n{number}"))
            .env("WAYBILL_NATS_ZONE", quoted(&format!("zone:{number}")))
            .env("WAYBILL_NATS_HOST", quoted(&node.client.ip().to_string()))
            .env("WAYBILL_NATS_PORT", node.client.port().to_string())
            .env("WAYBILL_NATS_MONITOR", quoted(&node.monitor.to_string()))
            .env("WAYBILL_NATS_CLUSTER_LISTEN", quoted(&node.route.to_string()))
            .env("WAYBILL_NATS_CLUSTER_PASSWORD", quoted(PASSWORD))
            .env("WAYBILL_NATS_CLUSTER_ROUTES", routes)
            .env("WAYBILL_NATS_PASSWORD", quoted(PASSWORD))
            .env("WAYBILL_NATS_GATEWAY_PASSWORD", quoted(PASSWORD))
            .env("WAYBILL_NATS_ADMIN_PASSWORD", quoted(PASSWORD))
            .env("WAYBILL_NATS_STORE_MAX", "20GiB")
            .env("WAYBILL_NATS_STORE", quoted(&folder.join("store").to_string_lossy()))
            // The file that is included wants a value; the cluster's own says `always`.
            .env("WAYBILL_NATS_SYNC", quoted("always"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        node.child = Some(child.unwrap());
    }

    /// As Waybill reaches it: all three addresses.
    pub fn url(&self) -> String {
        self.addresses("waybill")
    }

    /// As the gateway `gw-eu-1` reaches it.
    pub fn gateway_url(&self) -> String {
        self.addresses("gw-eu-1")
    }

    fn addresses(&self, user: &str) -> String {
        let urls = self.nodes.iter().map(|node| format!("nats://{user}:{PASSWORD}@{}", node.client));
        urls.collect::<Vec<_>>().join(",")
    }

    fn signal(&self, number: usize, signal: Signal) {
        let child = self.nodes[number].child.as_ref().expect("the server runs");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self, number: usize) {
        let mut child = self.nodes[number].child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn freeze(&mut self, number: usize) {
        self.signal(number, Signal::SIGSTOP);
        self.nodes[number].frozen = true;
    }

    pub fn thaw(&mut self, number: usize) {
        self.signal(number, Signal::SIGCONT);
        self.nodes[number].frozen = false;
    }

    /// Lame duck mode: it hands over what it leads, asks its clients to go, and ends.
    pub async fn retire(&mut self, number: usize) {
        self.signal(number, Signal::SIGUSR2);
        let mut child = self.nodes[number].child.take().expect("the server runs");
        tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    }

    /// Starts a server again with its data, and waits until it has caught up.
    pub async fn start_again(&mut self, number: usize) {
        self.launch(number);
        self.healthy(number).await;
    }

    /// Waits until a server says that it has everything that it should have.
    pub async fn healthy(&self, number: usize) {
        let monitor = self.nodes[number].monitor;
        wait_until_within("the server is healthy", CATCH_UP_PATIENCE, async || {
            is_healthy(monitor).await.then_some(())
        })
        .await;
    }

    /// Which server leads a stream, as the first one says that answers.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        for node in self.nodes.iter().filter(|node| node.child.is_some() && !node.frozen) {
            let Some(said) = told(node.monitor, "/jsz?accounts=true&streams=true").await else { continue };
            let accounts = said["account_details"].as_array().into_iter().flatten();
            let mut streams =
                accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
            let leader = streams
                .find(|detail| detail["name"] == stream)
                .and_then(|detail| detail["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok());
            if leader.is_some() {
                return leader;
            }
        }
        None
    }

    /// Whether every server forces what it stores to disk, as each says itself.
    pub async fn synced(&self) -> bool {
        for node in &self.nodes {
            if told(node.monitor, "/jsz").await.unwrap()["config"]["sync_always"] != json!(true) {
                return false;
            }
        }
        true
    }
}

/// Whether a server says that it has everything that it should have.
async fn is_healthy(monitor: SocketAddr) -> bool {
    get(monitor, "/healthz").await.is_some_and(|answer| answer.contains(" 200 "))
}

/// What a server tells about itself.
async fn told(monitor: SocketAddr, path: &str) -> Option<Value> {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build().unwrap();
    let answer = client.get(format!("http://{monitor}{path}")).send().await.ok()?;
    serde_json::from_slice(&answer.bytes().await.ok()?).ok()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("kept: {}", self.home.display());
        } else {
            std::fs::remove_dir_all(&self.home).ok();
        }
    }
}
