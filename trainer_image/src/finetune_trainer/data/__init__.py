"""Turns the bytes of dataset files into token ids and labels: rows, conversations, chat templates, masks, dataset."""
