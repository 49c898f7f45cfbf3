"""Makes the real parts' fixtures known to all tests; each starts its part only when a test asks for it."""

from hypothesis import HealthCheck, settings

# A machine that is busy with other work makes every example slow, and none of them wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

pytest_plugins = ["tests.parts.fixtures"]
