-- Takes back what 0004_retry_schedules.up.sql made.
ALTER TABLE endpoints DROP CONSTRAINT endpoints_retry_schedule_s_check;
