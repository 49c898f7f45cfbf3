"""Makes the real parts' fixtures known to all tests; each starts its part only when a test asks for it.

Several processes may share the tests (`make test`). Then the tests of a file that uses real parts stay
together and in order, and all that load an engine are one after the other, in the one process that has it.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with other work makes every example slow, and none of them wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

pytest_plugins = ["tests.parts.fixtures"]

_HERE = Path(__file__).parent
#: Which tests go first: those that take longest by themselves, lest one process is left with them at the end.
_SUITES = ("e2e", "integration", "simulation", "property", "unit")
#: Besides the end-to-end tests, what starts an engine that takes a core.
_ENGINE = {"test_local_vllm"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests of a real node out unless they are named: they need root, and `make e2e-node`."""
    named = any(
        (_HERE / "node") in (Path(arg).resolve(), *Path(arg).resolve().parents) for arg in config.args
    )
    return True if collection_path == _HERE / "node" and not named else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # one process alone, which keeps the order anyway
        return
    for item in items:
        suite = _suite(item)
        if suite == "e2e" or item.path.stem in _ENGINE:
            item.add_marker(pytest.mark.xdist_group("engine"))
        elif suite == "integration":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: (item.path.stem not in _ENGINE, _SUITES.index(_suite(item))))


def _suite(item: pytest.Item) -> str:
    return item.path.relative_to(_HERE).parts[0]
