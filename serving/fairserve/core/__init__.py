"""The pure scheduler. See scheduler.py."""
