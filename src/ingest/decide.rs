//! From the bytes of a message to what is to be recorded: pure, given a catalog and a time.
//!
//! Each event of a message ends as rows for the journal or as a rejection; none is dropped, and a bad one never touches
//! its neighbours.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

use super::catalog::{Books, Catalog};
use super::headers;
use crate::domain::event::{Report, SequenceMark, Usage, UsageEvent, UsagePart, UsageSource};
use crate::domain::identity::{EventIdentity, EventKey};
use crate::domain::ids::{CustomerId, GatewayId, RejectionId};
use crate::metering::{self, Message, Reason, Rejected};
use crate::store::journal::{
    JournalEvent, JournalPart, Origin, ReadEvent, Rejection, RejectionPosition, WHOLE_MESSAGE, dedup_horizon,
};
use crate::store::rating_data::{CustomerEntry, GatewayEntry};

/// The attribute that rollups and reports know as the project.
const PROJECT_ATTRIBUTE: &str = "project";

/// One message as received, or one rejected event that is tried again.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Its sequence in the stream.
    pub sequence: i64,
    /// Its subject.
    pub subject: String,
    /// Its headers as a JSON object, for rejections.
    pub headers: Option<String>,
    /// Its `Content-Encoding`.
    pub encoding: Option<String>,
    /// Its payload.
    pub payload: Bytes,
    /// Set where this is one rejected event, tried again by itself.
    pub replay_of: Option<ReplayOf>,
    /// When the stream took it: how old its events are, is measured from then.
    pub received_at: DateTime<Utc>,
    /// Whether finance accepts events that are older than the acceptance window.
    pub window_waived: bool,
}

impl Incoming {
    /// The first booking date that a copy of one of its events may be found on, unless they may be old: counted from when the
    /// stream took it.
    pub fn horizon(&self, booked_on: NaiveDate) -> NaiveDate {
        dedup_horizon(booked_on.min(self.received_at.date_naive()))
    }

    /// What its events may not lie ahead of: waiting makes none too old, but what was to come is there by and by.
    fn judged_at(&self) -> DateTime<Utc> {
        self.replay_of.map_or(self.received_at, |replay| replay.tried_at.max(self.received_at))
    }
}

/// The rejection that is tried again.
#[derive(Debug, Clone, Copy)]
pub struct ReplayOf {
    /// Its id.
    pub rejection: RejectionId,
    /// The life of the stream that its message came in.
    pub life: Uuid,
    /// The event's position in its message.
    pub event_index: i32,
    /// When it was rejected first.
    pub rejected_at: DateTime<Utc>,
    /// When it is tried again.
    pub tried_at: DateTime<Utc>,
    /// Whether the places of its events in their gateway's own count were noted before.
    pub counted: bool,
}

/// What becomes of one event.
#[derive(Debug)]
pub enum Decision {
    /// It is new usage, unless the journal knows it already.
    Record(Box<Candidate>),
    /// It cannot be billed as it is.
    Reject(Box<Rejection>),
}

impl Decision {
    /// When the event happened, as far as it can be read.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Record(candidate) => Some(candidate.event.occurred_at),
            Self::Reject(rejection) => rejection.event_time,
        }
    }

    /// Where it stands.
    pub fn position(&self) -> RejectionPosition {
        match self {
            Self::Record(candidate) => candidate.position(),
            Self::Reject(rejection) => rejection.position,
        }
    }

    /// What a copy of the event is told by, and where the event stands. Of one that has no name that can be read, or that speaks
    /// for another gateway, nothing.
    pub fn named(&self) -> Option<Named<'_>> {
        match self {
            Self::Record(candidate) => {
                let JournalEvent { identity, key, content_hash, .. } = &candidate.event;
                let content_hash = Some(*content_hash);
                Some(Named { identity, key: *key, content_hash, position: candidate.position() })
            }
            Self::Reject(rejection) => {
                let ReadEvent { identity, key, content_hash, .. } = rejection.event.as_ref()?;
                let position = rejection.position;
                Some(Named { identity, key: *key, content_hash: *content_hash, position })
            }
        }
    }
}

