//! From sums to invoice lines. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::ids::PriceId;
use crate::domain::invoice::{Invoice, InvoiceLine, LineKind, PriceTerms};
use crate::domain::money::{Amount, Currency, MinorAmount, MoneyError, Rate};
use crate::domain::period::Period;
use crate::domain::settlement::SettledLine;
use crate::domain::tokens::TokenClass;
use crate::rating::settlement::SettlementError;
use crate::store::invoices::Tally;
use crate::store::settlement::RerateReason;

/// What the documents of a period are made from.
#[derive(Debug, Clone, Default)]
pub struct Basis {
    /// The sums booked to it.
    pub tallies: Vec<Tally>,
    /// The prices that they are stamped with.
    pub terms: BTreeMap<PriceId, PriceTerms>,
    /// Why recorded usage was re-rated.
    pub reasons: Vec<RerateReason>,
    /// What tiers, packages, tasks and included usage come to.
    pub settled: Vec<SettledLine>,
}

/// What makes up one invoice: the lines of one currency and their totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The currency of every amount in it.
    pub currency: Currency,
    /// Usage first, then late usage by service period, then adjustments; by provider, model, class and rate in each. Then
    /// what prices over the period make of it: tiers, packages, tasks, included usage.
    pub lines: Vec<InvoiceLine>,
    /// Sum of the exact lines.
    pub exact_total: Amount,
    /// Sum of the rounded lines.
    pub total: MinorAmount,
    /// Usage events behind the lines.
    pub events: i64,
    /// The sell prices behind the lines.
    pub prices: Vec<PriceId>,
}

impl From<Invoice> for Document {
    fn from(invoice: Invoice) -> Self {
        let Invoice { currency, lines, exact_total, total, manifest, .. } = invoice;
        let prices = manifest["prices"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            currency,
            lines,
            exact_total,
            total,
            events: manifest["events"].as_i64().unwrap_or_default(),
            prices: prices.iter().filter_map(serde_json::Value::as_i64).map(PriceId).collect(),
        }
    }
}

/// Why there are no lines that could be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinesError {
    /// A price that usage is stamped with cannot be read.
    #[error("price {0} is stamped on usage and not in any price book")]
    UnknownPrice(PriceId),
    /// A quantity without a rate: it could not have been charged.
    #[error("price {price} has no rate for {class}, and usage of {quantity} is booked on it")]
    NoRate {
        /// The price.
        price: PriceId,
        /// The class.
        class: TokenClass,
        /// Units booked.
        quantity: i64,
    },
    /// Quantity times rate is not what posting summed up.
    #[error(
        "usage on price {price} was charged {charged}, its quantities times its rates are {computed}; run `waybill verify`"
    )]
    Disagrees {
        /// The price.
        price: PriceId,
        /// Sum of the charges of the events.
        charged: Amount,
        /// Sum of quantity times rate.
        computed: Amount,
    },
    /// What prices over the period come to cannot be computed.
    #[error(transparent)]
    Settlement(#[from] SettlementError),
    /// An amount too large to hold.
    #[error("the amounts are too large to add up")]
    Overflow,
    /// A line too large for its currency's minor unit.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

impl LinesError {
    /// Whether the usage adds up to more than can be stated, rather than to something else than it was charged.
    pub const fn too_large(&self) -> bool {
        matches!(
            self,
            Self::Overflow
                | Self::Money(_)
                | Self::Settlement(SettlementError::Overflow | SettlementError::Money(_))
        )
    }
}

/// What is one line: everything that is the same lands on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LineKey {
    currency: Currency,
    kind: LineKind,
    service: Period,
    provider: String,
    model: String,
    class: TokenClass,
    rate: Rate,
}

