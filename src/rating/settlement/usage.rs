//! Tiers and packages of a billing period's usage. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::SettlementError;
use crate::domain::ids::{BookId, PriceId};
use crate::domain::invoice::{LineKind, PriceTerms};
use crate::domain::money::Rate;
use crate::domain::period::Period;
use crate::domain::price::period_price::{PeriodPrice, Scheme, TaskUsage, Tier, TierRate, Tiers};
use crate::domain::settlement::{HourOfUsage, PayingBooks, SettledLine};
use crate::domain::tokens::TokenClass;

/// Units that rates of token classes are shown for, where the price names no number.
const TOKENS_SHOWN_PER: i64 = 1_000_000;

/// What is on one usage line, as far as a settlement distinguishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Listed<'a> {
    provider: &'a str,
    model: &'a str,
    class: TokenClass,
    rate: Rate,
    service: Period,
}

/// Units of one hour; their order is the order in which they are counted.
type Counted<'a> = BTreeMap<(DateTime<Utc>, Listed<'a>), i64>;

/// What was counted under one name, by the start and the position of each price that had it.
type Parts<'a> = BTreeMap<(DateTime<Utc>, usize), Counted<'a>>;

/// The lines that period prices add to what is booked to a period, in the order of an invoice.
///
/// # Errors
/// [`SettlementError`]: rather no invoice than one that is wrong.
pub fn settle_usage(
    booked: Period,
    hours: &[HourOfUsage],
    terms: &BTreeMap<PriceId, PriceTerms>,
    prices: &[PeriodPrice],
    books: &[PayingBooks],
) -> Result<Vec<SettledLine>, SettlementError> {
    let mut included: BTreeMap<usize, BTreeMap<Listed<'_>, i64>> = BTreeMap::new();
    // By name, because prices that take each other's place share their count; in each by price, in order of time.
    let mut counts: BTreeMap<(BookId, &str), Parts<'_>> = BTreeMap::new();
    for hour in hours {
        let terms = terms.get(&hour.price).ok_or(SettlementError::UnknownPrice(hour.price))?;
        let paying = PayingBooks::at(books, hour.hour);
        let own = paying.and_then(|books| books.override_book);
        let sell = paying.map(|books| books.sell_book);
        // By the rules of publication no second price of a book fits.
        let first = |books: &[Option<BookId>], fits: &dyn Fn(&PeriodPrice) -> bool| {
            books.iter().flatten().find_map(|book| {
                prices
                    .iter()
                    .position(|price| price.book.id == *book && price.valid_at(hour.hour) && fits(price))
            })
        };
        let in_task = first(&[own, sell, Some(terms.book)], &|price| stands_for(price, &hour.task_type));
        for (class, quantity) in hour.quantities.non_zero() {
            let rate =
                terms.rates[class.index()].ok_or(SettlementError::NoRate { price: hour.price, class })?;
            let (provider, model) = (terms.provider.as_str(), terms.model.as_str());
            let listed = Listed { provider, model, class, rate, service: hour.service };
            let counts_it = |price: &PeriodPrice| {
                price.draft.scheme.scope().is_some_and(|scope| scope.holds(provider, model, class))
            };
            let units = if let Some(at) = in_task {
                check_currency(hour.price, terms, &prices[at])?;
                included.entry(at).or_default().entry(listed).or_default()
            } else if let Some(at) = first(&[own, Some(terms.book)], &counts_it) {
                check_currency(hour.price, terms, &prices[at])?;
                let part = (prices[at].draft.valid_from, at);
                let units = counts.entry(prices[at].key()).or_default().entry(part).or_default();
                units.entry((hour.hour, listed)).or_default()
            } else {
                continue;
            };
            *units = units.checked_add(quantity).ok_or(SettlementError::Overflow)?;
        }
    }
    let mut lines = Vec::new();
    for parts in counts.values() {
        settle_count(booked, prices, parts, &mut lines)?;
    }
    for (at, units) in included {
        let price = &prices[at];
        let note = format!("{}: in the price of the tasks", price.draft.name);
        lines.extend(taken_back(price, units, &note)?);
    }
    // Equal ones keep the order in which they were counted.
    lines.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok(lines)
}