/// An event as copies of it are told.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its identity ...
    pub identity: &'a EventIdentity,
    /// ... and the key made of it.
    pub key: EventKey,
    /// Hash of its billable content; `None` where it cannot be read.
    pub content_hash: Option<Uuid>,
    /// Where it stands.
    pub position: RejectionPosition,
}

/// An event that can be recorded.
#[derive(Debug)]
pub struct Candidate {
    /// Its rows.
    pub event: JournalEvent,
    /// The gateway's own count.
    pub mark: Option<SequenceMark>,
    /// Whether its gateway may send old events, so that the look-up covers every partition.
    pub backfill: bool,
    /// Its bytes in the message.
    range: Range<usize>,
    /// Where in them the provider's payload lies; empty where there is none.
    payload: Range<usize>,
}

impl Candidate {
    /// Where it stands.
    pub const fn position(&self) -> RejectionPosition {
        RejectionPosition { stream_seq: self.event.stream_seq, event_index: self.event.event_index }
    }
}

/// A message taken apart.
#[derive(Debug)]
pub struct Decided {
    /// The message.
    pub message: Incoming,
    /// Its payload, decompressed; `None` where that failed.
    pub body: Option<Message>,
    /// One per event, in order.
    pub decisions: Vec<Decision>,
}

impl Decided {
    /// Takes a message apart and decides each of its events.
    pub fn new(catalog: &Catalog, prefix: &str, message: Incoming) -> Self {
        let split = catch_unwind(AssertUnwindSafe(|| {
            metering::split_shared(&message.payload, message.encoding.as_deref())
        }));
        let body = match split.unwrap_or_else(|_| Err(panicked())) {
            Ok(body) => body,
            Err(mut rejected) => {
                if message.headers.as_deref().is_some_and(headers::partly_unreadable) {
                    // Among them may be what says how the body is encoded.
                    rejected.detail =
                        format!("the headers of the message cannot be read, and {}", rejected.detail);
                }
                let index = message.replay_of.map_or(WHOLE_MESSAGE, |replay| replay.event_index);
                let rejection = rejection(&message, &message.payload, index, rejected, None);
                return Self { message, body: None, decisions: vec![Decision::Reject(Box::new(rejection))] };
            }
        };
        let gateway = gateway_of(prefix, &message.subject);
        let entry = catalog.gateway(gateway);
        let registered = entry.map(|entry| entry.id);
        let backfill = entry.is_some_and(|entry| entry.backfill_from.is_some());
        let mut decisions = Vec::with_capacity(body.ranges().len());
        for (range, index) in body.ranges().iter().cloned().zip(0_i32..) {
            let raw = &body.body()[range.clone()];
            let index = message.replay_of.map_or(index, |replay| replay.event_index);
            let decided =
                catch_unwind(AssertUnwindSafe(|| candidate(catalog, gateway, &message, index, (range, raw))));
            decisions.push(match decided.unwrap_or_else(|_| Err(panicked().into())) {
                Ok(candidate) => Decision::Record(Box::new(candidate)),
                Err(Refused { rejected, read }) => {
                    let reason = rejected.reason;
                    let rejection = rejection(&message, raw, index, rejected, registered);
                    let content_hash =
                        read.as_ref().map_or_else(|| hash_of(&rejection.raw), |(_, hash)| *hash);
                    // Who speaks for another gateway, or is none, is told of, copy or not.
                    let may_be_recorded = reason != Reason::UnknownGateway;
                    let event = if reason == Reason::NotAllowed {
                        None
                    } else {
                        read_event(read, &rejection, backfill, may_be_recorded)
                    };
                    let content_hash = Some(content_hash);
                    Decision::Reject(Box::new(Rejection { event, content_hash, ..rejection }))
                }
            });
        }
        Self { message, body: Some(body), decisions }
    }

