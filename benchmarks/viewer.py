"""How soon a large view is there: from the start of the navigation to the grid on the screen.

1 024 tokens at 33 layers with ten words each, by one lens and by two conditions side by side, as
one file in headless Chromium; then how long a move of the layer and a step to the next token take.

    python benchmarks/viewer.py                  # half a minute
    python benchmarks/viewer.py --throttle 4     # a processor four times as slow
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from timing import write  # type: ignore[import-not-found]

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from builders.browsers import headless_browser
from builders.viewed_tokens import large_view

SECONDS_LIMIT, ANSWER_LIMIT, MEGABYTES_LIMIT = 1.0, 0.1, 5.0

# The second of two frames in a row begins when the first is on the screen.
_PAINTED = """() => new Promise((told) => requestAnimationFrame(() => requestAnimationFrame(() =>
  told([performance.now() / 1000, document.querySelectorAll(".cell").length]))))"""
_ANSWER = """(act) => new Promise((told) => {
  const slider = document.querySelector("input[type=range]");
  const from = performance.now();
  if (act === "layer") {
    slider.value = Number(slider.value) + 1;
    slider.dispatchEvent(new Event("input"));
  } else {
    const focused = document.querySelector(".pane .cell[tabindex='0']");
    focused.focus();
    focused.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  }
  requestAnimationFrame(() => requestAnimationFrame(() => told((performance.now() - from) / 1000)));
})"""


def main() -> int:
    """Open every page some times, print what it took, and compare with the limits."""
    options = _options()
    kept = True
    with headless_browser() as browser, tempfile.TemporaryDirectory() as folder:
        for name, conditions in (("one lens", ("clean",)), ("compared", ("clean", "changed"))):
            path = Path(folder) / f"{len(conditions)}.html"
            # What is compared holds twice as much; its size has no limit.
            size = large_view(conditions=conditions).save(path).stat().st_size / 1e6
            opened = [_opened(browser, path, options) for _ in range(options.repeats)]
            seconds, layer, step = (median(column) for column in zip(*opened, strict=True))
            fits = seconds < SECONDS_LIMIT and max(layer, step) < ANSWER_LIMIT
            fits &= size < MEGABYTES_LIMIT or len(conditions) > 1
            kept &= fits
            write(
                f"{name}: {size:.2f} MB, on the screen after {seconds:.2f} s "
                f"({min(opened)[0]:.2f} to {max(opened)[0]:.2f}); another layer after "
                f"{1000 * layer:.0f} ms, the next token after {1000 * step:.0f} ms: "
                f"{'within' if fits else 'OVER'} {SECONDS_LIMIT:g} s, {1000 * ANSWER_LIMIT:g} ms"
                f" and {MEGABYTES_LIMIT:g} MB"
            )
    return 0 if kept else 1


def _opened(browser: Any, path: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds until the grid is on the screen, for another layer, and for the next token."""
    page = browser.new_page(viewport={"width": options.width, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": options.throttle})
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("body[data-ready]", state="attached")
    seconds, cells = page.evaluate(_PAINTED)
    assert cells >= 1024, f"only {cells} cells were drawn"
    answers = {
        act: median(page.evaluate(_ANSWER, act) for _ in range(7)) for act in ("layer", "step")
    }
    page.close()
    return seconds, answers["layer"], answers["step"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=1200, help="of the window, in pixels")
    parser.add_argument("--throttle", type=float, default=1, help="times slower")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
