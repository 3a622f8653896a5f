"""Quantizable twins of the layers, in files of the same names."""
