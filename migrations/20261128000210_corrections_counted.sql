-- Which of two corrections of an estimate is the later one.

-- A forwarder publishes many messages at once, tries each again by itself, and publishes again what the ledger lacks: an earlier
-- correction may come later in the stream than the one that follows it, and would be billed in its place. Where the gateway
-- counts its events, its own count has the order in which it took them: the place of the correcting event in it. The count is
-- that of the event's gateway. Null where it has no count, and in corrections of earlier releases: there the places in the
-- stream decide. No index: an estimate has a handful of corrections, and these are found by its key.
ALTER TABLE corrections
    ADD COLUMN epoch text,
    -- As the event has it: counted from one.
    ADD COLUMN sequence bigint CHECK (sequence > 0),
    -- A number says nothing without its count.
    ADD CONSTRAINT corrections_counted CHECK ((epoch IS NULL) = (sequence IS NULL));
