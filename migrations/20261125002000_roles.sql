-- Roles of least privilege. None of them owns anything, logs in or passes by row-level security; the owner of the tables
-- migrates, drops old months and puts sums right. What the journal, prices, invoices and the audit log hold is final, so
-- nobody is given UPDATE or DELETE on it; columns that change are named one by one.

---------------------------------------------------------------------------------------------------------------------
-- The roles. The owner is a member of each, so that one login is enough where that is wanted.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['waybill_ingest', 'waybill_finance', 'waybill_auditor']
    LOOP
        BEGIN
            -- Roles belong to the whole server, so another database may have made it already, or may be making it now.
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
        IF NOT pg_has_role(current_user, role, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', role, current_user);
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO waybill_customer, waybill_ingest, waybill_finance, waybill_auditor',
                   current_schema());
    -- Servers that were once older than 15 let everybody make tables here.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Finance and the auditor read everything, also what later migrations add.

DO $$
BEGIN
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO waybill_finance, waybill_auditor', current_schema());
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON TABLES TO waybill_finance, waybill_auditor',
                   current_schema());
END $$;

---------------------------------------------------------------------------------------------------------------------
-- waybill_ingest: recording, posting, compaction, replay, repair, and re-rates from the command line.

-- What events are rated by, and what there is already. No keys, no invoices, no audit log.
GRANT SELECT ON catalog_version, customers, gateways, gateway_sequences, gateway_floods, price_books, price_book_markups,
    markup_changes, markup_change_models, model_aliases, prices, price_rates, period_prices, period_price_tiers,
    book_assignments, journal_clock, ingest_batches, usage_events, corrections, rejections, rerates, billing_periods,
    usage_rollups, usage_hours, usage_by_hour, tasks, adjustment_reasons, accounted_sequences, accounted_through,
    archived_months TO waybill_ingest;

-- Recording only adds. That a batch is posted is all that ever changes of it.
GRANT INSERT ON usage_events, ingest_batches, batch_payloads, corrections, rejections, rerates, audit_log TO waybill_ingest;
GRANT UPDATE (posted_at, posted_closing) ON ingest_batches TO waybill_ingest;
-- What becomes of a rejection that is tried again; what was received stays.
GRANT UPDATE (reason, detail, attempts, catalog_version, tried_after_batch, replay_requested, resolved_at, resolution,
    resolved_batch_id) ON rejections TO waybill_ingest;

-- Counts of gateways, and the summary of what is accounted for.
GRANT INSERT ON gateway_sequences, gateway_floods, accounted_sequences TO waybill_ingest;
GRANT UPDATE (seen, seen_at, repeated) ON gateway_sequences TO waybill_ingest;
GRANT UPDATE (events, epoch, last_at) ON gateway_floods TO waybill_ingest;
GRANT UPDATE (sequences) ON accounted_sequences TO waybill_ingest;
GRANT UPDATE (batch_id) ON accounted_through TO waybill_ingest;

-- Sums. Hours leave the rollups where they are summed into a day; nothing else is deleted.
GRANT INSERT, UPDATE, DELETE ON usage_rollups TO waybill_ingest;
GRANT INSERT, UPDATE ON usage_hours, tasks TO waybill_ingest;
GRANT INSERT ON adjustment_reasons TO waybill_ingest;
-- Periods are made when usage of them is posted. They are made open: closing them is not for this role.
GRANT INSERT (customer_id, start_at, end_at) ON billing_periods TO waybill_ingest;

---------------------------------------------------------------------------------------------------------------------
-- waybill_finance: the API of finance and admin, keys, closing periods and making invoices.

-- Customers, gateways, keys: what may be changed of them, and no more.
GRANT INSERT ON customers, gateways, book_assignments, api_keys TO waybill_finance;
GRANT UPDATE (name, status, closed_through) ON customers TO waybill_finance;
GRANT UPDATE (backfill_from) ON gateways TO waybill_finance;
GRANT UPDATE (valid_to) ON book_assignments TO waybill_finance;
GRANT UPDATE (revoked_at) ON api_keys TO waybill_finance;
GRANT UPDATE (version) ON catalog_version TO waybill_finance;
GRANT INSERT ON audit_log TO waybill_finance;
-- Answers that are kept for a day.
GRANT INSERT, DELETE ON idempotency_keys TO waybill_finance;

-- Prices are published and superseded.
GRANT INSERT ON price_books, price_book_markups, markup_changes, markup_change_models, model_aliases, prices, price_rates,
    period_prices, period_price_tiers TO waybill_finance;
