-- What the policy file said of a request when its row was last written, and the votes of people while more
-- than one has to approve it. Every column is NULL without a policy file.
ALTER TABLE hitl_request ADD COLUMN decided_via TEXT;         -- 'policy', 'grant'; NULL: a person
ALTER TABLE hitl_request ADD COLUMN rule TEXT;                -- the name of the policy's rule
ALTER TABLE hitl_request ADD COLUMN policy_version TEXT;      -- of the file that the rule is in
ALTER TABLE hitl_request ADD COLUMN binding TEXT;             -- stands for the version and the rules that bind: hitl_binding
ALTER TABLE hitl_request ADD COLUMN risk TEXT;
ALTER TABLE hitl_request ADD COLUMN approvals_needed INTEGER;
ALTER TABLE hitl_request ADD COLUMN approvals INTEGER;        -- that counted at the last vote
ALTER TABLE hitl_request ADD COLUMN ballots INTEGER;          -- how often votes were written: a vote is written if this is as it was read
ALTER TABLE hitl_request ADD COLUMN voters TEXT;              -- JSON array of those whose approvals counted when it was approved

-- One vote of each person on each request. A later one replaces it. It counts for the content and the
-- arguments for which it was given.
CREATE TABLE hitl_vote (
    tenant_id      TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    voter          TEXT NOT NULL,
    decision       TEXT NOT NULL,
    voted_at       TEXT NOT NULL,
    reason         TEXT,
    etag           TEXT NOT NULL,
    arguments      TEXT,                 -- fingerprint; NULL: those that were asked
    voter_roles    TEXT NOT NULL,        -- JSON array: the roles of the token
    voter_groups   TEXT NOT NULL,        -- JSON array: the groups of the token
    rule           TEXT,
    policy_version TEXT,
    token_id       TEXT,
    PRIMARY KEY (tenant_id, request_id, voter)
);

-- Every value of hitl_request.binding that was ever written: which of them a person may decide, a list finds
-- out without reading the requests.
CREATE TABLE hitl_binding (
    policy_version TEXT NOT NULL,
    binding        TEXT NOT NULL,
    rules          TEXT NOT NULL,          -- the rules that bind, as the policy spells them
    PRIMARY KEY (policy_version, binding)
);
