"""Published traces: for each form a function that reads it, and gives a trace or the rate of one."""
