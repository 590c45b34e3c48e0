//! Publishing, closing and deriving prices.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::books::{dependents, derived_prices, find_book};
use super::read::{PriceFilter, Selection, StoredPrice, get, is_priced, select};
use super::write::{Insertion, insert, reserve_ids, supersede, supersede_aliases};
use super::{PricesError, StoreError};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::Rate;
use crate::domain::price::dated_markup::successor;
use crate::domain::price::publication::{Known, Plan, Published, Slot, Standing, end_aliases, plan};
use crate::domain::price::quotation::{NewPrice, PriceDraft, PriceFault};
use crate::domain::price::succession::{Record, Told, told};
use crate::domain::price::{BookInfo, Interval, ModelAlias};
use crate::domain::tokens::TokenClass;
use crate::store::{audit, catalog};

/// What became of a publication; for a dry run the caller rolls back, and ids are of no use then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The book.
    pub book: BookInfo,
    /// One per price, in the order given.
    pub prices: Vec<PublishedPrice>,
    /// Standing prices that were continued by a copy with an earlier end, and the copy.
    pub continued: Vec<(PriceId, PriceId)>,
    /// How many aliases are new.
    pub aliases: usize,
    /// Aliases that end where the name gets another meaning.
    pub ended_aliases: Vec<ModelAlias>,
    /// How many prices of markup books were derived.
    pub derived: usize,
}

impl Publication {
    /// Whether anything was written.
    pub fn changed(&self) -> bool {
        self.aliases > 0 || self.prices.iter().any(|price| price.status != Status::Unchanged)
    }
}

/// Whether a published price is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No price of its key ends where it starts.
    Added,
    /// It follows a price of its key.
    Changed,
    /// The same terms stood already.
    Unchanged,
}

/// What became of one price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPrice {
    /// The price that stands for it now.
    pub id: PriceId,
    /// Added, changed or unchanged.
    pub status: Status,
    /// What was written; where it stood already what was given, with the validity of the price that stands for it.
    pub draft: PriceDraft,
    /// Old and new rates where it follows another price.
    pub changes: Vec<RateChange>,
}

/// The rate of a class before and from the new price's start on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateChange {
    /// The class.
    pub class: TokenClass,
    /// Per unit, before; `None` where there was no rate of its own.
    pub old: Option<Rate>,
    /// Per unit, from now on; `None` where there is none any more.
    pub new: Option<Rate>,
}

/// Publishes prices into a book: all of them or, where one is refused, none. What starts after `now` is announced.
///
/// # Errors
/// [`PricesError::Refused`] with every fault found, [`PricesError::UnknownBook`], or the database; the caller rolls back.
pub async fn publish(
    connection: &mut PgConnection,
    book: &str,
    new: &[NewPrice],
    now: DateTime<Utc>,
    actor: &str,
) -> Result<Publication, PricesError> {
    // Publications into one book happen one after the other, so each plans with what the last one left.
    sqlx::query!("SELECT id FROM price_books WHERE name = $1 FOR UPDATE", book)
        .fetch_optional(&mut *connection)
        .await?;
    let book =
        find_book(connection, book).await?.ok_or_else(|| PricesError::UnknownBook(book.to_owned()))?.info;
    let known = neighbours(connection, book.id, new).await?;
    let validity = |there: &Standing| (there.id, (there.draft.valid_from, there.draft.valid_to));
    let stood: HashMap<PriceId, Interval> = known.standing.iter().map(validity).collect();
    let plan = plan(known, new, now).map_err(PricesError::Refused)?;

    let ids = reserve_ids(connection, plan.rows.len()).await?;
    let superseded: Vec<(PriceId, Option<PriceId>)> =
        plan.superseded.iter().map(|(old, row)| (*old, ids.get(*row).copied())).collect();
    supersede(connection, &superseded).await?;
    let rows: Vec<Insertion> = plan
        .rows
        .iter()
        .zip(&ids)
        .map(|(draft, id)| Insertion { id: *id, book: book.id, draft: draft.clone(), derived_from: None })
        .collect();
    insert(connection, &rows).await?;
    supersede_aliases(connection, book.id, &plan.superseded_aliases, &plan.aliases).await?;
    let derived = derive(connection, book.id, &rows, &superseded).await?;
    // The links to successors are checked at the end otherwise, where nobody could say what was wrong.
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;

    let publication = Publication {
        prices: outcomes(&plan, &ids, new, &stood)?,
        continued: superseded.iter().filter_map(|(old, copy)| Some((*old, (*copy)?))).collect(),
        aliases: plan.aliases.len() - plan.superseded_aliases.len(),
        ended_aliases: plan.ended_aliases().cloned().collect(),
        derived,
        book,
    };
    if publication.changed() {
        catalog::bump(connection).await?;
        let name = publication.book.name.clone();
        audit::record(connection, actor, "prices.publish", &name, Some(summary(&publication))).await?;
    }
    Ok(publication)
}

