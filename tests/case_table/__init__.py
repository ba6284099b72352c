"""The cases, one file for each page of the book; see tests/cases.py."""