    /// The life of the stream that its place counts in.
    pub fn life(&self, origin: Origin) -> Option<Uuid> {
        origin.incarnation().or_else(|| Some(self.message.replay_of?.life))
    }

    /// The bytes of one of its events as a rejection keeps them.
    pub fn kept<'a>(&'a self, decision: &'a Decision) -> Cow<'a, [u8]> {
        match decision {
            Decision::Record(candidate) => metering::redact_rejected(self.raw(candidate)),
            Decision::Reject(rejection) => Cow::Borrowed(&rejection.raw),
        }
    }

    fn raw(&self, candidate: &Candidate) -> &[u8] {
        let body = self.body.as_ref().map(Message::body).unwrap_or_default();
        body.get(candidate.range.clone()).unwrap_or_default()
    }

    /// Bytes of its payload, decompressed.
    pub fn body_len(&self) -> usize {
        self.body.as_ref().map_or(self.message.payload.len(), |body| body.body().len())
    }

    /// Its payload without what people and models said to each other.
    pub fn without_texts(&self) -> Cow<'_, [u8]> {
        let Some(body) = &self.body else { return Cow::Borrowed(self.message.payload.as_ref()) };
        let payload = |index: usize| match self.decisions.get(index)? {
            Decision::Record(read) => Some(read.payload.clone()),
            Decision::Reject(_) => None,
        };
        metering::redact_message(body, payload)
    }

    /// The rejection of an event that could have been recorded, but for what the database knows.
    pub fn reject(&self, candidate: &Candidate, reason: Reason, detail: String) -> Rejection {
        let mark = candidate.mark.clone().map(|mark| (candidate.event.gateway, mark));
        let (index, rejected) = (candidate.event.event_index, Rejected { reason, detail });
        let rejection = rejection(&self.message, self.raw(candidate), index, rejected, None);
        Rejection { mark, content_hash: Some(candidate.event.content_hash), ..rejection }
    }

    /// Makes a rejection of an event that was to be recorded; `false` where there is none, or it is a rejection already.
    pub fn refuse(&mut self, index: usize, reason: Reason, detail: String) -> bool {
        let Some(Decision::Record(candidate)) = self.decisions.get(index) else { return false };
        let rejection = self.reject(candidate, reason, detail);
        self.decisions[index] = Decision::Reject(Box::new(rejection));
        true
    }
}

/// The gateway's name: what follows the prefix and a dot in the subject.
pub fn gateway_of<'a>(prefix: &str, subject: &'a str) -> &'a str {
    subject.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default()
}

fn panicked() -> Rejected {
    Rejected {
        reason: Reason::Panic,
        detail: "decoding this event failed inside Waybill; it is kept as it is, please report it".to_owned(),
    }
}

/// What is kept of an event that cannot be recorded; of a registered gateway also its place in the gateway's own count.
fn rejection(
    message: &Incoming,
    raw: &[u8],
    event_index: i32,
    rejected: Rejected,
    registered: Option<GatewayId>,
) -> Rejection {
    let hints = catch_unwind(AssertUnwindSafe(|| metering::hints(raw))).unwrap_or_default();
    Rejection {
        position: RejectionPosition { stream_seq: message.sequence, event_index },
        subject: without_nul(message.subject.clone()),
        headers: message.headers.clone(),
        raw: metering::redact_rejected(raw).into_owned(),
        reason: rejected.reason.as_str(),
        detail: without_nul(rejected.detail),
        gateway: message.subject.rsplit('.').next().map(|name| without_nul(name.to_owned())),
        customer: hints.customer.map(without_nul),
        event_source: hints.source.map(without_nul),
        event_time: hints.time,
        received_at: message.received_at,
        event_id: hints.id.map(without_nul),
        provider: hints.provider.map(without_nul),
        model: hints.model.map(without_nul),
        mark: registered.zip(hints.mark),
        waits_for: None,
        event: None,
        content_hash: None,
    }
}

/// What copies of an event are told by that cannot be read.
pub fn hash_of(kept: &[u8]) -> Uuid {
    Uuid::from_bytes(metering::bytes_hash(kept))
}

