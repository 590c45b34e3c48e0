-- Days: hours that are over for long are summed into one row per day, so that a month's invoice reads few rows. The rows of
-- their hours are kept beside it: prices over the period count by the hour, and so may reports.

-- When a day of a zone begins: at its first instant, which is an hour before what PostgreSQL takes for midnight where clocks
-- are set back over it.
CREATE FUNCTION local_midnight(day date, zone text) RETURNS timestamptz IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS $$
    SELECT CASE WHEN ((midnight - interval '1 hour') AT TIME ZONE zone)::date = day THEN midnight - interval '1 hour'
                ELSE midnight END
    FROM (SELECT day::timestamp AT TIME ZONE zone AS midnight) AS usual
$$;
-- The first instant of the day that an instant lies in, and the first after it.
CREATE FUNCTION local_day_start(at timestamptz, zone text) RETURNS timestamptz IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS
    $$ SELECT local_midnight((at AT TIME ZONE zone)::date, zone) $$;
CREATE FUNCTION local_day_end(at timestamptz, zone text) RETURNS timestamptz IMMUTABLE STRICT PARALLEL SAFE LANGUAGE sql AS
    $$ SELECT local_midnight((at AT TIME ZONE zone)::date + 1, zone) $$;

-- True for the row of a day: `hour` is its start then. Every unit of usage is in one row, of an hour or of a day.
ALTER TABLE usage_rollups ADD COLUMN whole_day boolean NOT NULL DEFAULT false;
-- In the key, so that usage of a day that is summed already gets a row of its hour again, and posting never meets the row of
-- a day. Before the last column, where it fits into what alignment leaves free.
ALTER TABLE usage_rollups DROP CONSTRAINT usage_rollups_pkey,
    ADD PRIMARY KEY (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind, whole_day,
                     service_period);
-- Also finds the hours that are left to sum, however many days there are.
DROP INDEX usage_rollups_hour;
CREATE INDEX usage_rollups_hour ON usage_rollups (customer_id, whole_day, hour);

-- The hours that are summed into days; what a row of a day holds is the sum of its hours here.
CREATE TABLE usage_hours (
    customer_id    bigint NOT NULL,
    booked_period  timestamptz NOT NULL,
    service_period timestamptz NOT NULL,
    -- `hour` of the row of its day.
    day            timestamptz NOT NULL,
    hour           timestamptz NOT NULL,
    cost_price_id  bigint NOT NULL,
    sell_price_id  bigint NOT NULL,
    project        text NOT NULL,
    task_type      text NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('usage', 'adjustment')),
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
    PRIMARY KEY (customer_id, booked_period, hour, cost_price_id, sell_price_id, project, task_type, kind, service_period),
    CHECK (day <= hour)
);
-- Reports that begin or end within a day.
CREATE INDEX usage_hours_hour ON usage_hours (customer_id, hour);
ALTER TABLE usage_hours ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_hours ON usage_hours FOR SELECT TO waybill_customer USING (customer_id = (SELECT current_customer()));

-- All usage by the hour; of one key there may be two rows until the second is summed too.
CREATE VIEW usage_by_hour WITH (security_invoker = true) AS
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind, events,
           input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge
    FROM usage_rollups WHERE NOT whole_day
    UNION ALL
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind, events,
           input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, rare, cost, charge
    FROM usage_hours;
GRANT SELECT ON usage_hours, usage_by_hour TO waybill_customer;

-- Usage of hours that begin in an interval, of one customer or (null) of all: days that lie inside as a whole, hours that are
-- not summed into a day, and of days that do not lie inside the hours that do. `hour` is the start of either.
CREATE FUNCTION usage_within(customer bigint, from_at timestamptz, to_at timestamptz)
RETURNS TABLE (customer_id bigint, hour timestamptz, cost_price_id bigint, sell_price_id bigint, project text, task_type text,
    events bigint, input numeric, cache_read numeric, cache_write_5m numeric, cache_write_1h numeric, output numeric,
    reasoning numeric, rare jsonb, cost numeric, charge numeric)
