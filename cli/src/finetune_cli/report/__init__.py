"""`finetune report`: the page of a job, or the same content as JSON."""
