"""Policies that answer while somebody reads: loaded side by side, asked in messages, heard in pieces of text."""
