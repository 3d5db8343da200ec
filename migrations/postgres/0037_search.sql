-- What the word search of lists looks through: the text of each request in lower case, cut to 16 KiB. A
-- worker writes it shortly after the request, so that its index costs no decision anything.
CREATE TABLE hitl_search (
    request_id TEXT NOT NULL,
    tenant_id  TEXT NOT NULL,
    body       TEXT NOT NULL,
    PRIMARY KEY (request_id, tenant_id)
);

-- With pg_trgm a word is found by an index. Where this role may not create the extension, lists search the
-- newest requests row by row. For an index later: create the extension, then this index, by hand.
DO $$
DECLARE
    operators TEXT;
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') THEN
        BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm;
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE 'pg_trgm cannot be created: %', SQLERRM;
        END;
    END IF;
    -- It may stand in any schema.
    SELECT format('%I.%I', n.nspname, o.opcname) INTO operators
      FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace
     WHERE o.opcname = 'gin_trgm_ops' LIMIT 1;
    IF operators IS NOT NULL THEN
        BEGIN
            EXECUTE format('CREATE INDEX hitl_search_words ON hitl_search USING gin (body %s)', operators);
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE 'hitl_search_words cannot be created: %', SQLERRM;
        END;
    END IF;
END $$;
