-- Reads that stay as short as their answers however much there is.

-- Of the hours that are kept a report reads those of one day at each end of its interval. Of all customers they are found by
-- their time alone; they are written day by day, so a block range index serves and costs next to nothing.
CREATE INDEX usage_hours_time ON usage_hours USING brin (hour) WITH (pages_per_range = 32);

-- PARALLEL SAFE, or no statement that reads usage may use more than one process. When a day ends is asked of those only that may
-- end after the interval: none is longer than two.
CREATE OR REPLACE FUNCTION usage_within(customer bigint, from_at timestamptz, to_at timestamptz)
RETURNS TABLE (customer_id bigint, hour timestamptz, cost_price_id bigint, sell_price_id bigint, project text, task_type text,
    events bigint, input numeric, cache_read numeric, cache_write_5m numeric, cache_write_1h numeric, output numeric,
    reasoning numeric, rare jsonb, cost numeric, charge numeric)
STABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT r.customer_id, r.hour, r.cost_price_id, r.sell_price_id, r.project, r.task_type, r.events, r.input, r.cache_read,
           r.cache_write_5m, r.cache_write_1h, r.output, r.reasoning, r.rare, r.cost, r.charge
    FROM usage_rollups r
    JOIN customers c ON c.id = r.customer_id
    WHERE (customer IS NULL OR r.customer_id = customer) AND r.whole_day IN (false, true)
      AND r.hour >= from_at AND r.hour < to_at
      AND (NOT r.whole_day OR r.hour < to_at - interval '2 days' OR local_day_end(r.hour, c.time_zone) <= to_at)
    UNION ALL
    SELECT h.customer_id, h.hour, h.cost_price_id, h.sell_price_id, h.project, h.task_type, h.events, h.input, h.cache_read,
           h.cache_write_5m, h.cache_write_1h, h.output, h.reasoning, h.rare, h.cost, h.charge
    FROM usage_hours h
    JOIN customers c ON c.id = h.customer_id
    WHERE (customer IS NULL OR h.customer_id = customer) AND h.hour >= from_at AND h.hour < to_at
      -- Of one day at each end.
      AND (h.hour < from_at + interval '2 days' OR h.hour >= to_at - interval '2 days')
      AND (h.day < from_at OR (h.day >= to_at - interval '2 days' AND local_day_end(h.day, c.time_zone) > to_at))
$$;
