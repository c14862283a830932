"""The measured profiler: passes of a model's clusters, timed on the GPU (or the processor) at hand."""
