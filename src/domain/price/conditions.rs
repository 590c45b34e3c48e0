//! What a price asks of a call: reading it, comparing two of them, and one canonical text.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike, Timelike, Utc};

use super::PriceConditions;
use crate::domain::names::{NAME_BYTES_MAX, is_machine_id};
use crate::domain::tokens::QUANTITY_MAX;

/// Minutes of a UTC day and of a UTC week.
const DAY_MINUTES: u16 = 24 * 60;
const WEEK_MINUTES: u16 = 7 * DAY_MINUTES;
/// Most windows in one price.
const WINDOWS_MAX: usize = 24;

/// Why a condition is refused, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {detail}")]
pub struct ConditionFault {
    /// The field, as in `conditions.hours_utc[1]`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub detail: String,
}

impl ConditionFault {
    fn new(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { path: path.into(), detail: detail.into() }
    }
}

/// Whether the name of a tier, processing or speed means the ordinary one, which is the same as naming none.
pub const fn is_standard(name: &str) -> bool {
    name.is_empty() || name.eq_ignore_ascii_case("default") || name.eq_ignore_ascii_case("standard")
}

/// How narrowly a price chooses its calls, in this order: a price for a platform before one for any, then for a region,
/// then for times of day, then for the higher context threshold. Of all prices that match a call, the greatest applies.
///
/// Times of day come before context because providers quote off-peak rates as replacing their tiers; a provider that
/// combines the two needs a price that names both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    platform: bool,
    region: bool,
    hours: bool,
    context_above: i64,
}

/// Times of a UTC week, as sorted, disjoint half-open minute ranges; Monday 00:00 is minute 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeekWindows(Vec<(u16, u16)>);

/// The minute of the UTC week an instant lies in.
pub fn minute_of_week(at: DateTime<Utc>) -> u16 {
    let minutes = at.weekday().num_days_from_monday() * u32::from(DAY_MINUTES) + at.hour() * 60 + at.minute();
    u16::try_from(minutes).unwrap_or_default()
}

impl WeekWindows {
    /// Reads windows of a day on the weekdays they start; `None` where they leave out no minute of the week.
    ///
    /// # Errors
    /// [`ConditionFault`] with the path of the first window or weekday that cannot be read.
    pub fn parse(hours_utc: &[String], weekdays: &[u8]) -> Result<Option<Self>, ConditionFault> {
        if hours_utc.len() > WINDOWS_MAX {
            return Err(ConditionFault::new(
                "conditions.hours_utc",
                format!("has more than {WINDOWS_MAX} windows"),
            ));
        }
        for (index, day) in weekdays.iter().enumerate() {
            if !(1..=7).contains(day) || weekdays[..index].contains(day) {
                let detail =
                    format!("{day} is not a weekday of its own: use 1 (Monday) to 7 (Sunday), each once");
                return Err(ConditionFault::new(format!("conditions.weekdays[{index}]"), detail));
            }
        }
        let mut day_windows = Vec::with_capacity(hours_utc.len());
        for (index, text) in hours_utc.iter().enumerate() {
            let window = parse_window(text).ok_or_else(|| {
                let shown: String = text.chars().take(20).collect();
                let detail =
                    format!("`{shown}` is not a window: write HH:MM-HH:MM in UTC, start and end different");
                ConditionFault::new(format!("conditions.hours_utc[{index}]"), detail)
            })?;
            day_windows.push(window);
        }
        if day_windows.is_empty() {
            day_windows.push((0, DAY_MINUTES));
        }
        let every_day = [1, 2, 3, 4, 5, 6, 7];
        let days = if weekdays.is_empty() { &every_day[..] } else { weekdays };
        Ok(Self::of_week(&day_windows, days))
    }

    fn of_week(day_windows: &[(u16, u16)], days: &[u8]) -> Option<Self> {
        let mut ranges = Vec::new();
        for day in days {
            let midnight = u16::from(day - 1) * DAY_MINUTES;
            for (start, end) in day_windows {
                let from = midnight + start;
                let to = midnight + end + if end <= start { DAY_MINUTES } else { 0 };
                if to <= WEEK_MINUTES {
                    ranges.push((from, to));
                } else {
                    ranges.push((from, WEEK_MINUTES));
                    ranges.push((0, to - WEEK_MINUTES));
                }
            }
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        if merged == [(0, WEEK_MINUTES)] { None } else { Some(Self(merged)) }
    }

    /// Whether a minute of the week lies inside.
    pub fn contains(&self, minute: u16) -> bool {
        self.0.iter().any(|(from, to)| (*from..*to).contains(&minute))
    }

    /// Whether the two share a minute.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|(from, to)| other.0.iter().any(|(start, end)| from < end && start < to))
    }
}

