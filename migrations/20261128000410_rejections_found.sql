-- Rejections are few beside events, but they stay: what asks for some of them reads those alone.

-- A list of one customer's, the newest first, goes through all of them otherwise.
CREATE INDEX rejections_customer ON rejections (customer, id) WHERE customer IS NOT NULL;

-- What was received of an event that was a rejection first is found by the batch that recorded it.
CREATE INDEX rejections_recorded ON rejections (resolved_batch_id) WHERE resolved_batch_id IS NOT NULL;