/// Publishes those of the prices that can be published, and says why the others cannot: for lists that somebody else keeps.
///
/// # Errors
/// As [`publish`], but for [`PricesError::Refused`].
pub async fn publish_fitting(
    connection: &mut PgConnection,
    book: &str,
    new: &[NewPrice],
    now: DateTime<Utc>,
    actor: &str,
) -> Result<(Publication, Vec<PriceFault>), PricesError> {
    let mut fitting: Vec<(usize, NewPrice)> = new.iter().cloned().enumerate().collect();
    let mut faults: Vec<PriceFault> = Vec::new();
    loop {
        let (indices, prices): (Vec<usize>, Vec<NewPrice>) = fitting.into_iter().unzip();
        // A refusal comes before anything is written, so the transaction can go on.
        match publish(connection, book, &prices, now, actor).await {
            Ok(publication) => return Ok((publication, faults)),
            Err(PricesError::Refused(found)) if !found.is_empty() => {
                let refused: HashSet<usize> = found.iter().map(|fault| fault.index).collect();
                faults.extend(found.into_iter().map(|fault| {
                    let index = indices.get(fault.index).copied().unwrap_or(fault.index);
                    PriceFault { index, ..fault }
                }));
                let kept = indices.into_iter().zip(prices).enumerate();
                fitting = kept.filter(|(at, _)| !refused.contains(at)).map(|(_, price)| price).collect();
            }
            Err(error) => return Err(error),
        }
    }
}

fn summary(publication: &Publication) -> Value {
    let added: Vec<i64> = publication
        .prices
        .iter()
        .filter(|price| price.status != Status::Unchanged)
        .map(|price| price.id.0)
        .collect();
    json!({"added": added, "continued": publication.continued, "derived": publication.derived,
           "aliases": publication.aliases, "ended_aliases": names(&publication.ended_aliases)})
}

fn names(aliases: &[ModelAlias]) -> Vec<&str> {
    aliases.iter().map(|alias| alias.alias.as_str()).collect()
}

/// The explicit prices of the same models, those that stand and those that were published before, and the standing aliases
/// of the same names.
async fn neighbours(
    connection: &mut PgConnection,
    book: BookId,
    new: &[NewPrice],
) -> Result<Known, StoreError> {
    let models = new.iter().map(|price| (price.provider.to_ascii_lowercase(), price.model.clone())).unzip();
    let filter = PriceFilter { superseded: true, ..PriceFilter::default() };
    let selection = Selection {
        book: Some(book),
        models: Some(models),
        explicit_only: true,
        filter,
        ..Selection::default()
    };
    let prices = select(connection, &selection).await?;
    let records: Vec<_> = prices.iter().map(record).collect();
    let Told { copies, with_end } =
        told(&records, |left, right| prices[left].draft.same_terms(&prices[right].draft));
    let mut known = Known { with_end, ..Known::default() };
    for price in prices {
        if price.superseded_at.is_none() {
            known.standing.push(Standing { id: price.id, draft: price.draft });
        } else if !copies.contains(&price.id) {
            known.published.push(price.draft);
        }
    }
    let names: Vec<String> = new.iter().flat_map(|price| price.aliases.iter().cloned()).collect();
    known.aliases = own_aliases(connection, book, Some(&names), None).await?;
    Ok(known)
}

