//! Where a new price goes among those of its key that stand, which never overlap: the same for prices and period prices.

use chrono::{DateTime, Utc};

use super::{covers, intervals_meet};

/// First instant of validity, and first instant after; `None` is open.
pub(super) type Interval = (DateTime<Utc>, Option<DateTime<Utc>>);

/// What a new price meets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fit<T> {
    /// Nothing of its key.
    Free,
    /// It lies in the validity of this one, which started earlier: that one ends where it starts, and goes on after it.
    Within(T),
    /// It overlaps this one, and there is no place for it.
    Collides(T),
}

/// Where a new price ends. One without an end takes the place of the one that is valid when it starts, so where another is
/// announced to follow that one, it is up to there.
pub(super) fn end_of<T>(
    standing: impl Iterator<Item = (T, Interval)> + Clone,
    (start, end): Interval,
) -> Option<DateTime<Utc>> {
    if end.is_some() {
        return end;
    }
    let mut held = standing.clone().filter(|(_, (from, to))| *from < start && covers(*from, *to, start));
    let next = held.next().and_then(|(_, (_, to))| to)?;
    standing.into_iter().any(|(_, (from, _))| from == next).then_some(next)
}

/// Whether there is a place for a new price.
pub(super) fn fit<T>(standing: impl Iterator<Item = (T, Interval)>, new: Interval) -> Fit<T> {
    let overlapping = standing.filter(|(_, there)| intervals_meet(*there, new));
    let Some((earliest, (from, to))) = overlapping.min_by_key(|(_, (from, _))| *from) else {
        return Fit::Free;
    };
    let ends_inside = to.is_none_or(|to| new.1.is_some_and(|end| end <= to));
    if from < new.0 && ends_inside { Fit::Within(earliest) } else { Fit::Collides(earliest) }
}

/// What to do about a new price that collides with the one of this interval, the earliest that it overlaps.
pub(super) fn advice((from, to): Interval, (start, _): Interval) -> String {
    let until = to.map_or_else(|| "on".to_owned(), |end| format!("to {end}"));
    let next = match to {
        _ if from > start => format!("give this one a valid_to of {from} at the latest"),
        Some(end) if from < start => format!("give this one a valid_to of {end} at the latest"),
        _ => "let this one start later, or withdraw that one first if it is only announced".to_owned(),
    };
    format!("is valid from {from} {until}; a price takes the place of one that started earlier, so {next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + day * 86_400, 0).unwrap()
    }

    fn interval(from: i64, to: Option<i64>) -> Interval {
        (at(from), to.map(at))
    }

    #[test]
    fn following_the_advice_makes_a_place() {
        let standing = [interval(0, Some(10)), interval(10, Some(20)), interval(30, None)];
        let among = || standing.iter().copied().enumerate();
        for start in 0..35 {
            for end in (start + 1..40).map(Some).chain([None]) {
                let new = interval(start, end);
                let new = (new.0, end_of(among(), new));
                let Fit::Collides(there) = fit(among(), new) else { continue };
                let says = advice(standing[there], new);
                let ends = says.split_once("valid_to of ").map(|(_, rest)| {
                    rest.strip_suffix(" at the latest").unwrap().parse::<DateTime<Utc>>().unwrap()
                });
                match ends {
                    Some(end) => {
                        assert!(!matches!(fit(among(), (new.0, Some(end))), Fit::Collides(_)), "{says}");
                    }
                    None => assert_eq!(standing[there].0, new.0, "{says}"),
                }
            }
        }
    }

    #[test]
    fn an_open_price_ends_where_the_place_that_it_takes_ends() {
        let standing = [interval(0, Some(10)), interval(10, Some(20)), interval(30, None)];
        let end = |start, end| end_of(standing.iter().copied().enumerate(), interval(start, end));
        assert_eq!(end(5, None), Some(at(10)), "the next one is announced");
        assert_eq!(end(5, Some(7)), Some(at(7)));
        for start in [-5, 0, 10, 12, 20, 30, 35] {
            assert_eq!(end(start, None), None, "from {start}");
        }
    }
}
