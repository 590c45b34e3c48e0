-- What could keep recording waiting for hours: a lock that readers of the journal hold, a wrong wall clock, and corrections
-- whose estimate never comes.

---------------------------------------------------------------------------------------------------------------------
-- Booking dates

-- CREATE TABLE ... PARTITION OF locks the journal exclusively, so on the first day of a month it waited for everybody who
-- read it (a pg_dump, a proof), and recording waited behind it. Attaching a table of the same shape asks for SHARE UPDATE
-- EXCLUSIVE, which no reader and no writer is in the way of; it brings the indexes and the triggers.
CREATE OR REPLACE FUNCTION make_journal_partition(first_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'usage_events_' || to_char(first_day, 'YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED
                        INCLUDING STORAGE INCLUDING COMPRESSION)', partition);
        EXECUTE format('ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
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

-- Makes the partition of a month that nothing is booked in yet: where its lock is not to be had at once it is made on
-- another day, because nobody needs it today.
CREATE FUNCTION make_journal_partition_ahead(first_day date) RETURNS void LANGUAGE plpgsql
    SET lock_timeout = '500ms' AS $$
BEGIN
    PERFORM make_journal_partition(first_day);
EXCEPTION WHEN lock_not_available THEN
    NULL;
END $$;

-- The last date that may be opened: a program's clock may be ahead of the database's, but not by more than a day. A function
-- and no setting, so that only the owner could change it.
CREATE FUNCTION latest_booking_date() RETURNS date LANGUAGE sql AS
    $$ SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date + 1 $$;

-- Opens a booking date as before. The date never moves back, so one that a wrong clock asks for would stay: copies are looked
-- for in the 62 days before it, where nothing is then.
CREATE OR REPLACE FUNCTION open_booking_date(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first_day date := date_trunc('month', day)::date;
BEGIN
    IF day > latest_booking_date() THEN
        RAISE EXCEPTION 'booking date % is refused, the database''s own clock is at %: set the clocks right',
                        day, clock_timestamp()
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM make_journal_partition(first_day);
    PERFORM make_journal_partition_ahead((first_day + interval '1 month')::date);
    INSERT INTO journal_clock (booked_on) VALUES (day)
        ON CONFLICT (only_row) DO UPDATE SET booked_on = GREATEST(journal_clock.booked_on, EXCLUDED.booked_on);
END $$;

-- A function that is replaced keeps who may call it, and loses whose rights and names it runs with.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION open_booking_date(date) SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
END $$;
-- Parts of the above.
REVOKE EXECUTE ON FUNCTION make_journal_partition_ahead(date), latest_booking_date() FROM PUBLIC;

---------------------------------------------------------------------------------------------------------------------
-- Corrections that wait

-- The key of the estimate that a correction waits for: it is tried again once that is in the journal, and not before. The key
-- of all zeros, which no event has, says that it waits for nothing: the event that it names can never be corrected by it.
-- Null where it was rejected for another reason, or by a release that did not keep it: that one is tried again once.
ALTER TABLE rejections ADD COLUMN waits_for uuid;
GRANT UPDATE (waits_for) ON rejections TO waybill_ingest;
