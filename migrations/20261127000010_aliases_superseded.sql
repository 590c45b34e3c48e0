-- Other names of models are superseded as prices are: one that moves to another model, or ends with the prices of its own,
-- is continued by a copy that ends there. A row is never edited, so what a name meant on a date stays answerable.

-- What was there before this: since ever, because nobody noted when.
ALTER TABLE model_aliases ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE model_aliases ALTER COLUMN recorded_at SET DEFAULT now();
ALTER TABLE model_aliases ADD COLUMN superseded_at timestamptz;

-- Of those that stand, one meaning at any instant.
DO $$
DECLARE
    one_meaning name;
BEGIN
    SELECT conname INTO STRICT one_meaning FROM pg_constraint
    WHERE conrelid = 'model_aliases'::regclass AND contype = 'x';
    EXECUTE format('ALTER TABLE model_aliases DROP CONSTRAINT %I', one_meaning);
END $$;
ALTER TABLE model_aliases ADD CONSTRAINT model_aliases_one_meaning
    EXCLUDE USING gist (book_id WITH =, provider WITH =, alias WITH =, tstzrange(valid_from, valid_to) WITH &&)
    WHERE (superseded_at IS NULL);

CREATE FUNCTION aliases_only_superseded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.superseded_at IS NULL AND NEW.superseded_at IS NOT NULL
       AND to_jsonb(NEW) - 'superseded_at' = to_jsonb(OLD) - 'superseded_at' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'UPDATE of model_aliases is refused: publish the alias with another price' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER aliases_immutable BEFORE UPDATE ON model_aliases FOR EACH ROW EXECUTE FUNCTION aliases_only_superseded();
CREATE TRIGGER aliases_no_delete BEFORE DELETE ON model_aliases FOR EACH ROW EXECUTE FUNCTION refuse_change();

GRANT UPDATE (superseded_at) ON model_aliases TO waybill_finance;