/// The documents of a period, one per currency, in the order of the currency's code; none where nothing is billed.
///
/// A class whose quantities come to zero gives no line; a class that costs nothing gives one, so that the quantities on
/// the invoice are all quantities used.
///
/// # Errors
/// [`LinesError`]: rather no invoice than one that disagrees with the ledger.
pub fn documents(booked: Period, basis: &Basis) -> Result<Vec<Document>, LinesError> {
    let mut listed: BTreeMap<LineKey, (i64, BTreeSet<String>)> = BTreeMap::new();
    let mut sources: BTreeMap<Currency, (i64, Vec<PriceId>)> = BTreeMap::new();
    for tally in &basis.tallies {
        let terms = basis.terms.get(&tally.price).ok_or(LinesError::UnknownPrice(tally.price))?;
        check(tally, terms)?;
        let source = sources.entry(terms.currency).or_default();
        source.0 = source.0.checked_add(tally.events).ok_or(LinesError::Overflow)?;
        source.1.push(tally.price);
        for (class, quantity) in tally.quantities.non_zero() {
            let rate = rate(tally, terms, class)?;
            let key = LineKey {
                currency: terms.currency,
                kind: kind(booked, tally),
                service: tally.service,
                provider: terms.provider.clone(),
                model: terms.model.clone(),
                class,
                rate,
            };
            let (sum, notes) = listed.entry(key).or_default();
            *sum = sum.checked_add(quantity).ok_or(LinesError::Overflow)?;
            if tally.adjustment {
                notes.extend(reasons(basis, tally));
            }
        }
    }
    let mut lines: BTreeMap<Currency, Vec<InvoiceLine>> = BTreeMap::new();
    for (key, (quantity, notes)) in listed.into_iter().filter(|(_, (quantity, _))| *quantity != 0) {
        lines.entry(key.currency).or_default().push(line(key, quantity, notes)?);
    }
    let mut settled = basis.settled.clone();
    settled.sort_by_key(|line| line.kind);
    for line in settled {
        lines.entry(line.currency).or_default().push(settled_line(line)?);
    }
    lines
        .into_iter()
        .map(|(currency, lines)| {
            let (events, mut prices) = sources.remove(&currency).unwrap_or_default();
            prices.sort_unstable();
            prices.dedup();
            document(currency, lines, events, prices)
        })
        .collect()
}

fn document(
    currency: Currency,
    lines: Vec<InvoiceLine>,
    events: i64,
    prices: Vec<PriceId>,
) -> Result<Document, LinesError> {
    let exact_total = Amount::checked_sum(lines.iter().map(|line| line.exact)).ok_or(LinesError::Overflow)?;
    let total = lines
        .iter()
        .try_fold(MinorAmount::new(0, currency), |sum, line| sum.checked_add(line.amount))
        .ok_or(LinesError::Overflow)?;
    Ok(Document { currency, lines, exact_total, total, events, prices })
}

/// Why the usage of a tally was re-rated, in words.
fn reasons<'a>(basis: &'a Basis, tally: &'a Tally) -> impl Iterator<Item = String> + 'a {
    let of_tally =
        |reason: &&RerateReason| reason.service_period == tally.service.start && reason.price == tally.price;
    basis.reasons.iter().filter(of_tally).map(|RerateReason { booked_on, reason, .. }| match reason {
        Some(reason) => format!("re-rate {booked_on}: {reason}"),
        None => format!("re-rate {booked_on}"),
    })
}

/// Makes sure that quantity times rate gives what the events were charged, to the last digit.
fn check(tally: &Tally, terms: &PriceTerms) -> Result<(), LinesError> {
    let mut computed = Amount::ZERO;
    for (class, quantity) in tally.quantities.non_zero() {
        let amount = rate(tally, terms, class)?.times(quantity).ok_or(LinesError::Overflow)?;
        computed = computed.checked_add(amount).ok_or(LinesError::Overflow)?;
    }
    if computed == tally.charge {
        Ok(())
    } else {
        Err(LinesError::Disagrees { price: tally.price, charged: tally.charge, computed })
    }
}

fn rate(tally: &Tally, terms: &PriceTerms, class: TokenClass) -> Result<Rate, LinesError> {
    let quantity = tally.quantities.get(class);
    terms.rates[class.index()].ok_or(LinesError::NoRate { price: tally.price, class, quantity })
}

