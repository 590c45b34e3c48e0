-- Refolding: what the sums must be, computed from the journal alone, by other statements than those that post.

---------------------------------------------------------------------------------------------------------------------
-- Which period late usage was booked to depends on what was closed when it was posted. Times do not tell that exactly: a
-- poster may begin before a period is closed and decide after it. So closings are counted, and a batch keeps how many there
-- were: both under the close lock, which makes the order exact.

ALTER TABLE billing_periods ADD COLUMN closing bigint;
-- Those before this migration, by the times on record.
UPDATE billing_periods p SET closing = n.closing
    FROM (SELECT customer_id, start_at, row_number() OVER (ORDER BY closed_at, end_at, customer_id) AS closing
          FROM billing_periods WHERE state = 'closed') AS n
    WHERE n.customer_id = p.customer_id AND n.start_at = p.start_at;
ALTER TABLE billing_periods
    ADD CONSTRAINT billing_periods_closing CHECK ((state = 'closed') = (closing IS NOT NULL)),
    -- One order for all; and the number of the last closing is found by it.
    ADD CONSTRAINT billing_periods_closing_once UNIQUE (closing);

ALTER TABLE ingest_batches ADD COLUMN posted_closing bigint;
UPDATE ingest_batches b
    SET posted_closing = (SELECT COALESCE(max(closing), 0) FROM billing_periods WHERE closed_at <= b.posted_at)
    WHERE posted_at IS NOT NULL;
ALTER TABLE ingest_batches
    ADD CONSTRAINT ingest_batches_posted_closing CHECK ((posted_at IS NULL) = (posted_closing IS NULL));

---------------------------------------------------------------------------------------------------------------------
-- What the sums must be

-- The closings that were the last of their customer, and from which to which number of closings.
CREATE VIEW last_closings AS
    SELECT customer_id, end_at AS closed_through, closing AS from_closing,
           lead(closing) OVER (PARTITION BY customer_id ORDER BY closing) AS to_closing
    FROM billing_periods WHERE state = 'closed';

CREATE VIEW refolded_rollups AS
    SELECT e.customer_id, GREATEST(p.start_at, k.closed_through) AS booked_period, p.start_at AS service_period,
           date_trunc('hour', e.occurred_at, c.time_zone) AS hour, e.cost_price_id, e.sell_price_id,
           COALESCE(e.project, '') AS project, COALESCE(e.task_type, '') AS task_type,
           CASE WHEN e.restates IS NULL THEN 'usage' ELSE 'adjustment' END AS kind,
           -- Every event once, less the estimates that were taken back.
           count(*) FILTER (WHERE e.kind = 'usage' AND e.part = 0)
               - count(*) FILTER (WHERE e.kind = 'reversal' AND e.part = 1000) AS events,
           sum(e.input) AS input, sum(e.cache_read) AS cache_read, sum(e.cache_write_5m) AS cache_write_5m,
           sum(e.cache_write_1h) AS cache_write_1h, sum(e.output) AS output, sum(e.reasoning) AS reasoning,
           rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL) AS rare, sum(e.cost) AS cost, sum(e.charge) AS charge
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    JOIN customers c ON c.id = e.customer_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                             AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
    WHERE e.kind <> 'outcome'
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;

