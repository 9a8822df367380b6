"""`finetune watch`: a live view of jobs on a terminal, and one line for each change elsewhere."""
