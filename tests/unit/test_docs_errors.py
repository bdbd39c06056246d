"""docs/errors.md is what docs/generate_errors.py makes of the table in nftrust/errors.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from nftrust.errors import Reason

DOCS = Path(__file__).parents[2] / "docs"


def _rendered() -> str:
    spec = importlib.util.spec_from_file_location("generate_errors", DOCS / "generate_errors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.render()
    return text


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == _rendered(), "run `python docs/generate_errors.py`"


def test_every_reason_is_on_the_page() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert [reason.name for reason in Reason if page.count(f"\n| `{reason.name}` |") != 1] == []


def test_meanings_and_remedies_are_sentences() -> None:
    ragged = [reason.name for reason in Reason if not (reason.meaning.endswith(".") and reason.remedy.endswith("."))]
    assert ragged == []


def test_what_the_remedies_point_at_exists() -> None:
    words = " ".join(reason.remedy for reason in Reason).replace(",", " ").split()
    missing = {name for name in (word.rstrip(".") for word in words) if name.startswith("docs/")} - {
        f"docs/{path.name}" for path in DOCS.iterdir()
    }
    assert missing == set()
