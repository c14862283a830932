"""Independent checks of plans. A check returns violations; it never raises because the answer is no."""
