"""`finetune plan`: what a job would be given, and why."""
