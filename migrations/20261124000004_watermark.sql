-- When a gateway's count was first and last heard of: what the settled watermark shows. No index on `seen_at`: it changes
-- with every batch, and a row whose indexed columns stay as they are is updated in place.
ALTER TABLE gateway_sequences
    ADD COLUMN first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN seen_at       timestamptz NOT NULL DEFAULT clock_timestamp();
