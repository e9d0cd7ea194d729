"""Giving back what can be given back, without fine-tuning."""
