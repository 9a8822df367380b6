"""`finetune run`: the three stages as local processes."""