/// PostgreSQL's text cannot hold NUL; the raw bytes can and do.
fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

fn refuse(reason: Reason, detail: String) -> Rejected {
    Rejected { reason, detail }
}

/// Why an event is refused.
struct Refused {
    rejected: Rejected,
    /// What it is and the hash of its billable content, where it could be read.
    read: Option<(EventIdentity, Uuid)>,
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        Self { rejected, read: None }
    }
}

impl Refused {
    fn read(event: UsageEvent, rejected: Rejected) -> Self {
        let content_hash = Uuid::from_bytes(metering::content_hash(&event));
        Self { rejected, read: Some((event.identity, content_hash)) }
    }
}

/// What a refused event is told by where it is recorded: what refuses it now, or cannot read it, may have let it pass before.
fn read_event(
    read: Option<(EventIdentity, Uuid)>,
    rejection: &Rejection,
    backfill: bool,
    may_be_recorded: bool,
) -> Option<ReadEvent> {
    let (identity, content_hash) = if let Some((identity, content_hash)) = read {
        (identity, Some(content_hash))
    } else {
        let (source, id) = (rejection.event_source.as_deref()?, rejection.event_id.as_deref()?);
        (EventIdentity { source: source.into(), id: id.into() }, None)
    };
    let key = identity.key();
    Some(ReadEvent { identity, key, content_hash, backfill, may_be_recorded })
}

/// Parses, admits, resolves and rates one event.
fn candidate(
    catalog: &Catalog,
    gateway: &str,
    message: &Incoming,
    event_index: i32,
    (range, raw): (Range<usize>, &[u8]),
) -> Result<Candidate, Refused> {
    let (event, payload) = metering::parse_with_payload(raw)?;
    let Admitted { gateway, customer, backfill } = match admitted(catalog, gateway, message, &event) {
        Ok(admitted) => admitted,
        Err(rejected) => return Err(Refused::read(event, rejected)),
    };
    let books = catalog.books(customer, event.occurred_at);
    let rows = Rows { gateway, customer: customer.id, message, event_index };
    let (event, mark) = rows.build(event, books)?;
    Ok(Candidate { event, mark, backfill, range, payload })
}

/// Whose an event is that may be recorded.
struct Admitted<'c> {
    gateway: &'c GatewayEntry,
    customer: &'c CustomerEntry,
    /// Whether it may be old.
    backfill: bool,
}

fn admitted<'c>(
    catalog: &'c Catalog,
    gateway: &str,
    message: &Incoming,
    event: &UsageEvent,
) -> Result<Admitted<'c>, Rejected> {
    let gateway = catalog.gateway(gateway).ok_or_else(|| {
        refuse(
            Reason::UnknownGateway,
            format!("gateway `{gateway}` is not registered; create it, and this event is tried again"),
        )
    })?;
    let window = if message.window_waived { Some(DateTime::<Utc>::MIN_UTC) } else { gateway.backfill_from };
    metering::admit(event, &gateway.name, window, message.received_at, message.judged_at())?;
    metering::admit_unarchived(event, catalog.archived_through)?;
    let customer = catalog.customer(&event.customer).ok_or_else(|| {
        refuse(
            Reason::UnknownCustomer,
            format!("customer `{}` is not known; create it, and this event is tried again", event.customer),
        )
    })?;
    if !customer.active {
        let detail = format!(
            "customer `{}` is suspended; reactivate it, and this event is tried again",
            event.customer
        );
        return Err(refuse(Reason::SuspendedCustomer, detail));
    }
    Ok(Admitted { gateway, customer, backfill: window.is_some() })
}

/// What the rows of one event have in common.
struct Rows<'a> {
    gateway: &'a GatewayEntry,
    customer: CustomerId,
    message: &'a Incoming,
    event_index: i32,
}

