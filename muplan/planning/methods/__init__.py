"""Planning methods: each makes a judged deployment of a search; `solve` and `compare` know them by name."""
