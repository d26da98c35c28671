"""Benchmarks of LORA and LORA-V: `python -m tools.benchmark`."""
