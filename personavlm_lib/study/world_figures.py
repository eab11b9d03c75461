"""The figures of the world, one function each, beside what the paper prints of its own; in the style of `figures`.

Each takes a table of `world_tables` and returns a Figure; the first sentence of its docstring is the caption. The
paper's own Fig. 3(c), 8, 11 and 12 are pictures whose numbers are not all printed: what stands in its text is drawn,
or said, and nothing is read off a picture.
"""

import base64
import io
import textwrap

import matplotlib.font_manager
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from wordcloud import WordCloud

from personavlm_lib.study.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TRAIT_COLOURS,
    WIDTH,
    _axes,
    styled,
)
from personavlm_lib.study.world_tables import TRAIN, World, paper, table_5

ASPECTS = ("Memory", "Intent", "Preference", "Behavior", "Relationship", "Growth", "Alignment")
COLOURS = dict(zip(ASPECTS, (BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY), strict=True))
COLOURS |= {"core": PURPLE, "semantic": BLUE, "episodic": ORANGE, "procedural": GREEN, "nothing": GREY}
KEPT_IN = {"name": "core", "event": "episodic", "small_talk": "nothing"}  # others by their name, or semantic
KEPT_IN |= {"core": "core", **dict.fromkeys(("habit", "goal", "goal_end"), "procedural")}


@styled
def figure_3_topics(topics: pd.DataFrame) -> Figure:
    """What the turns of the training dialogues are about, and which memory keeps it (the paper's Fig. 3c)."""
    turns = topics[topics["group"] == TRAIN].set_index("kind")["turns"].sort_values()
    figure, axes = _axes(height=1.0 + 0.21 * len(turns))
    ax = axes[0, 0]
    colours = [COLOURS[KEPT_IN.get(kind, "semantic")] for kind in turns.index]
    ax.bar_label(ax.barh(turns.index.str.replace("_", " "), turns, color=colours), fmt=" {:,.0f}", fontsize=8)
    ax.set(xlabel=f"turns, {turns.sum():,} in all (paper: over 30,000)", xlim=(0, 1.15 * turns.max()))
    memories = [Patch(color=COLOURS[memory], label=memory) for memory in [*COLOURS][len(ASPECTS) :]]
    ax.legend(handles=memories, loc="lower right", title="kept in", alignment="left", title_fontsize=8)
    ax.grid(axis="y", visible=False)
    return figure


@styled
def figure_7_composition(mixture: pd.DataFrame) -> Figure:
    """What the training samples are made of, in percent, the paper's and ours (its Fig. 7)."""
    printed = paper("fig7").set_index("part")
    figure, axes = _axes(2, height=3.2)
    for ax, stage in zip(axes.flat, ("SFT", "RL"), strict=True):
        theirs = printed[printed["stage"] == stage]["value"]
        ours = mixture[mixture["stage"] == stage].set_index("part")["samples"]
        total = {f"{stage}, ours": ours.sum(), f"{stage}, paper": theirs.pop("samples")}
        shares = pd.DataFrame([100 * ours / ours.sum(), theirs], [f"{who}\n{n:,.0f}" for who, n in total.items()])
        shares = shares[[*theirs.index, *ours.index.difference(theirs.index)]]
        shares.plot.barh(ax=ax, stacked=True, color=[BLUE, RED, GREEN, PURPLE, GREY], width=0.7, legend=False)
        for bars in ax.containers:
            ax.bar_label(bars, fmt="{:.1f}", label_type="center", color="white")
        ax.set(xlim=(0, 100), xlabel="samples (%)" if stage == "RL" else None)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=4, handlelength=0.8, columnspacing=1.0)
        ax.grid(visible=False)
    return figure


