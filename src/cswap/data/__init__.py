"""Calibration sets and where data comes from."""
