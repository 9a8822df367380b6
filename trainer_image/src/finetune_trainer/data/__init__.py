"""From bytes to labels: rows, conversations, chat templates, masks, dataset."""
