-- What the word search of lists looks through: the text of each request in lower case, cut to 16 KiB. A
-- worker writes it shortly after the request.
CREATE TABLE hitl_search (
    search_id  INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    tenant_id  TEXT NOT NULL,
    body       TEXT NOT NULL,
    UNIQUE (request_id, tenant_id)
);

-- Finds words of three characters and more.
CREATE VIRTUAL TABLE hitl_search_words USING fts5(
    body, content = 'hitl_search', content_rowid = 'search_id', tokenize = 'trigram'
);
CREATE TRIGGER hitl_search_insert AFTER INSERT ON hitl_search BEGIN
    INSERT INTO hitl_search_words (rowid, body) VALUES (new.search_id, new.body);
END;
CREATE TRIGGER hitl_search_delete AFTER DELETE ON hitl_search BEGIN
    INSERT INTO hitl_search_words (hitl_search_words, rowid, body)
    VALUES ('delete', old.search_id, old.body);
END;
CREATE TRIGGER hitl_search_update AFTER UPDATE ON hitl_search BEGIN
    INSERT INTO hitl_search_words (hitl_search_words, rowid, body)
    VALUES ('delete', old.search_id, old.body);
    INSERT INTO hitl_search_words (rowid, body) VALUES (new.search_id, new.body);
END;
