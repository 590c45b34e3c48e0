-- Rejections by when their events happened, and what of them is due.

-- The event's own time, as far as it can be read: a month is kept for open ones of its time, and what finance has discarded
-- is told by it when it comes again. And when the stream took its message, which the acceptance window is measured from,
-- however late it was read. Both are null in rejections of earlier releases.
ALTER TABLE rejections ADD COLUMN event_time timestamptz, ADD COLUMN received_at timestamptz;

-- What is to be tried again is looked for every second, among millions that may wait for one price. What somebody asked for
-- is almost always nothing ...
CREATE INDEX rejections_requested ON rejections (id) WHERE resolved_at IS NULL AND replay_requested;
-- ... and of each reason those come first that were tried with the oldest catalog: where all were tried with the newest one,
-- none is read.
CREATE INDEX rejections_behind ON rejections (reason, catalog_version, id) WHERE resolved_at IS NULL;

-- What finance has discarded stays discarded when it comes in another message: asked with every batch whether there is any of
-- the time of its events, which are new, while what is discarded is old.
CREATE INDEX rejections_discarded_time ON rejections (event_time) WHERE resolution = 'discarded';