fn kind(booked: Period, tally: &Tally) -> LineKind {
    if tally.adjustment {
        LineKind::Adjustment
    } else if tally.service.start == booked.start {
        LineKind::Usage
    } else {
        LineKind::LateUsage
    }
}

fn line(key: LineKey, quantity: i64, notes: BTreeSet<String>) -> Result<InvoiceLine, LinesError> {
    let exact = key.rate.times(quantity).ok_or(LinesError::Overflow)?;
    let note = notes.into_iter().collect::<Vec<_>>().join("; ");
    Ok(InvoiceLine {
        kind: key.kind,
        service: key.service,
        provider: Some(key.provider),
        model: Some(key.model),
        class: Some(key.class),
        quantity,
        rate: key.rate.per_unit(),
        exact,
        amount: exact.round_to_minor(key.currency)?,
        note: Some(note).filter(|note| !note.is_empty()),
        period_price: None,
    })
}

fn settled_line(line: SettledLine) -> Result<InvoiceLine, LinesError> {
    let exact = line.rate.times(line.quantity).ok_or(LinesError::Overflow)?;
    Ok(InvoiceLine {
        kind: line.kind,
        service: line.service,
        provider: line.provider,
        model: line.model,
        class: line.class,
        quantity: line.quantity,
        rate: line.rate,
        exact,
        amount: exact.round_to_minor(line.currency)?,
        note: Some(line.note),
        period_price: Some(line.price),
    })
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Utc};
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::BookId;
    use crate::domain::tokens::{CLASS_COUNT, Quantities};

    /// The documents of plain usage.
    fn documents(
        booked: Period,
        tallies: &[Tally],
        prices: &BTreeMap<PriceId, PriceTerms>,
    ) -> Result<Vec<Document>, LinesError> {
        let basis = Basis { tallies: tallies.to_vec(), terms: prices.clone(), ..Basis::default() };
        super::documents(booked, &basis)
    }

    fn month(month: u32) -> Period {
        let at = |month| Utc.with_ymd_and_hms(2026, month, 1, 0, 0, 0).unwrap();
        Period { start: at(month), end: at(month + 1) }
    }

    fn terms(model: &str, currency: &str, rates: &[(TokenClass, i128)]) -> PriceTerms {
        let mut resolved = [None; CLASS_COUNT];
        for (class, femtos) in rates {
            resolved[class.index()] = Some(Rate::from_femtos(*femtos).unwrap());
        }
        PriceTerms {
            book: BookId(1),
            provider: "openai".to_owned(),
            model: model.to_owned(),
            currency: currency.parse().unwrap(),
            rates: resolved,
        }
    }

    fn tally(price: i64, service: Period, terms: &PriceTerms, quantities: &[(TokenClass, i64)]) -> Tally {
        let mut raw = [0; CLASS_COUNT];
        let mut charge = Amount::ZERO;
        for (class, quantity) in quantities {
            raw[class.index()] += quantity;
            let amount = terms.rates[class.index()].unwrap().times(*quantity).unwrap();
            charge = charge.checked_add(amount).unwrap();
        }
        Tally {
            adjustment: false,
            service,
            price: PriceId(price),
            events: 1,
            quantities: Quantities::from_raw(raw),
            charge,
        }
    }

    use TokenClass::{Input, Output};

    #[test]
    fn a_line_per_class_rate_and_service_period_late_usage_apart() {
        let cheap = terms("gpt-5", "USD", &[(Input, 1_250_000_000), (Output, 10_000_000_000)]);
        let dear = terms("gpt-5", "USD", &[(Input, 1_250_000_000), (Output, 20_000_000_000)]);
        let tallies = [
            tally(2, month(10), &dear, &[(Input, 4_000_000), (Output, 1_000)]),
            tally(1, month(10), &cheap, &[(Input, 4_000_000), (Output, 1_000)]),
            tally(1, month(9), &cheap, &[(Input, 3)]),
        ];
        let prices = BTreeMap::from([(PriceId(1), cheap), (PriceId(2), dear)]);
        let documents = documents(month(10), &tallies, &prices).unwrap();
        let [document] = documents.as_slice() else { panic!("one currency, one document") };
        let shown: Vec<String> = document
            .lines
            .iter()
            .map(|line| {
                format!(
                    "{} {} {} {} {} {}",
                    line.kind,
                    line.class.unwrap(),
                    line.quantity,
                    line.rate,
                    line.exact,
                    line.amount
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                // Two prices with the same rate share a line: it is rounded once.
                "usage input 8000000 0.00000125 10 10.00",
                "usage output 1000 0.00001 0.01 0.01",
                "usage output 1000 0.00002 0.02 0.02",
                "late_usage input 3 0.00000125 0.00000375 0.00",
            ]
        );
        assert_eq!(document.exact_total.to_string(), "10.03000375");
        assert_eq!(document.total.to_string(), "10.03");
        assert_eq!((document.events, document.prices.as_slice()), (3, [PriceId(1), PriceId(2)].as_slice()));
    }

    #[test]
    fn halves_round_away_from_zero_in_every_currency() {
        for (currency, femtos, quantity, rounded) in [
            ("USD", 5_000_000_000_000, 1, "0.01"),
            ("USD", 5_000_000_000_000, -1, "-0.01"),
            ("USD", 4_999_999_999_999, 1, "0.00"),
            ("JPY", 500_000_000_000_000, 1, "1"),
            ("JPY", 500_000_000_000_000, -3, "-2"),
            ("KWD", 500_000_000_000, 1, "0.001"),
        ] {
            let terms = terms("m", currency, &[(Input, femtos)]);
            let tallies = [tally(1, month(10), &terms, &[(Input, quantity)])];
            let documents = documents(month(10), &tallies, &BTreeMap::from([(PriceId(1), terms)])).unwrap();
            assert_eq!(documents[0].total.to_string(), rounded, "{quantity} x {femtos} {currency}");
        }
    }

    #[test]
    fn nothing_used_is_no_document_and_free_usage_is_a_line() {
        let free = terms("m", "USD", &[(Input, 0)]);
        let prices = BTreeMap::from([(PriceId(1), free.clone())]);
        let voided = tally(1, month(10), &free, &[(Input, 5), (Input, -5)]);
        assert_eq!(documents(month(10), &[voided], &prices).unwrap(), []);
        let used = tally(1, month(10), &free, &[(Input, 5)]);
        assert_eq!(documents(month(10), &[used], &prices).unwrap()[0].lines.len(), 1);
    }

    #[test]
    fn currencies_are_never_added() {
        let (dollars, euros) = (terms("m", "USD", &[(Input, 1)]), terms("m", "EUR", &[(Input, 1)]));
        let tallies =
            [tally(1, month(10), &dollars, &[(Input, 1)]), tally(2, month(10), &euros, &[(Input, 2)])];
        let prices = BTreeMap::from([(PriceId(1), dollars), (PriceId(2), euros)]);
        let documents = documents(month(10), &tallies, &prices).unwrap();
        let exact: Vec<(&str, i128)> = documents
            .iter()
            .map(|document| (document.currency.as_str(), document.exact_total.femtos()))
            .collect();
        assert_eq!(exact, [("EUR", 2), ("USD", 1)]);
    }

    #[test]
    fn sums_that_disagree_give_no_invoice() {
        let terms = terms("m", "USD", &[(Input, 7)]);
        let prices = BTreeMap::from([(PriceId(1), terms.clone())]);
        let good = tally(1, month(10), &terms, &[(Input, 3)]);
        let off = Tally { charge: Amount::from_femtos(22), ..good.clone() };
        assert_eq!(
            documents(month(10), &[off], &prices),
            Err(LinesError::Disagrees {
                price: PriceId(1),
                charged: Amount::from_femtos(22),
                computed: Amount::from_femtos(21)
            })
        );
        let mut raw = [0; CLASS_COUNT];
        raw[Output.index()] = 1;
        let unrated = Tally { quantities: Quantities::from_raw(raw), ..good.clone() };
        assert_eq!(
            documents(month(10), &[unrated], &prices),
            Err(LinesError::NoRate { price: PriceId(1), class: Output, quantity: 1 })
        );
        let unknown = Tally { price: PriceId(9), ..good };
        assert_eq!(documents(month(10), &[unknown], &prices), Err(LinesError::UnknownPrice(PriceId(9))));
    }

    /// Sums over a handful of prices, classes and service periods.
    fn any_tallies() -> impl Strategy<Value = (Vec<Tally>, BTreeMap<PriceId, PriceTerms>)> {
        let rates = proptest::collection::vec((0_i128..30_000_000_000_000, 0_i128..30_000_000_000_000), 1..5);
        let usage = proptest::collection::vec(
            (0_usize..5, 8_u32..11, -1_000_i64..1_000_000, 0_i64..1_000_000),
            0..40,
        );
        (rates, usage).prop_map(|(rates, usage)| {
            let prices: BTreeMap<PriceId, PriceTerms> = (1..)
                .zip(rates)
                .map(|(id, (input, output))| {
                    let currency = if id % 2 == 0 { "EUR" } else { "USD" };
                    (PriceId(id), terms("m", currency, &[(Input, input), (Output, output)]))
                })
                .collect();
            let tallies = usage
                .into_iter()
                .map(|(price, service, input, output)| {
                    let (id, terms) = prices.iter().nth(price % prices.len()).unwrap();
                    tally(id.0, month(service), terms, &[(Input, input), (Output, output)])
                })
                .collect();
            (tallies, prices)
        })
    }

    proptest! {
        #[test]
        fn lines_conserve_every_charge_and_quantity((tallies, prices) in any_tallies()) {
            let documents = documents(month(10), &tallies, &prices).unwrap();
            let charged = Amount::checked_sum(tallies.iter().map(|tally| tally.charge)).unwrap();
            let lines = || documents.iter().flat_map(|document| &document.lines);
            prop_assert_eq!(Amount::checked_sum(lines().map(|line| line.exact)).unwrap(), charged);
            let used: i64 = tallies.iter().flat_map(|tally| tally.quantities.raw()).sum();
            prop_assert_eq!(lines().map(|line| line.quantity).sum::<i64>(), used);
            for document in &documents {
                let minor: i64 = document.lines.iter().map(|line| line.amount.minor()).sum();
                prop_assert_eq!(document.total.minor(), minor);
                for line in &document.lines {
                    // Half a cent at most, in 10^-15.
                    let off = line.exact.femtos() - i128::from(line.amount.minor()) * 10_000_000_000_000;
                    prop_assert!(off.abs() <= 5_000_000_000_000);
                }
            }
        }

        #[test]
        fn order_and_grouping_of_the_sums_change_nothing(
            (tallies, prices) in any_tallies(),
            (seed, cut) in (any::<u64>(), 0_i64..1000),
        ) {
            let straight = documents(month(10), &tallies, &prices).unwrap();
            let mut shuffled = tallies;
            if !shuffled.is_empty() {
                let by = usize::try_from(seed % 97).unwrap() % shuffled.len();
                shuffled.rotate_left(by);
                shuffled.reverse();
                // One sum arrives as two.
                let whole = shuffled.remove(0);
                let terms = &prices[&whole.price];
                let (input, output) = (whole.quantities.get(Input), whole.quantities.get(Output));
                shuffled.push(tally(whole.price.0, whole.service, terms, &[(Input, cut), (Output, cut)]));
                let mut rest = tally(whole.price.0, whole.service, terms, &[(Input, input - cut), (Output, output - cut)]);
                rest.events = 0;
                shuffled.push(rest);
            }
            prop_assert_eq!(documents(month(10), &shuffled, &prices).unwrap(), straight);
        }
    }
}
