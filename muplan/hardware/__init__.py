"""Devices, their clocks and power, and the fleets made of them."""
