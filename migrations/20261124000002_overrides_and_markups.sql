-- A customer's own prices before its sell book's, and factors of markup books that change with time.

---------------------------------------------------------------------------------------------------------------------
-- Override books

ALTER TABLE book_assignments
    -- A sell book in the sell book's currency: where one of its prices applies to a call, the charge is by that price.
    ADD COLUMN override_book_id integer REFERENCES price_books,
    -- A book before itself means nothing.
    ADD CONSTRAINT book_assignments_override CHECK (override_book_id <> sell_book_id);

-- A customer may read the prices of its override books as those of its sell books.
ALTER POLICY assigned_books ON price_books
    USING (kind = 'sell' AND EXISTS (
        SELECT FROM book_assignments a WHERE price_books.id IN (a.sell_book_id, a.override_book_id)));

---------------------------------------------------------------------------------------------------------------------
-- Factors of a markup book from a time on; before the first of them those that it was made with (price_books.markup,
-- price_book_markups) apply. A change takes the place of all factors before it, those of single models too.

CREATE TABLE markup_changes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    book_id     integer NOT NULL REFERENCES price_books,
    -- The general factor.
    markup      numeric(12, 6) NOT NULL CHECK (markup >= 0 AND markup < 1000),
    -- It applies until the next change of the book starts.
    valid_from  timestamptz NOT NULL CHECK (isfinite(valid_from)),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    -- One set of factors at any instant.
    CONSTRAINT markup_changes_once UNIQUE (book_id, valid_from)
);

-- Factors for some models, instead of the general one.
CREATE TABLE markup_change_models (
    change_id bigint NOT NULL REFERENCES markup_changes,
    -- A model's name, or the beginning of one and `*`; of those that match, the longest decides.
    pattern   text NOT NULL CHECK (char_length(pattern) BETWEEN 1 AND 128),
    markup    numeric(12, 6) NOT NULL CHECK (markup >= 0 AND markup < 1000),
    PRIMARY KEY (change_id, pattern)
);

-- The prices that a factor made stay explained by it.
CREATE TRIGGER markup_changes_append_only BEFORE UPDATE OR DELETE ON markup_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER markup_change_models_append_only BEFORE UPDATE OR DELETE ON markup_change_models
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
