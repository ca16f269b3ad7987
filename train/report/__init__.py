"""Finished runs for people: tables on the terminal and in a paper, and one HTML page."""
