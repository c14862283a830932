"""The torch backend: one process for each GPU, or processor core, that a plan uses."""
