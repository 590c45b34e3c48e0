//! One event of the wire format: the CloudEvents envelope, its data, and their way into [`UsageEvent`].

use std::ops::Range;

use compact_str::CompactString;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::fields;
use super::formats::{Format, Reading};
use super::json::{Count, Object, Text, read, too_deep};
use super::reason::{Reason, Rejected};
use super::values::{Attributes, Classes, Sequence};
use crate::domain::event::{
    Report, SequenceMark, StatedCost, TaskOutcome, TaskRef, Usage, UsageEvent, UsagePart, UsageSource,
};
use crate::domain::identity::EventIdentity;
use crate::domain::money::Currency;

/// The CloudEvents version of the envelope.
pub const SPEC_VERSION: &str = "1.0";
/// Event type of a model call.
pub const USAGE_TYPE: &str = "llm.usage.v1";
/// Event type of the end of a task.
pub const TASK_TYPE: &str = "llm.task.v1";
/// Most usage parts of one event.
pub const PARTS_MAX: usize = 64;
/// The epoch of a gateway that counts without naming one.
pub(super) const EPOCH_DEFAULT: &str = "default";

#[derive(Deserialize)]
struct Envelope<'a, D> {
    #[serde(borrow)]
    specversion: Option<Text<'a>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    source: Option<Text<'a>>,
    #[serde(borrow)]
    subject: Option<Text<'a>>,
    #[serde(borrow)]
    time: Option<Text<'a>>,
    #[serde(default)]
    sequence: Keyed<Sequence>,
    #[serde(borrow, default)]
    epoch: Keyed<Text<'a>>,
    data: Option<D>,
}

/// A value that counts as absent where it is `null`, and whether its key is there all the same.
struct Keyed<T> {
    key: bool,
    value: Option<T>,
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Self { key: false, value: None }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Keyed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|value| Self { key: true, value })
    }
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    provider: Option<Text<'a>>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    platform: Option<Text<'a>>,
    #[serde(borrow)]
    region: Option<Text<'a>>,
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    #[serde(borrow)]
    processing: Option<Text<'a>>,
    #[serde(borrow)]
    speed: Option<Text<'a>>,
    #[serde(borrow)]
    task: Option<Object<Task<'a>>>,
    usage: Option<Classes>,
    #[serde(borrow)]
    provider_usage: Option<Object<ProviderUsage<'a>>>,
    attributes: Option<Attributes>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    usage_source: Option<Text<'a>>,
    latency_ms: Option<Count>,
    #[serde(borrow)]
    corrects: Option<Text<'a>>,
    #[serde(borrow)]
    outcome: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Task<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    parent: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct ProviderUsage<'a> {
    #[serde(borrow)]
    format: Option<Text<'a>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads one event, as [`split`](super::split) found it.
///
/// # Errors
/// [`Rejected`] with the reason; the first fault found decides.
pub fn parse_event(raw: &[u8]) -> Result<UsageEvent, Rejected> {
    parse_with_payload(raw).map(|(event, _)| event)
}

/// Reads one event as [`parse_event`] does, and says where in it the provider's payload lies: an empty range where there is
/// none.
///
/// # Errors
/// As [`parse_event`].
pub fn parse_with_payload(raw: &[u8]) -> Result<(UsageEvent, Range<usize>), Rejected> {
    let text = checked_text(raw)?;
    match read::<Envelope<'_, Object<Data<'_>>>>(text) {
        Ok(envelope) => {
            let payload = envelope.payload().map_or(0..0, |payload| place_in(text, payload));
            Ok((envelope.into_event()?, payload))
        }
        Err(rejected) => Err(earlier_fault(text).unwrap_or(rejected)),
    }
}

/// Where a part of a text lies in it.
fn place_in(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

/// What the envelope of an event says, whatever its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Who it says it is.
    pub identity: EventIdentity,
    /// Whether it has the key `sequence` or `epoch`, be its value `null`: no second one may be put in.
    pub counted: bool,
}

/// Reads the envelope of one event and judges it as [`parse_event`] does; version, type and data are left to whoever records
/// it, which may be a newer release.
///
/// # Errors
/// [`Rejected`] with the reason; the first fault found decides.
pub fn parse_outline(raw: &[u8]) -> Result<Outline, Rejected> {
    let envelope = read::<Envelope<'_, IgnoredAny>>(checked_text(raw)?)?;
    let id = fields::event_id("id", envelope.id.as_deref())?;
    let source = fields::source(required("source", envelope.source.as_ref())?)?;
    fields::machine_id("subject", required("subject", envelope.subject.as_ref())?)?;
    fields::time(required("time", envelope.time.as_ref())?)?;
    required("specversion", envelope.specversion.as_ref())?;
    required("type", envelope.kind.as_ref())?;
    let counted = envelope.sequence.key || envelope.epoch.key;
    Ok(Outline { identity: EventIdentity { source, id }, counted })
}

