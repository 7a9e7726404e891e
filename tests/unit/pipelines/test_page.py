"""The page: well-formed, complete, self-contained, and nobody's caption becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from infra.stores import open_store
from pipelines.page.build import MOST_BYTES, build
from pipelines.page.collect import collect
from pipelines.page.content import Curve, Flow, FlowStep, Lost
from pipelines.page.curves import draw as draw_curve
from pipelines.page.curves import nice_step, running_mean
from pipelines.page.flow import draw as draw_flow
from pipelines.page.markup import VOID, link, tag, words
from pipelines.page.reading import title_of
from pipelines.page.runs import count_parameters
from pipelines.recipes.report import tiny
from tests.unit.pipelines.page_workspace import make_workspace

SECTIONS = ("scores", "corpus", "captions", "negatives", "training", "restored", "commands", "credits")


class Checker(HTMLParser):
    """Follows open elements; whatever is closed must be the one opened last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [value for key, value in attributes if key == "id" and value]
        self.addresses += [found[key] or "" for key in ("src", "srcset", "poster", "data") if key in found]
        self.addresses += [found["href"] or ""] if name == "link" else []
        self.scripts += name == "script"
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(name, attributes)
        if name not in VOID:
            self.open.pop()

    def handle_endtag(self, name: str) -> None:
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name, f"</{name}> closes another element"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"), count=9)
    return build(collect(tiny().__class__(input=workspace, output="unused", title="A <title>"), tracking=None))


def test_well_formed_complete_and_self_contained(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == [], "every element is closed"
    assert set(SECTIONS) <= set(checker.ids), "every section is there"
    assert all(address.startswith("data:image/jpeg;base64,") for address in checker.addresses), "nothing is fetched"
    assert not any(fetching in page for fetching in ("@import", "url(")), "the style fetches nothing either"
    assert len(page.encode()) < MOST_BYTES


def test_hostile_texts_stay_texts(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.scripts == 1, "the page's own script is the only one"
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&quot;caption&quot;)&lt;/script&gt; &amp;" in page, "the caption is shown as it is"
    assert 'href="javascript' not in page, "an address of somebody's metadata is a link only if it is a web address"
    assert "A &lt;title&gt;" in page


def test_numbers_reasons_and_credits_are_told(page: str) -> None:
    assert all(number in page for number in ("23.10", "22.10 dB")), "means, and each photograph's numbers"
    for said in (
        "too small",
        "near duplicate",
        "truncated",
        "held out",
        "DeepSpeed ZeRO-2",
        "ingest.py",
        "Stefan van der Walt",
        "2 min 27 s",
    ):
        assert said in page, said
    assert "3 of 3 came nearer" in page


def test_an_empty_workspace_says_what_is_missing(tmp_path: Path) -> None:
    page = build(collect(tiny().__class__(input=str(tmp_path), output="unused", title="Empty"), tracking=None))
    assert "Nothing here yet" in page
    assert "Not in this workspace: captions; negatives; training curves; scores; restored pictures; commands." in page


def test_flow_is_drawn_and_described() -> None:
    lost = [Lost(reason="too_small", status="rejected", count=2), Lost(reason="truncated", status="failed", count=1)]
    drawing = draw_flow(
        Flow(steps=[FlowStep(label="asked for", count=10, lost=lost), FlowStep(label="kept", count=7)], ends=[("learn", 5), ("held", 2)])
    )
    assert "asked for 10 (lost: too small 2, truncated 1), kept 7; learn 5, held 2" in drawing
    assert drawing.count('class="ribbon ') == 5, "one on, two lost, two ends"
    assert "nan" not in drawing
    alone = draw_flow(Flow(steps=[FlowStep(label="asked for", count=7), FlowStep(label="kept", count=7)]))
    assert (alone.count('class="ribbon '), alone.count(" kept<")) == (1, 1), "what does not split is told once"


def test_curves_survive_odd_values() -> None:
    broken = [(1, float("nan")), (2, 1.0), (3, float("inf")), (4, 1.0)]
    assert "polyline" in draw_curve(Curve(title="flat", points=broken))
    assert "fewer than two" in draw_curve(Curve(title="short", points=[(1, 1.0)]))
    assert running_mean([(1, 2.0), (2, 2.0), (3, 2.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)], (
        "a constant is its own mean from the first step on"
    )
    assert [nice_step(span, 4) for span in (1.0, 0.037, 900.0)] == pytest.approx([0.5, 0.01, 500.0])


def test_markup_escapes_and_words_are_readable() -> None:
    assert tag("p", "<b>", class_="x", hidden=None) == '<p class="x">&lt;b&gt;</p>'
    assert tag("img", alt='"') == '<img alt="&quot;"/>'
    assert link("javascript:x", "<") == "&lt;"
    assert [words(code) for code in ("too_small", "WorkerDied", "UnidentifiedImageError")] == [
        "too small",
        "Worker died",
        "Unidentified image",
    ]
    assert title_of("a/tar.tar!b/two_dogs-1.jpg") == "two dogs 1"


def test_parameters_are_counted_from_headers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "checkpoints").mkdir()
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "w.safetensors")
    save_file({"a": torch.zeros(100)}, tmp_path / "checkpoints" / "w.safetensors")
    assert count_parameters(open_store(str(tmp_path))) == 17
