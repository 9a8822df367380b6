"""`finetune plan`: check if a job fits, and show its GPU, its values and the reasons."""
