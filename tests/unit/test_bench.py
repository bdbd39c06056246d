"""What `make bench` makes of its measurements: bounds, tables, the JSON, the picture, layers from samples."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from bench import picture, plans, report, seeds
from bench.figures import Figure, Plan, Run, Share, ratio
from bench.layers import layer_of
from bench.where import read_samples, share_out

RUN = Run(
    machine="2 × test",
    revision="abc",
    started="2030-01-01T00:00:00+00:00",
    settings={"certificates": 10},
    figures=[
        Figure(name="irreducible.cpu", value=0.4, unit="ms CPU", meaning="the least"),
        Figure(name="issuance.ca_ra_cpu", value=3.6, unit="ms CPU", meaning="a certificate"),
        Figure(name="fleet.further_rate", value=41.0, unit="/s", meaning="enrolments", at_least=40.0),
    ],
    shares=[
        Share(layer="storage", milliseconds=2.0, removal="a lot"),
        Share(layer="token worker", milliseconds=1.6, removal="<nothing> & more"),
    ],
    plans=[Plan(role="ca_ra", statement="SELECT 1", few=("SEARCH a",), many=("SEARCH a",), scans=False)],
)


def test_bounds_are_told_from_both_sides() -> None:
    assert Figure(name="a.b", value=1.0, unit="", meaning="").holds is None
    assert Figure(name="a.b", value=8.0, unit="", meaning="", at_most=8.0).holds
    assert not Figure(name="a.b", value=39.9, unit="", meaning="", at_least=40.0).holds


def test_a_ratio_is_made_of_figures_of_the_run_and_only_where_they_are_there() -> None:
    [found] = ratio(RUN, "issuance.ca_ra_cpu", ["irreducible.cpu"], meaning="", at_most=8.0)
    assert found.value == pytest.approx(9.0)
    assert found.holds is False
    assert not list(ratio(RUN, "issuance.ca_ra_cpu", ["no.such"], meaning=""))


def test_a_run_survives_its_json(tmp_path: Path) -> None:
    RUN.write(tmp_path / "made" / "run.json")
    assert Run.read(tmp_path / "made" / "run.json") == RUN
    (tmp_path / "other.json").write_text('{"figures": 1}')
    with pytest.raises(msgspec.ValidationError):
        Run.read(tmp_path / "other.json")


def test_the_page_has_every_figure_layer_and_plan() -> None:
    page = "\n".join(report.markdown(RUN))
    assert "| enrolments | 41 /s | ≥ 40 | ✓ |" in page
    assert "| storage | 2.00 ms | 56% | a lot |" in page
    assert "| ca_ra | `SELECT 1` | SEARCH a | ✓ |" in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.4242, "0.42"), (12.34, "12.3"), (123.4, "123"), (100_000, "100,000"), (3, "3")]
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_picture_is_an_svg_with_a_bar_for_each_layer() -> None:
    root = ElementTree.fromstring(picture.svg(RUN))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"storage", "2.00 ms, 56%", "1.60 ms, 44%", "irreducible: 0.40 ms"} <= set(texts)
    bars = [float(e.attrib["width"]) for e in root.iter() if e.tag.endswith("rect") and "rx" in e.attrib]
    assert bars[0] / bars[1] == pytest.approx(2.0 / 1.6, rel=0.01)


def test_a_run_without_layers_has_no_picture(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(RUN, shares=[])
    with pytest.raises(ValueError, match="no layers"):
        picture.draw(bare, tmp_path / "picture.svg")


def test_a_scan_is_no_scan_where_an_index_gives_the_first_rows_or_the_table_does_not_grow() -> None:
    def scans(statement: str, step: str) -> bool:
        return plans.reads_all(statement, [step], {"t"})

    assert scans("SELECT a FROM t", "SCAN t")
    assert scans("SELECT a FROM t", "SCAN t USING INDEX i")
    assert scans("SELECT a FROM t LIMIT 1", "SCAN t")
    assert scans("SELECT a FROM t", "->  Seq Scan on t")
    assert not scans("SELECT a FROM t ORDER BY b LIMIT 1", "SCAN t USING INDEX i")
    assert not scans("SELECT a FROM t", "SEARCH t USING INDEX i (b=?)")
    assert not scans("SELECT a FROM u", "SCAN u")
    assert not scans("SELECT a FROM u", "Seq Scan on u")


SAMPLES = """\
thread (7): MainThread;main (/x/nftrust/role/main.py:9);run (/x/asyncio/events.py:80);enrol (/x/ca_ra/enrolment.py:91);check (/x/nftrust/x509/csr.py:40) 3
thread (7): MainThread;main (/x/nftrust/role/main.py:9);run (/x/asyncio/events.py:80) 1
thread (8): nftrust-store;run (/x/nftrust/storage/writer.py:9);append (/x/nftrust/storage/audit_log.py:40);do (/x/sqlalchemy/engine/default.py:1) 2
thread (8): nftrust-store;run (/x/nftrust/storage/writer.py:9);do (/x/sqlalchemy/engine/default.py:1) 6
"""  # noqa: E501 - as py-spy writes it


def test_each_thread_is_shared_out_by_its_own_samples() -> None:
    seconds = share_out({7: 4.0, 8: 1.0, 9: 0.5}, read_samples(SAMPLES))
    assert seconds == {
        "CSR and X.509": 3.0,
        "gRPC and the event loop": 1.0,
        "audit chain": 0.25,
        "storage": 0.75,
        "gRPC's own threads": 0.5,
    }


def test_what_belongs_to_no_layer_is_told() -> None:
    assert layer_of(["/usr/lib/python3.11/selectors.py"]).name == "other"
    assert layer_of([]).name == "other"


def test_a_copy_has_identities_of_its_own_and_the_same_in_every_column() -> None:
    reference, nf = "0123456789abcdef0123456789abcdef", "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    bare, scoped = seeds._value(nf, []), seeds._value(f"enrol:{reference} {nf}", [])
    assert len({bare(number) for number in range(1000)}) == 1000
    assert scoped(5).endswith(f" {bare(5)}")
    assert scoped(5).startswith("enrol:")
    assert seeds._value("nf.example", ["nf.example"])(5) == "nfn5.example"
    assert seeds._value(bytes(32), [])(5) != seeds._value(bytes(32), [])(6)
    assert seeds._value(b"a certificate", [])(5) == b"a certificate"
