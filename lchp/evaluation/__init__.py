"""From networks to predictions, and from predictions, also anybody's, to metrics."""
