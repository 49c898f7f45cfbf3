"""What is wrong with a simulator's input.

InputError (ValueError)
    a scenario, calibration or trace file that can't be used; names file, line and field
"""

from __future__ import annotations


class InputError(ValueError):
    """`file:line: field: what is wrong`. Nothing has been run."""

    def __init__(self, file: str, line: int | None, field: str, problem: str) -> None:
        place = f"{file}:{line}" if line is not None else file
        super().__init__(f"{place}: {field}: {problem}" if field else f"{place}: {problem}")
        self.file, self.line, self.field, self.problem = file, line, field, problem
