"""Which part of the library runs which recipe."""
