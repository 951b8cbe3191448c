"""Measurements, with the tables they print."""
