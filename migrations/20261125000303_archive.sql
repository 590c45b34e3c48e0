-- Archived months: partitions of the journal that are dropped. What the sums owe to them is kept by their whole keys, so that
-- sums = journal + archive holds to the last digit, as it did before.

---------------------------------------------------------------------------------------------------------------------
-- What a stretch of the journal adds to the sums. One statement each: the planner looks through them to the partitions.

CREATE FUNCTION folded_rollups(from_day date, to_day date)
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
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    JOIN customers c ON c.id = e.customer_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                             AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
    WHERE e.kind <> 'outcome' AND e.booked_on >= from_day AND e.booked_on < to_day
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
$$;

CREATE FUNCTION folded_tasks(from_day date, to_day date)
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
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    WHERE e.task_id IS NOT NULL AND e.booked_on >= from_day AND e.booked_on < to_day
    GROUP BY 1, 2
$$;

CREATE FUNCTION folded_outcomes(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, task_id text, outcome text, ended_at timestamptz, outcome_period timestamptz,
    posted_closing bigint)
STABLE LANGUAGE sql AS $$
    SELECT DISTINCT e.customer_id, e.task_id, e.outcome, e.occurred_at, GREATEST(p.start_at, k.closed_through),
           b.posted_closing
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                             AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
    WHERE e.kind = 'outcome' AND e.booked_on >= from_day AND e.booked_on < to_day
$$;

CREATE FUNCTION folded_reasons(from_day date, to_day date)
RETURNS TABLE (customer_id bigint, booked_period timestamptz, service_period timestamptz, sell_price_id bigint,
    batch_id bigint, booked_on date, reason text)
STABLE LANGUAGE sql AS $$
    SELECT DISTINCT e.customer_id, GREATEST(p.start_at, k.closed_through), p.start_at, e.sell_price_id, e.batch_id,
           b.booked_on, r.reason
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    JOIN rerates r ON r.batch_id = e.batch_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                             AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
    WHERE e.kind IN ('retraction', 'restatement') AND e.booked_on >= from_day AND e.booked_on < to_day
$$;

---------------------------------------------------------------------------------------------------------------------
-- The archive

CREATE TABLE archived_months (
    -- Its first day.
    month      date PRIMARY KEY CHECK (extract(day FROM month) = 1),
    dropped_at timestamptz NOT NULL DEFAULT now(),
    -- What its partition held: compared with its batches, which stay.
    batches    bigint NOT NULL CHECK (batches >= 0),
    rows       bigint NOT NULL CHECK (rows >= 0)
);

CREATE TABLE archived_rollups (
    month          date NOT NULL REFERENCES archived_months,
    customer_id    bigint NOT NULL,
    booked_period  timestamptz NOT NULL,
    service_period timestamptz NOT NULL,
    hour           timestamptz NOT NULL,
    cost_price_id  bigint NOT NULL,
    sell_price_id  bigint NOT NULL,
    project        text NOT NULL,
    task_type      text NOT NULL,
    kind           text NOT NULL,
    events         bigint NOT NULL,
    input          numeric NOT NULL,
    cache_read     numeric NOT NULL,
    cache_write_5m numeric NOT NULL,
    cache_write_1h numeric NOT NULL,
    output         numeric NOT NULL,
    reasoning      numeric NOT NULL,
    rare           jsonb,
    cost           numeric NOT NULL,
    charge         numeric NOT NULL,
    PRIMARY KEY (customer_id, month, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                 service_period)
);

-- A month's part of each task that had rows in it; tasks go on over months.
CREATE TABLE archived_tasks (
    month          date NOT NULL REFERENCES archived_months,
    customer_id    bigint NOT NULL,
    task_id        text NOT NULL,
    task_type      text,
    parent         text,
    first_event_at timestamptz NOT NULL,
    last_event_at  timestamptz NOT NULL,
    calls          bigint NOT NULL,
    input          numeric NOT NULL,
    cache_read     numeric NOT NULL,
    cache_write_5m numeric NOT NULL,
    cache_write_1h numeric NOT NULL,
    output         numeric NOT NULL,
    reasoning      numeric NOT NULL,
    rare           jsonb,
    cost           numeric NOT NULL,
    charge         numeric NOT NULL,
    models         text[] NOT NULL,
    first_batch    bigint NOT NULL,
    last_batch     bigint NOT NULL,
    first_booked_on date NOT NULL,
    last_booked_on  date NOT NULL,
    PRIMARY KEY (customer_id, task_id, month)
);

-- All outcomes, also those that another has replaced: tasks may have been charged by them.
CREATE TABLE archived_outcomes (
    month          date NOT NULL REFERENCES archived_months,
    customer_id    bigint NOT NULL,
    task_id        text NOT NULL,
    outcome        text NOT NULL,
    ended_at       timestamptz NOT NULL,
    outcome_period timestamptz NOT NULL,
    posted_closing bigint NOT NULL,
    PRIMARY KEY (customer_id, task_id, ended_at, outcome, posted_closing, month)
);

