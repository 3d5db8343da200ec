-- Where in a trace a request was written or decided last (W3C Trace Context), in place of hitl_trace.
ALTER TABLE hitl_request ADD COLUMN trace_parent TEXT;
UPDATE hitl_request SET trace_parent = t.trace_parent
  FROM hitl_trace t WHERE t.request_id = hitl_request.request_id;
DROP TABLE hitl_trace;
