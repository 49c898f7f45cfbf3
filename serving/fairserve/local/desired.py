"""What a folder of manifests asks for, each time it is looked at, and what is wrong with it.

Whatever is wrong is said once, when it appears, and not again while it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairserve.config import SchedulerConfig
from fairserve.local.compilation import FolderError, compile_folder, complaints
from fairserve.local.manifests import read_folder
from fairserve.local.objects import Change, Objects
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.resources import ObjectKey
from fairserve_operator.decide.signals import OverloadPlan


@dataclass(frozen=True, slots=True)
class Target:
    """What should run. `config` has generation 0."""

    pool: ObjectKey
    spec: ServingPoolSpec
    config: SchedulerConfig
    overload: OverloadPlan
    changes: tuple[Change, ...]  #: since the last look


class Desired:
    """One folder over time."""

    def __init__(self, folder: Path, pool: str | None, salt: str, say: Callable[[str], None]) -> None:
        self.objects = Objects()
        self._folder = folder
        self._pool = pool
        self._salt = salt
        self._say = say
        self._said: frozenset[str] = frozenset()

    def look(self, override: Mapping[str, Any] | None = None) -> Target:
        """Read the folder and compile it, with `override` laid over the pool's spec.

        Raises FolderError if nothing can be served by it; the objects that could be read are taken over.
        """
        try:
            reading = read_folder(self._folder)
        except OSError as error:
            raise FolderError(f"the folder can't be read: {error}") from error
        changes = self.objects.apply(reading)
        wrong = [f"refused: {problem}" for problem in reading.problems]
        try:
            pool, compiled = compile_folder(self.objects, self._pool, self._salt, override)
        except FolderError:
            self._complain(wrong)
            raise
        namespace = pool.key.namespace
        wrong += [f"refused: {complaint}" for complaint in complaints(self.objects, compiled)]
        wrong += [
            f'{self.objects.place(key)}: {key} is in namespace "{key.namespace}" and takes no part: '
            f'the pool is in "{namespace}"'
            for key in self.objects.outside(namespace)
        ]
        self._complain(wrong)
        if compiled.config is None or compiled.spec is None or compiled.overload is None:
            raise FolderError(f"{pool.key} is refused, so there is nothing to serve")
        return Target(pool.key, compiled.spec, compiled.config, compiled.overload, changes)

    def _complain(self, wrong: list[str]) -> None:
        for text in wrong:
            if text not in self._said:
                self._say(text)
        self._said = frozenset(wrong)
