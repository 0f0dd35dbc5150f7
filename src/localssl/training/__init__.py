"""Training: from a configuration to a run's folder, in one process or many."""
