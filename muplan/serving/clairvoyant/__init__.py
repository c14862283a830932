"""The least energy at which a recorded run could have been served, had all arrivals been known."""
