//! Rating recorded usage again: what it comes to now, where that differs from what stands.

use chrono::{DateTime, Utc};

use super::{PriceBook, Rated, SellBooks, Unpriced};
use crate::domain::event::UsagePart;
use crate::domain::money::Currency;
use crate::domain::price::{Stamp, Stamps};

/// What a usage part stands at from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restated {
    /// The prices and what they give.
    pub stamps: Stamps,
    /// Whether the part is counted as one request from now on, for a fee that no price had when it was recorded.
    pub own_request: bool,
}

/// What a usage part that stands at `standing` comes to in these books; `None` where no amount differs. A side whose
/// amount does not differ keeps its price: a price continued under another id is no reason to touch what is recorded.
/// Where the part becomes a request, both sides are by the prices of now, so that both are of the same quantities.
///
/// # Errors
/// [`Unpriced`] where one of the books has no price for it any more; then it stands as it is, on both sides.
pub fn rerate(
    part: &UsagePart,
    at: DateTime<Utc>,
    standing: Stamps,
    cost: &PriceBook,
    sell: SellBooks<'_>,
) -> Result<Option<Restated>, Unpriced> {
    let (costs, charges) = (cost.rate(part, at)?, sell.rate(part, at)?);
    let own_request = costs.own_request || charges.own_request;
    let cost = stamp(costs, cost.info().currency);
    let charge = stamp(charges, sell.currency());
    if same(cost, standing.cost) && same(charge, standing.charge) {
        return Ok(None);
    }
    let kept = |now, standing| if same(now, standing) && !own_request { standing } else { now };
    let stamps = Stamps { cost: kept(cost, standing.cost), charge: kept(charge, standing.charge) };
    Ok(Some(Restated { stamps, own_request }))
}

const fn stamp(rated: Rated, currency: Currency) -> Stamp {
    Stamp { price: rated.price, amount: rated.amount, currency }
}

