"""FineTuneJob as values: spec, validation, conditions, reasons and quantities."""
