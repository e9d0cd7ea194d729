"""Quality, cost and curves."""