/// A price as its record; those of one model and one set of conditions take each other's place.
fn record(price: &StoredPrice) -> Record<PriceId, (&str, &str, &str)> {
    let StoredPrice { id, draft, recorded_at, superseded_at, superseded_by, .. } = price;
    Record {
        id: *id,
        key: (&draft.provider, &draft.model, &draft.conditions_key),
        validity: (draft.valid_from, draft.valid_to),
        recorded_at: *recorded_at,
        superseded_at: *superseded_at,
        superseded_by: *superseded_by,
    }
}

fn outcomes(
    plan: &Plan,
    ids: &[PriceId],
    new: &[NewPrice],
    stood: &HashMap<PriceId, Interval>,
) -> Result<Vec<PublishedPrice>, PricesError> {
    let mut prices = Vec::with_capacity(plan.published.len());
    for (index, published) in plan.published.iter().enumerate() {
        let (row, before) = match published {
            Published::Added { row, before } => (*row, before.as_ref()),
            Published::Unchanged(slot) => {
                let (id, draft) = match slot {
                    Slot::Planned(row) => (ids[*row], plan.rows[*row].clone()),
                    Slot::Standing(id) => {
                        let draft = new[index].check(index).map_err(PricesError::Refused)?;
                        let given = (draft.valid_from, draft.valid_to);
                        let (valid_from, valid_to) = stood.get(id).copied().unwrap_or(given);
                        (*id, PriceDraft { valid_from, valid_to, ..draft })
                    }
                };
                prices.push(PublishedPrice { id, status: Status::Unchanged, draft, changes: Vec::new() });
                continue;
            }
        };
        let draft = plan.rows[row].clone();
        let status = if before.is_some() { Status::Changed } else { Status::Added };
        let changes = before.map(|before| changes(before, &draft.own_rates())).unwrap_or_default();
        prices.push(PublishedPrice { id: ids[row], status, draft, changes });
    }
    Ok(prices)
}

/// The classes whose own rate differs.
pub(super) fn changes(old: &BTreeMap<TokenClass, Rate>, new: &BTreeMap<TokenClass, Rate>) -> Vec<RateChange> {
    TokenClass::ALL
        .into_iter()
        .map(|class| RateChange { class, old: old.get(&class).copied(), new: new.get(&class).copied() })
        .filter(|change| change.old != change.new)
        .collect()
}

/// What became of a price that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The copy with the new end; `None` where it was withdrawn.
    pub copy: Option<PriceId>,
    /// From when on the book has no price of the same model and conditions; `None` where one stands then, as a derived one
    /// does beneath an explicit one.
    pub no_price_from: Option<DateTime<Utc>>,
}

