"""Figures about a data set, one function each, compared with the paper's printed numbers.

Each takes a table of `dataset_tables` and returns a Figure; its docstring is the caption. The paper
prints only some of the numbers behind its Fig. 3(c), 8, 11 and 12. The figures use the numbers
printed in its text and tables, and none estimated from its pictures.
"""

import base64
import io
import textwrap
from collections.abc import Callable
from math import ceil
from typing import Any

import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from wordcloud import WordCloud

from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.study.dataset_tables import TRAIN, World, paper, table_5
from personavlm_lib.study.figures import (
    BLUE,
    DARK,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    new_axes,
    styled,
)
from personavlm_lib.study.tables import WORDS

PALETTE = (BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GRAY)
ASPECT_COLORS = dict(zip(dict.fromkeys(ASPECTS.values()), PALETTE, strict=True))
MEMORY_COLORS = dict(core=PURPLE, semantic=BLUE, episodic=ORANGE, procedural=GREEN, nothing=GRAY)
# The memory type that stores each kind of life event; kinds that are not listed: semantic.
STORED_IN = WORDS["stored_in"]


@styled
def figure_3_topics(topics: pd.DataFrame) -> Figure:
    """Topics of the training turns, and the memory type that stores them (the paper's Fig. 3c)."""
    turns = topics[topics["group"] == TRAIN].set_index("kind")["turns"].sort_values()
    figure, [[ax]] = new_axes(height=1.0 + 0.21 * len(turns))
    colors = [MEMORY_COLORS[STORED_IN.get(kind, "semantic")] for kind in turns.index]
    bars = ax.barh(turns.index.str.replace("_", " "), turns, color=colors)
    ax.bar_label(bars, fmt=" {:,.0f}", fontsize=8)
    ax.set_xlabel(f"turns, {turns.sum():,} in total (paper: over 30,000)")
    ax.set_xlim(0, 1.15 * turns.max())
    memories = [Patch(color=color, label=memory) for memory, color in MEMORY_COLORS.items()]
    title: dict[str, Any] = {"title": "stored in", "alignment": "left", "title_fontsize": 8}
    ax.legend(handles=memories, loc="lower right", **title)
    ax.grid(axis="y", visible=False)
    return figure


@styled
def figure_7_composition(mixture: pd.DataFrame) -> Figure:
    """Composition of the training samples in percent, the paper's and ours (the paper's Fig. 7)."""
    total = mixture.groupby("stage")["samples"].transform("sum")
    share = 100 * mixture["samples"] / total
    ours = mixture.assign(share=share, who="ours, " + total.map("{:,}".format))
    both = pd.concat([paper("fig7"), ours])
    both["who"] = both["stage"] + ", " + both["who"]
    shares = both.pivot_table("share", "who", "part", sort=False).sort_index()
    figure, [[ax]] = new_axes(height=2.8)
    colors = [SKY, ORANGE, GREEN, PURPLE, RED, BLUE, GRAY]
    shares.plot.barh(ax=ax, stacked=True, color=colors, width=0.7, legend=False)
    for bars in ax.containers:
        ax.bar_label(bars, fmt=_percent_if_wide, label_type="center")
    ax.set(xlim=(0, 100), xlabel="samples (%)", ylabel=None)
    ax.grid(visible=False)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _percent_if_wide(share: float) -> str:
    return f"{share:.1f}" if share > 4 else ""


