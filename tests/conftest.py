"""Makes the real parts' fixtures known to all tests; each starts its part only when a test asks for it."""

pytest_plugins = ["tests.parts.fixtures"]
