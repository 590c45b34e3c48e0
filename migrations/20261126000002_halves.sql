-- A large slice of batches is posted in two halves at a time, each on a connection of its own: the customers with odd ids, and
-- the others together with the mark that the batches are posted. Whichever of the two commits, it is added once.

-- A row for each batch that is not posted. posted_closing says that its odd half is added, and how many periods were closed
-- then; no period is closed before the other half is added too, so that both halves book late usage by the same closings.
-- Whoever adds an odd half holds its row: it is not the batch's own, which a poster that is gone holds no longer, while what
-- it had begun on the other connection may still be underway.
CREATE TABLE half_postings (
    batch_id       bigint PRIMARY KEY REFERENCES ingest_batches,
    posted_closing bigint
);
INSERT INTO half_postings (batch_id) SELECT id FROM ingest_batches WHERE posted_at IS NULL;

-- By a trigger, because batches are recorded by two roles, and none of them may say that a half is added that is not.
CREATE FUNCTION expect_half_posting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO half_postings (batch_id) VALUES (NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER expect_half_posting AFTER INSERT ON ingest_batches
    FOR EACH ROW WHEN (NEW.posted_at IS NULL) EXECUTE FUNCTION expect_half_posting();
-- With the owner's rights and names, as the other functions that have them.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION expect_half_posting() SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
    REVOKE EXECUTE ON FUNCTION expect_half_posting() FROM PUBLIC;
END $$;
GRANT SELECT, DELETE, UPDATE (posted_closing) ON half_postings TO waybill_ingest;

-- A release that knows no halves posts whole batches; it must not post one of which half is added already.
CREATE FUNCTION refuse_posting_twice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- After whoever is still at the half.
    DELETE FROM half_postings WHERE batch_id = NEW.id AND posted_closing IS NULL;
    IF EXISTS (SELECT FROM half_postings WHERE batch_id = NEW.id) THEN
        RAISE EXCEPTION 'half of batch % is posted already; the release of Waybill that posted it must post the rest', NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse_posting_twice AFTER UPDATE OF posted_at ON ingest_batches
    FOR EACH ROW WHEN (OLD.posted_at IS NULL AND NEW.posted_at IS NOT NULL) EXECUTE FUNCTION refuse_posting_twice();

---------------------------------------------------------------------------------------------------------------------
-- What is posted: what the sums must be is made of these rows.

CREATE VIEW posted_events AS
    SELECT e.customer_id, e.batch_id, e.booked_on, e.kind, e.part, e.restates, e.occurred_at, e.cost_price_id,
           e.sell_price_id, e.project, e.task_id, e.task_type, e.task_parent, e.model, e.outcome, e.input, e.cache_read,
           e.cache_write_5m, e.cache_write_1h, e.output, e.reasoning, e.rare, e.cost, e.charge,
           COALESCE(b.posted_closing, h.posted_closing) AS posted_closing
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id
    LEFT JOIN half_postings h ON h.batch_id = e.batch_id AND h.posted_closing IS NOT NULL AND e.customer_id % 2 = 1
    WHERE b.posted_at IS NOT NULL OR h.batch_id IS NOT NULL;

CREATE OR REPLACE FUNCTION folded_rollups(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, booked_period timestamptz, service_period timestamptz, hour timestamptz,
    cost_price_id bigint, sell_price_id bigint, project text, task_type text, kind text, events bigint, input numeric,
    cache_read numeric, cache_write_5m numeric, cache_write_1h numeric, output numeric, reasoning numeric, rare jsonb,
    cost numeric, charge numeric)
STABLE LANGUAGE sql AS $$
    SELECT e.customer_id, GREATEST(p.start_at, k.closed_through), p.start_at, date_trunc('hour', e.occurred_at, c.time_zone),
           e.cost_price_id, e.sell_price_id, COALESCE(e.project, ''), COALESCE(e.task_type, ''),
           CASE WHEN e.restates IS NULL THEN 'usage' ELSE 'adjustment' END,
           -- Every event once, less the estimates that were taken back.
           count(*) FILTER (WHERE e.kind = 'usage' AND e.part = 0)
               - count(*) FILTER (WHERE e.kind = 'reversal' AND e.part = 1000),
           sum(e.input), sum(e.cache_read), sum(e.cache_write_5m), sum(e.cache_write_1h), sum(e.output), sum(e.reasoning),
           rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL), sum(e.cost), sum(e.charge)
    FROM posted_events e
    JOIN customers c ON c.id = e.customer_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= e.posted_closing
                             AND (k.to_closing IS NULL OR e.posted_closing < k.to_closing)
    WHERE e.kind <> 'outcome' AND e.booked_on >= from_day AND e.booked_on < to_day
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
$$;

CREATE OR REPLACE FUNCTION folded_tasks(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, task_id text, task_type text, parent text, first_event_at timestamptz,
    last_event_at timestamptz, calls bigint, input numeric, cache_read numeric, cache_write_5m numeric,
    cache_write_1h numeric, output numeric, reasoning numeric, rare jsonb, cost numeric, charge numeric, models text[],
    first_batch bigint, last_batch bigint, first_booked_on date, last_booked_on date)
STABLE LANGUAGE sql AS $$
    SELECT e.customer_id, e.task_id, min(e.task_type), min(e.task_parent), min(e.occurred_at), max(e.occurred_at),
           count(*) FILTER (WHERE e.kind = 'usage' AND e.part = 0)
               - count(*) FILTER (WHERE e.kind = 'reversal' AND e.part = 1000),
           sum(e.input), sum(e.cache_read), sum(e.cache_write_5m), sum(e.cache_write_1h), sum(e.output), sum(e.reasoning),
           rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL), sum(e.cost), sum(e.charge),
           COALESCE(array_agg(DISTINCT e.model) FILTER (WHERE e.kind = 'usage'), '{}'),
           min(e.batch_id), max(e.batch_id), min(e.booked_on), max(e.booked_on)
    FROM posted_events e
    WHERE e.task_id IS NOT NULL AND e.booked_on >= from_day AND e.booked_on < to_day
    GROUP BY 1, 2
$$;

CREATE OR REPLACE FUNCTION folded_outcomes(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, task_id text, outcome text, ended_at timestamptz, outcome_period timestamptz,
    posted_closing bigint)
STABLE LANGUAGE sql AS $$
    SELECT DISTINCT e.customer_id, e.task_id, e.outcome, e.occurred_at, GREATEST(p.start_at, k.closed_through),
           e.posted_closing
    FROM posted_events e
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= e.posted_closing
                             AND (k.to_closing IS NULL OR e.posted_closing < k.to_closing)
    WHERE e.kind = 'outcome' AND e.booked_on >= from_day AND e.booked_on < to_day
$$;

CREATE OR REPLACE FUNCTION folded_reasons(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, booked_period timestamptz, service_period timestamptz, sell_price_id bigint,
    batch_id bigint, booked_on date, reason text)
STABLE LANGUAGE sql AS $$
    SELECT DISTINCT e.customer_id, GREATEST(p.start_at, k.closed_through), p.start_at, e.sell_price_id, e.batch_id,
           e.booked_on, r.reason
    FROM posted_events e
    JOIN rerates r ON r.batch_id = e.batch_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= e.posted_closing
                             AND (k.to_closing IS NULL OR e.posted_closing < k.to_closing)
    WHERE e.kind IN ('retraction', 'restatement') AND e.booked_on >= from_day AND e.booked_on < to_day
$$;
