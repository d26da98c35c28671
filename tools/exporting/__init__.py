"""The parts of tools/export.py."""
