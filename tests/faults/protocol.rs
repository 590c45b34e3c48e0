//! What the proxy understands of the protocols of PostgreSQL and NATS: where a message ends, and what it is about.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// Bytes of the untyped first message of a PostgreSQL client up to its code, and of a typed one up to its body.
const PG_LENGTH: usize = 4;
const PG_HEADER: usize = 5;

/// What is spoken over a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
    Nats,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL, to the server: a statement is sent as text, or a prepared one is to be executed.
    Statement,
    /// PostgreSQL, to the server: a piece of a COPY, and its end.
    CopyData,
    CopyDone,
    /// PostgreSQL, to the client: a statement is done.
    Complete,
    /// NATS, to the server (acknowledgements and requests for messages as well), and to the client.
    Publish,
    Deliver,
    /// Whatever else.
    Other,
}

/// One message of a connection.
#[derive(Debug, Clone)]
pub struct Message {
    /// Counts the connections of the proxy.
    pub connection: u64,
    pub kind: Kind,
    /// PostgreSQL: the statement that it is or that it answers, in one line. NATS: the subject.
    pub text: Arc<str>,
    /// NATS: the reply subject.
    pub reply: Option<String>,
    /// PostgreSQL: the statements that the connection has sent since its last BEGIN, before this one.
    pub transaction: Vec<Arc<str>>,
}

impl Message {
    /// A statement whose text has `part` in it, about to be executed.
    pub fn is_statement(&self, part: &str) -> bool {
        self.kind == Kind::Statement && self.text.contains(part)
    }

    /// The answer that a statement with `part` in its text is done.
    pub fn completes(&self, part: &str) -> bool {
        self.kind == Kind::Complete && self.text.contains(part)
    }

    /// Whether the transaction it belongs to has sent a statement with `part` in its text.
    pub fn follows(&self, part: &str) -> bool {
        self.transaction.iter().any(|statement| statement.contains(part))
    }

    /// An acknowledgement of a message of a stream.
    pub fn is_ack(&self) -> bool {
        self.kind == Kind::Publish && self.text.starts_with("$JS.ACK.")
    }

    /// A message of a stream on its way to a consumer.
    pub fn is_delivery(&self) -> bool {
        self.kind == Kind::Deliver && self.reply.as_ref().is_some_and(|reply| reply.starts_with("$JS.ACK."))
    }
}

/// Takes the next whole message off the front of what was received; `None` where it is not there yet.
pub struct Framing {
    protocol: Protocol,
    /// The first message of a PostgreSQL client has no type.
    untyped: bool,
}

impl Framing {
    pub fn new(protocol: Protocol, way: Way) -> Self {
        Self { protocol, untyped: protocol == Protocol::Postgres && way == Way::ToServer }
    }

    pub fn next(&mut self, received: &mut BytesMut) -> Option<Bytes> {
        let length = match self.protocol {
            Protocol::Postgres => self.postgres(received)?,
            Protocol::Nats => nats(received)?,
        };
        (received.len() >= length).then(|| {
            self.untyped = false;
            received.split_to(length).freeze()
        })
    }

    fn postgres(&self, received: &[u8]) -> Option<usize> {
        let at = usize::from(!self.untyped);
        let length: [u8; PG_LENGTH] = received.get(at..at + PG_LENGTH)?.try_into().ok()?;
        Some(at + usize::try_from(u32::from_be_bytes(length)).ok()?)
    }
}

/// A line, and the payload whose size is its last word.
fn nats(received: &[u8]) -> Option<usize> {
    let line = received.windows(2).position(|pair| pair == b"\r\n")?;
    let mut words = received[..line].split(u8::is_ascii_whitespace);
    let with_payload = matches!(words.next()?, b"PUB" | b"HPUB" | b"MSG" | b"HMSG");
    if !with_payload {
        return Some(line + 2);
    }
    let size: usize = std::str::from_utf8(words.next_back()?).ok()?.parse().ok()?;
    Some(line + 2 + size + 2)
}

/// What both directions of a connection have said so far.
pub struct Conversation {
    protocol: Protocol,
    connection: u64,
    started: bool,
    statements: HashMap<String, Arc<str>>,
    portals: HashMap<String, Arc<str>>,
    current: Arc<str>,
    transaction: Vec<Arc<str>>,
}

impl Conversation {
    pub fn new(protocol: Protocol, connection: u64) -> Self {
        Self {
            protocol,
            connection,
            started: false,
            statements: HashMap::new(),
            portals: HashMap::new(),
            current: "".into(),
            transaction: Vec::new(),
        }
    }

    /// What the next message of one direction is.
    pub fn hear(&mut self, way: Way, message: &[u8]) -> Message {
        match (self.protocol, way) {
            (Protocol::Nats, _) => self.nats(message),
            (Protocol::Postgres, Way::ToServer) => self.statement(message),
            (Protocol::Postgres, Way::ToClient) => {
                let complete = message.first() == Some(&b'C');
                self.message(if complete { Kind::Complete } else { Kind::Other })
            }
        }
    }

    fn message(&self, kind: Kind) -> Message {
        Message {
            connection: self.connection,
            kind,
            text: Arc::clone(&self.current),
            reply: None,
            transaction: self.transaction.clone(),
        }
    }

    fn statement(&mut self, message: &[u8]) -> Message {
        if !std::mem::replace(&mut self.started, true) {
            return self.message(Kind::Other);
        }
        let mut texts = message.get(PG_HEADER..).unwrap_or_default().split(|byte| *byte == 0);
        let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
        let statement = match message.first() {
            Some(b'P') => {
                let (name, sql) = (text(), one_line(&text()));
                self.statements.insert(name, sql);
                return self.message(Kind::Other);
            }
            Some(b'B') => {
                let (portal, name) = (text(), text());
                let sql = self.statements.get(&name).cloned().unwrap_or_else(|| "".into());
                self.portals.insert(portal, sql);
                return self.message(Kind::Other);
            }
            Some(b'E') => self.portals.get(&text()).cloned().unwrap_or_else(|| "".into()),
            Some(b'Q') => one_line(&text()),
            Some(b'd') => return self.message(Kind::CopyData),
            Some(b'c') => return self.message(Kind::CopyDone),
            _ => return self.message(Kind::Other),
        };
        if statement.starts_with("BEGIN") {
            self.transaction.clear();
        }
        self.current = statement;
        let message = self.message(Kind::Statement);
        self.transaction.push(Arc::clone(&self.current));
        message
    }

    fn nats(&self, message: &[u8]) -> Message {
        let line = message.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (kind, subject, reply) = match words[..] {
            ["PUB", subject, _] | ["HPUB", subject, _, _] => (Kind::Publish, subject, None),
            ["PUB", subject, reply, _] | ["HPUB", subject, reply, _, _] => {
                (Kind::Publish, subject, Some(reply))
            }
            ["MSG", subject, _, _] | ["HMSG", subject, _, _, _] => (Kind::Deliver, subject, None),
            ["MSG", subject, _, reply, _] | ["HMSG", subject, _, reply, _, _] => {
                (Kind::Deliver, subject, Some(reply))
            }
            _ => (Kind::Other, words.first().copied().unwrap_or_default(), None),
        };
        Message { text: subject.into(), reply: reply.map(str::to_owned), ..self.message(kind) }
    }
}

fn one_line(sql: &str) -> Arc<str> {
    sql.split_ascii_whitespace().collect::<Vec<_>>().join(" ").into()
}
