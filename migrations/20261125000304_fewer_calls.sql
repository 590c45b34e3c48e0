-- The same answers with less work: functions are called for the rows that need them, which are few.

CREATE OR REPLACE FUNCTION usage_within(customer bigint, from_at timestamptz, to_at timestamptz)
RETURNS TABLE (customer_id bigint, hour timestamptz, cost_price_id bigint, sell_price_id bigint, project text, task_type text,
    events bigint, input numeric, cache_read numeric, cache_write_5m numeric, cache_write_1h numeric, output numeric,
    reasoning numeric, rare jsonb, cost numeric, charge numeric)
STABLE LANGUAGE sql AS $$
    SELECT r.customer_id, r.hour, r.cost_price_id, r.sell_price_id, r.project, r.task_type, r.events, r.input, r.cache_read,
           r.cache_write_5m, r.cache_write_1h, r.output, r.reasoning, r.rare, r.cost, r.charge
    FROM usage_rollups r
    JOIN customers c ON c.id = r.customer_id
    WHERE (customer IS NULL OR r.customer_id = customer) AND r.whole_day IN (false, true)
      AND r.hour >= from_at AND r.hour < to_at
      -- When a day ends is asked only of those near the end of the interval.
      AND (NOT r.whole_day OR r.hour < to_at - interval '2 days' OR local_day_end(r.hour, c.time_zone) <= to_at)
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

-- Most rows have no classes without a column.
CREATE OR REPLACE VIEW differing_rollups AS
    WITH kept AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', sum(events), 'input', sum(input), 'cache_read', sum(cache_read),
                   'cache_write_5m', sum(cache_write_5m), 'cache_write_1h', sum(cache_write_1h), 'output', sum(output),
                   'reasoning', sum(reasoning),
                   'rare', CASE WHEN count(rare) > 0 THEN rare_add(rare_sum(rare) FILTER (WHERE rare IS NOT NULL), '{}') END,
                   'cost', sum(cost), 'charge', sum(charge)) AS figures
        FROM usage_by_hour
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    ), refolded AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', CASE WHEN rare IS NOT NULL THEN rare_add(rare, '{}') END, 'cost', cost, 'charge', charge)
                   AS figures
        FROM refolded_rollups
    )
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           refolded.figures AS expected, kept.figures AS actual
    FROM refolded
    FULL JOIN kept USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                          task_type, kind)
    WHERE refolded.figures IS DISTINCT FROM kept.figures;

CREATE OR REPLACE VIEW differing_days AS
    WITH kept AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', CASE WHEN rare IS NOT NULL THEN rare_add(rare, '{}') END, 'cost', cost, 'charge', charge)
                   AS figures
        FROM usage_rollups WHERE whole_day
    ), summed AS (
        SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
               jsonb_build_object('events', events, 'input', input, 'cache_read', cache_read,
                   'cache_write_5m', cache_write_5m, 'cache_write_1h', cache_write_1h, 'output', output,
                   'reasoning', reasoning, 'rare', CASE WHEN rare IS NOT NULL THEN rare_add(rare, '{}') END, 'cost', cost, 'charge', charge)
                   AS figures
        FROM summed_days
    )
    SELECT customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project, task_type, kind,
           summed.figures AS expected, kept.figures AS actual
    FROM summed
    FULL JOIN kept USING (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                          task_type, kind)
    WHERE summed.figures IS DISTINCT FROM kept.figures;

CREATE OR REPLACE VIEW differing_tasks AS
    WITH kept AS (
        SELECT customer_id, task_id, to_jsonb(t) - 'rare' || jsonb_build_object('rare', CASE WHEN rare IS NOT NULL THEN rare_add(rare, '{}') END) AS figures
        FROM tasks t
    ), refolded AS (
        SELECT customer_id, task_id, to_jsonb(t) - 'rare' || jsonb_build_object('rare', CASE WHEN rare IS NOT NULL THEN rare_add(rare, '{}') END) AS figures
        FROM refolded_tasks t
    )
    SELECT customer_id, task_id, refolded.figures AS expected, kept.figures AS actual
    FROM refolded FULL JOIN kept USING (customer_id, task_id)
    WHERE refolded.figures IS DISTINCT FROM kept.figures;
