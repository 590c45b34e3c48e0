-- Payloads are compressed already: PostgreSQL need not try it again before it stores them.
ALTER TABLE batch_payloads ALTER COLUMN body SET STORAGE EXTERNAL;