/// Reads the `data` of a usage event alone, for a quote of what such a call costs.
///
/// # Errors
/// [`Rejected`] as the whole event would be.
pub fn parse_usage(data: &[u8]) -> Result<Usage, Rejected> {
    read::<Data<'_>>(checked_text(data)?)?.into_usage()
}

/// The bytes as text that is safe to read.
fn checked_text(raw: &[u8]) -> Result<&str, Rejected> {
    let text = std::str::from_utf8(raw)
        .map_err(|_| Rejected::new(Reason::Utf8, "the event holds bytes that are not UTF-8; send UTF-8"))?;
    if too_deep(raw) {
        return Err(Rejected::new(Reason::Json, "the event nests deeper than 128 levels; send it flatter"));
    }
    Ok(text)
}

/// Why an event whose data cannot be read would have been refused before that: another version may shape its data
/// as it likes.
fn earlier_fault(text: &str) -> Option<Rejected> {
    read::<Envelope<'_, IgnoredAny>>(text).ok()?.check_version().err()
}

impl<D> Envelope<'_, D> {
    /// Whether the event is a model call; `false` is the end of a task.
    fn check_version(&self) -> Result<bool, Rejected> {
        let unknown = |field: &str, known: &str| {
            Err(Rejected::new(
                Reason::Version,
                format_args!("this `{field}` is not known here; send {known}"),
            ))
        };
        if required("specversion", self.specversion.as_ref())? != SPEC_VERSION {
            return unknown("specversion", SPEC_VERSION);
        }
        match required("type", self.kind.as_ref())? {
            USAGE_TYPE => Ok(true),
            TASK_TYPE => Ok(false),
            _ => unknown("type", "llm.usage.v1 or llm.task.v1"),
        }
    }
}

impl<'a> Envelope<'a, Object<Data<'a>>> {
    /// What the provider answered, as it came.
    fn payload(&self) -> Option<&'a str> {
        let Object(provided) = self.data.as_ref()?.0.provider_usage.as_ref()?;
        provided.body.map(RawValue::get)
    }

    fn into_event(self) -> Result<UsageEvent, Rejected> {
        let is_usage = self.check_version()?;
        let id = fields::event_id("id", self.id.as_deref())?;
        let source = fields::source(required("source", self.source.as_ref())?)?;
        let customer = fields::machine_id("subject", required("subject", self.subject.as_ref())?)?;
        let occurred_at = fields::time(required("time", self.time.as_ref())?)?;
        let sequence = sequence_mark(self.sequence.value.as_ref(), self.epoch.value.as_ref())?;
        let Some(Object(data)) = self.data else { return Err(missing("data")) };
        let corrects =
            data.corrects.as_deref().map(|id| fields::event_id("corrects", Some(id))).transpose()?;
        if corrects.as_ref() == Some(&id) {
            return Err(Rejected::new(
                Reason::BadId,
                "an event cannot correct itself; give the correction an id of its own",
            ));
        }
        let report =
            if is_usage { Report::Usage(data.into_usage()?) } else { Report::Outcome(data.into_outcome()?) };
        Ok(UsageEvent {
            identity: EventIdentity { source, id },
            customer,
            occurred_at,
            sequence,
            corrects,
            report,
        })
    }
}

