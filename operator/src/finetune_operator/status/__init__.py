"""The status of a FineTuneJob: the stored record, the next draft, its conditions and its Events."""