/// Ends a price at an instant by superseding it with a copy that ends there; at or before its start this withdraws it,
/// which only an announced price can be. Aliases of its model end with the last price of the model in the book.
/// The price that it took the place of keeps its end: nothing comes back by itself.
///
/// # Errors
/// [`PricesError`]; the caller rolls back.
pub async fn close(
    connection: &mut PgConnection,
    id: PriceId,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    actor: &str,
) -> Result<Closed, PricesError> {
    let unlocked = get(connection, id).await?.ok_or(PricesError::UnknownPrice(id))?;
    sqlx::query!("SELECT id FROM price_books WHERE id = $1 FOR UPDATE", unlocked.book.id.0)
        .fetch_one(&mut *connection)
        .await?;
    let price = get(connection, id).await?.ok_or(PricesError::UnknownPrice(id))?;
    let refuse = |detail: String| Err(PricesError::NotClosable { id, detail });
    if let Some(by) = price.superseded_by {
        return refuse(format!("was superseded by price {by}; close that one"));
    }
    if price.superseded_at.is_some() {
        return refuse("was withdrawn already".to_owned());
    }
    if let Some(cost) = price.derived_from {
        return refuse(format!("follows cost price {cost}; close that one, or publish an explicit price"));
    }
    if price.draft.valid_to.is_some_and(|end| end <= at) {
        return refuse("ends before that already".to_owned());
    }
    let withdrawn = at <= price.draft.valid_from;
    if withdrawn && price.draft.valid_from <= now {
        return refuse("is in force; close it at a date after its valid_from".to_owned());
    }
    let mut rows = Vec::new();
    if !withdrawn {
        let draft = PriceDraft { valid_to: Some(at), ..price.draft.clone() };
        let copy = reserve_ids(connection, 1).await?.remove(0);
        rows.push(Insertion { id: copy, book: price.book.id, draft, derived_from: None });
    }
    let copy = rows.first().map(|row| row.id);
    supersede(connection, &[(id, copy)]).await?;
    insert(connection, &rows).await?;
    derive(connection, price.book.id, &rows, &[(id, copy)]).await?;
    sqlx::query!("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *connection).await?;
    let ended = end_with_prices(connection, price.book.id, &price.draft).await?;
    catalog::bump(connection).await?;
    let detail = json!({"price": id, "at": at, "continued_by": copy, "ended_aliases": names(&ended)});
    let action = if withdrawn { "prices.withdraw" } else { "prices.close" };
    audit::record(connection, actor, action, &price.book.name, Some(detail)).await?;
    let gone = at.max(price.draft.valid_from);
    let priced = is_priced(connection, price.book.id, &price.draft, gone).await?;
    Ok(Closed { copy, no_price_from: (!priced).then_some(gone) })
}

/// Ends the aliases of a model where its last standing price in the book ends; returns those that stood longer.
async fn end_with_prices(
    connection: &mut PgConnection,
    book: BookId,
    of: &PriceDraft,
) -> Result<Vec<ModelAlias>, StoreError> {
    let left = sqlx::query!(
        r#"SELECT COALESCE(bool_or(valid_to IS NULL), false) AS "is_open!", max(valid_to) AS last_end FROM prices
           WHERE book_id = $1 AND provider = $2 AND model = $3 AND superseded_at IS NULL"#,
        book.0,
        of.provider,
        of.model,
    )
    .fetch_one(&mut *connection)
    .await?;
    if left.is_open {
        return Ok(Vec::new());
    }
    let aliases = own_aliases(connection, book, None, Some((&of.provider, &of.model))).await?;
    let (superseded, copies) = end_aliases(aliases, left.last_end);
    supersede_aliases(connection, book, &superseded, &copies).await?;
    Ok(superseded)
}

/// Ends another name of a price's model at an instant, and leaves the price; a name that is announced for later is
/// withdrawn.
///
/// # Errors
/// [`PricesError`]; the caller rolls back.
pub async fn close_alias(
    connection: &mut PgConnection,
    id: PriceId,
    alias: &str,
    at: DateTime<Utc>,
    now: DateTime<Utc>,
    actor: &str,
) -> Result<(), PricesError> {
    let price = get(connection, id).await?.ok_or(PricesError::UnknownPrice(id))?;
    let (book, draft) = (&price.book, &price.draft);
    sqlx::query!("SELECT id FROM price_books WHERE id = $1 FOR UPDATE", book.id.0)
        .fetch_one(&mut *connection)
        .await?;
    let names = [alias.to_owned()];
    let of_model = Some((draft.provider.as_str(), draft.model.as_str()));
    let known = own_aliases(connection, book.id, Some(&names), of_model).await?;
    let (superseded, copies) = end_aliases(known, Some(at));
    let field = |field, detail| Err(PricesError::Field { field, detail });
    if superseded.is_empty() {
        let detail = format!("`{}` does not mean `{}` in `{}` then", alias, draft.model, book.name);
        return field("alias", detail);
    }
    if superseded.iter().any(|alias| at <= alias.valid_from && alias.valid_from <= now) {
        return field("valid_to", format!("`{alias}` is in force; end it at a date after its start"));
    }
    supersede_aliases(connection, book.id, &superseded, &copies).await?;
    catalog::bump(connection).await?;
    let detail = json!({"provider": draft.provider, "model": draft.model, "alias": alias, "at": at});
    audit::record(connection, actor, "aliases.close", &book.name, Some(detail)).await?;
    Ok(())
}

/// Standing aliases of a book itself: of these names, and of this provider and model.
async fn own_aliases(
    connection: &mut PgConnection,
    book: BookId,
    names: Option<&[String]>,
    of: Option<(&str, &str)>,
) -> Result<Vec<ModelAlias>, StoreError> {
    let (provider, model) = of.unzip();
    let rows = sqlx::query!(
        "SELECT provider, alias, model, valid_from, valid_to FROM model_aliases
         WHERE book_id = $1 AND superseded_at IS NULL AND ($2::text[] IS NULL OR alias = ANY($2))
           AND ($3::text IS NULL OR (provider = $3 AND model = $4))",
        book.0,
        names,
        provider,
        model,
    )
    .fetch_all(connection)
    .await?;
    let alias = rows.into_iter().map(|row| ModelAlias {
        provider: row.provider,
        alias: row.alias,
        model: row.model,
        valid_from: row.valid_from,
        valid_to: row.valid_to,
        inherited: false,
    });
    Ok(alias.collect())
}

/// Brings the markup books of a cost book in line with what was added to it and superseded in it.
async fn derive(
    connection: &mut PgConnection,
    base: BookId,
    added: &[Insertion],
    superseded: &[(PriceId, Option<PriceId>)],
) -> Result<usize, PricesError> {
    let mut count = 0;
    for dependent in dependents(connection, base).await? {
        let Some(markups) = &dependent.markups else { continue };
        let book = dependent.info.id;
        let mut drafts = Vec::with_capacity(added.len());
        for cost in added {
            let of_cost = markups.derive(&cost.draft).map_err(|error| {
                let (book, model) = (&dependent.info.name, &cost.draft.model);
                let detail = format!("the markup of `{book}` takes `{model}` out of range: {error}");
                PricesError::Field { field: "rates", detail }
            })?;
            drafts.extend(of_cost.into_iter().map(|draft| (cost.id, draft)));
        }
        let ids = reserve_ids(connection, drafts.len()).await?;
        let rows: Vec<Insertion> = ids
            .into_iter()
            .zip(drafts)
            .map(|(id, (cost, draft))| Insertion { id, book, draft, derived_from: Some(cost) })
            .collect();
        let copies: HashMap<PriceId, Option<PriceId>> = superseded.iter().copied().collect();
        let olds: Vec<i64> = superseded.iter().map(|(old, _)| old.0).collect();
        let mut follow: Vec<(PriceId, Option<PriceId>)> = Vec::new();
        for (id, cost, valid_from) in derived_prices(connection, book, &olds).await? {
            let copy = copies.get(&cost).copied().flatten();
            let of_copy: Vec<&Insertion> = rows.iter().filter(|row| row.derived_from == copy).collect();
            let next = successor(of_copy.iter().map(|row| &row.draft), valid_from).map(|at| of_copy[at].id);
            follow.push((id, copy.and(next)));
        }
        supersede(connection, &follow).await?;
        insert(connection, &rows).await?;
        count += rows.len();
    }
    Ok(count)
}
