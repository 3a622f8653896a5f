"""Checks of a file before anything in it runs: its checksum, its zip records, and what a program may contain."""
