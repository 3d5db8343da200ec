-- Where in which trace a request was written or decided last, so that a signal sent later can be
-- linked to it. Filled only while traces are collected.
CREATE TABLE hitl_trace (
    request_id   TEXT PRIMARY KEY REFERENCES hitl_request ON DELETE CASCADE,
    trace_parent TEXT NOT NULL    -- W3C Trace Context
);
