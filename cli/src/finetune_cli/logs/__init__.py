"""`finetune logs`: the log of a stage, from its pod or from where it is kept."""
