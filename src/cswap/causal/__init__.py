"""Interventions, the statistics of their effects, and verdicts."""