STABLE LANGUAGE sql AS $$
    SELECT r.customer_id, r.hour, r.cost_price_id, r.sell_price_id, r.project, r.task_type, r.events, r.input, r.cache_read,
           r.cache_write_5m, r.cache_write_1h, r.output, r.reasoning, r.rare, r.cost, r.charge
    FROM usage_rollups r
    JOIN customers c ON c.id = r.customer_id
    WHERE (customer IS NULL OR r.customer_id = customer) AND r.whole_day IN (false, true)
      AND r.hour >= from_at AND r.hour < to_at AND (NOT r.whole_day OR local_day_end(r.hour, c.time_zone) <= to_at)
    UNION ALL
    SELECT h.customer_id, h.hour, h.cost_price_id, h.sell_price_id, h.project, h.task_type, h.events, h.input, h.cache_read,
           h.cache_write_5m, h.cache_write_1h, h.output, h.reasoning, h.rare, h.cost, h.charge
    FROM usage_hours h
    JOIN customers c ON c.id = h.customer_id
    WHERE (customer IS NULL OR h.customer_id = customer) AND h.hour >= from_at AND h.hour < to_at
      -- Of one day at each end; none is longer than two.
      AND (h.hour < from_at + interval '2 days' OR h.hour >= to_at - interval '2 days')
      AND (h.day < from_at OR local_day_end(h.day, c.time_zone) > to_at)
$$;

---------------------------------------------------------------------------------------------------------------------
-- Proof

-- Compared by the hour, whether that is summed into a day or not.
CREATE OR REPLACE VIEW differing_rollups AS
    WITH kept AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', sum(events), 'input', sum(input), 'cache_read', sum(cache_read),
                   'cache_write_5m', sum(cache_write_5m), 'cache_write_1h', sum(cache_write_1h), 'output', sum(output),
                   'reasoning', sum(reasoning),
                   'rare', rare_add(COALESCE(rare_sum(rare) FILTER (WHERE rare IS NOT NULL), '{}'), '{}'),
                   'cost', sum(cost), 'charge', sum(charge)) AS figures
        FROM usage_by_hour
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    ), refolded AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', rare_add(COALESCE(rare, '{}'), '{}'), 'cost', cost, 'charge', charge)
                   AS figures
        FROM refolded_rollups
    )
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           refolded.figures AS expected, kept.figures AS actual
    FROM refolded
    FULL JOIN kept USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                          task_type, kind)
    WHERE refolded.figures IS DISTINCT FROM kept.figures;

-- What the rows of days must be.
CREATE VIEW summed_days AS
    SELECT customer_id, booked_period, service_period, day AS hour, cost_price_id, sell_price_id, project, task_type, kind,
           sum(events)::bigint AS events, sum(input) AS input, sum(cache_read) AS cache_read,
           sum(cache_write_5m) AS cache_write_5m, sum(cache_write_1h) AS cache_write_1h, sum(output) AS output,
           sum(reasoning) AS reasoning, rare_sum(rare) FILTER (WHERE rare IS NOT NULL) AS rare, sum(cost) AS cost,
           sum(charge) AS charge
    FROM usage_hours
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;

CREATE VIEW differing_days AS
    WITH kept AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', rare_add(COALESCE(rare, '{}'), '{}'), 'cost', cost, 'charge', charge)
                   AS figures
        FROM usage_rollups WHERE whole_day
    ), summed AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', rare_add(COALESCE(rare, '{}'), '{}'), 'cost', cost, 'charge', charge)
                   AS figures
        FROM summed_days
    )
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           summed.figures AS expected, kept.figures AS actual
    FROM summed
    FULL JOIN kept USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                          task_type, kind)
    WHERE summed.figures IS DISTINCT FROM kept.figures;
