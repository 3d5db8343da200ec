-- What a list shows of a request's document, so that a list need not read documents: the message, cut to
-- 2,000 characters, and the entity tag (SHA-256, hex). Rows of an older release have neither: lists then
-- read the document, until the search worker has filled them in.
ALTER TABLE hitl_request ADD COLUMN message TEXT;
ALTER TABLE hitl_request ADD COLUMN etag TEXT;
