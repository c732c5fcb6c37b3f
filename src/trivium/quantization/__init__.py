"""Matrices stored in fewer bits: formats, packing, modules that compute with packed weights, calibration, error."""
