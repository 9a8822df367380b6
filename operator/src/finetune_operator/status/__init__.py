"""The status of a FineTuneJob: its record, its draft, its texts and the events of its changes."""
