"""What one service costs and carries on one shape of group: partitions, latency, energy, memory."""
