"""The command line: plan, run and calibrate."""
