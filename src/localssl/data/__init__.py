"""What images (sources) and what pairs (views)."""
