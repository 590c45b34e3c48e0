"""Times: as gateways write them and as the ledger is dumped, and the hours and days of a customer's zone."""

from datetime import datetime, timedelta, timezone
from functools import cache
from zoneinfo import ZoneInfo

UTC_SUFFIXES = ("Z", "+00:00", "+00")


def instant(text):
    """A time in UTC in one form, to the microsecond, however it was written; what is finer is cut off."""
    for suffix in UTC_SUFFIXES:
        if text.endswith(suffix):
            at, _, fraction = text.removesuffix(suffix).partition(".")
            return f"{at[:10]} {at[11:]}.{fraction[:6]:0<6}"
    raise ValueError(f"{text!r} is no time in UTC: no gateway here sends others")


def hour_of(at, zone):
    """When the hour of a zone began that a time as it is dumped lies in, in the same form."""
    return hour_of_minute(at[:16], zone)


@cache
def hour_of_minute(minute, zone):
    at = datetime.fromisoformat(minute).replace(tzinfo=timezone.utc)
    return dumped(at - timedelta(minutes=at.astimezone(ZoneInfo(zone)).minute))


@cache
def day_of(hour, zone):
    """When the day of a zone began that an hour as it is dumped lies in, at its first instant, in the same form."""
    at = datetime.fromisoformat(hour[:19]).replace(tzinfo=timezone.utc).astimezone(ZoneInfo(zone))
    return dumped(datetime(at.year, at.month, at.day, tzinfo=at.tzinfo).astimezone(timezone.utc))


def dumped(at):
    return f"{at:%Y-%m-%d %H:%M:%S}+00"
