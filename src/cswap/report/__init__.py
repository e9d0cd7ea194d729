"""What a person reads: figures."""
