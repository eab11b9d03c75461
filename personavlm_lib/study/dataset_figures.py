"""The figures of the world, one function each, beside what the paper prints of its own; in the style of `figures`.

Each takes a table of `world_tables` and returns a Figure; the first sentence of its docstring is the caption. The
paper's own Fig. 3(c), 8, 11 and 12 are pictures whose numbers are not all printed: what stands in its text is drawn,
or said, and nothing is read off a picture.
"""

import base64
import io
import textwrap

import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from wordcloud import WordCloud

from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.study.dataset_tables import TRAIN, World, paper, table_5
from personavlm_lib.study.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    _axes,
    styled,
)

COLOURS = dict(
    zip(dict.fromkeys(ASPECTS.values()), (BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY), strict=True)
)
MEMORY_COLOURS = {
    "core": PURPLE,
    "semantic": BLUE,
    "episodic": ORANGE,
    "procedural": GREEN,
    "nothing": GREY,
}
KEPT_IN = {
    "name": "core",
    "event": "episodic",
    "small_talk": "nothing",
}  # others by their name, or semantic
KEPT_IN |= {"core": "core", **dict.fromkeys(("habit", "goal", "goal_end"), "procedural")}


@styled
def figure_3_topics(topics: pd.DataFrame) -> Figure:
    """What the turns of the training dialogues are about, and which memory keeps it (the paper's Fig. 3c)."""
    turns = topics[topics["group"] == TRAIN].set_index("kind")["turns"].sort_values()
    figure, [[ax]] = _axes(height=1.0 + 0.21 * len(turns))
    colours = [MEMORY_COLOURS[KEPT_IN.get(kind, "semantic")] for kind in turns.index]
    ax.bar_label(
        ax.barh(turns.index.str.replace("_", " "), turns, color=colours), fmt=" {:,.0f}", fontsize=8
    )
    ax.set(
        xlabel=f"turns, {turns.sum():,} in all (paper: over 30,000)", xlim=(0, 1.15 * turns.max())
    )
    memories = [Patch(color=colour, label=memory) for memory, colour in MEMORY_COLOURS.items()]
    ax.legend(
        handles=memories, loc="lower right", title="kept in", alignment="left", title_fontsize=8
    )
    ax.grid(axis="y", visible=False)
    return figure


