"""Folding: the pass over a model, its rules, and the replacement of single modules."""
