# SPDX-License-Identifier: Apache-2.0
"""The report says what was measured, needs no other file, and a browser shows its plot."""
from __future__ import annotations

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from mneme_lab import curves, report, sentences


@pytest.fixture
def measured(laboratory):
    laboratory.run()
    return laboratory.results()


def test_curves(measured):
    plain, decayed = curves.curves(list(measured.load().values()), measured.folder)
    assert [point.size for point in plain.points] == [0, 512, 2048, 8192]
    assert [point.size for point in decayed.points] == [2048]
    assert decayed.label == "tiny on words (decay 1.0, decay 0.0 while taken in)"
    assert [native.size for native in plain.native] == [1024]
    assert plain.law.gamma == pytest.approx(0.4, abs=1e-4)  # the stand-in's
    gain = plain.points[3].gain
    expected = 9 * (784**-0.4 - 8960**-0.4)
    assert gain.mean == pytest.approx(expected, abs=1e-6)
    assert gain.high - gain.low == pytest.approx(0, abs=1e-6)
    assert plain.points[0].gain is None
    # The decay does not matter to the pinned tokens: the other curve's memory of 0 tokens is this one's, too.
    expected = 9 * (784**-0.4 - 2816**-0.4) - 0.1
    assert decayed.points[0].gain.mean == pytest.approx(expected, abs=1e-6)
    assert decayed.law is None


def test_a_curve_without_its_memory_of_0_tokens(measured):
    """Another distance of the pinned tokens gives another baseline."""
    results = [result for result in measured.load().values() if result["size"] != 0]
    assert all(point.gain is None for curve in curves.curves(results, measured.folder) for point in curve.points)
    results = list(measured.load().values())
    results[0]["options"] = {**results[0]["options"], "distance": 7.0}
    made = {len(curve.points): curve for curve in curves.curves(results, measured.folder)}
    assert made[3].points[0].gain is None


def test_sentences(measured):
    plain, decayed = curves.curves(list(measured.load().values()), measured.folder)
    said = " ".join(sentences.describe(plain))
    assert "2,048 tokens are scored; intervals are 95 % of a bootstrap over blocks of 128 tokens" in said
    assert "Every step to a larger memory lowers the loss beyond chance." in said
    below = 9 * (1792**-0.4 - 8960**-0.4)
    assert "The best memory, 8,192 tokens, against the model's own context of 1,024 tokens: its loss is " in said
    assert f"{below:.4f} [{below:.4f}, {below:.4f}] nats a token below." in said
    assert "From no memory to 8,192 tokens the loss falls by" in said
    said = " ".join(sentences.describe(decayed))
    assert "Every step" not in said
    assert "With 2,048 tokens of memory the loss is" in said
    assert "From no memory" not in said
    above = 0.1 - 9 * (1792**-0.4 - 2816**-0.4)
    assert f"{above:.4f} [{above:.4f}, {above:.4f}] nats a token above." in said


def test_a_rising_curve_is_said_to_rise(measured):
    results = list(measured.load().values())
    paths = [measured.folder / result["losses"] for result in results[:4]]
    content = [path.read_text() for path in paths]
    for path, text in zip(paths, reversed(content), strict=True):
        path.write_text(text)
    said = " ".join(sentences.describe(curves.curves(results, measured.folder)[0]))
    assert said.count("the loss rises") == 3
    assert "The best memory, 0 tokens, against" in said
    assert "Every step" not in said


@pytest.mark.parametrize(("shift", "expected"), [
    (0.5, "0.5000 [0.5000, 0.5000] nats a token above."), (-0.5, "0.5000 [0.5000, 0.5000] nats a token below."),
    (0.0, "the same within the interval (0.0000 [0.0000, 0.0000] below).")])
def test_against_native(measured, shift, expected):
    """The native context's losses are those of the best memory, less a shift."""
    results = list(measured.load().values())
    paths = {(result["kind"], result["size"]): measured.folder / result["losses"] for result in results}
    memory, native = paths["memory", 8192], paths["native", 1024]
    lines = memory.read_text().splitlines()
    shifted = ["\t".join([*line.split("\t")[:3], f"{float(line.split()[3]) - shift:.9g}"]) for line in lines[1:]]
    native.write_text("\n".join([lines[0], *shifted]) + "\n")
    assert sentences.describe(curves.curves(results, measured.folder)[0])[-1].endswith("its loss is " + expected)


def test_losses_of_other_tokens_are_refused(measured):
    results = list(measured.load().values())
    path = measured.folder / results[1]["losses"]
    path.write_text(path.read_text().replace("\t49\t", "\t48\t"))
    with pytest.raises(ValueError, match="scored other tokens"):
        curves.curves(results, measured.folder)


def test_the_page(measured):
    page = report.write(measured).read_text()
    assert page.count("<svg") == 1
    assert page.count("<section>") == 2
    for word in ("8,192", "mneme-llama ingest", "mneme-llama perplexity", "NLL (nats/token)", "fake 1"):
        assert word in page
    assert "nan" not in re.sub(r"<svg.*</svg>", "", page, flags=re.DOTALL)
    # Nothing is fetched: the only addresses are names of XML.
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert (measured.folder / "scaling.png").read_bytes().startswith(b"\x89PNG")
    first = (measured.folder / "scaling.svg").read_bytes()
    report.write(measured)
    assert (measured.folder / "scaling.svg").read_bytes() == first


def test_nothing_to_report(laboratory):
    with pytest.raises(ValueError, match="no memory is measured yet"):
        report.write(laboratory.results())


def test_a_browser_shows_the_plot(measured, tmp_path):
    browser = os.environ.get("MNEME_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("chromium is not installed")
    import matplotlib.image

    page = report.write(measured)

    def screenshot(name):
        picture = tmp_path / name
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        "--window-size=1000,900", f"--user-data-dir={tmp_path / 'profile'}",
                        f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=120)
        return matplotlib.image.imread(picture)[..., :3]

    def coloured(pixels):
        """Pixels of the first curve's blue."""
        return int((np.abs(pixels - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=-1) < 0.1).sum())

    assert coloured(screenshot("with.png")) > 200
    page.write_text(re.sub(r"<svg.*</svg>", "", page.read_text(), flags=re.DOTALL))
    assert coloured(screenshot("without.png")) == 0
