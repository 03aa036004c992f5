"""`homing bench`: what the pipeline does per second, how late, and what it costs, on real servers and real processes."""
