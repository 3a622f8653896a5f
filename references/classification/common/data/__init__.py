"""Datasets, their transforms, and batches."""
