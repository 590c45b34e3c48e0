//! Where a new price goes among those of its key that stand, which never overlap: the same for prices and period prices.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Interval, covers, intervals_meet};

/// The least by which one start of validity is after another: what is kept of a time.
const LEAST_STEP: TimeDelta = TimeDelta::microseconds(1);

/// A price of a book as it is kept, whether it stands or not.
#[derive(Debug, Clone, Copy)]
pub struct Record<Id, Key> {
    /// Its id.
    pub id: Id,
    /// What those have in common that take each other's place.
    pub key: Key,
    /// When it is valid.
    pub validity: Interval,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// When another took its place, or it was withdrawn.
    pub superseded_at: Option<DateTime<Utc>>,
    /// Which took its place.
    pub superseded_by: Option<Id>,
}

/// What the records of a book tell of how its prices were published.
#[derive(Debug)]
pub struct Told<Id> {
    /// Copies that go on with one, which were published by nobody: those that took its place, and what goes on after a
    /// promotion, which was recorded in that instant and has its terms and its end.
    pub copies: HashSet<Id>,
    /// Those that were certainly published with their end: they were over when they were recorded, so that nothing announced
    /// can have ended them, and neither did another of the same publication.
    pub with_end: HashSet<Id>,
}

/// Tells copies and what was published with its end from the rest; `same_terms` compares two records of one key.
pub fn told<Id: Copy + Eq + Hash, Key: Eq + Hash + Copy>(
    records: &[Record<Id, Key>],
    same_terms: impl Fn(usize, usize) -> bool,
) -> Told<Id> {
    let mut of_keys: HashMap<Key, Vec<usize>> = HashMap::new();
    for (at, record) in records.iter().enumerate() {
        of_keys.entry(record.key).or_default().push(at);
    }
    let mut copies: HashSet<Id> = records.iter().filter_map(|record| record.superseded_by).collect();
    let mut with_end = HashSet::new();
    for of_key in of_keys.values() {
        for at in of_key {
            let Record { id, validity: (start, end), recorded_at, .. } = records[*at];
            let goes_on_with = |gone: &usize| {
                let Record { validity: (began, ended), superseded_at, .. } = records[*gone];
                superseded_at == Some(recorded_at) && ended == end && began < start && same_terms(*gone, *at)
            };
            if of_key.iter().any(goes_on_with) {
                copies.insert(id);
            }
            let follows = |other: &usize| {
                records[*other].recorded_at == recorded_at && Some(records[*other].validity.0) == end
            };
            if end.is_some_and(|end| end <= recorded_at) && !of_key.iter().any(follows) {
                with_end.insert(id);
            }
        }
    }
    with_end.retain(|id| !copies.contains(id));
    Told { copies, with_end }
}

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
/// announced to follow that one, it is up to there. One that is in force already announces nothing, nor does one of the
/// same terms as an earlier one: an old price comes back there, as after a promotion, and a lasting price must not be lost
/// on the way, however many others are between.
pub(super) fn end_of<T: Copy>(
    standing: &(impl Iterator<Item = (T, Interval)> + Clone),
    (start, end): Interval,
    now: DateTime<Utc>,
    same_terms: impl Fn(T, T) -> bool,
) -> Option<DateTime<Utc>> {
    if end.is_some() {
        return end;
    }
    let mut held = standing.clone().filter(|(_, (from, to))| *from < start && covers(*from, *to, start));
    let next = held.next().and_then(|(_, (_, to))| to).filter(|next| now < *next)?;
    if !standing.clone().any(|(_, (from, _))| from == next) {
        return None;
    }
    come_back(standing, next, same_terms).next().is_none().then_some(next)
}

/// Those from `next` on that have the terms of one that began before them.
fn come_back<T: Copy>(
    standing: &(impl Iterator<Item = (T, Interval)> + Clone),
    next: DateTime<Utc>,
    same_terms: impl Fn(T, T) -> bool,
) -> impl Iterator<Item = T> {
    let to_come = standing.clone().filter(move |(_, (from, _))| next <= *from);
    let comes_back = move |(later, (from, _)): &(T, Interval)| {
        standing.clone().any(|(earlier, (begun, _))| begun < *from && same_terms(earlier, *later))
    };
    to_come.filter(comes_back).map(|(there, _)| there)
}

