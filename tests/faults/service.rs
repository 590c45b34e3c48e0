//! `waybill serve` as a process: started, watched, frozen, killed, started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{free_addresses, get, wait_until};

/// How often a supervisor looks whether its process has ended.
const SUPERVISE_EVERY: Duration = Duration::from_millis(20);

/// What to start: made by the bed, then changed as a test needs it.
#[derive(Debug, Clone)]
pub struct Serve {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Where it writes what it has to say.
    pub log: PathBuf,
}

impl Serve {
    /// Only these roles, such as `--consumer`; without `--api` there is no `/readyz`.
    pub fn roles(mut self, roles: &[&str]) -> Self {
        self.arguments.extend(roles.iter().map(ToString::to_string));
        self
    }

    pub fn env(mut self, name: &str, value: &impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Starts it.
    pub fn start(&self) -> Service {
        let [http, metrics] = free_addresses();
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .arg("serve")
            .args(&self.arguments)
            .env("WAYBILL_HTTP_ADDR", http.to_string())
            .env("WAYBILL_METRICS_ADDR", metrics.to_string())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Service { child, http, metrics }
    }

    /// Another command of the program, with the same settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().cloned());
        command
    }

    /// Runs one, which must succeed; what it prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&stdout).into_owned();
        assert!(status.success(), "{arguments:?}: {printed}{}", String::from_utf8_lossy(&stderr));
        printed
    }

    /// Starts it, and again whenever it ends.
    pub fn supervised(self) -> Supervised {
        let state = Arc::new(Watched {
            service: Mutex::new(self.start()),
            restarts: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            ends: Mutex::default(),
        });
        let watched = Arc::clone(&state);
        std::thread::spawn(move || {
            while !watched.stop.load(Ordering::Relaxed) {
                {
                    let mut service = watched.service.lock().unwrap();
                    if let Ok(Some(status)) = service.child.try_wait() {
                        watched.ends.lock().unwrap().push(status);
                        watched.restarts.fetch_add(1, Ordering::Relaxed);
                        *service = self.start();
                    }
                }
                std::thread::sleep(SUPERVISE_EVERY);
            }
        });
        Supervised(state)
    }
}

/// A running `waybill serve`; killed when dropped.
pub struct Service {
    child: Child,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
}

impl Service {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        wait_until("the program is ready", async || is_ready(self.http).await.filter(|ready| *ready)).await;
    }

    /// Waits until `/readyz` says no and every one of `named`; returns all that it says.
    pub async fn refuses(&self, named: &[&str]) -> String {
        wait_until(&format!("the program is not ready and names {named:?}"), async || {
            let answer = get(self.http, "/readyz").await?;
            (answer.contains(" 503 ") && named.iter().all(|name| answer.contains(name))).then_some(answer)
        })
        .await
    }

    /// Files and connections that it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits until it has ended.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap()
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Watched {
    service: Mutex<Service>,
    restarts: AtomicU32,
    stop: AtomicBool,
    ends: Mutex<Vec<ExitStatus>>,
}

/// A `waybill serve` that is started again whenever it ends.
pub struct Supervised(Arc<Watched>);

impl Supervised {
    /// Does something with the process that runs now.
    pub fn now<T>(&self, act: impl FnOnce(&mut Service) -> T) -> T {
        act(&mut self.0.service.lock().unwrap())
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.0.restarts.load(Ordering::Relaxed)
    }

    /// How it ended each time.
    pub fn ends(&self) -> Vec<ExitStatus> {
        self.0.ends.lock().unwrap().clone()
    }

    pub async fn ready(&self) {
        wait_until("the program is ready", async || {
            let http = self.now(|service| service.http);
            is_ready(http).await.filter(|ready| *ready)
        })
        .await;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.now(|service| service.child.kill().ok());
    }
}

/// Whether `/readyz` answers 200; `None` where nothing answers.
pub async fn is_ready(http: SocketAddr) -> Option<bool> {
    Some(get(http, "/readyz").await?.contains(" 200 "))
}

/// A metric's value: the line that starts with `name`, labels included; `None` where it is not told.
pub async fn metric(metrics: SocketAddr, name: &str) -> Option<f64> {
    let text = get(metrics, "/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}
