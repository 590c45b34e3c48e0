-- What the planner knows of the journal. Without statistics it takes the rows of a batch to be anywhere, and reads the
-- whole partition by its primary key instead of a few ranges of pages by the index of the batches; automatic analysis
-- comes a minute late at best, and after that only as a share of all rows has changed.

-- Analyses the partitions that have grown to twice what is known of them; returns how many. Two columns decide how rows
-- are found by batch, and cost a tenth of a second; the others wait for the automatic analysis.
CREATE FUNCTION refresh_journal_statistics() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    partition record;
    refreshed integer := 0;
BEGIN
    FOR partition IN
        SELECT c.oid::regclass AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'usage_events'::regclass AND pg_stat_get_live_tuples(c.oid) > 10000
          AND (pg_stat_get_live_tuples(c.oid) > 2 * c.reltuples
               OR NOT EXISTS (SELECT FROM pg_stats s
                              WHERE s.schemaname = c.relnamespace::regnamespace::text AND s.tablename = c.relname
                                AND s.attname = 'batch_id'))
    LOOP
        EXECUTE format('ANALYZE %s (batch_id, booked_on)', partition.name);
        refreshed := refreshed + 1;
    END LOOP;
    RETURN refreshed;
END $$;
