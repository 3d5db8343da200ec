-- To whom a message in Slack was posted: a channel, or a person, whose direct messages have another id. The
-- person's language is known by it. Messages of an older release have none.
ALTER TABLE hitl_slack_message ADD COLUMN target TEXT;
