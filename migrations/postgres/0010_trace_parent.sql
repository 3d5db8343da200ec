-- Where in a trace a request was written or decided last (W3C Trace Context). Takes the place of
-- hitl_trace, which replicas of an older release still write; `aura-hitl migrate --finish` drops it.
ALTER TABLE hitl_request ADD COLUMN trace_parent TEXT;
