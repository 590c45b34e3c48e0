//! Where a new price goes among those of its key that stand, which never overlap: the same for prices and period prices.

use chrono::{DateTime, Utc};

use super::{Interval, covers, intervals_meet};

/// Checks what is to be published, each with its position; returns it by the start of validity, or every fault.
pub(super) fn checked<N, D, F>(
    new: &[N],
    check: impl Fn(&N, usize) -> Result<D, Vec<F>>,
    start: impl Fn(&D) -> DateTime<Utc>,
) -> Result<Vec<(usize, D)>, Vec<F>> {
    let mut faults = Vec::new();
    let mut drafts = Vec::with_capacity(new.len());
    for (index, price) in new.iter().enumerate() {
        match check(price, index) {
            Ok(draft) => drafts.push((index, draft)),
            Err(found) => faults.extend(found),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    drafts.sort_by_key(|(index, draft)| (start(draft), *index));
    Ok(drafts)
}

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
/// announced to follow that one, it is up to there. A price of the same terms as one that ends there or before announces
/// nothing: it goes on with that one, as after a promotion, and a lasting price must not end where the old one comes back.
pub(super) fn end_of<T: Copy>(
    standing: impl Iterator<Item = (T, Interval)> + Clone,
    (start, end): Interval,
    same_terms: impl Fn(T, T) -> bool,
) -> Option<DateTime<Utc>> {
    if end.is_some() {
        return end;
    }
    let mut held = standing.clone().filter(|(_, (from, to))| *from < start && covers(*from, *to, start));
    let next = held.next().and_then(|(_, (_, to))| to)?;
    let (follower, _) = standing.clone().find(|(_, (from, _))| *from == next)?;
    let mut before = standing.filter(|(_, (_, to))| to.is_some_and(|to| to <= next));
    let goes_on = before.any(|(there, _)| same_terms(there, follower));
    (!goes_on).then_some(next)
}

/// Which of those that stand says what a new price says already, and up to when: the same terms up to `end`, where the new
/// one would end ([`end_of`]); or the new one as it was published, of whose time others have taken a part since.
pub(super) fn said_by<T: Copy>(
    standing: &(impl Iterator<Item = (T, Interval)> + Clone),
    (start, given_end): Interval,
    end: Option<DateTime<Utc>>,
    same_terms: impl Fn(T) -> bool,
) -> Option<(T, Option<DateTime<Utc>>)> {
    let same = standing.clone().filter(|(there, _)| same_terms(*there));
    let cut_since = |to: DateTime<Utc>| match given_end {
        Some(_) => meet_up_to(standing, Some(to), given_end),
        None => standing.clone().any(|(_, (from, _))| from == to),
    };
    same.clone().find_map(|(there, (from, to))| {
        if covers(from, to, start) && meet_up_to(&same, to, end) {
            return Some((there, end));
        }
        (from == start && to.is_some_and(cut_since)).then_some((there, given_end.or(to)))
    })
}

/// Whether from `at` on one follows the other without a gap, and one of them ends at `until`; `None` is never.
fn meet_up_to<T>(
    standing: &(impl Iterator<Item = (T, Interval)> + Clone),
    mut at: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
) -> bool {
    while at != until {
        let Some(next) = at.filter(|at| until.is_none_or(|until| *at < until)) else { return false };
        let Some((_, (_, to))) = standing.clone().find(|(_, (from, _))| *from == next) else { return false };
        at = to;
    }
    true
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
pub(super) fn advice((from, to): Interval, (start, new_end): Interval) -> String {
    let until = to.map_or_else(|| "on".to_owned(), |end| format!("to {end}"));
    let next = match to {
        _ if from > start => format!("give this one a valid_to of {from} at the latest"),
        Some(end) if from < start => {
            let lasting = format!(
                "; where it is to last, withdraw what is announced from {end} on, and publish this from then on too"
            );
            let lasting = if new_end.is_none() { lasting } else { String::new() };
            format!("give this one a valid_to of {end} at the latest{lasting}")
        }
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
        let apart = [interval(0, Some(10)), interval(10, Some(20)), interval(30, None)];
        let promotion = [interval(0, Some(10)), interval(10, Some(20)), interval(20, None)];
        for (standing, start) in
            [apart, promotion].into_iter().flat_map(|all| (0..35).map(move |day| (all, day)))
        {
            let among = || standing.iter().copied().enumerate();
            for end in (start + 1..40).map(Some).chain([None]) {
                let new = interval(start, end);
                let new = (new.0, end_of(among(), new, |_, _| true));
                let Fit::Collides(there) = fit(among(), new) else { continue };
                let says = advice(standing[there], new);
                let ends = says.split_once("valid_to of ").map(|(_, rest)| {
                    rest.split_once(" at the latest").unwrap().0.parse::<DateTime<Utc>>().unwrap()
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
        let among = || standing.iter().copied().enumerate();
        let end = |start, end| end_of(among(), interval(start, end), |_, _| false);
        assert_eq!(end(5, None), Some(at(10)), "the next one is announced");
        assert_eq!(end(5, Some(7)), Some(at(7)));
        assert_eq!(end_of(among(), interval(5, None), |_, _| true), None, "the next one only goes on");
        for start in [-5, 0, 10, 12, 20, 30, 35] {
            assert_eq!(end(start, None), None, "from {start}");
        }
    }
}