/// Minutes of the day of `HH:MM-HH:MM`; the end may be `24:00`, and before the start where the window wraps midnight.
fn parse_window(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-')?;
    let (start, end) = (parse_minute(start)?, parse_minute(end)?);
    let whole_day_twice = start == DAY_MINUTES || start == end;
    if whole_day_twice { None } else { Some((start, end)) }
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let two_digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !two_digits(hour) || !two_digits(minute) {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    let in_day = (hour < 24 && minute < 60) || (hour == 24 && minute == 0);
    in_day.then_some(hour * 60 + minute)
}

impl PriceConditions {
    /// The same conditions in one form: lower case, and `default` or `standard` left out of the fields where leaving out
    /// means just that.
    ///
    /// # Errors
    /// The first [`ConditionFault`].
    pub fn normalized(mut self) -> Result<Self, ConditionFault> {
        let names = [
            ("platform", &mut self.platform, false),
            ("region", &mut self.region, false),
            ("service_tier", &mut self.service_tier, true),
            ("processing", &mut self.processing, true),
            ("speed", &mut self.speed, true),
        ];
        for (field, value, drop_standard) in names {
            if let Some(name) = value.take() {
                let name = normalized_name(field, &name)?;
                *value = (!drop_standard || !is_standard(&name)).then_some(name);
            }
        }
        match self.context_above {
            Some(above) if !(1..=QUANTITY_MAX).contains(&above) => {
                let detail =
                    format!("{above} is no threshold; use 1 to {QUANTITY_MAX} tokens, or leave it out");
                return Err(ConditionFault::new("conditions.context_above", detail));
            }
            None if self.context_inclusive => {
                let detail = "says how to compare with context_above, which is missing";
                return Err(ConditionFault::new("conditions.context_inclusive", detail));
            }
            _ => {}
        }
        self.windows()?;
        self.weekdays.sort_unstable();
        Ok(self)
    }

    /// The times of week it asks for; `None` is always.
    ///
    /// # Errors
    /// [`ConditionFault`].
    pub fn windows(&self) -> Result<Option<WeekWindows>, ConditionFault> {
        WeekWindows::parse(&self.hours_utc, &self.weekdays)
    }

    /// The conditions as one text, equal exactly where two prices match the same calls: `standard`, or for example
    /// `service_tier=priority context>272000`.
    ///
    /// # Errors
    /// [`ConditionFault`].
    pub fn key(&self) -> Result<String, ConditionFault> {
        let mut key = String::new();
        let names = [
            ("platform", &self.platform),
            ("region", &self.region),
            ("service_tier", &self.service_tier),
            ("processing", &self.processing),
            ("speed", &self.speed),
        ];
        for (field, value) in names {
            if let Some(name) = value {
                let _ = write!(key, " {field}={name}");
            }
        }
        if let Some(above) = self.context_above {
            let _ = write!(key, " context{}{above}", if self.context_inclusive { ">=" } else { ">" });
        }
        if let Some(windows) = self.windows()? {
            key.push_str(" minutes=");
            for (index, (from, to)) in windows.0.iter().enumerate() {
                let _ = write!(key, "{}{from}-{to}", if index == 0 { "" } else { "," });
            }
        }
        Ok(if key.is_empty() { "standard".to_owned() } else { key.split_off(1) })
    }

    /// How narrowly it chooses its calls.
    ///
    /// # Errors
    /// [`ConditionFault`].
    pub fn specificity(&self) -> Result<Specificity, ConditionFault> {
        Ok(Specificity {
            platform: self.platform.is_some(),
            region: self.region.is_some(),
            hours: self.windows()?.is_some(),
            context_above: self.context_above.unwrap_or(0),
        })
    }

    /// Whether one call could match both while neither is more specific.
    ///
    /// # Errors
    /// [`ConditionFault`].
    pub fn ambiguous_with(&self, other: &Self) -> Result<bool, ConditionFault> {
        let same_names = self.platform == other.platform
            && self.region == other.region
            && self.service_tier == other.service_tier
            && self.processing == other.processing
            && self.speed == other.speed;
        if !same_names || self.specificity()? != other.specificity()? {
            return Ok(false);
        }
        Ok(match (self.windows()?, other.windows()?) {
            (Some(left), Some(right)) => left.meets(&right),
            _ => true,
        })
    }
}

fn normalized_name(field: &str, name: &str) -> Result<String, ConditionFault> {
    if !is_machine_id(name) {
        let detail = format!("is not 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ : -; leave it out for none");
        return Err(ConditionFault::new(format!("conditions.{field}"), detail));
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(windows: &[&str], weekdays: &[u8]) -> PriceConditions {
        PriceConditions {
            hours_utc: windows.iter().map(|text| (*text).to_owned()).collect(),
            weekdays: weekdays.to_vec(),
            ..PriceConditions::default()
        }
    }

    fn contains(conditions: &PriceConditions, at: &str) -> bool {
        let windows = conditions.windows().unwrap().unwrap();
        windows.contains(minute_of_week(at.parse().unwrap()))
    }

    #[test]
    fn a_window_starts_inclusive_and_ends_exclusive() {
        let peak = hours(&["01:00-04:00", "06:00-10:00"], &[]);
        assert!(contains(&peak, "2026-11-23T01:00:00Z"));
        assert!(contains(&peak, "2026-11-23T03:59:59.999Z"));
        assert!(!contains(&peak, "2026-11-23T04:00:00Z"));
        assert!(!contains(&peak, "2026-11-23T00:59:59Z"));
        assert!(contains(&peak, "2026-11-29T09:00:00Z"));
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_starts() {
        // 2026-11-27 is a Friday, and 2026-11-29 a Sunday.
        let friday = hours(&["22:00-02:00"], &[5]);
        assert!(contains(&friday, "2026-11-27T22:00:00Z"));
        assert!(contains(&friday, "2026-11-28T01:59:00Z"));
        assert!(!contains(&friday, "2026-11-27T01:00:00Z"));
        assert!(!contains(&friday, "2026-11-28T22:00:00Z"));
        let sunday = hours(&["22:00-02:00"], &[7]);
        assert!(contains(&sunday, "2026-11-30T01:00:00Z"));
        assert!(!contains(&sunday, "2026-11-29T01:00:00Z"));
    }

    #[test]
    fn weekdays_alone_are_whole_days() {
        let weekend = hours(&[], &[6, 7]);
        assert!(contains(&weekend, "2026-11-28T00:00:00Z"));
        assert!(contains(&weekend, "2026-11-29T23:59:59Z"));
        assert!(!contains(&weekend, "2026-11-30T00:00:00Z"));
    }

    #[test]
    fn the_key_says_the_same_for_the_same_calls() {
        let key = |conditions: PriceConditions| conditions.normalized().unwrap().key().unwrap();
        assert_eq!(
            key(hours(&["01:00-04:00", "04:00-06:00"], &[])),
            key(hours(&["01:00-06:00"], &[7, 1, 2, 3, 4, 5, 6]))
        );
        assert_eq!(key(hours(&["00:00-12:00", "12:00-24:00"], &[])), "standard");
        let priority = PriceConditions {
            service_tier: Some("Priority".to_owned()),
            processing: Some("default".to_owned()),
            context_above: Some(272_000),
            ..PriceConditions::default()
        };
        assert_eq!(key(priority), "service_tier=priority context>272000");
    }

    #[test]
    fn nonsense_is_refused_with_its_path() {
        let path = |conditions: PriceConditions| conditions.normalized().unwrap_err().path;
        assert_eq!(path(hours(&["01:00-04:00", "4-6"], &[])), "conditions.hours_utc[1]");
        assert_eq!(path(hours(&["03:00-03:00"], &[])), "conditions.hours_utc[0]");
        assert_eq!(path(hours(&["24:00-01:00"], &[])), "conditions.hours_utc[0]");
        assert_eq!(path(hours(&[], &[1, 8])), "conditions.weekdays[1]");
        assert_eq!(path(hours(&[], &[1, 1])), "conditions.weekdays[1]");
        let zero = PriceConditions { context_above: Some(0), ..PriceConditions::default() };
        assert_eq!(path(zero), "conditions.context_above");
        let dangling = PriceConditions { context_inclusive: true, ..PriceConditions::default() };
        assert_eq!(path(dangling), "conditions.context_inclusive");
        let blank = PriceConditions { region: Some("eu west".to_owned()), ..PriceConditions::default() };
        assert_eq!(path(blank), "conditions.region");
    }

    #[test]
    fn two_prices_are_ambiguous_only_where_a_call_matches_both_and_neither_is_narrower() {
        let context = |above, inclusive| PriceConditions {
            context_above: Some(above),
            context_inclusive: inclusive,
            ..PriceConditions::default()
        };
        assert!(context(200_000, true).ambiguous_with(&context(200_000, false)).unwrap());
        assert!(!context(200_000, true).ambiguous_with(&context(300_000, false)).unwrap());
        assert!(hours(&["01:00-04:00"], &[]).ambiguous_with(&hours(&["03:59-05:00"], &[])).unwrap());
        assert!(!hours(&["01:00-04:00"], &[]).ambiguous_with(&hours(&["04:00-05:00"], &[])).unwrap());
        assert!(!hours(&["01:00-04:00"], &[]).ambiguous_with(&PriceConditions::default()).unwrap());
        let region =
            |name: &str| PriceConditions { region: Some(name.to_owned()), ..PriceConditions::default() };
        assert!(!region("us").ambiguous_with(&region("eu")).unwrap());
    }
}
