"""The policies of a decision, one a file: each takes a Reconciliation and returns a changed copy."""
