"""The machine: devices, files that are written whole or not at all, signals, and what takes long."""
