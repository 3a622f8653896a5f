"""Layers of others that compute what torch's own layers compute, recognized by behaviour."""
