-- The program brings the block range index of the batches up to date itself, every few seconds (summarize_journal_batches).
-- With autosummarize the server asks its autovacuum workers for the same, once for every 128 KiB of the journal: their queue
-- is soon full, and then the log says so for each request that finds no room in it, dozens a second.

CREATE OR REPLACE FUNCTION make_journal_partition(first_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'usage_events_' || to_char(first_day, 'YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NULL THEN
        EXECUTE format('CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
                       partition, first_day, (first_day + interval '1 month')::date);
        -- Insert-only: vacuum early, so that index-only scans and freezing keep up.
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_insert_scale_factor = 0.02)', partition);
        EXECUTE format('GRANT INSERT ON %I TO waybill_ingest', partition);
        -- The index takes the option of the whole journal's, which PostgreSQL does not let be changed.
        EXECUTE format('ALTER INDEX %s SET (autosummarize = off)',
                       (SELECT i.inhrelid::regclass FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid
                        WHERE i.inhparent = 'usage_events_batch'::regclass AND x.indrelid = to_regclass(partition)));
    END IF;
END $$;
-- The partitions that are there.
DO $$
DECLARE
    index regclass;
BEGIN
    FOR index IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'usage_events_batch'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s SET (autosummarize = off)', index);
    END LOOP;
END $$;
