//! A TCP proxy between the program and a server, which can do to a connection what networks do, and stop it at an exact
//! message.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::protocol::{Conversation, Framing, Message, Protocol, Way};

/// Messages that are on their way inside the proxy, per direction of a connection.
const UNDERWAY: usize = 4_096;
/// How long a test waits for a message that it wants to stop.
const REACH_TIMEOUT: Duration = Duration::from_secs(30);

/// What happens to what is sent in one direction, on all connections, present and future ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Everything arrives so much later.
    Delay(Duration),
    /// Nothing is forwarded, the connections stay open; what was sent arrives once the mode ends.
    Blackhole,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order: FIN.
    Cut,
    /// RST.
    Reset,
}

/// What becomes of a message that was stopped.
enum Verdict {
    Forward,
    Drop,
    End(End),
}

type Matches = Box<dyn Fn(&Message) -> bool + Send>;

/// What waits for a message.
enum Rule {
    /// Stops the first message that matches, and tells the test.
    Hold { way: Way, matches: Matches, tell: oneshot::Sender<Held> },
    /// Messages that match vanish, until the test has dropped its end of it.
    Lose { way: Way, matches: Matches, lost: Arc<AtomicU64> },
}

/// A message that waits in the proxy, and its connection with it; it goes on when this is dropped.
pub struct Held(Option<oneshot::Sender<Verdict>>);

impl Held {
    /// Lets it go on.
    pub fn release(self) {
        drop(self);
    }

    /// The connection ends before the message is forwarded.
    pub fn end(mut self, end: End) {
        self.decide(Verdict::End(end));
    }

    fn decide(&mut self, verdict: Verdict) {
        // A connection that is gone needs no verdict.
        self.0.take().map(|sender| sender.send(verdict).ok());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.decide(Verdict::Forward);
    }
}

/// A message that the proxy will stop.
pub struct Hold(oneshot::Receiver<Held>);

impl Hold {
    /// Waits for it.
    ///
    /// # Panics
    /// Where it does not come in time.
    pub async fn reached(self, what: &str) -> Held {
        match tokio::time::timeout(REACH_TIMEOUT, self.0).await {
            Ok(Ok(held)) => held,
            _ => panic!("not within {} s: {what}", REACH_TIMEOUT.as_secs()),
        }
    }
}

/// Messages vanish until this is dropped.
pub struct Losing(Arc<AtomicU64>);

impl Losing {
    /// How many have.
    pub fn lost(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Shared {
    protocol: Protocol,
    target: Mutex<SocketAddr>,
    refusing: AtomicBool,
    modes: [watch::Sender<Mode>; 2],
    rules: Mutex<Vec<Rule>>,
    open: Mutex<BTreeMap<u64, watch::Sender<Option<End>>>>,
    opened: AtomicU64,
    /// Of these, those that have reached the server.
    carried: AtomicU64,
    /// Connections with smaller numbers carry nothing any more.
    silent_below: AtomicU64,
}

/// The proxy; its connections end when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on a port of its own, in front of `target`.
    pub async fn start(protocol: Protocol, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            protocol,
            target: Mutex::new(target),
            refusing: AtomicBool::new(false),
            modes: [watch::Sender::new(Mode::Pass), watch::Sender::new(Mode::Pass)],
            rules: Mutex::default(),
            open: Mutex::default(),
            opened: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            silent_below: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, address, accepting }
    }

    /// `url` with the address of this proxy instead of the server's.
    pub fn in_front_of(&self, url: &str) -> String {
        let (before, after) = url.split_once("://").expect("a URL");
        let (authority, path) = after.find('/').map_or((after, ""), |at| after.split_at(at));
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{before}://{user}{}{path}", self.address)
    }

    /// New connections go to another server.
    pub fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Ordering::Relaxed);
    }

    pub fn set(&self, way: Way, mode: Mode) {
        self.shared.modes[way as usize].send_replace(mode);
    }

    /// Both directions.
    pub fn set_both(&self, mode: Mode) {
        self.set(Way::ToServer, mode);
        self.set(Way::ToClient, mode);
    }

    /// Ends all connections; new ones are possible.
    pub fn end_all(&self, end: End) {
        for connection in self.shared.open.lock().unwrap().values() {
            connection.send_replace(Some(end));
        }
    }

    /// Present connections stay open and carry nothing any more, in either direction; new ones are possible.
    pub fn silence(&self) {
        let opened = self.shared.opened.load(Ordering::Relaxed);
        self.shared.silent_below.store(opened, Ordering::Relaxed);
    }

    /// How many connections are open, and how many were opened so far.
    pub fn connections(&self) -> (usize, u64) {
        (self.shared.open.lock().unwrap().len(), self.shared.opened.load(Ordering::Relaxed))
    }

    /// How many connections have reached the server so far: a client connects to the proxy whether it runs or not.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Stops the next message that matches before it is forwarded; others of its connection wait behind it.
    pub fn hold(&self, way: Way, matches: impl Fn(&Message) -> bool + Send + 'static) -> Hold {
        let (tell, told) = oneshot::channel();
        self.shared.rules.lock().unwrap().push(Rule::Hold { way, matches: Box::new(matches), tell });
        Hold(told)
    }

    /// Makes messages that match vanish for as long as the returned guard lives.
    pub fn lose(&self, way: Way, matches: impl Fn(&Message) -> bool + Send + 'static) -> Losing {
        let lost = Arc::new(AtomicU64::new(0));
        let rule = Rule::Lose { way, matches: Box::new(matches), lost: Arc::clone(&lost) };
        self.shared.rules.lock().unwrap().push(rule);
        Losing(lost)
    }
}

