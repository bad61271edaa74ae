"""Rows in, tables and pictures out."""
