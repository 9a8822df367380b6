"""Progress and logs: reporter, metrics server, console and redaction."""
