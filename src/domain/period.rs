//! Billing periods and the hours that usage is summed in.
//!
//! Both are half-open UTC intervals computed from the customer's IANA zone and anchor day, once, and then stored:
//! a later change of zone data never moves a period that exists (design section 1).

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use serde::Serialize;

/// The years that periods are computed in: their ends and every zone's offset leave room in what an instant can hold.
const YEARS: std::ops::RangeInclusive<i32> = 1..=9999;
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
    #[error("{0} is outside the calendar, which has the years 1 to 9999")]
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

    /// How far its clocks are from those of UTC at an instant, in seconds to the east.
    pub fn offset_seconds(&self, at: DateTime<Utc>) -> i32 {
        self.zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
    }

    /// The monthly period that holds an instant.
    ///
    /// # Errors
    /// [`CalendarError::OutOfRange`] at the ends of the calendar.
    pub fn period_at(&self, at: DateTime<Utc>) -> Result<Period, CalendarError> {
        let out_of_range = || CalendarError::OutOfRange(at);
        // Before the local time is computed, which panics where it cannot be held.
        if !YEARS.contains(&at.year()) {
            return Err(out_of_range());
        }
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn period(zone: &str, anchor_day: i16, at: &str) -> (String, String) {
        let period = BillingCalendar::new(zone, anchor_day).unwrap().period_at(utc(at)).unwrap();
        (period.start.to_rfc3339(), period.end.to_rfc3339())
    }

    #[test]
    fn periods_start_at_local_midnight_of_the_anchor_day() {
        for (zone, anchor, at, start, end) in [
            ("UTC", 1, "2026-11-23T10:00:00Z", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
            // The last microsecond belongs to the old period, the boundary to the new one.
            ("UTC", 1, "2026-11-30T23:59:59.999999Z", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
            ("UTC", 1, "2026-12-01T00:00:00Z", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
            ("UTC", 28, "2026-03-01T00:00:00Z", "2026-02-28T00:00:00", "2026-03-28T00:00:00"),
            // Summer time ends inside: the period is an hour longer than its days.
            ("Europe/Berlin", 1, "2026-10-31T22:59:59Z", "2026-09-30T22:00:00", "2026-10-31T23:00:00"),
            ("America/New_York", 15, "2026-03-10T00:00:00Z", "2026-02-15T05:00:00", "2026-03-15T04:00:00"),
            // Offsets of 30 and 45 minutes, and a summer time of 30.
            ("Asia/Kolkata", 1, "2026-10-31T18:30:00Z", "2026-10-31T18:30:00", "2026-11-30T18:30:00"),
            ("Asia/Kathmandu", 1, "2026-10-31T18:14:59Z", "2026-09-30T18:15:00", "2026-10-31T18:15:00"),
            ("Australia/Lord_Howe", 1, "2026-04-20T00:00:00Z", "2026-03-31T13:00:00", "2026-04-30T13:30:00"),
            ("Pacific/Chatham", 1, "2026-11-15T00:00:00Z", "2026-10-31T10:15:00", "2026-11-30T10:15:00"),
            // Midnight is skipped: the period starts with the first instant after the gap.
            ("America/Santiago", 6, "2026-09-20T00:00:00Z", "2026-09-06T04:00:00", "2026-10-06T03:00:00"),
            // Midnight happens twice: it starts with the first of them.
            ("America/Havana", 1, "2026-11-15T00:00:00Z", "2026-11-01T04:00:00", "2026-12-01T05:00:00"),
            // A zone that skipped 2011-12-30, and one that skipped its anchor day 1993-08-21.
            ("Pacific/Apia", 28, "2011-12-30T12:00:00Z", "2011-12-28T10:00:00", "2012-01-27T10:00:00"),
            ("Pacific/Kwajalein", 21, "1993-08-22T00:00:00Z", "1993-08-21T12:00:00", "1993-09-20T12:00:00"),
        ] {
            let expected = (format!("{start}+00:00"), format!("{end}+00:00"));
            assert_eq!(period(zone, anchor, at), expected, "{zone}, day {anchor}, at {at}");
        }
    }

    #[test]
    fn bad_calendars_are_refused() {
        assert!(matches!(BillingCalendar::new("Mars/Olympus", 1), Err(CalendarError::UnknownZone(_))));
        for day in [-1, 0, 29, 300] {
            assert_eq!(BillingCalendar::new("UTC", day), Err(CalendarError::AnchorDay(day)));
        }
    }

    #[test]
    fn no_instant_is_too_far_for_an_answer() {
        for zone in ["Asia/Kathmandu", "America/New_York", "UTC"] {
            let calendar = BillingCalendar::new(zone, 1).unwrap();
            for at in [DateTime::<Utc>::MAX_UTC, DateTime::<Utc>::MIN_UTC, utc("+10000-01-01T00:00:00Z")] {
                assert_eq!(calendar.period_at(at), Err(CalendarError::OutOfRange(at)), "{zone}");
            }
            for at in [utc("9999-12-31T23:59:59Z"), utc("0001-01-01T00:00:00Z")] {
                assert!(calendar.period_at(at).unwrap().contains(at), "{zone}");
            }
        }
    }

    proptest! {
        /// An instant lies in exactly one period, whatever the clocks do there.
        #[test]
        fn periods_are_contiguous_and_hold_their_instant(
            zone in proptest::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            anchor_day in 1_i16..=28,
            seconds in 631_152_000_i64..4_102_444_800,
            off_boundary in -10_800_i64..10_800,
        ) {
            let calendar = BillingCalendar::new(zone.name(), anchor_day).unwrap();
            let at = DateTime::from_timestamp(seconds, 0).unwrap();
            let period = calendar.period_at(at).unwrap();
            prop_assert!(period.contains(at), "{at} is not in {period:?}");
            prop_assert_eq!(calendar.period_at(period.start).unwrap(), period);
            let next = calendar.period_at(period.end).unwrap();
            prop_assert_eq!(next.start, period.end);
            let last_instant = period.end - TimeDelta::microseconds(1);
            prop_assert_eq!(calendar.period_at(last_instant).unwrap(), period);
            // Around a boundary the clocks may be set back over midnight.
            let near = period.start + TimeDelta::seconds(off_boundary);
            let expected = if near < period.start { calendar.period_at(near).unwrap() } else { period };
            prop_assert!(expected.contains(near), "{near} is not in {expected:?}");
            prop_assert_eq!(calendar.period_at(near).unwrap(), expected);
        }
    }
}
