"""An editable install points at the sources; without this hook hatchling would copy what the wheel forces in."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Editable(BuildHookInterface):  # type: ignore[type-arg]
    """Only the licence is copied then; it cannot be nothing, or the wheel's list is taken."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {f"{self.root}/../../LICENSE": "nf_agent/LICENSE"}
