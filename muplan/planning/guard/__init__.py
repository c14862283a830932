"""The queueing guard: how far a group may be used before waits break the limits."""