GRANT UPDATE (superseded_at, superseded_by) ON prices, period_prices TO waybill_finance;
-- Publishing numbers prices before it writes them.
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SEQUENCE %s, %s TO waybill_finance', pg_get_serial_sequence('prices', 'id'),
                   pg_get_serial_sequence('period_prices', 'id'));
END $$;
-- Publishing locks the book, which asks for the right to change some column of it. This one can only be set to the next
-- number, which a book that anything refers to cannot be.
GRANT UPDATE (id) ON price_books TO waybill_finance;

-- Rejections are discarded, or given to ingest for another try.
GRANT UPDATE (replay_requested, window_waived, resolved_at, resolution, resolution_note) ON rejections TO waybill_finance;

-- Closing a period and making its invoices. An invoice is only added; voiding one is not built.
GRANT INSERT ON billing_periods, invoice_series, invoices, invoice_line_items, task_charges TO waybill_finance;
GRANT UPDATE (state, closed_at, closing) ON billing_periods TO waybill_finance;
GRANT UPDATE (last_number, last_hash) ON invoice_series TO waybill_finance;

-- Re-rates restate recorded usage by rows that they add; the policies below let no other rows in.
GRANT INSERT ON usage_events, ingest_batches, rerates TO waybill_finance;

---------------------------------------------------------------------------------------------------------------------
-- Row-level security: these roles see all rows, by policy.

DO $$
DECLARE
    protected regclass;
BEGIN
    FOR protected IN
        SELECT oid FROM pg_class
        WHERE relrowsecurity AND relnamespace = current_schema()::regnamespace AND oid <> 'usage_events'::regclass
    LOOP
        EXECUTE format('CREATE POLICY all_rows ON %s TO waybill_ingest, waybill_finance, waybill_auditor USING (true)',
                       protected);
    END LOOP;
END $$;

-- The journal and its batches: ingest records, finance re-rates, and neither does the other's work.
ALTER TABLE ingest_batches ENABLE ROW LEVEL SECURITY;
CREATE POLICY read_rows ON usage_events FOR SELECT TO waybill_ingest, waybill_finance, waybill_auditor USING (true);
CREATE POLICY recorded_rows ON usage_events FOR INSERT TO waybill_ingest WITH CHECK (true);
CREATE POLICY rerated_rows ON usage_events FOR INSERT TO waybill_finance
    WITH CHECK (kind IN ('retraction', 'restatement'));
-- Customers' requests read what is posted from it; nothing in it is anybody's.
CREATE POLICY read_batches ON ingest_batches FOR SELECT
    TO waybill_customer, waybill_ingest, waybill_finance, waybill_auditor USING (true);
CREATE POLICY recorded_batches ON ingest_batches FOR INSERT TO waybill_ingest WITH CHECK (true);
CREATE POLICY posted_batches ON ingest_batches FOR UPDATE TO waybill_ingest USING (true);
CREATE POLICY rerated_batches ON ingest_batches FOR INSERT TO waybill_finance
    WITH CHECK (origin = 'rerate' AND posted_at IS NULL);

---------------------------------------------------------------------------------------------------------------------
-- What only the owner of the journal can do, and the service must.

-- Makes the journal's partition of a calendar month where it is missing. PostgreSQL refuses COPY into a table with row-level
-- security, so recording copies into the partition, which has none: the role may add to it, and read only through the journal.
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
    END IF;
END $$;
-- The partitions that are there.
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'usage_events'::regclass
    LOOP
        EXECUTE format('GRANT INSERT ON %s TO waybill_ingest', partition);
    END LOOP;
END $$;

-- Brings the block range index of the batches up to date.
CREATE FUNCTION summarize_journal_batches() RETURNS void LANGUAGE sql AS $$
    SELECT sum(brin_summarize_new_values(inhrelid)) FROM pg_inherits WHERE inhparent = 'usage_events_batch'::regclass
$$;

-- They run with the owner's rights, so names in them mean the owner's tables whatever the caller's search path is:
-- pg_catalog, which comes first unasked, then this schema, and temporary tables of the caller last.
DO $$
DECLARE
    privileged regprocedure;
BEGIN
    FOREACH privileged IN ARRAY ARRAY['open_booking_date(date)', 'refresh_journal_statistics()', 'summarize_journal_batches()']::regprocedure[]
    LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp', privileged, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', privileged);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO waybill_ingest', privileged);
    END LOOP;
END $$;
-- The first re-rate of a day opens its booking date.
GRANT EXECUTE ON FUNCTION open_booking_date(date) TO waybill_finance;
-- Parts of the above, and the owner's own.
REVOKE EXECUTE ON FUNCTION make_journal_partition(date), drop_journal_partition(date) FROM PUBLIC;
