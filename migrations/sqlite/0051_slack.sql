-- Messages in Slack that ask for a decision, until their request is closed and they say so. Whoever clicks
-- names the message; which request of which tenant it asks for stands here alone.
CREATE TABLE hitl_slack_message (
    channel    TEXT NOT NULL,  -- Slack's id of the channel or direct message
    ts         TEXT NOT NULL,  -- Slack's id of the message within it
    tenant_id  TEXT NOT NULL,
    request_id TEXT NOT NULL,
    posted_at  TEXT NOT NULL,
    PRIMARY KEY (channel, ts)
);
CREATE INDEX hitl_slack_message_request ON hitl_slack_message (tenant_id, request_id);
CREATE INDEX hitl_slack_message_time ON hitl_slack_message (posted_at);

-- Calls of Slack that were taken, by their signature, so that none is taken twice on any replica.
CREATE TABLE hitl_slack_call (
    signature TEXT NOT NULL PRIMARY KEY,
    taken_at  TEXT NOT NULL
);
CREATE INDEX hitl_slack_call_time ON hitl_slack_call (taken_at);
