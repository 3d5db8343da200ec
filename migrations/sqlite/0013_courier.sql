-- The in-process courier keeps nothing any more: without Redis there are no agents on Redis.
DROP TABLE courier_value;