impl Rows<'_> {
    fn build(
        &self,
        event: UsageEvent,
        books: Option<Books<'_>>,
    ) -> Result<(JournalEvent, Option<SequenceMark>), Refused> {
        let content_hash = Uuid::from_bytes(metering::content_hash(&event));
        let source = &event.identity.source;
        let corrects = event.corrects.map(|id| EventIdentity { source: source.clone(), id }.key());
        let mut journal = JournalEvent {
            key: event.identity.key(),
            identity: event.identity,
            content_hash,
            stream_seq: self.message.sequence,
            event_index: self.event_index,
            customer: self.customer,
            gateway: GatewayId(self.gateway.id.0),
            occurred_at: event.occurred_at,
            corrects,
            task: None,
            outcome: None,
            project: None,
            attributes: None,
            status: None,
            estimated: false,
            latency_ms: None,
            parts: Vec::new(),
        };
        match event.report {
            Report::Outcome(ended) => {
                journal.task = Some(ended.task);
                journal.outcome = Some(ended.outcome);
            }
            Report::Usage(usage) => {
                if let Err(rejected) = add_usage(&mut journal, usage, books) {
                    return Err(Refused { rejected, read: Some((journal.identity, journal.content_hash)) });
                }
            }
        }
        Ok((journal, event.sequence))
    }
}

/// Rates the usage and fills in what the journal keeps of it.
fn add_usage(journal: &mut JournalEvent, usage: Usage, books: Option<Books<'_>>) -> Result<(), Rejected> {
    let Some(books) = books else {
        let detail = format!(
            "no price books are assigned to the customer at {}; assign them, and this event is tried again",
            journal.occurred_at.to_rfc3339()
        );
        return Err(refuse(Reason::Unpriced, detail));
    };
    // Exactly: there is one part almost always, and thousands of events wait in memory.
    journal.parts.reserve_exact(usage.parts.len());
    let estimated = usage.usage_source == UsageSource::Estimated;
    // A correction to nothing takes back what the estimate was billed, and an estimate of nothing may be corrected to more.
    let nothing_used =
        !estimated && journal.corrects.is_none() && usage.parts.iter().all(|part| part.quantities.is_zero());
    for part in usage.parts {
        let rated = rated(part, books, journal.occurred_at);
        journal
            .parts
            .push(rated.map_err(|unpriced| if nothing_used { of_nothing(&unpriced) } else { unpriced })?);
    }
    journal.project = usage.attributes.get(PROJECT_ATTRIBUTE).cloned();
    if !usage.attributes.is_empty() {
        journal.attributes = serde_json::to_string(&usage.attributes).ok();
    }
    journal.task = usage.task;
    journal.status = usage.status;
    journal.estimated = estimated;
    journal.latency_ms = usage.latency_ms;
    Ok(())
}

/// Of a call that used nothing: such ones must not hide those that are not billed for want of a price.
fn of_nothing(unpriced: &Rejected) -> Rejected {
    let detail =
        format!("it used nothing, so nothing is to be billed; discard it, or else: {}", unpriced.detail);
    refuse(Reason::NothingUsed, detail)
}

/// Rates one part twice: what it costs us, and what the customer pays.
fn rated(part: UsagePart, books: Books<'_>, at: DateTime<Utc>) -> Result<JournalPart, Rejected> {
    let unpriced = |side: &str, cause: crate::rating::Unpriced| {
        refuse(Reason::Unpriced, format!("{side}: {cause}; publish the price, and this event is tried again"))
    };
    let cost = books.cost.rate(&part, at).map_err(|cause| unpriced("cost", cause))?;
    let charge = books.sell.rate(&part, at).map_err(|cause| unpriced("charge", cause))?;
    Ok(JournalPart {
        provider: part.provider,
        model: part.model,
        conditions: part.conditions,
        tier_input: part.tier_input,
        quantities: charge.counted(cost.counted(part.quantities)),
        cost_price: cost.price,
        sell_price: charge.price,
        cost: cost.amount,
        charge: charge.amount,
        stated_cost: part.stated_cost,
        stated_verdict: part
            .stated_cost
            .and_then(|stated| stated.against(cost.amount, books.cost.info().currency)),
    })
}
