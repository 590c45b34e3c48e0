//! The protocol of NATS by hand, for what a client library would not do.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// How long something that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

/// A connection that speaks the protocol itself, so that no client library stands between us and what is not allowed.
pub struct Raw {
    stream: BufReader<TcpStream>,
    user: String,
    inboxes: usize,
    open: bool,
}

impl Raw {
    /// Connects as the user of a URL, or as nobody.
    pub async fn connect(url: &str) -> Self {
        Self::try_connect(url).await.expect("the server greets")
    }

    /// The same; `None` where the server does not greet.
    pub async fn try_connect(url: &str) -> Option<Self> {
        let (credentials, address) = url.strip_prefix("nats://").unwrap().split_once('@').unwrap();
        let stream = BufReader::new(TcpStream::connect(address).await.ok()?);
        let (name, password) = credentials.split_once(':').unwrap_or_default();
        let mut raw = Self { stream, user: name.to_owned(), inboxes: 0, open: true };
        raw.line().await.filter(|line| line.starts_with("INFO "))?;
        let user = (!name.is_empty()).then(|| format!(r#","user":"{name}","pass":"{password}""#));
        raw.send(&format!(
            r#"CONNECT {{"verbose":false,"headers":true,"no_responders":true{}}}"#,
            user.unwrap_or_default()
        ))
        .await;
        Some(raw)
    }

    /// Whether nothing has shown yet that the server has closed it.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    pub async fn send(&mut self, text: &str) {
        // A server that has closed the connection says so to the next reader.
        self.open &= self.stream.write_all(format!("{text}\r\n").as_bytes()).await.is_ok();
    }

    /// Publishes with these bytes as headers, whatever they are, and without a reply subject.
    pub async fn publish_with(&mut self, subject: &str, head: &[u8], body: &[u8]) {
        let total = head.len() + body.len();
        let command = match head {
            [] => format!("PUB {subject} {total}\r\n"),
            _ => format!("HPUB {subject} {} {total}\r\n", head.len()),
        };
        self.stream.write_all(&[command.as_bytes(), head, body, b"\r\n"].concat()).await.unwrap();
    }

    /// Takes so many messages of a consumer, whatever their headers are, and acknowledges them.
    pub async fn take(&mut self, stream: &str, consumer: &str, messages: usize) {
        self.inboxes += 1;
        let inbox = format!("_INBOX_{}.{}", self.user, self.inboxes);
        let request = format!(r#"{{"batch":{messages}}}"#);
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let asked = format!("PUB {next} {inbox} {}\r\n{request}", request.len());
        self.send(&format!("SUB {inbox} {}\r\n{asked}", self.inboxes)).await;
        for _ in 0..messages {
            let line = self.unasked().await.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let (["MSG" | "HMSG", _, _, reply, ..], Some(length)) = (&words[..], words.last()) else {
                panic!("{line}")
            };
            let mut rest = vec![0; length.parse::<usize>().unwrap() + 2];
            self.stream.read_exact(&mut rest).await.unwrap();
            self.send(&format!("PUB {reply} 4\r\n+ACK")).await;
        }
        self.flush().await;
    }

    /// Waits until the server has read everything, which it must not complain of.
    pub async fn flush(&mut self) {
        self.send("PING").await;
        assert_eq!(self.unasked().await.as_deref(), Some("PONG"));
    }

    /// The next line that asks nothing: the server asks for signs of life when it likes, which it is given.
    async fn unasked(&mut self) -> Option<String> {
        loop {
            let line = self.line().await?;
            if line != "PING" {
                return Some(line);
            }
            self.send("PONG").await;
        }
    }

    pub async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read =
            tokio::time::timeout(Duration::from_secs(10), self.stream.read_line(&mut line)).await.ok()?;
        (read.ok()? > 0).then(|| line.trim_end().to_owned())
    }

    /// What the server says to a command: its errors up to the answer to a ping, or that it hung up.
    pub async fn said(&mut self, command: &str) -> String {
        self.send(&format!("{command}\r\nPING")).await;
        let mut said = String::new();
        loop {
            match self.unasked().await.as_deref() {
                Some("PONG") => return said,
                Some(line) => said.push_str(line),
                None => return said + " (closed)",
            }
        }
    }

    /// Publishes with an inbox of ours as reply subject, and returns the stream's word, which must come.
    pub async fn acknowledged(&mut self, subject: &str, headers: &[(&str, &str)], body: &str) -> String {
        let inbox = self.publish_asking(subject, headers, body).await;
        loop {
            let line = self.line().await.expect("the stream answers");
            if let Some(answer) = self.answer(&inbox, line).await {
                return answer;
            }
        }
    }

    /// The same where the stream may say nothing.
    pub async fn acknowledged_or_silent(
        &mut self,
        subject: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<String> {
        let inbox = self.publish_asking(subject, headers, body).await;
        loop {
            // A line that has begun is read to its end.
            tokio::time::timeout(SILENCE, self.stream.fill_buf()).await.ok()?.ok()?;
            let line = self.line().await?;
            if let Some(answer) = self.answer(&inbox, line).await {
                return Some(answer);
            }
        }
    }

    /// Publishes with a new inbox of ours as reply subject, which is returned.
    async fn publish_asking(&mut self, subject: &str, headers: &[(&str, &str)], body: &str) -> String {
        self.inboxes += 1;
        let inbox = format!("_INBOX_{}.{}", self.user, self.inboxes);
        let publish = published(subject, &inbox, headers, body);
        self.send(&format!("SUB {inbox} {}\r\n{publish}", self.inboxes)).await;
        inbox
    }

    /// What a line says to what was published with the inbox, the rest of its message included; one that comes late to an
    /// earlier inbox says nothing.
    async fn answer(&mut self, inbox: &str, line: String) -> Option<String> {
        let words: Vec<&str> = line.split(' ').collect();
        if let (["MSG" | "HMSG", subject, ..], Some(length)) = (&words[..], words.last()) {
            let mut message = vec![0; length.parse::<usize>().unwrap() + 2];
            self.stream.read_exact(&mut message).await.unwrap();
            return (*subject == inbox).then(|| String::from_utf8(message).unwrap().trim_end().to_owned());
        }
        if line == "PING" {
            self.send("PONG").await;
        }
        line.starts_with("-ERR").then_some(line)
    }
}

/// A message with a reply subject, as the protocol has it.
pub fn published(subject: &str, reply: &str, headers: &[(&str, &str)], body: &str) -> String {
    if headers.is_empty() {
        return format!("PUB {subject} {reply} {}\r\n{body}", body.len());
    }
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let lines: String = lines.collect();
    let head = format!("NATS/1.0\r\n{lines}\r\n");
    format!("HPUB {subject} {reply} {} {}\r\n{head}{body}", head.len(), head.len() + body.len())
}