@styled
def figure_7_composition(mixture: pd.DataFrame) -> Figure:
    """What the training samples are made of, in percent, the paper's and ours (its Fig. 7)."""
    total = mixture.groupby("stage")["samples"].transform("sum")
    ours = mixture.assign(
        share=100 * mixture["samples"] / total, who="ours, " + total.map("{:,}".format)
    )
    both = pd.concat([paper("fig7"), ours]).assign(
        who=lambda rows: rows["stage"] + ", " + rows["who"]
    )
    shares = both.pivot_table("share", "who", "part", sort=False).sort_index()
    figure, [[ax]] = _axes(height=2.8)
    shares.plot.barh(
        ax=ax,
        stacked=True,
        color=[SKY, ORANGE, GREEN, PURPLE, RED, BLUE, GREY],
        width=0.7,
        legend=False,
    )
    for bars in ax.containers:
        ax.bar_label(
            bars, fmt=lambda share: f"{share:.1f}" if share > 4 else "", label_type="center"
        )
    ax.set(xlim=(0, 100), xlabel="samples (%)", ylabel=None)
    ax.grid(visible=False)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def figure_8_distributions(dialogues: pd.DataFrame) -> Figure:
    """The dialogues by their turns, sessions, days and pictures (the paper's Fig. 8). Lines: the ranges, and the mean
    share of pictures, that the paper prints."""
    shown = dialogues.assign(pictures=100 * dialogues["pictured"] / dialogues["turns"])
    labels = {
        "turns": "turns",
        "sessions": "sessions",
        "days": "days spanned",
        "pictures": "turns with a picture (%)",
    }
    figure, axes = _axes(2, 2, height=3.9)
    for ax, (column, label) in zip(axes.flat, labels.items(), strict=True):
        printed = paper("fig8").query("column == @column and least <= @shown[@column].max()")
        span = max(shown[column].max(), *printed["most"], 0)
        bins = np.arange(0, span + 2, max(1, round(span / 25)))
        for (group, rows), colour in zip(
            shown.groupby("group", sort=False), (ORANGE, BLUE, GREEN), strict=False
        ):
            weights = np.full(len(rows), 100 / len(rows))
            ax.hist(
                rows[column],
                bins,
                weights=weights,
                color=colour,
                alpha=0.6,
                label=f"{group} ({len(rows)})",
            )
        peak = ax.get_ylim()[1]
        for place, row in enumerate(printed.itertuples()):
            y = peak * (1.08 + 0.2 * place)
            ax.plot(
                [row.least, row.most],
                [y, y],
                color="#444444",
                linewidth=1,
                marker="|",
                markersize=5,
            )
            side = "left" if row.least < span / 2 else "right"
            ax.text(row.least, y + 0.04 * peak, f"paper, {row.group}", ha=side, fontsize=7)
        ax.set(
            xlabel=label, ylim=(0, peak * (1.05 + 0.22 * len(printed))), xlim=(0, 1.02 * bins[-1])
        )
    figure.supylabel("dialogues (%)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def figure_9_cases(cases: pd.DataFrame) -> Figure:
    """One test case of each task, the right option marked, with its evidence as said or shown (the paper's Fig. 9)."""
    empty = {"frame_on": False, "xticks": (), "yticks": (), "xlim": (0, 1), "ylim": (0, 1)}
    figure, axes = _axes(
        -(-len(cases) // 2), 2, height=0.2 + 1.6 * -(-len(cases) // 2), subplot_kw=empty
    )
    figure.set_figwidth(2 * WIDTH)
    for ax, case in zip(axes.flat, cases.itertuples(), strict=False):
        ax.axhspan(0.87, 1, color=COLOURS[case.aspect], alpha=0.25, linewidth=0)
        ax.axvspan(0, 0.008, color=COLOURS[case.aspect], linewidth=0)
        ax.text(0.025, 0.93, f"{case.aspect}: {case.task}", va="center")
        wide, bold = 40 if case.picture else 54, {"weight": "bold"}
        lines = [(line, bold) for line in textwrap.wrap(case.question, wide, max_lines=4)]
        for letter, option in zip("abcd", case.options.split("\n"), strict=False):
            line = textwrap.shorten(f"({letter}) {option}", wide)
            lines.append(
                (f"✓ {line}", {"color": GREEN} | bold)
                if option == case.answer
                else (f"    {line}", {})
            )
        said = f"Evidence, {case.evidence}" + f" (and {case.turns - 1} turns more)" * (
            case.turns > 1
        )
        grey = {"color": "#666666", "style": "italic", "fontsize": 7.5}
        lines += [(line, grey) for line in textwrap.wrap(said, wide * 5 // 4, max_lines=2)]
        for row, (line, style) in enumerate(lines):
            ax.text(0.025, 0.82 - 0.082 * row, line, va="top", **{"fontsize": 8.5} | style)
        if case.picture:
            inset = ax.inset_axes((0.74, 0.12, 0.25, 0.7), frame_on=False, xticks=(), yticks=())
            inset.imshow(plt.imread(io.BytesIO(base64.b64decode(case.picture))))
    return figure


@styled
def figure_11_tasks(questions: pd.DataFrame) -> Figure:
    """Test cases by task, their number in brackets, and pairs of alignment items, each asked with a case (the paper's
    Fig. 11). Circles: shares in its 128k half, whose numbers of questions its scores give away."""
    table = table_5(questions)
    pairs = table["aspect"] == "Alignment"
    counts = table[["ours", "paper_128k"]].where(~pairs, table[["ours", "paper_128k"]] // 2)
    shares, place = 100 * counts / counts[~pairs].sum(), table.index + 0.5 * pairs
    figure, [[ax]] = _axes(height=4.0)
    ax.barh(place, shares["ours"], color=table["aspect"].map(COLOURS), height=0.7)
    ax.plot(
        shares["paper_128k"],
        place,
        "o",
        color="#222222",
        mfc="white",
        markersize=5,
        label="paper, 128k",
    )
    names = table["task"] + " (" + counts["ours"].astype(str) + np.where(pairs, " pairs)", ")")
    ax.set(
        yticks=place,
        yticklabels=names,
        xlabel=f"share of the {counts['ours'][~pairs].sum():,} cases (%)",
    )
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right")
    return figure


@styled
def figure_12_keywords(keywords: pd.DataFrame) -> Figure:
    """Keywords of the test dialogues, the larger the more they tell dialogues apart (the paper's Fig. 12)."""
    font, size = (
        matplotlib.font_manager.findfont("DejaVu Sans"),
        {"width": 1380, "height": 780, "max_font_size": 150},
    )
    cloud = WordCloud(
        font,
        background_color="white",
        colormap="Dark2",
        relative_scaling=0.2,
        random_state=0,
        **size,
    )
    figure, [[ax]] = _axes(height=2.7)
    ax.imshow(cloud.generate_from_frequencies(keywords.set_index("word")["weight"]))
    ax.axis("off")
    return figure


FIGURES = {
    figure_3_topics: "topics", figure_7_composition: "mixture", figure_8_distributions: "dialogues",
    figure_9_cases: "cases", figure_11_tasks: "questions", figure_12_keywords: "keywords",
}  # fmt: skip
CAPTIONS = {figure.__name__: " ".join(figure.__doc__.split()) for figure in FIGURES}


def draw(world: World) -> dict[str, Figure]:
    """All figures of a world, by name; none where there are no tables."""
    return {figure.__name__: figure(world[table]) for figure, table in FIGURES.items() if world}