CREATE VIEW refolded_tasks AS
    WITH outcomes AS (
        -- The latest stands; of two at one instant the first in the alphabet, and of two copies the one posted first.
        SELECT DISTINCT ON (e.customer_id, e.task_id) e.customer_id, e.task_id, e.outcome, e.occurred_at AS ended_at,
               GREATEST(p.start_at, k.closed_through) AS outcome_period
        FROM usage_events e
        JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
        LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
        LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                                 AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
        WHERE e.kind = 'outcome'
        ORDER BY e.customer_id, e.task_id, e.occurred_at DESC, e.outcome, b.posted_closing
    ), totals AS (
        SELECT e.customer_id, e.task_id, min(e.task_type) AS task_type, min(e.task_parent) AS parent,
               min(e.occurred_at) AS first_event_at, max(e.occurred_at) AS last_event_at,
               count(*) FILTER (WHERE e.kind = 'usage' AND e.part = 0)
                   - count(*) FILTER (WHERE e.kind = 'reversal' AND e.part = 1000) AS calls,
               sum(e.input) AS input, sum(e.cache_read) AS cache_read, sum(e.cache_write_5m) AS cache_write_5m,
               sum(e.cache_write_1h) AS cache_write_1h, sum(e.output) AS output, sum(e.reasoning) AS reasoning,
               rare_sum(e.rare) FILTER (WHERE e.rare IS NOT NULL) AS rare, sum(e.cost) AS cost, sum(e.charge) AS charge,
               COALESCE(array_agg(DISTINCT e.model) FILTER (WHERE e.kind = 'usage'), '{}') AS models,
               min(e.batch_id) AS first_batch, max(e.batch_id) AS last_batch, min(e.booked_on) AS first_booked_on,
               max(e.booked_on) AS last_booked_on
        FROM usage_events e
        JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
        WHERE e.task_id IS NOT NULL
        GROUP BY e.customer_id, e.task_id
    )
    SELECT t.customer_id, t.task_id, t.task_type, t.parent, t.first_event_at, t.last_event_at, t.calls, t.input,
           t.cache_read, t.cache_write_5m, t.cache_write_1h, t.output, t.reasoning, t.rare, t.cost, t.charge, t.models,
           o.outcome, o.ended_at, o.outcome_period, t.first_batch, t.last_batch, t.first_booked_on, t.last_booked_on
    FROM totals t LEFT JOIN outcomes o USING (customer_id, task_id);

CREATE VIEW refolded_reasons AS
    SELECT DISTINCT e.customer_id, GREATEST(p.start_at, k.closed_through) AS booked_period, p.start_at AS service_period,
           e.sell_price_id, e.batch_id, b.booked_on, r.reason
    FROM usage_events e
    JOIN ingest_batches b ON b.id = e.batch_id AND b.posted_at IS NOT NULL
    JOIN rerates r ON r.batch_id = e.batch_id
    LEFT JOIN billing_periods p ON p.customer_id = e.customer_id AND p.start_at <= e.occurred_at AND e.occurred_at < p.end_at
    LEFT JOIN last_closings k ON k.customer_id = e.customer_id AND k.from_closing <= b.posted_closing
                             AND (k.to_closing IS NULL OR b.posted_closing < k.to_closing)
    WHERE e.kind IN ('retraction', 'restatement');

---------------------------------------------------------------------------------------------------------------------
-- Where they are not what they must be, row by row: each side as a document, null where it has no such row. A document holds
-- NUMERIC to its last digit, and equal numbers are equal however they are written.

CREATE VIEW differing_rollups AS
    WITH kept AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', rare_add(COALESCE(rare, '{}'), '{}'), 'cost', cost, 'charge', charge) AS figures
        FROM usage_rollups
    ), refolded AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', rare_add(COALESCE(rare, '{}'), '{}'), 'cost', cost, 'charge', charge) AS figures
        FROM refolded_rollups
    )
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           refolded.figures AS expected, kept.figures AS actual
    FROM refolded
    FULL JOIN kept USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                          task_type, kind)
    WHERE refolded.figures IS DISTINCT FROM kept.figures;

CREATE VIEW differing_tasks AS
    WITH kept AS (
        SELECT customer_id, task_id, to_jsonb(t) - 'rare' || jsonb_build_object('rare', rare_add(COALESCE(rare, '{}'), '{}')) AS figures
        FROM tasks t
    ), refolded AS (
        SELECT customer_id, task_id, to_jsonb(t) - 'rare' || jsonb_build_object('rare', rare_add(COALESCE(rare, '{}'), '{}')) AS figures
        FROM refolded_tasks t
    )
    SELECT customer_id, task_id, refolded.figures AS expected, kept.figures AS actual
    FROM refolded FULL JOIN kept USING (customer_id, task_id)
    WHERE refolded.figures IS DISTINCT FROM kept.figures;

CREATE VIEW differing_reasons AS
    SELECT customer_id, booked_period, service_period, sell_price_id, batch_id,
           to_jsonb(refolded) AS expected, to_jsonb(kept) AS actual
    FROM refolded_reasons refolded
    FULL JOIN adjustment_reasons kept USING (customer_id, booked_period, service_period, sell_price_id, batch_id)
    WHERE to_jsonb(refolded) IS DISTINCT FROM to_jsonb(kept);