fn order(line: &SettledLine) -> impl Ord + '_ {
    let names = (line.provider.as_deref(), line.model.as_deref(), line.class);
    (line.kind, line.service, names, line.price)
}

/// Lines of a period price are in its currency, and what they change is in that of the usage.
fn check_currency(
    price: PriceId,
    terms: &PriceTerms,
    period_price: &PeriodPrice,
) -> Result<(), SettlementError> {
    let (usage, changed) = (terms.currency, period_price.book.currency);
    let period_price = period_price.id;
    if usage == changed {
        Ok(())
    } else {
        Err(SettlementError::Currency { price, usage, period_price, changed })
    }
}

/// Whether the price of a task stands for usage of this task type.
fn stands_for(price: &PeriodPrice, task_type: &str) -> bool {
    matches!(&price.draft.scheme,
        Scheme::Task { task_type: own, usage: TaskUsage::Included, .. } if own == task_type)
}

/// Settles everything counted under one name, from unit 1 of the period on.
fn settle_count<'a>(
    booked: Period,
    prices: &[PeriodPrice],
    parts: &Parts<'a>,
    lines: &mut Vec<SettledLine>,
) -> Result<(), SettlementError> {
    let total = sum(parts.values().flat_map(BTreeMap::values))?;
    let mut position = 0_i64;
    for ((_, at), units) in parts {
        let price = &prices[*at];
        let end = position.checked_add(sum(units.values())?).ok_or(SettlementError::Overflow)?;
        match &price.draft.scheme {
            Scheme::Graduated(tiers) => {
                let pieces = graduated(tiers, position, units)?;
                lines.extend(tier_lines(price, tiers, pieces, total)?);
            }
            Scheme::Volume(tiers) => {
                let tier = tier_of(&tiers.tiers, total);
                let mut pieces: BTreeMap<(usize, Listed<'a>), i64> = BTreeMap::new();
                for ((_, listed), quantity) in units {
                    add(&mut pieces, (tier, *listed), *quantity)?;
                }
                lines.extend(tier_lines(price, tiers, pieces, total)?);
            }
            Scheme::Package { size, amount, .. } => {
                let started = |units| packages(units, *size).ok_or(SettlementError::Overflow);
                let sold = started(end)?.checked_sub(started(position)?).ok_or(SettlementError::Overflow)?;
                lines.extend(package_line(booked, price, sold, end - position, *amount, *size));
                let mut listed: BTreeMap<Listed<'a>, i64> = BTreeMap::new();
                for ((_, key), quantity) in units {
                    add(&mut listed, *key, *quantity)?;
                }
                lines.extend(taken_back(price, listed, &format!("{}: in the packages", price.draft.name))?);
            }
            Scheme::Task { .. } => {}
        }
        position = end;
    }
    Ok(())
}

fn sum<'a>(mut quantities: impl Iterator<Item = &'a i64>) -> Result<i64, SettlementError> {
    quantities.try_fold(0_i64, |sum, quantity| sum.checked_add(*quantity)).ok_or(SettlementError::Overflow)
}

fn add<K: Ord>(sums: &mut BTreeMap<K, i64>, key: K, quantity: i64) -> Result<(), SettlementError> {
    let sum = sums.entry(key).or_default();
    *sum = sum.checked_add(quantity).ok_or(SettlementError::Overflow)?;
    Ok(())
}

/// The tier that holds a period's last unit.
fn tier_of(tiers: &[Tier], last: i64) -> usize {
    tiers.iter().position(|tier| tier.up_to.is_none_or(|up_to| last <= up_to)).unwrap_or_default()
}

/// Packages that so many units begin; units that are given back give back whole packages only.
fn packages(units: i64, size: i64) -> Option<i64> {
    units.checked_neg()?.checked_div_euclid(size)?.checked_neg()
}

