"""The stated model: what may be chosen, what it costs, which constraints hold."""
