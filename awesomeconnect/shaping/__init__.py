"""Traffic shaping, without I/O: time is an argument, in integer nanoseconds. Knows `wire`, not the relay."""
