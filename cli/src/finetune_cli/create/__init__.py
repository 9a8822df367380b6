"""`finetune create`: flags to the YAML of a FineTuneJob."""
