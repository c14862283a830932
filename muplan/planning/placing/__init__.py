"""Where groups may stand: the limits that a deployment as a whole must keep, and GPUs found within them."""
