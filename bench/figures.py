"""What a run found: figures with their bounds, shares of the CA/RA's time, query plans. It is also the JSON's form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number. ``name`` is ``room.what`` and stays the same from release to release."""

    name: str
    value: float
    unit: str
    meaning: str
    #: What is wanted: at most one of the two.
    at_most: float | None = None
    at_least: float | None = None

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """CPU that one layer of the CA/RA takes for a certificate."""

    layer: str
    milliseconds: float
    #: What it would take to remove it.
    removal: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How the database runs one statement of the hot path, with few rows and with many."""

    role: str
    statement: str
    few: tuple[str, ...]
    many: tuple[str, ...]
    #: Whether a table that grows with the NFs is read to its end.
    scans: bool

    @property
    def same(self) -> bool:
        return self.few == self.many


class Run(msgspec.Struct, kw_only=True):
    """Everything that one run of `make bench` found."""

    machine: str
    revision: str
    #: UTC, ISO 8601.
    started: str
    seconds: float = 0.0
    settings: dict[str, int]
    figures: list[Figure] = []
    shares: list[Share] = []
    plans: list[Plan] = []

    def value(self, name: str) -> float | None:
        """The figure of this name, if its room was measured."""
        return next((figure.value for figure in self.figures if figure.name == name), None)

    def rooms(self) -> list[tuple[str, list[Figure]]]:
        """Figures by room, in the order of measurement."""
        found: dict[str, list[Figure]] = {}
        for figure in self.figures:
            found.setdefault(figure.room, []).append(figure)
        return list(found.items())

    def missed(self) -> list[Figure]:
        """Those whose bound does not hold."""
        return [figure for figure in self.figures if figure.holds is False]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises msgspec.ValidationError where the file is not of this form."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def per(seconds: float, count: int) -> float:
    """Milliseconds of each."""
    return 1000 * seconds / count


def ratio(run: Run, name: str, over: Sequence[str], *, meaning: str, at_most: float | None = None) -> Iterable[Figure]:
    """The figure made of others of the same run, where all of them were measured."""
    top, bottom = run.value(name), [run.value(each) for each in over]
    if top is None or not all(bottom):
        return
    below = sum(each for each in bottom if each is not None)
    yield Figure(name=f"{name}_ratio", value=top / below, unit="×", meaning=meaning, at_most=at_most)
