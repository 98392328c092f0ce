"""TODO-init."""
