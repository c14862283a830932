"""Models as they are written in torch, captured as graphs of operators and cut into runnable stages."""
