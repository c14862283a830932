"""A workload resolved against its devices, profiles and traces."""
