-- Bounds: sums that no amount of usage can break, and gateways' own counts that no gateway can flood.

-- One event holds up to 10^12 units of a class, so nine million of the largest overflow a bigint, and some thousands at
-- the highest rates a NUMERIC(38,15). A sum that cannot be stored would fail its posting transaction for ever, and with
-- it the posting of everybody: so sums have no bound, and who reads one that is too large for an invoice is told so.
ALTER TABLE usage_rollups
    ALTER COLUMN input TYPE numeric, ALTER COLUMN cache_read TYPE numeric,
    ALTER COLUMN cache_write_5m TYPE numeric, ALTER COLUMN cache_write_1h TYPE numeric,
    ALTER COLUMN output TYPE numeric, ALTER COLUMN reasoning TYPE numeric,
    ALTER COLUMN cost TYPE numeric, ALTER COLUMN charge TYPE numeric;
ALTER TABLE tasks
    ALTER COLUMN input TYPE numeric, ALTER COLUMN cache_read TYPE numeric,
    ALTER COLUMN cache_write_5m TYPE numeric, ALTER COLUMN cache_write_1h TYPE numeric,
    ALTER COLUMN output TYPE numeric, ALTER COLUMN reasoning TYPE numeric,
    ALTER COLUMN cost TYPE numeric, ALTER COLUMN charge TYPE numeric;

-- Units of rare classes as they are read: one that no longer fits 64 bits is an error, never another number.
CREATE FUNCTION rare_units(rare jsonb) RETURNS jsonb IMMUTABLE STRICT LANGUAGE sql AS $$
    SELECT jsonb_object_agg(key, value::bigint) FROM jsonb_each_text(rare)
$$;

-- Events that carried a number which another event had carried before: a fault of the gateway, not a copy.
ALTER TABLE gateway_sequences ADD COLUMN repeated bigint NOT NULL DEFAULT 0 CHECK (repeated >= 0);
-- An event that was rejected has its number already; a later copy of it that is recorded repeats nothing. Found by id,
-- which may be of any length where it is refused for its length.
CREATE INDEX rejections_event ON rejections USING hash (event_id);
-- How many epochs a gateway may open in an hour is bounded: those of the last hour are counted with every batch; a row
-- never changes its place in it.
CREATE INDEX gateway_sequences_opened ON gateway_sequences (gateway_id, first_seen_at);

-- What of a gateway's count is not followed, because it opened more epochs, or left more holes, than a sound gateway
-- does. The events are recorded and billed as any other; one row stands for them all, however many there are.
CREATE TABLE gateway_floods (
    gateway_id integer PRIMARY KEY REFERENCES gateways,
    -- Events whose number was not kept.
    events     bigint NOT NULL CHECK (events > 0),
    -- The epoch of the last of them, and when that was.
    epoch      text NOT NULL CHECK (char_length(epoch) BETWEEN 1 AND 128),
    last_at    timestamptz NOT NULL DEFAULT now()
);
