"""Scripts that compare muplan with measurements and print the figures of docs/validation.md."""
