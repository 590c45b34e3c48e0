-- What a copy of a rejected event is told by: a hash of its billable content, or where that could not be read, of the bytes in
-- raw; no content and no bytes have the same one. It spares reading raw, which may be megabytes, of everything that was
-- discarded under the id of an event that comes in. Null of whole messages, and in rejections of earlier releases, whose
-- bytes are read.
ALTER TABLE rejections ADD COLUMN content_hash uuid;

-- Which way of reading payloads the hash comes from. A release that reads them otherwise reads the bytes, too: by its own
-- reading a copy has another hash.
ALTER TABLE rejections ADD COLUMN reading smallint;
