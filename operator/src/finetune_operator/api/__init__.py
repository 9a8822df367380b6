"""FineTuneJob as values: spec, validation, plan, conditions, reasons and quantities."""
