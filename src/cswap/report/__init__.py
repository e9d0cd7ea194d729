"""What a person reads: figures, explanations, the report."""
