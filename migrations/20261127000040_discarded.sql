-- What finance has discarded stays discarded when its message is read again: looked for with every batch, in which there is
-- almost never any.
CREATE INDEX rejections_discarded ON rejections (incarnation, stream_seq) WHERE resolution = 'discarded';
