"""Readers: one class per kind of file or table, each giving rows in blocks, with a place after each block."""
