"""The sections of a report, one file each: its tables, its words and its plots."""
