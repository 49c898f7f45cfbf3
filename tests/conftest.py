"""Makes the real parts' fixtures known to all tests; each starts its part only when a test asks for it."""

from hypothesis import settings

pytest_plugins = ["tests.parts.fixtures"]

# A busy machine takes any time for anything.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
