-- Re-rating: recorded usage is restated at the prices that stand now, by rows added to the journal, never by edits.

-- rerate: amounts of recorded usage restated; nothing was received, so no stream, no sequences and no events.
ALTER TABLE ingest_batches DROP CONSTRAINT ingest_batches_origin_check,
    ADD CONSTRAINT ingest_batches_origin_check CHECK (origin IN ('stream', 'replay', 'repair', 'rerate'));
ALTER TABLE ingest_batches DROP CONSTRAINT ingest_batches_check1,
    ADD CONSTRAINT ingest_batches_check1 CHECK ((incarnation IS NULL) = (origin IN ('replay', 'rerate')));
ALTER TABLE ingest_batches DROP CONSTRAINT ingest_batches_check2,
    ADD CONSTRAINT ingest_batches_check2 CHECK (messages = 0 OR origin NOT IN ('replay', 'rerate'));
ALTER TABLE ingest_batches ADD CONSTRAINT ingest_batches_rerate CHECK (events = 0 OR origin <> 'rerate');

-- The usage part of the same event whose amounts the row takes back or restates. What stands for a part is its newest
-- restatement, or the part itself where there is none.
ALTER TABLE usage_events ADD COLUMN restates smallint;
-- retraction: minus what stood for a part; restatement: the same quantities at other prices. They come in pairs.
ALTER TABLE usage_events DROP CONSTRAINT usage_events_kind_check,
    ADD CONSTRAINT usage_events_kind_check
        CHECK (kind IN ('usage', 'outcome', 'reversal', 'retraction', 'restatement'));
-- Parts from 2000 on are theirs, counting up per event, so that they never meet those of an event or of a reversal.
ALTER TABLE usage_events ADD CONSTRAINT usage_events_restates
    CHECK ((restates IS NOT NULL) = (kind IN ('retraction', 'restatement')) AND (restates IS NOT NULL) = (part >= 2000));