impl Shared {
    /// What becomes of a message; waits where a test holds it.
    async fn judge(&self, way: Way, message: Message) -> Verdict {
        let verdict = {
            let mut rules = self.rules.lock().unwrap();
            // Rules whose test has lost interest go.
            rules.retain(|rule| match rule {
                Rule::Hold { tell, .. } => !tell.is_closed(),
                Rule::Lose { lost, .. } => Arc::strong_count(lost) > 1,
            });
            let found = rules.iter().position(|rule| match rule {
                Rule::Hold { way: of, matches, .. } | Rule::Lose { way: of, matches, .. } => {
                    *of == way && matches(&message)
                }
            });
            let Some(found) = found else { return Verdict::Forward };
            if let Rule::Lose { lost, .. } = &rules[found] {
                lost.fetch_add(1, Ordering::Relaxed);
                return Verdict::Drop;
            }
            let Rule::Hold { tell, .. } = rules.remove(found) else { return Verdict::Forward };
            let (verdict, decided) = oneshot::channel();
            tell.send(Held(Some(verdict))).ok();
            decided
        };
        verdict.await.unwrap_or(Verdict::Forward)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if shared.refusing.load(Ordering::Relaxed) {
            client.set_zero_linger().ok();
            continue;
        }
        let number = shared.opened.fetch_add(1, Ordering::Relaxed);
        let (end, ending) = watch::channel(None);
        shared.open.lock().unwrap().insert(number, end);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            carry(&shared, number, client, ending).await;
            shared.open.lock().unwrap().remove(&number);
        });
    }
}

async fn carry(shared: &Shared, number: u64, client: TcpStream, mut ending: watch::Receiver<Option<End>>) {
    let target = *shared.target.lock().unwrap();
    let Ok(server) = TcpStream::connect(target).await else {
        client.set_zero_linger().ok();
        return;
    };
    shared.carried.fetch_add(1, Ordering::Relaxed);
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (mut client_in, mut client_out) = client.into_split();
    let (mut server_in, mut server_out) = server.into_split();
    let conversation = Mutex::new(Conversation::new(shared.protocol, number));
    let end = {
        let to_server = pump(shared, Way::ToServer, &conversation, &mut client_in, &mut server_out);
        let to_client = pump(shared, Way::ToClient, &conversation, &mut server_in, &mut client_out);
        tokio::select! {
            both = async { tokio::try_join!(to_server, to_client) } => both.err().unwrap_or(End::Cut),
            told = ending.wait_for(Option::is_some) => told.ok().and_then(|end| *end).unwrap_or(End::Cut),
        }
    };
    for (read, write) in [(client_in, client_out), (server_in, server_out)] {
        if let (End::Reset, Ok(socket)) = (end, read.reunite(write)) {
            socket.set_zero_linger().ok();
        }
    }
}

/// Carries one direction until its sender ends it.
async fn pump(
    shared: &Shared,
    way: Way,
    conversation: &Mutex<Conversation>,
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
) -> Result<(), End> {
    let (sender, messages) = mpsc::channel(UNDERWAY);
    tokio::try_join!(
        receive(shared.protocol, way, from, sender),
        send(shared, way, conversation, messages, to)
    )?;
    Ok(())
}

async fn receive(
    protocol: Protocol,
    way: Way,
    from: &mut OwnedReadHalf,
    messages: mpsc::Sender<(Instant, Bytes)>,
) -> Result<(), End> {
    let (mut framing, mut received) = (Framing::new(protocol, way), BytesMut::new());
    while from.read_buf(&mut received).await.map_err(|_| End::Reset)? > 0 {
        while let Some(message) = framing.next(&mut received) {
            if messages.send((Instant::now(), message)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn send(
    shared: &Shared,
    way: Way,
    conversation: &Mutex<Conversation>,
    mut messages: mpsc::Receiver<(Instant, Bytes)>,
    to: &mut OwnedWriteHalf,
) -> Result<(), End> {
    let mut modes = shared.modes[way as usize].subscribe();
    while let Some((at, bytes)) = messages.recv().await {
        let message = conversation.lock().unwrap().hear(way, &bytes);
        if message.connection < shared.silent_below.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        match shared.judge(way, message).await {
            Verdict::Forward => {}
            Verdict::Drop => continue,
            Verdict::End(end) => return Err(end),
        }
        if let Mode::Delay(delay) = forwarding(&mut modes).await {
            tokio::time::sleep_until(at + delay).await;
        }
        to.write_all(&bytes).await.map_err(|_| End::Cut)?;
    }
    forwarding(&mut modes).await;
    to.shutdown().await.map_err(|_| End::Cut)
}

/// The mode, once it lets anything through.
async fn forwarding(modes: &mut watch::Receiver<Mode>) -> Mode {
    modes.wait_for(|mode| *mode != Mode::Blackhole).await.map_or(Mode::Pass, |mode| *mode)
}
