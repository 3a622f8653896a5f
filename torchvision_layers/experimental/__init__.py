"""Layers that may become stable; README.md tracks the criteria for the promotion of each."""