/// The units of a part by the tier they fall in, counted from `position` on; negative ones count back.
fn graduated<'a>(
    tiers: &Tiers,
    mut position: i64,
    units: &Counted<'a>,
) -> Result<BTreeMap<(usize, Listed<'a>), i64>, SettlementError> {
    let mut pieces = BTreeMap::new();
    for ((_, listed), quantity) in units {
        let end = position.checked_add(*quantity).ok_or(SettlementError::Overflow)?;
        let (low, high) = (position.min(end), position.max(end));
        let mut lower = i64::MIN;
        for (at, tier) in tiers.tiers.iter().enumerate() {
            let upper = tier.up_to.unwrap_or(i64::MAX);
            let (from, to) = (low.max(lower), high.min(upper));
            if from < to {
                add(&mut pieces, (at, *listed), (to - from) * quantity.signum())?;
            }
            lower = upper;
        }
        position = end;
    }
    Ok(pieces)
}

/// What the tiers change, a line per tier and usage line; none where it is nothing.
fn tier_lines(
    price: &PeriodPrice,
    tiers: &Tiers,
    pieces: BTreeMap<(usize, Listed<'_>), i64>,
    total: i64,
) -> Result<Vec<SettledLine>, SettlementError> {
    let mut lines = Vec::new();
    for ((at, listed), quantity) in pieces {
        let tier = tiers.tiers[at];
        let rate = match tier.rate {
            TierRate::Absolute(rate) => rate,
            TierRate::Factor(factor) => listed.rate.marked_up(factor)?.0,
        };
        let difference =
            rate.per_unit().checked_sub(listed.rate.per_unit()).ok_or(SettlementError::Overflow)?;
        if quantity == 0 || difference.femtos() == 0 {
            continue;
        }
        let per = tiers.per.unwrap_or(if listed.class.is_fee() { 1 } else { TOKENS_SHOWN_PER });
        let shown = |rate: Rate| rate.times(per).ok_or(SettlementError::Overflow);
        let above = at.checked_sub(1).and_then(|before| tiers.tiers[before].up_to).unwrap_or_default();
        let counted = match price.draft.scheme {
            Scheme::Volume(_) => format!("{quantity} of {total} in all, above {above},"),
            _ => format!("{quantity} above {above}"),
        };
        let note = format!(
            "{}: {}: {counted} at {} instead of {} per {per}",
            price.draft.name,
            price.draft.scheme.kind(),
            shown(rate)?,
            shown(listed.rate)?,
        );
        lines.push(SettledLine {
            currency: price.book.currency,
            kind: LineKind::Tier,
            service: listed.service,
            provider: Some(listed.provider.to_owned()),
            model: Some(listed.model.to_owned()),
            class: Some(listed.class),
            quantity,
            rate: difference,
            note,
            price: price.id,
        });
    }
    Ok(lines)
}

fn package_line(
    booked: Period,
    price: &PeriodPrice,
    sold: i64,
    used: i64,
    amount: Rate,
    size: i64,
) -> Option<SettledLine> {
    let scope = price.draft.scheme.scope()?;
    let noun = if sold == 1 { "package" } else { "packages" };
    let amount = amount.per_unit();
    (sold != 0).then(|| SettledLine {
        currency: price.book.currency,
        kind: LineKind::Package,
        service: booked,
        provider: scope.provider.clone(),
        model: scope.only_model().map(str::to_owned),
        class: scope.only_class(),
        quantity: sold,
        rate: amount,
        note: format!("{}: {sold} {noun} of {size} at {amount}, used {used}", price.draft.name),
        price: price.id,
    })
}

/// Usage that packages or tasks stand for, taken back at the rates it is listed at.
fn taken_back(
    price: &PeriodPrice,
    units: BTreeMap<Listed<'_>, i64>,
    note: &str,
) -> Result<Vec<SettledLine>, SettlementError> {
    let used = units.into_iter().filter(|(_, quantity)| *quantity != 0);
    used.map(|(listed, quantity)| {
        Ok(SettledLine {
            currency: price.book.currency,
            kind: LineKind::IncludedUsage,
            service: listed.service,
            provider: Some(listed.provider.to_owned()),
            model: Some(listed.model.to_owned()),
            class: Some(listed.class),
            quantity: quantity.checked_neg().ok_or(SettlementError::Overflow)?,
            rate: listed.rate.per_unit(),
            note: note.to_owned(),
            price: price.id,
        })
    })
    .collect()
}
