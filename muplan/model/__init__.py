"""Model graphs: what a model computes, reads, writes and stores, operator by operator."""
