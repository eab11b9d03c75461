"""One function per figure, named after the paper's; each takes DataFrames and returns a Figure.

Figures are at most 5 inches wide with 9-point text, readable on a phone and on a page. The colors
are Okabe and Ito's, which color-blind readers can distinguish. `save` is byte-reproducible with one
matplotlib version.
"""

import itertools
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from personavlm_lib.memory.records import TRAITS
from personavlm_lib.study import tables

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
ORANGE = "#E69F00"
RED = "#D55E00"
PURPLE = "#CC79A7"
GRAY = "#8A8F98"
DARK = "#444444"
TRAIT_COLORS = dict(zip(TRAITS, (BLUE, GREEN, ORANGE, PURPLE, RED), strict=True))
# Colors of conditions: by name, else by the model that a condition's name starts with.
CONDITION_COLORS = {"chance": GRAY, "no_memory": GRAY, "gold_evidence": GREEN, "oracle": GREEN}
MODEL_COLORS = {"backbone": ORANGE, "sft": SKY, "rl": BLUE}
STYLE = matplotlib.rc_params_from_file(
    Path(__file__).with_name("figures.mplstyle"), use_default_template=False
)
WIDTH = 4.6  # inches
styled = matplotlib.rc_context(STYLE)


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `<name>.png` (150 dpi) and `<name>.pdf` without dates; return the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    undated: dict[str, Any] = {"CreationDate": None, "Producer": None, "Creator": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        # The layout is final; computing it again would double the time.
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.pdf", metadata=undated)
    return folder / f"{name}.png"


def new_axes(
    rows: int = 1, columns: int = 1, height: float = 3.0, **options
) -> tuple[Figure, np.ndarray]:
    """A closed figure, which a notebook shows once, and its axes as a 2-D array."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def error_bars(table: pd.DataFrame, value: str) -> np.ndarray:
    """(2, n) distances from `value` to `low` and `high`; 0 where there is no interval."""
    below = np.abs(table[value] - table["low"])
    above = np.abs(table["high"] - table[value])
    return np.nan_to_num(np.array([below, above]))


def _condition_color(condition: str) -> str:
    model = condition.split("_")[0]
    return CONDITION_COLORS.get(condition) or MODEL_COLORS.get(model, PURPLE)


@styled
def accuracy_by_condition(records: pd.DataFrame) -> Figure:
    """Multiple-choice accuracy per condition with 95% intervals over users, without ablations.

    Answers that name no option are drawn behind the correct ones, apart from the wrong ones.
    """
    conditions = tables.condition_order(records)
    table = tables.condition_table(records[records["condition"].isin(conditions)])
    figure, [[ax]] = new_axes(height=1.2 + 0.3 * len(table))
    places = np.arange(len(table))
    colors = table["condition"].map(_condition_color)
    correct = table["accuracy"]
    ax.barh(
        places,
        correct,
        xerr=error_bars(table, "accuracy"),
        error_kw={"ecolor": "#222222", "elinewidth": 1.1, "capsize": 2.5},
        color=colors,
        height=0.66,
    )
    hatched: dict[str, Any] = {"facecolor": "white", "hatch": "//////", "linewidth": 0.5}
    ax.barh(places, table["unparsed"], 0.66, correct, edgecolor=colors, **hatched)
    for place, accuracy in zip(places, correct, strict=True):
        ax.text(114, place, f"{accuracy:.0f}", ha="right", va="center", color="#333333")
    chance: dict[str, Any] = {"color": DARK, "linewidth": 1, "linestyle": ":"}
    ax.axvline(25, **chance)
    ax.set_yticks(places, map(tables.label, table["condition"]))
    ax.set(xlim=(0, 116), xticks=range(0, 101, 25))
    ax.set_xlabel(f"answers (%), n = {table['n'].max()}")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    handles = [
        Patch(color=GRAY, label="correct, with 95% interval"),
        Patch(edgecolor=GRAY, label="names no option", **hatched),
        Line2D([], [], label="chance", **chance),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, columnspacing=1.2)
    return figure


@styled
def accuracy_by_task(records: pd.DataFrame) -> Figure:
    """The paper's Table 4 for selected conditions: percent correct per task and condition."""
    selected = records[records["condition"].isin(tables.WORDS["shown_by_task"])]
    values = tables.task_table(records if selected.empty else selected)
    figure, [[ax]] = new_axes(height=1.7 + 0.27 * len(values))
    questions = values.pop("n")
    values.index = pd.Index([f"{task} ({n})" for (_, task), n in questions.items()])
    sns.heatmap(
        values.rename(columns=tables.label),
        ax=ax,
        vmin=0,
        vmax=100,
        cmap="cividis",
        cbar=False,
        annot=True,
        fmt=".0f",
        annot_kws={"fontsize": 8},
    )
    for text in ax.texts:
        dark_cell = float(text.get_text()) < 55
        text.set_color("white" if dark_cell else "black")
    ax.set(xlabel="correct answers (%)", ylabel=None)
    ax.tick_params(labelsize=8)
    ax.tick_params("x", rotation=40, rotation_mode="xtick")
    return figure


@styled
def figure_14_personality(
    personality: pd.DataFrame, users: int = 10, source: str = "own"
) -> Figure:
    """Each trait of some users over their turns: true (dashed) and PEM's estimate (solid)."""
    rows = personality[personality["source"] == source]
    selected = list(rows["user"].unique()[:users])
    lines = ceil(len(selected) / 2)
    figure, axes = new_axes(lines, 2, height=1.0 + 1.3 * lines, sharey=True)
    for ax, user in zip(axes.flat, selected, strict=False):
        _plot_traits(ax, rows[rows["user"] == user])
        ax.set(title=str(user), ylim=(0.8, 5.2), yticks=[1, 3, 5])
    _hide(axes.flat[len(selected) :])
    figure.supxlabel("turn in the user's life", fontsize=9)
    figure.supylabel("trait (1 to 5)", fontsize=9)
    handles = [Line2D([], [], color=color, label=trait) for trait, color in TRAIT_COLORS.items()]
    handles.append(Line2D([], [], color=DARK, linestyle="--", label="true"))
    handles.append(Line2D([], [], color=DARK, linestyle="-", label="estimated"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _plot_traits(ax: Axes, rows: pd.DataFrame) -> None:
    for trait, curve in rows.sort_values("turn").groupby("trait"):
        color = TRAIT_COLORS[str(trait)]
        turns = curve["turn"]
        ax.plot(turns, curve["true"], color=color, linestyle="--", linewidth=1.1, alpha=0.8)
        ax.plot(turns, curve["estimated"], color=color)


def _hide(axes: Iterable[Axes]) -> None:
    for ax in axes:
        ax.axis("off")


@styled
def training_curves(sft_metrics: pd.DataFrame, grpo_metrics: pd.DataFrame) -> Figure:
    """Loss of SFT; reward, its parts, retrievals and entropy of GRPO, per step and smoothed."""
    reward_parts = {"reward_accuracy": GREEN, "reward_format": ORANGE}
    panels = [
        ("SFT: loss (nats per token)", sft_metrics, {"loss": BLUE}),
        ("GRPO: mean reward (0 to 1.5)", grpo_metrics, {"reward": BLUE}),
        ("GRPO: parts of the reward", grpo_metrics, reward_parts),
        ("GRPO: retrievals per rollout", grpo_metrics, {"retrievals": RED}),
        ("GRPO: entropy (nats per token)", grpo_metrics, {"entropy": PURPLE}),
        ("GRPO: groups with equal rewards", grpo_metrics, {"zero_spread": GRAY}),
    ]
    panels = [panel for panel in panels if set(panel[1].columns) & set(panel[2])]
    rows = ceil(len(panels) / 2)
    figure, axes = new_axes(rows, 2, height=1.75 * rows)
    for ax, (title, metrics, colors) in zip(axes.flat, panels, strict=False):
        for column, color in colors.items():
            if column in metrics:
                _plot_smoothed(ax, metrics, column, color)
        ax.set(xlabel="step")
        ax.set_title(title, fontsize=8.5)
        if len(colors) > 1:
            ax.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none")
    _hide(axes.flat[len(panels) :])
    return figure


def _plot_smoothed(ax: Axes, metrics: pd.DataFrame, column: str, color: str) -> None:
    """A thin line per step, and a bold running mean over a tenth of the steps."""
    curve = metrics[["step", column]].dropna().sort_values("step")
    window = max(1, len(curve) // 10)
    smooth = curve[column].rolling(window, min_periods=1, center=True).mean()
    ax.plot(curve["step"], curve[column], color=color, linewidth=0.6, alpha=0.45)
    ax.plot(curve["step"], smooth, color=color, label=column.removeprefix("reward_"))


@styled
def table_8_ablations(records: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """Tables 8 and 9: change in accuracy without one part, ours (with interval) and the paper's."""
    table = tables.ablation_table(records)
    figure, [[ax]] = new_axes(height=1.5 + 0.42 * len(table))
    ours: dict[str, Any] = {"fmt": "o", "color": BLUE, "capsize": 3, "label": "ours, 95% interval"}
    ax.errorbar(table["change"], table.index, xerr=error_bars(table, "change"), **ours)
    printed = paper[paper["source"].isin(["Table 8", "Table 9"]) & (paper["change"] != "")]
    printed = printed[printed["column"].isin(["Overall", "P-SOUPS Overall"])]
    for context, marker in {"32k": "s", "128k": "D", "": "^"}.items():
        rows = printed[printed["context"] == context].set_index("setting")
        changes = table["removed"].map(rows["change"].astype(float))
        if changes.notna().any():
            style: dict[str, Any] = {"color": ORANGE, "markersize": 5, "mfc": "none"}
            name = f"paper, {context or 'P-SOUPS'}"
            ax.plot(changes, table.index + 0.2, marker, label=name, **style)
    ax.axvline(0, color=DARK, linewidth=1)
    ax.set_yticks(range(len(table)), table["removed"])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("change in correct answers (percentage points)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def table_11_efficiency(records: pd.DataFrame) -> Figure:
    """Table 11: mean tokens and milliseconds per answer, per condition and without reasoning."""
    conditions = [*tables.condition_order(records), f"{tables.FULL}_wo_reasoning"]
    table = tables.efficiency_table(records[records["condition"].isin(conditions)])
    figure, [[left, right]] = new_axes(1, 2, height=1.2 + 0.3 * len(table), sharey=True)
    places = np.arange(len(table))
    tokens_in = table["tokens_in"]
    left.barh(places, tokens_in, color=SKY, height=0.6, label="input")
    left.barh(places, table["tokens_out"], 0.6, tokens_in, color=BLUE, label="output")
    right.barh(places, 1000 * table["seconds"], color=GRAY, height=0.6)
    left.set_yticks(places, map(tables.label, table["condition"]))
    left.set_xlabel("tokens per answer")
    right.set_xlabel("ms per answer")
    left.invert_yaxis()
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def backbone_curves(metrics: pd.DataFrame) -> Figure:
    """Backbone training: percent of correct reasoning steps per skill over the tokens seen."""
    figure, [[ax]] = new_axes(height=2.8)
    colors = dict(table=GREEN, copy=GRAY, read_8=BLUE, read_all=SKY, date=PURPLE, see=ORANGE)
    colors["recall"] = RED
    for skill, color in colors.items():
        if skill in metrics:
            tokens = metrics["tokens"] / 1e6
            ax.plot(tokens, 100 * metrics[skill], color=color, label=skill, marker=".")
    ax.set(xlabel="million tokens", ylabel="correct (%)", ylim=(-2, 102))
    ax.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, 1.3))
    return figure


@styled
def skills_radar(skills: pd.DataFrame) -> Figure:
    """Percent correct or F1 per skill and model (`evaluation.skills.skill_table`), with targets."""
    rows = skills[~skills["skill"].str.endswith("error")]
    scores = rows.pivot_table("score", "skill", "model", sort=False)
    target = rows.groupby("skill", sort=False)["target"].first()
    angles = 2 * np.pi * np.arange(len(scores)) / len(scores)
    figure, [[ax]] = new_axes(height=4.6, subplot_kw={"projection": "polar"})
    colors = itertools.cycle((ORANGE, SKY, BLUE, GREEN, PURPLE))
    for name, color in zip(scores, colors, strict=False):
        score = 100 * scores[name].fillna(0)
        closed = [*score, score.iloc[0]]
        ax.plot([*angles, 0], closed, color=color, marker=".", label=name)
    ax.plot(angles, 100 * target, "_", color="#222222", markersize=9, label="target")
    ax.set(theta_offset=np.pi / 2, theta_direction=-1, rlabel_position=9)
    ax.set(ylim=(0, 100), yticks=(25, 50, 75))
    labels = [name.replace(" ", "\n", 1) for name in scores.index]
    ax.set_xticks(angles, labels, fontsize=7)
    ax.tick_params("x", pad=9)  # keeps the labels off the rim
    figure.legend(loc="outside lower center", ncols=4)
    return figure
