"""Pure decisions: what to do next for one FineTuneJob."""
