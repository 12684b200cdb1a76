"""The figures can be read by every eye: colours differ to one that has no red or no green cones, and so do the lines."""

import re
from itertools import combinations

import numpy as np
import pytest
from conftest import PROJECT
from matplotlib.colors import to_rgb

from machinery.comparing import loss_figures
from machinery.data.report import STYLES
from machinery.watching import curves

# What such an eye sees, in linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
EYES = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
PAGE = (PROJECT / "machinery" / "evaluation" / "page" / "report.css").read_text()
FAR = 20  # in CIELAB, where 2.3 is just seen
PALETTES = {
    "chosen and rejected": [curves.CHOSEN, curves.REJECTED],
    "training and held-out": [curves.TRAINING, curves.HELD_OUT],
    "parts of a pair": [style["color"] for style in STYLES.values()],
    "pulls": [loss_figures.CHOSEN, loss_figures.REJECTED, "black"],
    "losses": loss_figures.COLOURS[:5],  # of one figure
    **{
        f"models of a report, {scheme}": re.findall(r"--(?:reference|policy|third|fourth): (#\w{6})", part)
        for scheme, part in zip(("light", "dark"), PAGE.split("prefers-color-scheme: dark"), strict=True)
    },
}


def lab(colour: str, eye: str) -> np.ndarray:
    """A colour as an eye sees it, in CIELAB (white D65)."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(EYES[eye]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / (to_xyz @ np.ones(3))
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: list[str], eye: str) -> float:
    return min(np.linalg.norm(lab(one, eye) - lab(other, eye)) for one, other in combinations(colours, 2))


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("name", PALETTES)
def test_colours_of_one_figure_differ_to_every_eye(name, eye):
    assert nearest(PALETTES[name], eye) > FAR


def test_the_report_has_four_colours_in_either_scheme():
    assert [len(PALETTES[f"models of a report, {scheme}"]) for scheme in ("light", "dark")] == [4, 4]


def test_olive_and_rust_are_one_colour_without_green_cones():
    """So the measure sees what it is for."""
    assert nearest(["#7a7a1f", "#a8642a"], "all cones") > FAR > nearest(["#7a7a1f", "#a8642a"], "no green cones")


def test_curves_of_several_losses_differ_in_more_than_colour():
    styles = [loss_figures._style(number) for number in range(7)]
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == len(styles)


def test_chosen_and_rejected_differ_in_marker_and_training_and_held_out_in_line(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: figures.append(figure))
    parts = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "loss")
    history = [{"step": n} | {f"{kind}{part}": n for part in parts for kind in ("", "eval_")} for n in range(3)]
    curves.plot_training(history, "unused.png")
    for axes in figures[0].axes:
        lines = {(line.get_marker(), line.get_linestyle(), line.get_markerfacecolor()) for line in axes.lines}
        assert len(lines) == len(axes.lines)


def test_runs_beside_each_other_share_their_scales(monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: figures.append(figure))
    histories = {str(top): [{"step": n, "loss": n * top, "rewards/margins": top} for n in range(3)] for top in (1, 9)}
    curves.plot_beside(histories, "unused.png")
    rows = np.array(figures[0].axes).reshape(4, 2)
    assert all(one.get_ylim() == other.get_ylim() for one, other in rows)
    assert rows[0, 0].get_ylim()[1] > 17
