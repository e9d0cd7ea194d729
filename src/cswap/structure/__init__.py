"""Units, groups and surgery: what can be removed physically, and how."""
