-- The partition after the current one exists before it is needed: making it in the transaction that first books into it
-- would put a lock on the whole journal into the path of recording, at midnight, when nobody looks.

-- Makes the journal's partition of a calendar month where it is missing.
CREATE FUNCTION make_journal_partition(first_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'usage_events_' || to_char(first_day, 'YYYY_MM');
BEGIN
    IF to_regclass(partition) IS NULL THEN
        EXECUTE format('CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
                       partition, first_day, (first_day + interval '1 month')::date);
        -- Insert-only: vacuum early, so that index-only scans and freezing keep up.
        EXECUTE format('ALTER TABLE %I SET (autovacuum_vacuum_insert_scale_factor = 0.02)', partition);
    END IF;
END $$;

-- Opens a booking date as before, and makes the partition of the month after it. The caller holds the journal's advisory
-- lock exclusively.
CREATE OR REPLACE FUNCTION open_booking_date(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first_day date := date_trunc('month', day)::date;
BEGIN
    PERFORM make_journal_partition(first_day);
    PERFORM make_journal_partition((first_day + interval '1 month')::date);
    INSERT INTO journal_clock (booked_on) VALUES (day)
        ON CONFLICT (only_row) DO UPDATE SET booked_on = GREATEST(journal_clock.booked_on, EXCLUDED.booked_on);
END $$;
