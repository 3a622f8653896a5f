"""File formats: ``table`` lists them, and each other module writes and reads one of them."""
