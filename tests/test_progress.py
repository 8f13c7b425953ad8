"""Long work is told: by a bar in a terminal, and by a line now and then in a log."""

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from benchmark.records import Tuned
from benchmark.running import progress
from benchmark.running.fitted_detector import _tuning_warnings
from benchmark.running.session import few_images


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def told(monkeypatch: pytest.MonkeyPatch, terminal: bool, **options: Any) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress_bar(total=3, desc="net on greys", unit="image", **options) as bar:
        for _ in range(3):
            bar.update()
    return stream.getvalue()


def test_a_log_has_a_line_for_each_state(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, terminal=False, delay=0, mininterval=0).splitlines()
    assert lines[-1].startswith("net on greys: 3 of 3 images, 00:00 gone, ")
    assert all(re.fullmatch(r"net on greys: \d of 3 images, .* left", line) for line in lines)


def test_a_log_is_spared_what_is_done_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, terminal=False) == ""
    assert progress.SECONDS_A_LINE >= 10
    assert "net on greys" in told(monkeypatch, terminal=True)  # the twin: a bar is there at once


def test_a_user_is_warned_of_too_few_images() -> None:
    def warnings(id_images: int, ood_images: int) -> str:
        metrics: Any = SimpleNamespace(id_images=id_images, ood_images=ood_images)
        return " ".join(few_images("greys", metrics))

    assert warnings(20, 2) == ""
    assert "there are 19 ID test images" in warnings(19, 2)
    assert "greys has one image" in warnings(20, 1)


@pytest.mark.parametrize(("aurocs", "warned"), [((0.3, 0.49), True), ((0.3, 0.5), False), ((), False)])
def test_a_tuning_that_tells_nothing_apart_is_warned_of(aurocs: tuple[float, ...], warned: bool) -> None:
    tuned = Tuned(ood="noise", options={}, tried=[{"options": {}, "auroc": auroc} for auroc in aurocs])
    told = list(_tuning_warnings(tuned))
    assert bool(told) == warned
    assert not warned or "none of the 2 choices" in told[0]
    assert not list(_tuning_warnings(None))
