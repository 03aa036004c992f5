-- A schedule that somebody's SQL stores is one that the program accepts (app/backoff.py): 1 to 100 delays, each from 0 to 604,800 s.
-- Else nobody would know before an attempt has failed. `homing migrate` sets the time-outs; endpoints are few, so that those which
-- are there are checked in a moment. Where one of them is refused, nothing is changed: put its schedule right, and run it again.
ALTER TABLE endpoints ADD CONSTRAINT endpoints_retry_schedule_s_check CHECK (
    array_ndims(retry_schedule_s) = 1 AND cardinality(retry_schedule_s) BETWEEN 1 AND 100
    AND num_nulls(VARIADIC retry_schedule_s) = 0 AND 0 <= ALL (retry_schedule_s) AND 604800 >= ALL (retry_schedule_s)
) NOT VALID;
ALTER TABLE endpoints VALIDATE CONSTRAINT endpoints_retry_schedule_s_check;
