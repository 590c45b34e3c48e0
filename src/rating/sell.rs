//! What a customer is charged by: its sell book, and before that a book of its own.

use chrono::{DateTime, Utc};

use super::book::{PriceBook, Rated, Unpriced, amount};
use crate::domain::event::UsagePart;
use crate::domain::money::Currency;
use crate::domain::price::Price;

/// The sell book of a customer, and the override book that goes before it; both in one currency.
#[derive(Debug, Clone, Copy)]
pub struct SellBooks<'a> {
    /// The customer's own prices; where none of them applies to a call, the sell book's does.
    pub override_book: Option<&'a PriceBook>,
    /// The sell book.
    pub sell: &'a PriceBook,
}

impl<'a> From<&'a PriceBook> for SellBooks<'a> {
    fn from(sell: &'a PriceBook) -> Self {
        Self { override_book: None, sell }
    }
}

impl<'a> SellBooks<'a> {
    /// The currency of every charge.
    pub const fn currency(self) -> Currency {
        self.sell.info().currency
    }

    /// The exact charge of a usage part at its own time.
    ///
    /// # Errors
    /// [`Unpriced`]: the sell book's reason, or that of the override's price where one applies but lacks a rate; such a
    /// call is not charged by the sell book in its place.
    pub fn rate(self, part: &UsagePart, at: DateTime<Utc>) -> Result<Rated, Unpriced> {
        amount(self.choose(part, at)?, part)
    }

