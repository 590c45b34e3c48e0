-- Telling one life of the stream from the next. After a restore from a backup, or a power failure without forced writes,
-- the stream ends earlier than the ledger and gives the same sequences to other messages.

-- When the stream took the last message of the batch: while it still holds that message, everything before it is unchanged too.
-- Null in batches without messages, and in those of earlier releases.
ALTER TABLE ingest_batches ADD COLUMN last_published_at timestamptz;
-- The last message of a life that is accounted for, which is compared with the stream every few seconds.
CREATE INDEX ingest_batches_last ON ingest_batches (incarnation, upper(sequences))
    WHERE incarnation IS NOT NULL AND NOT isempty(sequences);
