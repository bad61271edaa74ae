"""The report: one page over all rows."""