impl Data<'_> {
    fn into_usage(mut self) -> Result<Usage, Rejected> {
        let readings = match (self.usage.take(), self.provider_usage.take()) {
            (Some(_), Some(_)) => {
                return Err(Rejected::new(Reason::Ambiguous, "send `usage` or `provider_usage`, not both"));
            }
            (None | Some(Classes { stated: false, .. }), None) => {
                return Err(Rejected::new(
                    Reason::Unmetered,
                    "the event states no usage; send the provider's counts, or an estimate marked as such",
                ));
            }
            (Some(Classes { quantities, .. }), None) => vec![Reading::of(quantities)],
            (None, Some(Object(payload))) => payload.decompose(self.model.as_deref())?,
        };
        if readings.len() > PARTS_MAX {
            return Err(Rejected::new(
                Reason::Limit,
                format_args!("one call has {} parts; it may have {PARTS_MAX}", readings.len()),
            ));
        }
        // Collected, a fallible iterator would make room for four.
        let mut parts = Vec::with_capacity(readings.len());
        for reading in &readings {
            parts.push(self.part(reading)?);
        }
        let usage_source = match self.usage_source.as_deref() {
            None => UsageSource::Provider,
            Some(text) => text.parse().map_err(|unknown| Rejected::new(Reason::Type, unknown))?,
        };
        Ok(Usage {
            parts,
            task: self.task.map(|Object(task)| task.into_ref()).transpose()?,
            attributes: self.attributes.map(|attributes| attributes.0).unwrap_or_default(),
            status: self.status.map(|status| fields::label("status", &status)).transpose()?,
            usage_source,
            latency_ms: self.latency_ms.map(|count| count.0),
        })
    }

    /// What the payload leaves open is filled from the event; where both speak, the payload (what was *served*) counts.
    fn part(&self, reading: &Reading<'_>) -> Result<UsagePart, Rejected> {
        let provider = self.provider.as_ref().or(reading.provider.as_ref());
        let model = reading.model.as_ref().filter(|model| !model.is_empty()).or(self.model.as_ref());
        let conditions = reading.conditions.over(
            fields::condition("platform", self.platform.as_ref())?,
            fields::condition("region", self.region.as_ref())?,
            fields::condition("service_tier", self.service_tier.as_ref())?,
            fields::condition("processing", self.processing.as_ref())?,
            fields::condition("speed", self.speed.as_ref())?,
        )?;
        Ok(UsagePart {
            provider: fields::provider(required("provider", provider)?)?,
            model: fields::model(required("model", model)?)?,
            conditions,
            quantities: reading.quantities,
            tier_input: reading.tier_input,
            stated_cost: reading.stated_cost.map(|amount| StatedCost { amount, currency: Currency::USD }),
        })
    }

    fn into_outcome(self) -> Result<TaskOutcome, Rejected> {
        if self.usage.is_some() || self.provider_usage.is_some() {
            return Err(Rejected::new(
                Reason::Ambiguous,
                "a task event carries no usage; send it as an llm.usage.v1 event of its own",
            ));
        }
        if self.corrects.is_some() {
            // It would take an estimate back and put nothing in its place.
            return Err(Rejected::new(
                Reason::Ambiguous,
                "a task event corrects nothing; send the final usage as an llm.usage.v1 event of its own",
            ));
        }
        let Some(Object(task)) = self.task else { return Err(missing("task")) };
        let outcome = required("outcome", self.outcome.as_ref())?
            .parse()
            .map_err(|unknown| Rejected::new(Reason::Type, unknown))?;
        Ok(TaskOutcome { task: task.into_ref()?, outcome })
    }
}

impl Task<'_> {
    fn into_ref(self) -> Result<TaskRef, Rejected> {
        Ok(TaskRef {
            id: fields::machine_id("task.id", required("task.id", self.id.as_ref())?)?,
            kind: self.kind.map(|kind| fields::machine_id("task.type", &kind)).transpose()?,
            parent: self.parent.map(|parent| fields::machine_id("task.parent", &parent)).transpose()?,
        })
    }
}

impl<'a> ProviderUsage<'a> {
    fn decompose(self, model: Option<&str>) -> Result<Vec<Reading<'a>>, Rejected> {
        let format: Format = required("provider_usage.format", self.format.as_ref())?
            .parse()
            .map_err(|unknown| Rejected::new(Reason::UnknownFormat, unknown))?;
        match self.body {
            Some(body) => format.decompose(body.get(), model),
            None => Err(Rejected::new(
                Reason::Unmetered,
                "`provider_usage.body` is missing; send the provider's response or its usage object",
            )),
        }
    }
}

fn required<'t>(field: &'static str, text: Option<&'t Text<'_>>) -> Result<&'t str, Rejected> {
    text.map(|text| &**text).ok_or_else(|| missing(field))
}

fn missing(field: &str) -> Rejected {
    Rejected::new(Reason::MissingField, format_args!("`{field}` is missing; send it"))
}

fn sequence_mark(
    number: Option<&Sequence>,
    epoch: Option<&Text<'_>>,
) -> Result<Option<SequenceMark>, Rejected> {
    let Some(&Sequence(number)) = number else { return Ok(None) };
    let epoch = epoch
        .map_or(Ok(CompactString::const_new(EPOCH_DEFAULT)), |epoch| fields::machine_id("epoch", epoch))?;
    Ok(Some(SequenceMark { epoch, number }))
}