@styled
def figure_8_distributions(dialogues: pd.DataFrame) -> Figure:
    """Dialogues by turns, sessions, days and pictures (the paper's Fig. 8). Lines: the ranges, and
    the mean share of pictures, that the paper prints."""
    shares = dialogues.assign(pictures=100 * dialogues["pictured"] / dialogues["turns"])
    labels = WORDS["distributions"]
    figure, axes = new_axes(2, 2, height=3.9)
    for ax, (column, label) in zip(axes.flat, labels.items(), strict=True):
        _plot_distribution(ax, shares, column)
        ax.set_xlabel(label)
    figure.supylabel("dialogues (%)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _plot_distribution(ax: Axes, dialogues: pd.DataFrame, column: str) -> None:
    """A histogram per group, and above it a line for each range that the paper prints."""
    largest = dialogues[column].max()
    printed = paper("fig8")
    printed = printed[(printed["column"] == column) & (printed["least"] <= largest)]
    span = max(largest, *printed["most"], 0)
    bins = np.arange(0, span + 2, max(1, round(span / 25)))
    groups = dialogues.groupby("group", sort=False)
    for (group, rows), color in zip(groups, (ORANGE, BLUE, GREEN), strict=False):
        style: dict[str, Any] = {"color": color, "alpha": 0.6, "label": f"{group} ({len(rows)})"}
        ax.hist(rows[column], list(bins), weights=np.full(len(rows), 100 / len(rows)), **style)
    peak = ax.get_ylim()[1]
    line: dict[str, Any] = {"color": DARK, "linewidth": 1, "marker": "|", "markersize": 5}
    for place, (group, least, most) in enumerate(printed[["group", "least", "most"]].values):
        height = peak * (1.08 + 0.2 * place)
        ax.plot([least, most], [height, height], **line)
        side = "left" if least < span / 2 else "right"
        ax.text(least, height + 0.04 * peak, f"paper, {group}", ha=side, fontsize=7)
    ax.set_ylim(0, peak * (1.05 + 0.22 * len(printed)))
    ax.set_xlim(0, 1.02 * bins[-1])


@styled
def figure_9_cases(cases: pd.DataFrame) -> Figure:
    """One test case per task, the correct option marked, with its evidence as text or picture (the
    paper's Fig. 9)."""
    empty = {"frame_on": False, "xticks": (), "yticks": (), "xlim": (0, 1), "ylim": (0, 1)}
    rows = ceil(len(cases) / 2)
    figure, axes = new_axes(rows, 2, height=0.2 + 1.6 * rows, subplot_kw=empty)
    figure.set_figwidth(2 * WIDTH)
    for ax, case in zip(axes.flat, cases.to_dict("records"), strict=False):
        _draw_case(ax, case)
    return figure


def _draw_case(ax: Axes, case: dict) -> None:
    color = ASPECT_COLORS[case["aspect"]]
    ax.axhspan(0.87, 1, color=color, alpha=0.25, linewidth=0)
    ax.axvspan(0, 0.008, color=color, linewidth=0)
    ax.text(0.025, 0.93, f"{case['aspect']}: {case['task']}", va="center")
    width = 40 if case["picture"] else 54
    for row, (line, style) in enumerate(_case_lines(case, width)):
        ax.text(0.025, 0.82 - 0.082 * row, line, va="top", **{"fontsize": 8.5} | style)
    if case["picture"]:
        inset = ax.inset_axes((0.74, 0.12, 0.25, 0.7), frame_on=False, xticks=(), yticks=())
        inset.imshow(plt.imread(io.BytesIO(base64.b64decode(case["picture"]))))


def _case_lines(case: dict, width: int) -> list[tuple[str, dict]]:
    """Question, options and evidence as lines of at most `width` characters, each with a style."""
    bold = {"weight": "bold"}
    correct = {"color": GREEN, "weight": "bold"}
    small: dict[str, Any] = {"color": "#666666", "style": "italic", "fontsize": 7.5}
    lines: list[tuple[str, dict]] = []
    for line in textwrap.wrap(case["question"], width, max_lines=4):
        lines.append((line, bold))
    for letter, option in zip("abcd", case["options"].split("\n"), strict=False):
        line = textwrap.shorten(f"({letter}) {option}", width)
        is_correct = option == case["answer"]
        lines.append((f"✓ {line}", correct) if is_correct else (f"    {line}", {}))
    evidence = f"Evidence, {case['evidence']}"
    if case["turns"] > 1:
        evidence += f" (and {case['turns'] - 1} more turns)"
    for line in textwrap.wrap(evidence, width * 5 // 4, max_lines=2):
        lines.append((line, small))
    return lines


@styled
def figure_11_tasks(questions: pd.DataFrame) -> Figure:
    """Test cases by task, with their number, and pairs of alignment items (the paper's Fig. 11).
    Circles: shares in its 128k half, inferred from its scores."""
    table = table_5(questions)
    is_pair = table["aspect"] == "Alignment"
    items = table[["ours", "paper_128k"]]
    counts = items.where(~is_pair, items // 2)
    totals = counts[~is_pair].sum()
    shares = 100 * counts / totals
    places = table.index + 0.5 * is_pair
    figure, [[ax]] = new_axes(height=4.0)
    ax.barh(places, shares["ours"], color=table["aspect"].map(ASPECT_COLORS), height=0.7)
    circle: dict[str, Any] = {
        "color": "#222222",
        "mfc": "white",
        "markersize": 5,
        "label": "paper, 128k",
    }
    ax.plot(shares["paper_128k"], places, "o", **circle)
    unit = np.where(is_pair, " pairs)", ")")
    ax.set_yticks(places, table["task"] + " (" + counts["ours"].astype(str) + unit)
    ax.set_xlabel(f"share of the {totals['ours']:,} cases (%)")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right")
    return figure


@styled
def figure_12_keywords(keywords: pd.DataFrame) -> Figure:
    """Keywords of the test dialogues, sized by how much they distinguish dialogues (the paper's
    Fig. 12)."""
    cloud = WordCloud(
        matplotlib.font_manager.findfont("DejaVu Sans"),
        width=1380,
        height=780,
        max_font_size=150,
        background_color="white",
        colormap="Dark2",
        relative_scaling=0.2,
        random_state=0,
    )
    figure, [[ax]] = new_axes(height=2.7)
    ax.imshow(cloud.generate_from_frequencies(keywords.set_index("word")["weight"]))
    ax.axis("off")
    return figure


# Each figure with the table that it draws.
FIGURES: dict[str, tuple[Callable[[pd.DataFrame], Figure], str]] = {
    "figure_3_topics": (figure_3_topics, "topics"),
    "figure_7_composition": (figure_7_composition, "mixture"),
    "figure_8_distributions": (figure_8_distributions, "dialogues"),
    "figure_9_cases": (figure_9_cases, "cases"),
    "figure_11_tasks": (figure_11_tasks, "questions"),
    "figure_12_keywords": (figure_12_keywords, "keywords"),
}
CAPTIONS = {name: " ".join((draw.__doc__ or "").split()) for name, (draw, _) in FIGURES.items()}


def draw(world: World) -> dict[str, Figure]:
    """All figures of a data set by name; empty if there are no tables."""
    if not world:
        return {}
    return {name: function(world[table]) for name, (function, table) in FIGURES.items()}
