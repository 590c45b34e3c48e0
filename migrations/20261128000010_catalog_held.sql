-- Where the catalog changes more often than it can be loaded, recording keeps it as it is for the one transaction that decides
-- and records a batch. Locking the row for that asks for the right to change some column of it: this one can only be true.
GRANT UPDATE (only_row) ON catalog_version TO waybill_ingest;
