//! Whether a well-formed event may be recorded now, from this gateway.

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};

use super::reason::{Reason, Rejected};
use crate::domain::event::UsageEvent;

/// How old an event may be, in days (design section 3).
pub const PAST_WINDOW_DAYS: i64 = 35;
/// How far an event may be ahead of the clock, in minutes.
pub const FUTURE_WINDOW_MINUTES: i64 = 5;

/// Checks that the source belongs to the gateway and that the time lies in the acceptance window.
///
/// `backfill_from` widens the window of a gateway that replays old traffic. How old an event is, is measured from when it was
/// received; whether it lies ahead, from `now`, which is later where it is tried again.
///
/// # Errors
/// [`Rejected`] with `not_allowed`, `future` or `too_old`.
pub fn admit(
    event: &UsageEvent,
    gateway: &str,
    backfill_from: Option<DateTime<Utc>>,
    received_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), Rejected> {
    admit_source(&event.identity.source, gateway)?;
    let newest =
        now.checked_add_signed(TimeDelta::minutes(FUTURE_WINDOW_MINUTES)).unwrap_or(DateTime::<Utc>::MAX_UTC);
    if event.occurred_at > newest {
        return Err(Rejected::new(
            Reason::Future,
            format_args!(
                "`time` is more than {FUTURE_WINDOW_MINUTES} minutes ahead; set the gateway's clock"
            ),
        ));
    }
    let oldest =
        received_at.checked_sub_signed(TimeDelta::days(PAST_WINDOW_DAYS)).unwrap_or(DateTime::<Utc>::MIN_UTC);
    if event.occurred_at < backfill_from.map_or(oldest, |from| from.min(oldest)) {
        return Err(Rejected::new(
            Reason::TooOld,
            format_args!(
                "`time` is more than {PAST_WINDOW_DAYS} days ago; finance can replay it, or open a backfill"
            ),
        ));
    }
    Ok(())
}

/// Checks that an event cannot have been recorded in a month whose raw events are archived: whether it is a copy could not be
/// told any more. Booking dates before `archived_through` are.
///
/// # Errors
/// [`Rejected`] with `too_old`, however wide the window is.
pub fn admit_unarchived(event: &UsageEvent, archived_through: Option<NaiveDate>) -> Result<(), Rejected> {
    let Some(kept_from) = archived_through else { return Ok(()) };
    // An event may be ahead of the date it is booked on.
    let ahead = TimeDelta::minutes(FUTURE_WINDOW_MINUTES);
    let earliest = kept_from.and_time(NaiveTime::MIN).and_utc().checked_add_signed(ahead);
    if earliest.is_some_and(|earliest| event.occurred_at < earliest) {
        return Err(Rejected::new(
            Reason::TooOld,
            format_args!(
                "`time` is before {kept_from}, and raw events of that time are archived: whether it was recorded then cannot be told any more"
            ),
        ));
    }
    Ok(())
}

/// Checks that a source is the gateway's name, alone or followed by `/` and a path of its own.
///
/// # Errors
/// [`Rejected`] with `not_allowed`.
pub fn admit_source(source: &str, gateway: &str) -> Result<(), Rejected> {
    let path = source.strip_prefix(gateway);
    if path.is_some_and(|path| path.is_empty() || path.starts_with('/')) {
        return Ok(());
    }
    Err(Rejected::new(
        Reason::NotAllowed,
        format_args!("gateway `{gateway}` may send the source `{gateway}` or `{gateway}/…` only"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::parse_event;

    const EVENT: &str = r#"{"specversion":"1.0","id":"e","source":"SOURCE","type":"llm.usage.v1","subject":"acme",
        "time":"2026-11-23T10:00:00Z","data":{"provider":"p","model":"m","usage":{"input":1}}}"#;

    fn verdict(source: &str, gateway: &str, backfill_from: Option<&str>, now: &str) -> Result<(), Reason> {
        let event = parse_event(EVENT.replace("SOURCE", source).as_bytes()).unwrap();
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        admit(&event, gateway, backfill_from.map(at), at(now), at(now)).map_err(|rejected| rejected.reason)
    }

    #[test]
    fn b34_a_gateway_speaks_for_itself() {
        let now = "2026-11-23T10:00:00Z";
        assert_eq!(verdict("gw-1", "gw-1", None, now), Ok(()));
        assert_eq!(verdict("gw-1/pod-3", "gw-1", None, now), Ok(()));
        for source in ["gw-2", "gw-11", "gw", "GW-1", "gw-1-b/pod", "pod/gw-1"] {
            assert_eq!(verdict(source, "gw-1", None, now), Err(Reason::NotAllowed), "{source}");
        }
    }

    #[test]
    fn what_may_have_been_recorded_in_an_archived_month_is_too_old() {
        let event = parse_event(EVENT.replace("SOURCE", "gw").as_bytes()).unwrap();
        let verdict = |kept_from: Option<&str>| {
            admit_unarchived(&event, kept_from.map(|day| day.parse().unwrap()))
                .map_err(|rejected| rejected.reason)
        };
        assert_eq!(verdict(None), Ok(()));
        assert_eq!(verdict(Some("2026-11-23")), Ok(()));
        assert_eq!(verdict(Some("2026-11-24")), Err(Reason::TooOld));
        let just_after = EVENT.replace("SOURCE", "gw").replace("10:00:00Z", "00:05:00Z");
        let just_before = just_after.replace("00:05:00Z", "00:04:59.999999Z");
        for (text, expected) in [(just_after, Ok(())), (just_before, Err(Reason::TooOld))] {
            let event = parse_event(text.as_bytes()).unwrap();
            let archived = "2026-11-23".parse().ok();
            assert_eq!(
                admit_unarchived(&event, archived).map_err(|rejected| rejected.reason),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn b29_b30_the_window_is_closed_on_both_ends() {
        for (now, expected) in [
            ("2026-11-23T09:55:00Z", Ok(())),
            ("2026-11-23T09:54:59.999999Z", Err(Reason::Future)),
            ("2026-12-28T10:00:00Z", Ok(())),
            ("2026-12-28T10:00:00.000001Z", Err(Reason::TooOld)),
        ] {
            assert_eq!(verdict("gw", "gw", None, now), expected, "{now}");
        }
        let late = "2027-06-01T00:00:00Z";
        assert_eq!(verdict("gw", "gw", Some("2026-11-23T10:00:00Z"), late), Ok(()));
        assert_eq!(verdict("gw", "gw", Some("2026-11-23T10:00:00.000001Z"), late), Err(Reason::TooOld));
        // Waiting makes it no older, and does away with its being ahead.
        let event = parse_event(EVENT.replace("SOURCE", "gw").as_bytes()).unwrap();
        for received_at in ["2026-11-23T09:00:00Z", "2026-12-28T10:00:00Z"] {
            assert_eq!(
                admit(&event, "gw", None, received_at.parse().unwrap(), late.parse().unwrap()),
                Ok(())
            );
        }
        let open = Some("2026-12-20T00:00:00Z");
        assert_eq!(
            verdict("gw", "gw", open, "2026-12-20T00:00:00Z"),
            Ok(()),
            "a backfill never narrows the window"
        );
    }
}
