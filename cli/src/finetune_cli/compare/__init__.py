"""`finetune compare`: two jobs side by side, and whether their results differ by more than chance."""