CREATE TABLE archived_reasons (
    month          date NOT NULL REFERENCES archived_months,
    customer_id    bigint NOT NULL,
    booked_period  timestamptz NOT NULL,
    service_period timestamptz NOT NULL,
    sell_price_id  bigint NOT NULL,
    batch_id       bigint NOT NULL REFERENCES ingest_batches,
    booked_on      date NOT NULL,
    reason         text,
    PRIMARY KEY (customer_id, booked_period, service_period, sell_price_id, batch_id)
);

-- What it was made from is gone, so it is final.
DO $$
DECLARE
    archive text;
BEGIN
    FOREACH archive IN ARRAY ARRAY['archived_months', 'archived_rollups', 'archived_tasks', 'archived_outcomes', 'archived_reasons']
    LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', archive);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', archive);
    END LOOP;
END $$;

-- Booking dates before this are archived; null where none is. Customers may know it: it says why raw events are missing.
CREATE FUNCTION archived_through() RETURNS date STABLE LANGUAGE sql AS
    $$ SELECT (max(month) + interval '1 month')::date FROM archived_months $$;
GRANT SELECT ON archived_months TO waybill_customer;

-- Drops the journal's partition of a month. The caller has archived it, holds the journal's lock exclusively, and has bounded
-- how long it waits for readers.
CREATE FUNCTION drop_journal_partition(first_day date) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP TABLE %I', 'usage_events_' || to_char(first_day, 'YYYY_MM'));
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Proof: what the sums must be is what the journal and the archive give together

CREATE OR REPLACE VIEW refolded_rollups AS
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           sum(events)::bigint AS events, sum(input) AS input, sum(cache_read) AS cache_read,
           sum(cache_write_5m) AS cache_write_5m, sum(cache_write_1h) AS cache_write_1h, sum(output) AS output,
           sum(reasoning) AS reasoning, rare_sum(rare) FILTER (WHERE rare IS NOT NULL) AS rare, sum(cost) AS cost,
           sum(charge) AS charge
    FROM (SELECT * FROM folded_rollups('-infinity', 'infinity')
          UNION ALL
          SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
                 events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge
          FROM archived_rollups) AS parts
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;

-- Joins the lists of models of a task's months.
CREATE AGGREGATE texts(text[]) (SFUNC = array_cat, STYPE = text[], INITCOND = '{}');

CREATE OR REPLACE VIEW refolded_tasks AS
    WITH outcomes AS (
        -- The latest stands; of two at one instant the first in the alphabet, and of two copies the one posted first.
        SELECT DISTINCT ON (customer_id, task_id) customer_id, task_id, outcome, ended_at, outcome_period
        FROM (SELECT * FROM folded_outcomes('-infinity', 'infinity')
              UNION ALL
              SELECT customer_id, task_id, outcome, ended_at, outcome_period, posted_closing FROM archived_outcomes) AS all_of_them
        ORDER BY customer_id, task_id, ended_at DESC, outcome, posted_closing
    ), totals AS (
        SELECT customer_id, task_id, min(task_type) AS task_type, min(parent) AS parent,
               min(first_event_at) AS first_event_at, max(last_event_at) AS last_event_at, sum(calls)::bigint AS calls,
               sum(input) AS input, sum(cache_read) AS cache_read, sum(cache_write_5m) AS cache_write_5m,
               sum(cache_write_1h) AS cache_write_1h, sum(output) AS output, sum(reasoning) AS reasoning,
               rare_sum(rare) FILTER (WHERE rare IS NOT NULL) AS rare, sum(cost) AS cost, sum(charge) AS charge,
               texts(models) AS models, min(first_batch) AS first_batch, max(last_batch) AS last_batch,
               min(first_booked_on) AS first_booked_on, max(last_booked_on) AS last_booked_on
        FROM (SELECT * FROM folded_tasks('-infinity', 'infinity')
              UNION ALL
              SELECT customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls, input, cache_read,
                     cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge, models, first_batch, last_batch,
                     first_booked_on, last_booked_on
              FROM archived_tasks) AS parts
        GROUP BY 1, 2
    )
    SELECT t.customer_id, t.task_id, t.task_type, t.parent, t.first_event_at, t.last_event_at, t.calls, t.input,
           t.cache_read, t.cache_write_5m, t.cache_write_1h, t.output, t.reasoning, t.rare, t.cost, t.charge,
           ARRAY(SELECT DISTINCT unnest(t.models) ORDER BY 1) AS models,
           o.outcome, o.ended_at, o.outcome_period, t.first_batch, t.last_batch, t.first_booked_on, t.last_booked_on
    FROM totals t LEFT JOIN outcomes o USING (customer_id, task_id);

CREATE OR REPLACE VIEW refolded_reasons AS
    SELECT * FROM folded_reasons('-infinity', 'infinity')
    UNION ALL
    SELECT customer_id, booked_period, service_period, sell_price_id, batch_id, booked_on, reason FROM archived_reasons;
