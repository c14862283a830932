"""The command line: each command parses, loads, calls one function, renders, and exits."""
