"""Fetching data and models from URLs, hubs, object stores and volumes."""
