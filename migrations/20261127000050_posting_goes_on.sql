-- What could keep posting from going on, or let it go on wrongly: a zone that the server does not know, an outcome without a
-- period, and a batch without a row for its odd half.

---------------------------------------------------------------------------------------------------------------------
-- Zones

-- Whether the server knows a customer's zone: posting computes the hour of usage by it, and fails for everybody's where it
-- does not. A name may be gone after an upgrade: some packages of the zones leave older names out.
CREATE FUNCTION knows_time_zone(zone text) RETURNS boolean STABLE STRICT LANGUAGE plpgsql AS $$
BEGIN
    PERFORM now() AT TIME ZONE zone;
    RETURN true;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN false;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Halves

-- Nothing is posted or closed while this runs.
SELECT pg_advisory_xact_lock(x'77617902'::bigint);

-- Batches that were being recorded while half_postings was made had no trigger yet, and were not seen.
INSERT INTO half_postings (batch_id) SELECT id FROM ingest_batches WHERE posted_at IS NULL ON CONFLICT DO NOTHING;

---------------------------------------------------------------------------------------------------------------------
-- Outcomes

-- An outcome is always booked to a period, or no invoice would look at its task. Posting makes the period where this refuses.
-- Existing rows are put right below; they are not looked at again while the table is locked.
ALTER TABLE tasks ADD CONSTRAINT tasks_outcome_booked CHECK (outcome IS NULL OR outcome_period IS NOT NULL) NOT VALID;

-- Outcomes that were posted before their customer had a period for them: booked to none, or to that of the outcome before.
CREATE TEMPORARY TABLE unbooked ON COMMIT DROP AS
    SELECT t.customer_id, t.task_id, t.ended_at
    FROM tasks t
    LEFT JOIN billing_periods p ON p.customer_id = t.customer_id AND p.start_at <= t.ended_at AND t.ended_at < p.end_at
    WHERE t.outcome IS NOT NULL AND (t.outcome_period IS NULL OR p.start_at IS NULL OR t.outcome_period < p.start_at);

-- The calendar periods that they lie in, cut where a period holds part of one already.
INSERT INTO billing_periods (customer_id, start_at, end_at)
    SELECT customer_id, cut.start_at, cut.end_at
    FROM (
        SELECT DISTINCT u.customer_id, local_midnight(month.first, c.time_zone) AS start_at,
               local_midnight((month.first + interval '1 month')::date, c.time_zone) AS end_at
        FROM unbooked u
        JOIN customers c ON c.id = u.customer_id,
        LATERAL (SELECT date_trunc('month', (u.ended_at AT TIME ZONE c.time_zone) - (c.anchor_day - 1) * interval '1 day')::date
                        + (c.anchor_day - 1) AS first) AS month
        WHERE NOT EXISTS (SELECT FROM billing_periods b
                          WHERE b.customer_id = u.customer_id AND b.start_at <= u.ended_at AND u.ended_at < b.end_at)
    ) AS whole,
    LATERAL (SELECT GREATEST(whole.start_at, max(b.end_at) FILTER (WHERE b.start_at <= whole.start_at)) AS start_at,
                    LEAST(whole.end_at, min(b.start_at) FILTER (WHERE b.start_at > whole.start_at)) AS end_at
             FROM billing_periods b
             WHERE b.customer_id = whole.customer_id AND b.start_at < whole.end_at AND b.end_at > whole.start_at) AS cut
    WHERE cut.start_at < cut.end_at
    ON CONFLICT DO NOTHING;

-- By the rule that the journal folded again has: the first period that was open when the outcome was posted.
UPDATE tasks t SET outcome_period = GREATEST(p.start_at, k.closed_through)
FROM unbooked u
JOIN billing_periods p ON p.customer_id = u.customer_id AND p.start_at <= u.ended_at AND u.ended_at < p.end_at
JOIN tasks own ON own.customer_id = u.customer_id AND own.task_id = u.task_id
LEFT JOIN LATERAL (
    SELECT min(e.posted_closing) AS closing FROM posted_events e
    WHERE e.customer_id = own.customer_id AND e.task_id = own.task_id AND e.kind = 'outcome'
      AND e.occurred_at = own.ended_at AND e.outcome = own.outcome
      AND e.batch_id BETWEEN own.first_batch AND own.last_batch
      AND e.booked_on BETWEEN own.first_booked_on AND own.last_booked_on
) AS posted ON true
LEFT JOIN last_closings k ON k.customer_id = u.customer_id AND k.from_closing <= posted.closing
                         AND (k.to_closing IS NULL OR posted.closing < k.to_closing)
WHERE t.customer_id = u.customer_id AND t.task_id = u.task_id;
