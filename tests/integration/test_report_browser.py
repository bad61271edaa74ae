"""The page in a browser, on a desktop and on a phone, in light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.harness.presets import benchmarks_dir
from quickdrop_bench.reporting.html.page import render_report
from tests.unit.test_report import DAY, make_results

pytestmark = pytest.mark.slow

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=20000"),
)
DARK, LIGHT = 0, 1

WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe style="width: WIDTHpx; height: 900px; border: 0"></iframe><pre></pre>
<script>
const frame = document.querySelector("iframe");
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const light = colour => numbers(colour).slice(0, 3)
  .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
function contrast(view, element) {
  let behind = element;
  const of = e => numbers(view.getComputedStyle(e).backgroundColor);
  while (behind.parentElement && of(behind)[3] === 0) behind = behind.parentElement;
  const pair = [light(view.getComputedStyle(element).color), light(view.getComputedStyle(behind).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}
frame.onload = async () => {
  const view = frame.contentWindow, page = frame.contentDocument;
  page.querySelectorAll("details").forEach(details => details.open = true);
  const images = [...page.images];
  await Promise.all(images.map(image => image.decode().catch(() => null)));
  const root = page.documentElement;
  const texts = [...page.querySelectorAll("h1, h2, h3, p, a, th, td, span, summary, dt, dd, caption, figcaption")];
  const seen = texts.filter(e => e.textContent.trim() && e.getClientRects().length);
  const outside = [...page.querySelectorAll("main *")].filter(e => e.getClientRects().length
    && (e.getBoundingClientRect().right > root.clientWidth + 1 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth));
  document.querySelector("pre").textContent = JSON.stringify({
    width: root.clientWidth, wide: root.scrollWidth,
    images: images.map(image => image.naturalWidth),
    tables: [...page.querySelectorAll("table")].filter(t => t.getBoundingClientRect().height > 20).length,
    captions: [...page.querySelectorAll("caption")].map(c => c.textContent),
    headings: [...page.querySelectorAll("h2, h3")].map(h => h.textContent),
    requests: view.performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:")),
    faint: seen.filter(e => contrast(view, e) < 4.5).map(e => e.outerHTML.slice(0, 200)),
    outside: outside.map(e => e.outerHTML.slice(0, 200)),
    scripts: page.scripts.length,
    background: view.getComputedStyle(page.body).backgroundColor,
  });
};
frame.src = "report.html";
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH to open the page with")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over made results together with those of the repository, where it has any."""
    folder = tmp_path_factory.mktemp("site")
    kept = benchmarks_dir().parent / "results"
    if kept.is_dir():
        shutil.copytree(kept, folder / "results", ignore=shutil.ignore_patterns("table.*", "search.csv"))
    make_results(folder / "results" / "made")
    (folder / "report.html").write_text(render_report(folder / "results", DAY), encoding="utf-8")
    return folder


def opened(chromium: str, site: Path, width: int, scheme: int, profile: Path) -> dict[str, Any]:
    """What the browser measures; nothing may be logged."""
    (site / "wrapper.html").write_text(WRAPPER.replace("WIDTH", str(width)), encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}"]
    command += [f"--window-size={width + 40},1000", "--dump-dom", (site / "wrapper.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    measured = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert measured is not None
    assert measured[1], done.stdout[-2000:]
    return dict(json.loads(html.unescape(measured[1])))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_in_a_browser(chromium: str, site: Path, width: int, scheme: int, tmp_path: Path) -> None:
    text = (site / "report.html").read_text(encoding="utf-8")
    seen = opened(chromium, site, width, scheme, tmp_path / "profile")
    assert seen["width"] == width
    assert seen["wide"] <= width, seen["outside"]
    assert not seen["outside"]
    assert len(seen["images"]) == text.count("<img ")
    assert all(natural > 0 for natural in seen["images"])
    assert seen["tables"] == text.count("<table")
    assert any(caption.startswith("Table 2 · made/quick/table2 — CIFAR-10 (JPEG)") for caption in seen["captions"])
    assert {"Finding", "What is missing"} <= set(seen["headings"])
    assert seen["requests"] == []
    assert seen["scripts"] == 0
    assert seen["faint"] == []
    assert seen["background"] == ("rgb(255, 255, 255)" if scheme == LIGHT else "rgb(20, 23, 27)")


def test_it_is_small_enough_to_be_sent(site: Path) -> None:
    assert (site / "report.html").stat().st_size < 3_000_000


def test_it_prints(chromium: str, site: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer"]
    command += [f"--print-to-pdf={target}", (site / "report.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert target.read_bytes().startswith(b"%PDF")
