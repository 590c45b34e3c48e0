//! Billing periods and the hours that usage is summed in.
//!
//! Both are half-open UTC intervals computed from the customer's IANA zone and anchor day, once, and then stored:
//! a later change of zone data never moves a period that exists (design section 1).

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;
use serde::Serialize;

/// The last anchor day that every month has.
pub const ANCHOR_DAY_MAX: u8 = 28;

/// A half-open interval `[start, end)` in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Period {
    /// The first instant inside.
    pub start: DateTime<Utc>,
    /// The first instant after.
    pub end: DateTime<Utc>,
}

impl Period {
    /// Whether the instant lies inside.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && at < self.end
    }
}

/// A customer's billing calendar: monthly periods in a zone, starting on an anchor day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BillingCalendar {
    zone: Tz,
    anchor_day: u8,
}

/// Why a billing calendar or a period cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Not a zone of the IANA database.
    #[error("`{0}` is not an IANA time zone; write it like Europe/Berlin")]
    UnknownZone(String),
    /// Outside 1 to 28.
    #[error("anchor day {0} is outside 1 to 28, the days every month has")]
    AnchorDay(i16),
    /// Outside the years this calendar computes.
    #[error("{0} is outside the calendar")]
    OutOfRange(DateTime<Utc>),
}

impl BillingCalendar {
    /// A calendar from a zone name and an anchor day.
    ///
    /// # Errors
    /// [`CalendarError`] where the zone is unknown or the day outside 1 to 28.
    pub fn new(zone: &str, anchor_day: i16) -> Result<Self, CalendarError> {
        let zone: Tz =
            zone.parse().map_err(|_| CalendarError::UnknownZone(zone.chars().take(64).collect()))?;
        let anchor_day = u8::try_from(anchor_day)
            .ok()
            .filter(|day| (1..=ANCHOR_DAY_MAX).contains(day))
            .ok_or(CalendarError::AnchorDay(anchor_day))?;
        Ok(Self { zone, anchor_day })
    }

    /// The zone.
    pub const fn zone(&self) -> Tz {
        self.zone
    }

    /// The monthly period that holds an instant.
    ///
    /// # Errors
    /// [`CalendarError::OutOfRange`] at the ends of the calendar.
    pub fn period_at(&self, at: DateTime<Utc>) -> Result<Period, CalendarError> {
        let out_of_range = || CalendarError::OutOfRange(at);
        let local = at.with_timezone(&self.zone).date_naive();
        // The first guess is exact but for a zone that skips its anchor midnight: there the period starts with
        // the first instant after the gap, so an instant before it belongs to the month before.
        let this_month = local.with_day(u32::from(self.anchor_day)).ok_or_else(out_of_range)?;
        let first = if local < this_month {
            this_month.checked_sub_months(Months::new(1)).ok_or_else(out_of_range)?
        } else {
            this_month
        };
        let start = self.midnight(first).ok_or_else(out_of_range)?;
        let next = first.checked_add_months(Months::new(1)).ok_or_else(out_of_range)?;
        let end = self.midnight(next).ok_or_else(out_of_range)?;
        Ok(Period { start, end })
    }

    /// The period right after one.
    ///
    /// # Errors
    /// As [`Self::period_at`].
    pub fn period_after(&self, period: Period) -> Result<Period, CalendarError> {
        self.period_at(period.end)
    }

    /// The first instant of a local date: midnight, the earlier one where it happens twice, the first instant after
    /// the gap where a change of clocks skips it.
    pub fn midnight(&self, date: NaiveDate) -> Option<DateTime<Utc>> {
        let midnight = date.and_time(NaiveTime::MIN);
        match self.zone.from_local_datetime(&midnight) {
            chrono::LocalResult::Single(at) | chrono::LocalResult::Ambiguous(at, _) => {
                Some(at.with_timezone(&Utc))
            }
            chrono::LocalResult::None => (1..=180)
                .find_map(|minutes| {
                    let later = midnight.checked_add_signed(chrono::TimeDelta::minutes(minutes))?;
                    self.zone.from_local_datetime(&later).earliest().map(|at| at.with_timezone(&Utc))
                })
                .or_else(|| {
                    // A zone that skips a whole day (Pacific/Apia on 2011-12-30): the next day's start.
                    self.midnight(date.checked_add_days(Days::new(1))?)
                }),
        }
    }
}
