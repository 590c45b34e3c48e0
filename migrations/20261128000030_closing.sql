-- Closing a period of a customer with very many finished tasks, proving what it charged them, and a second clock that it asks.

-- Nothing is posted or closed while this runs: a poster takes the locks below in another order.
SELECT pg_advisory_xact_lock(x'77617902'::bigint);

---------------------------------------------------------------------------------------------------------------------
-- Finished tasks, page by page

-- The tasks that an invoice has to look at, in the order in which it does: a customer may have millions of them in a period,
-- and each page begins where the one before ended. It takes the place of the index without that order. Built once, while
-- posting waits for it.
CREATE INDEX tasks_finished ON tasks (customer_id, outcome_period, task_id) WHERE outcome_period IS NOT NULL;
DROP INDEX tasks_outcome_period;

-- What decided which tasks were charged in a period that was closed without an invoice: the period prices and the customer's
-- books, as the manifest of an invoice names them. Null while it is open, where it has invoices, and where it was closed
-- before this was kept.
ALTER TABLE billing_periods ADD COLUMN settled_by jsonb;
GRANT UPDATE (settled_by) ON billing_periods TO waybill_finance;

---------------------------------------------------------------------------------------------------------------------
-- The clock

-- The last end of a period that may be closed: closing is final, and a program whose clock is ahead would close periods that
-- run. A function and no setting, so that only the owner could change it.
CREATE FUNCTION latest_period_end() RETURNS timestamptz LANGUAGE sql AS $$ SELECT clock_timestamp() $$;
