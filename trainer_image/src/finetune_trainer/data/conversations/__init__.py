"""Rows to conversations: formats, messages and roles."""