/// Which of those that stand says what a new price says already, and up to when: the same terms up to where the new one
/// would end ([`end_of`]); or the new one as it was published, of whose time others have taken a part since. That they did
/// so is for `known` to say of them: that this very price was published once, or that they are all published with it. A new
/// one without an end needs that for each old price that comes back, as one that is published has no end there; and for what
/// follows where the one that stands was published `with_end`, not up to what was announced.
pub(super) fn said_by<T: Copy>(
    standing: &(impl Iterator<Item = (T, Interval)> + Clone),
    new: Interval,
    now: DateTime<Utc>,
    both: impl Fn(T, T) -> bool,
    same: impl Fn(T) -> bool,
    with_end: impl Fn(T) -> bool,
    known: impl Fn(&[T]) -> bool,
) -> Option<(T, Option<DateTime<Utc>>)> {
    let (start, given_end) = new;
    // Nothing is lost where the earlier price that comes back is this one.
    let lost = |earlier: T, later: T| both(earlier, later) && !same(later);
    let end = end_of(standing, new, now, lost);
    let of_same = standing.clone().filter(|(there, _)| same(*there));
    let cut_since = |there: T, to: DateTime<Utc>| match given_end {
        Some(given) => {
            let since = standing.clone().filter(|(_, (from, _))| to <= *from && *from < given);
            let others: Vec<T> = since.map(|(other, _)| other).collect();
            meet_up_to(standing, Some(to), given_end) && known(&others)
        }
        None => standing.clone().find(|(_, (from, _))| *from == to).is_some_and(|(next, _)| {
            let mut others: Vec<T> = come_back(standing, to, lost).collect();
            others.extend(with_end(there).then_some(next));
            known(&others)
        }),
    };
    of_same.clone().find_map(|(there, (from, to))| {
        let mut ends = [given_end, end].into_iter();
        let reached = ends.find(|end| covers(from, to, start) && meet_up_to(&of_same, to, *end));
        if let Some(end) = reached {
            return Some((there, end));
        }
        (from == start && to.is_some_and(|to| cut_since(there, to))).then_some((there, given_end.or(to)))
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

/// What to do about a new price that collides with the one of the interval `there`, the earliest that it overlaps. Where it
/// can only start just after another, `just_after` is added.
pub(super) fn advice<T>(
    standing: impl Iterator<Item = (T, Interval)> + Clone,
    there: Interval,
    (start, new_end): Interval,
    now: DateTime<Utc>,
    just_after: &str,
) -> String {
    let (from, to) = there;
    let until = to.map_or_else(|| "on".to_owned(), |end| format!("to {end}"));
    let room = match start.cmp(&from) {
        Ordering::Less => Some(from),
        Ordering::Equal => None,
        Ordering::Greater => to,
    };
    let next = match room {
        Some(end) => {
            let lasting =
                if new_end.is_none() { how_to_last(standing, end, now, just_after) } else { String::new() };
            format!("give this one a valid_to of {end} at the latest{lasting}")
        }
        None if now < from => "let this one start later, or withdraw that one first".to_owned(),
        None => "let this one start later".to_owned(),
    };
    format!("is valid from {from} {until}; a price takes the place of one that started earlier, so {next}")
}

/// How a price that has room up to `end` goes on after that: what is announced can be withdrawn, and what is in force can
/// only be followed, from just after its start.
fn how_to_last<T>(
    standing: impl Iterator<Item = (T, Interval)> + Clone,
    end: DateTime<Utc>,
    now: DateTime<Utc>,
    just_after: &str,
) -> String {
    let starts = standing.map(|(_, (from, _))| from);
    let withdraw = if now < end && starts.clone().any(|from| end <= from) {
        format!("withdraw what is announced from {end} on, and ")
    } else {
        String::new()
    };
    let taken = end <= now && starts.clone().any(|from| from == end);
    let (again, note) = if taken { (end + LEAST_STEP, just_after) } else { (end, "") };
    format!("; where it is to last, {withdraw}publish this from {again} on too{note}")
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

    /// Prices in order of their start: terms and validity.
    type Prices = Vec<(char, Interval)>;

    fn among(prices: &[(char, Interval)]) -> impl Iterator<Item = (usize, Interval)> + Clone {
        prices.iter().map(|(_, interval)| *interval).enumerate()
    }

    /// What stands after a publication at a time; or the interval that was refused, and why.
    fn publish(mut prices: Prices, terms: char, new: Interval, now: i64) -> Result<Prices, String> {
        let end = end_of(&among(&prices), new, at(now), |left, right| prices[left].0 == prices[right].0);
        let new = (new.0, end);
        match fit(among(&prices), new) {
            Fit::Collides(there) => return Err(advice(among(&prices), prices[there].1, new, at(now), "")),
            Fit::Free => {}
            Fit::Within(there) => {
                let (held, (_, to)) = prices[there];
                prices[there].1.1 = Some(new.0);
                prices.extend(end.filter(|_| end != to).map(|end| (held, (end, to))));
            }
        }
        prices.push((terms, new));
        prices.sort_by_key(|(_, (from, _))| *from);
        Ok(prices)
    }

    fn time(says: &str, before: &str, after: &str) -> DateTime<Utc> {
        let (_, rest) = says.split_once(before).unwrap();
        rest.split_once(after).unwrap().0.parse().unwrap()
    }

    /// What stands once a lasting price was published as each refusal says, and from when on it is valid for good.
    fn advised(mut prices: Prices, mut start: DateTime<Utc>, now: i64) -> Prices {
        for _ in 0..20 {
            let says = match publish(prices.clone(), 'x', (start, None), now) {
                Ok(prices) => return prices,
                Err(says) => says,
            };
            if !says.contains("valid_to of ") {
                let there = prices.iter().position(|(_, (from, _))| *from == start).unwrap();
                assert_eq!(says.contains("withdraw that one"), at(now) < start, "{says}");
                if at(now) < start {
                    prices.remove(there);
                } else {
                    start += LEAST_STEP;
                }
                continue;
            }
            let until = time(&says, "valid_to of ", " at the latest");
            prices = publish(prices, 'x', (start, Some(until)), now).unwrap();
            if says.contains("withdraw what is announced") {
                let from = time(&says, "announced from ", " on, and");
                assert!(at(now) < from, "nothing in force is withdrawn: {says}");
                prices.retain(|(_, (there, _))| *there < from);
            }
            start = time(&says, "publish this from ", " on too");
        }
        panic!("no end of it: {prices:?}")
    }

    #[test]
    fn following_the_advice_makes_a_place() {
        let apart =
            vec![('a', interval(0, Some(10))), ('b', interval(10, Some(20))), ('c', interval(30, None))];
        let mut promotion = apart.clone();
        promotion[2] = ('a', interval(20, None));
        let ended = promotion[..2].to_vec();
        for (prices, start, now) in [apart, promotion, ended]
            .into_iter()
            .flat_map(|all| (0..35).map(move |day| (all.clone(), day)))
            .flat_map(|(all, start)| [-5, 5, 10, 15, 25, 40].map(|now| (all.clone(), start, now)))
        {
            for end in (start + 1..40).map(Some) {
                let Err(says) = publish(prices.clone(), 'x', interval(start, end), now) else { continue };
                if says.contains("valid_to of ") {
                    let until = time(&says, "valid_to of ", " at the latest");
                    publish(prices.clone(), 'x', (at(start), Some(until)), now).unwrap();
                    assert!(!says.contains("to last"), "it has an end: {says}");
                } else {
                    assert!(prices.iter().any(|(_, (from, _))| *from == at(start)), "{says}");
                }
            }
            let stands = advised(prices.clone(), at(start), now);
            let (_, (begun, until)) = stands.iter().rfind(|(terms, _)| *terms == 'x').unwrap();
            assert!(until.is_none_or(|until| at(now) < until), "only what is announced ends it: {stands:?}");
            for (terms, (from, to)) in
                stands.iter().filter(|(_, (from, _))| at(start) <= *from && from < begun)
            {
                let sliver = to.is_some_and(|to| to - *from == LEAST_STEP);
                assert!(*terms == 'x' || sliver, "{stands:?}");
            }
        }
    }

    #[test]
    fn an_open_price_ends_where_the_place_that_it_takes_ends() {
        let prices =
            vec![('a', interval(0, Some(10))), ('b', interval(10, Some(20))), ('c', interval(30, None))];
        let end = |start, end, now| {
            end_of(&among(&prices), interval(start, end), at(now), |left, right| {
                prices[left].0 == prices[right].0
            })
        };
        assert_eq!(end(5, None, 9), Some(at(10)), "the next one is announced");
        assert_eq!(end(5, None, 10), None, "the next one is in force");
        assert_eq!(end(5, Some(7), 40), Some(at(7)));
        for start in [-5, 0, 10, 12, 20, 30, 35] {
            assert_eq!(end(start, None, -9), None, "from {start}");
        }
    }

    #[test]
    fn an_open_price_does_not_end_where_an_old_one_comes_back_later() {
        for last in ['a', 'b', 'c'] {
            let prices =
                vec![('a', interval(0, Some(10))), ('b', interval(10, Some(20))), (last, interval(20, None))];
            let end = end_of(&among(&prices), interval(5, None), at(5), |left, right| {
                prices[left].0 == prices[right].0
            });
            assert_eq!(end.is_some(), last == 'c', "{last}");
        }
    }
}