    /// The one price that applies to a usage part at a time.
    ///
    /// # Errors
    /// [`Unpriced`], except for what the quantities may still bring.
    pub fn choose(self, part: &UsagePart, at: DateTime<Utc>) -> Result<&'a Price, Unpriced> {
        match self.overriding(part, at) {
            Some(price) => Ok(price),
            None => self.sell.choose(part, at),
        }
    }

    /// The override's price that applies: of the model as the call names it, else by the name that the sell book's
    /// prices have for it.
    fn overriding(self, part: &UsagePart, at: DateTime<Utc>) -> Option<&'a Price> {
        let own = self.override_book?;
        own.find(&part.model, part, at).or_else(|| {
            let canonical = self.sell.canonical(part, at).filter(|name| *name != part.model)?;
            own.find(canonical, part, at)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::CallConditions;
    use crate::domain::ids::{BookId, PriceId};
    use crate::domain::money::Rate;
    use crate::domain::price::{BookInfo, BookKind, ModelAlias, PriceConditions};
    use crate::domain::tokens::{CLASS_COUNT, Quantities, TokenClass};

    const INPUT: i64 = 1000;

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + hour * 3600, 0).unwrap()
    }

    /// A price of `model` in hours: one rate for input, in 10^-15.
    fn price(id: i64, model: &str, rate: i128, hours: (i64, Option<i64>)) -> Price {
        let mut rates = [None; CLASS_COUNT];
        rates[TokenClass::Input.index()] = Some(Rate::from_femtos(rate).unwrap());
        Price {
            id: PriceId(id),
            book: BookId(1),
            provider: "p".into(),
            model: model.into(),
            conditions: PriceConditions::default(),
            rates,
            valid_from: at(hours.0),
            valid_to: hours.1.map(at),
            recorded_at: at(0),
            derived: false,
        }
    }

    fn book(name: &str, prices: Vec<Price>, aliases: &[(&str, &str)]) -> PriceBook {
        let info =
            BookInfo { id: BookId(1), name: name.to_owned(), kind: BookKind::Sell, currency: Currency::USD };
        let aliases = aliases.iter().map(|(alias, model)| ModelAlias {
            provider: "p".into(),
            alias: (*alias).to_owned(),
            model: (*model).to_owned(),
            valid_from: at(0),
            valid_to: None,
            inherited: false,
        });
        PriceBook::new(info, prices, aliases.collect()).unwrap()
    }

    fn part(model: &str) -> UsagePart {
        let mut quantities = Quantities::NONE;
        quantities.set(TokenClass::Input, INPUT).unwrap();
        UsagePart {
            provider: "p".into(),
            model: model.into(),
            conditions: CallConditions::default(),
            quantities,
            tier_input: INPUT,
            stated_cost: None,
        }
    }

    fn sell() -> PriceBook {
        let prices = vec![price(1, "m", 5, (0, None)), price(2, "n", 6, (0, None))];
        book("standard", prices, &[("m-dated", "m")])
    }

    fn taken(own: &PriceBook, model: &str, hour: i64) -> i64 {
        let sell = sell();
        let books = SellBooks { override_book: Some(own), sell: &sell };
        books.rate(&part(model), at(hour)).unwrap().price.0
    }

    #[test]
    fn a_price_of_the_override_goes_before_the_sell_book() {
        let own = book("own", vec![price(10, "m", 4, (1, Some(2)))], &[]);
        assert_eq!([0, 1, 2].map(|hour| taken(&own, "m", hour)), [1, 10, 1], "half-open, as prices are");
        assert_eq!(taken(&own, "n", 1), 2, "the override does not know it");
        assert_eq!(taken(&own, "m-dated", 1), 10, "the sell book knows what the name means");
    }

    #[test]
    fn the_override_knows_names_of_its_own() {
        let own = book("own", vec![price(10, "x", 4, (0, None))], &[("n", "x")]);
        assert_eq!(taken(&own, "n", 0), 10);
        assert_eq!(taken(&own, "m", 0), 1);
    }

    #[test]
    fn conditions_that_the_override_does_not_price_are_the_sell_books() {
        let long = PriceConditions { context_above: Some(INPUT), ..PriceConditions::default() };
        let own = book("own", vec![Price { conditions: long, ..price(10, "m", 4, (0, None)) }], &[]);
        assert_eq!(taken(&own, "m", 0), 1);
        let mut longer = part("m");
        longer.tier_input = INPUT + 1;
        let sell = sell();
        let books = SellBooks { override_book: Some(&own), sell: &sell };
        assert_eq!(books.rate(&longer, at(0)).unwrap().price, PriceId(10));
    }

    #[test]
    fn an_override_without_the_rate_is_unpriced_and_never_half() {
        let lacking = Price { rates: [None; CLASS_COUNT], ..price(10, "m", 4, (0, None)) };
        let (own, sell) = (book("own", vec![lacking], &[]), sell());
        let books = SellBooks { override_book: Some(&own), sell: &sell };
        let unpriced = books.rate(&part("m"), at(0)).unwrap_err();
        assert!(matches!(unpriced, Unpriced::NoRate { price: PriceId(10), .. }), "{unpriced}");
    }

    #[test]
    fn a_charge_allocates_nothing_whichever_book_gives_it() {
        let own = book("own", vec![price(10, "m", 4, (1, Some(2)))], &[]);
        let sell = sell();
        let books = SellBooks { override_book: Some(&own), sell: &sell };
        // Taken from the override by name and by the sell book's name for it; missed by date, and by name.
        for (model, hour) in [("m", 1), ("m-dated", 1), ("m", 0), ("m-dated", 0), ("n", 1)] {
            let part = part(model);
            let allocated = allocation_counter::measure(|| drop(books.rate(&part, at(hour))));
            assert_eq!(allocated.count_total, 0, "{model}");
            assert!(books.rate(&part, at(hour)).is_ok());
        }
    }

    #[test]
    fn what_neither_knows_is_the_sell_books_reason() {
        let (own, sell) = (book("own", Vec::new(), &[]), sell());
        let books = SellBooks { override_book: Some(&own), sell: &sell };
        let unpriced = books.rate(&part("z"), at(0)).unwrap_err();
        assert!(matches!(&unpriced, Unpriced::UnknownModel { book, .. } if book == "standard"), "{unpriced}");
    }

    proptest! {
        #[test]
        fn the_charge_is_the_overrides_where_it_has_one_and_the_sell_books_otherwise(
            spans in prop::collection::vec((0_i64..10, 1_i64..5), 0..3),
            hour in 0_i64..16,
            model in prop_oneof!["m", "m-dated", "n"],
        ) {
            // Those that fit beside each other: the database refuses the others.
            let mut own: Vec<Price> = Vec::new();
            for (id, (from, length)) in (10..).zip(spans) {
                let next = price(id, "m", 4, (from, Some(from + length)));
                let free = own.iter().all(|price| next.valid_to <= Some(price.valid_from) || price.valid_to <= Some(next.valid_from));
                if free {
                    own.push(next);
                }
            }
            let covering = own.iter().find(|price| price.valid_from <= at(hour) && Some(at(hour)) < price.valid_to);
            let expected = match covering {
                Some(price) if model != "n" => price.id.0,
                _ => if model == "n" { 2 } else { 1 },
            };
            prop_assert_eq!(taken(&book("own", own.clone(), &[]), &model, hour), expected);
        }
    }
}
