"""Layers as linear maps: their inputs as rows, their weights as matrices, least squares between them."""
