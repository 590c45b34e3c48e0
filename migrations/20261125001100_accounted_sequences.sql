-- Completeness in few rows, however many batches there are. Made from the batches and from nothing else: a restore of the
-- database takes it back with them, and a sequence that is not in it (yet) is looked for in the batches.

-- Sequences that batches up to the one below account for.
CREATE TABLE accounted_sequences (
    incarnation uuid PRIMARY KEY,
    sequences   int8multirange NOT NULL
);

-- One row: the batch that the above goes up to. No batch with a lower number can still be committed.
CREATE TABLE accounted_through (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    batch_id bigint NOT NULL
);
INSERT INTO accounted_through (batch_id) VALUES (0);