@styled
def figure_8_distributions(dialogues: pd.DataFrame) -> Figure:
    """The dialogues by their turns, sessions, days and pictures (the paper's Fig. 8). Lines: the ranges, and the mean
    share of pictures, that the paper prints."""
    shown = dialogues.assign(pictures=100 * dialogues["pictured"] / dialogues["turns"])
    labels = {"turns": "turns", "sessions": "sessions", "days": "days spanned", "pictures": "turns with a picture (%)"}
    figure, axes = _axes(2, 2, height=3.9)
    for ax, (column, label) in zip(axes.flat, labels.items(), strict=True):
        printed = paper("fig8").query("column == @column and least <= @shown[@column].max()")
        span = max(shown[column].max(), *printed["most"], 0)
        bins = np.arange(0, span + 2, max(1, round(span / 25)))
        for (group, rows), colour in zip(shown.groupby("group", sort=False), (ORANGE, BLUE, GREEN), strict=False):
            weights = np.full(len(rows), 100 / len(rows))
            ax.hist(rows[column], bins, weights=weights, color=colour, alpha=0.6, label=f"{group} ({len(rows)})")
        peak = ax.get_ylim()[1]
        for place, row in enumerate(printed.itertuples()):
            y, right = peak * (1.08 + 0.2 * place), row.most > span / 2
            ax.plot([row.least, row.most], [y, y], color="#444444", linewidth=1, marker="|", markersize=5)
            ax.annotate(f"paper, {row.group}", (row.most if right else row.least, y), (0, 2), fontsize=7,
                        textcoords="offset points", ha="right" if right else "left")  # fmt: skip
        ax.set(xlabel=label, ylim=(0, peak * (1.05 + 0.22 * len(printed))), xlim=(0, 1.02 * bins[-1]))
    figure.supylabel("dialogues (%)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def figure_9_cases(cases: pd.DataFrame) -> Figure:
    """One test case of each task, the right option marked, with its evidence as said or shown (the paper's Fig. 9)."""
    figure, axes = _axes(-(-len(cases) // 2), 2, height=0.2 + 1.6 * -(-len(cases) // 2))
    figure.set_figwidth(2 * WIDTH)
    for ax, case in zip(axes.flat, cases.itertuples(), strict=False):
        ax.axhspan(0.87, 1, color=COLOURS[case.aspect], alpha=0.25, linewidth=0)
        ax.axvspan(0, 0.008, color=COLOURS[case.aspect], linewidth=0)
        ax.text(0.025, 0.93, f"{case.aspect}: {case.task}", va="center")
        wide, bold = 44 if case.picture else 60, {"weight": "bold"}
        lines = [(line, bold) for line in textwrap.wrap(case.question, wide, max_lines=3)]
        for letter, option in zip("abcd", case.options.split("\n"), strict=False):
            line = textwrap.shorten(f"({letter}) {option}", wide)
            lines.append((f"✓ {line}", {"color": GREEN} | bold) if option == case.answer else (f"    {line}", {}))
        said = f"Evidence, {case.evidence}" + f" (and {case.turns - 1} turns more)" * (case.turns > 1)
        grey = {"color": "#666666", "style": "italic", "fontsize": 7.5}
        lines += [(line, grey) for line in textwrap.wrap(said, wide * 5 // 4, max_lines=2)]
        for row, (line, style) in enumerate(lines):
            ax.text(0.025, 0.82 - 0.09 * row, line, va="top", **{"fontsize": 8.5} | style)
        if case.picture:
            inset = ax.inset_axes((0.74, 0.12, 0.25, 0.7))
            inset.imshow(Image.open(io.BytesIO(base64.b64decode(case.picture))))
            inset.axis("off")
    for ax in axes.flat:
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.axis("off")
    return figure


@styled
def figure_11_tasks(questions: pd.DataFrame) -> Figure:
    """Test cases by task, their number in brackets, and pairs of alignment items, each asked with a case (the paper's
    Fig. 11). Circles: shares in its 128k half, whose numbers of questions its scores give away."""
    table = table_5(questions)
    pairs = table["aspect"] == "Alignment"
    counts = table[["ours", "paper_128k"]].where(~pairs, table[["ours", "paper_128k"]] // 2)
    shares, place = 100 * counts / counts[~pairs].sum(), table.index + 0.5 * pairs
    figure, axes = _axes(height=4.0)
    ax = axes[0, 0]
    ax.barh(place, shares["ours"], color=table["aspect"].map(COLOURS), height=0.7)
    ax.plot(shares["paper_128k"], place, "o", color="#222222", mfc="white", markersize=5, label="paper, 128k")
    names = table["task"] + " (" + counts["ours"].astype(str) + np.where(pairs, " pairs)", ")")
    ax.set(yticks=place, yticklabels=names, xlabel=f"share of the {counts['ours'][~pairs].sum():,} cases (%)")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right")
    return figure


@styled
def figure_12_keywords(keywords: pd.DataFrame) -> Figure:
    """Keywords of the test dialogues, the larger the more they tell dialogues apart (the paper's Fig. 12)."""
    rng, colours = np.random.default_rng(0), list(TRAIT_COLOURS.values())
    font, size = matplotlib.font_manager.findfont("DejaVu Sans"), {"width": 1380, "height": 780, "max_font_size": 150}
    cloud = WordCloud(font, background_color="white", prefer_horizontal=0.9, relative_scaling=0.2, random_state=0,
                      color_func=lambda *_, **__: rng.choice(colours), **size)  # fmt: skip
    figure, axes = _axes(height=2.7)
    axes[0, 0].imshow(cloud.generate_from_frequencies(keywords.set_index("word")["weight"]))
    axes[0, 0].axis("off")
    return figure


FIGURES = {
    figure_3_topics: "topics", figure_7_composition: "mixture", figure_8_distributions: "dialogues",
    figure_9_cases: "cases", figure_11_tasks: "questions", figure_12_keywords: "keywords",
}  # fmt: skip
CAPTIONS = {figure.__name__: " ".join(figure.__doc__.split()) for figure in FIGURES}


def draw(world: World) -> dict[str, Figure]:
    """All figures of a world, by name; none where there are no tables."""
    return {figure.__name__: figure(world[table]) for figure, table in FIGURES.items() if world}