fn same(now: Stamp, standing: Stamp) -> bool {
    (now.amount, now.currency) == (standing.amount, standing.currency)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::CallConditions;
    use crate::domain::ids::{BookId, PriceId};
    use crate::domain::money::{Amount, Rate};
    use crate::domain::price::{BookInfo, BookKind, Price, PriceConditions};
    use crate::domain::tokens::{CLASS_COUNT, Quantities, TokenClass};

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    /// A book with one price of `m`: rates for input and output, in 10^-15.
    fn book(id: i64, currency: Currency, model: &str, input: i128, output: i128) -> PriceBook {
        let mut rates = [None; CLASS_COUNT];
        rates[TokenClass::Input.index()] = Some(Rate::from_femtos(input).unwrap());
        rates[TokenClass::Output.index()] = Some(Rate::from_femtos(output).unwrap());
        let info = BookInfo { id: BookId(1), name: "book".to_owned(), kind: BookKind::Cost, currency };
        let price = Price {
            id: PriceId(id),
            book: BookId(1),
            provider: "p".into(),
            model: model.into(),
            conditions: PriceConditions::default(),
            rates,
            valid_from: DateTime::UNIX_EPOCH,
            valid_to: None,
            recorded_at: DateTime::UNIX_EPOCH,
            derived: false,
        };
        PriceBook::new(info, vec![price], Vec::new()).unwrap()
    }

    /// The same book with a fee per request.
    fn with_fee(book: &PriceBook, fee: i128) -> PriceBook {
        let mut price = book.valid("p", "m", at()).next().unwrap().clone();
        price.rates[TokenClass::Request.index()] = Some(Rate::from_femtos(fee).unwrap());
        PriceBook::new(book.info().clone(), vec![price], Vec::new()).unwrap()
    }

    fn part(input: i64, output: i64) -> UsagePart {
        let mut quantities = Quantities::NONE;
        quantities.set(TokenClass::Input, input).unwrap();
        quantities.set(TokenClass::Output, output).unwrap();
        UsagePart {
            provider: "p".into(),
            model: "m".into(),
            conditions: CallConditions::default(),
            quantities,
            tier_input: input,
            stated_cost: None,
        }
    }

    fn stamped(part: &UsagePart, book: &PriceBook) -> Stamp {
        let rated = book.rate(part, at()).unwrap();
        Stamp { price: rated.price, amount: rated.amount, currency: book.info().currency }
    }

    #[test]
    fn only_the_side_that_differs_gets_another_price() {
        let usage = part(1000, 10);
        let (cost, sell) = (book(1, Currency::USD, "m", 5, 7), book(2, Currency::USD, "m", 6, 8));
        let standing = Stamps { cost: stamped(&usage, &cost), charge: stamped(&usage, &sell) };
        let dearer = book(3, Currency::USD, "m", 50, 7);
        // The same rates under another id.
        let continued = book(4, Currency::USD, "m", 6, 8);
        let now =
            rerate(&usage, at(), standing, &dearer, SellBooks::from(&continued)).unwrap().unwrap().stamps;
        assert_eq!((now.cost.price, now.cost.amount), (PriceId(3), Amount::from_femtos(50_070)));
        assert_eq!(now.charge, standing.charge);
    }

    #[test]
    fn equal_figures_of_two_currencies_differ() {
        let usage = part(1000, 10);
        let dollars = book(1, Currency::USD, "m", 5, 7);
        let euros = book(2, "EUR".parse().unwrap(), "m", 5, 7);
        let standing = Stamps { cost: stamped(&usage, &dollars), charge: stamped(&usage, &dollars) };
        let now = rerate(&usage, at(), standing, &dollars, SellBooks::from(&euros)).unwrap().unwrap().stamps;
        assert_eq!((now.cost.price, now.charge.price), (PriceId(1), PriceId(2)));
    }

    #[test]
    fn a_fee_per_request_comes_and_goes_and_both_sides_are_of_the_same_quantities() {
        let usage = part(1000, 10);
        let (plain, sell) = (book(1, Currency::USD, "m", 5, 7), book(2, Currency::USD, "m", 6, 8));
        let standing = Stamps { cost: stamped(&usage, &plain), charge: stamped(&usage, &sell) };
        let with_fee = with_fee(&book(3, Currency::USD, "m", 5, 7), 900);
        let continued = book(4, Currency::USD, "m", 6, 8);
        let now = rerate(&usage, at(), standing, &with_fee, SellBooks::from(&continued)).unwrap().unwrap();
        assert_eq!((now.stamps.cost.price, now.stamps.cost.amount), (PriceId(3), Amount::from_femtos(5970)));
        assert_eq!((now.stamps.charge.price, now.stamps.charge.amount), (PriceId(4), standing.charge.amount));
        assert!(now.own_request);

        let counted = UsagePart { quantities: usage.quantities.with_own_request(), ..usage.clone() };
        let again = rerate(&counted, at(), now.stamps, &with_fee, SellBooks::from(&continued)).unwrap();
        assert_eq!(again, None);
        let back = rerate(&counted, at(), now.stamps, &plain, SellBooks::from(&continued)).unwrap().unwrap();
        assert_eq!(
            (back.stamps.cost, back.own_request),
            (standing.cost, false),
            "it does not become unpriced"
        );
    }

    #[test]
    fn what_a_book_no_longer_prices_is_an_error_and_never_zero() {
        let usage = part(1, 1);
        let known = book(1, Currency::USD, "m", 5, 7);
        let gone = book(2, Currency::USD, "other", 5, 7);
        let standing = Stamps { cost: stamped(&usage, &known), charge: stamped(&usage, &known) };
        assert!(rerate(&usage, at(), standing, &gone, SellBooks::from(&known)).is_err());
        assert!(rerate(&usage, at(), standing, &known, SellBooks::from(&gone)).is_err());
    }

    proptest! {
        #[test]
        fn the_result_is_what_the_books_say_and_a_second_time_nothing(
            (input, output) in (0_i64..1_000_000_000, 0_i64..1_000_000_000),
            old in (0_i128..1_000_000, 0_i128..1_000_000),
            new in (0_i128..1_000_000, 0_i128..1_000_000),
        ) {
            let usage = part(input, output);
            let before = book(1, Currency::USD, "m", old.0, old.1);
            let after = book(2, Currency::USD, "m", new.0, new.1);
            let standing = Stamps { cost: stamped(&usage, &before), charge: stamped(&usage, &after) };
            prop_assert_eq!(rerate(&usage, at(), standing, &before, SellBooks::from(&after)).unwrap(), None);
            let expected = stamped(&usage, &after);
            match rerate(&usage, at(), standing, &after, SellBooks::from(&after)).unwrap() {
                None => prop_assert_eq!(standing.cost.amount, expected.amount),
                Some(Restated { stamps: now, own_request }) => {
                    prop_assert!(!own_request);
                    prop_assert_eq!(now.cost, expected);
                    prop_assert_eq!(now.charge, standing.charge);
                    let difference = i128::from(input) * (new.0 - old.0) + i128::from(output) * (new.1 - old.1);
                    let stated = now.cost.amount.checked_sub(standing.cost.amount).unwrap();
                    prop_assert_eq!(stated.femtos(), difference);
                    prop_assert_eq!(rerate(&usage, at(), now, &after, SellBooks::from(&after)).unwrap(), None);
                }
            }
        }
    }
}
