"""One function per figure, named after what it shows in the paper; each takes DataFrames and returns a Figure.

Figures are under 5 inches wide with 9-point text, so that they read on a telephone as well as on a page. Colours are
Okabe and Ito's, told apart by colour-blind eyes too. Byte-reproducible on one matplotlib version (`save`).
"""

import itertools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from personavlm_lib.memory.records import TRAITS
from personavlm_lib.study import tables

BLUE, SKY, GREEN, ORANGE, RED, PURPLE, GREY = (
    "#0072B2 #56B4E9 #009E73 #E69F00 #D55E00 #CC79A7 #8A8F98".split()
)
TRAIT_COLOURS = dict(zip(TRAITS, (BLUE, GREEN, ORANGE, PURPLE, RED), strict=True))
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "personavlm",
}
WIDTH = 4.6  # inches
styled = matplotlib.rc_context(STYLE)


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `<name>.png` (150 dpi) and `<name>.pdf`, without dates, and return the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        figure.set_layout_engine(
            "none"
        )  # the layout is found by now; to find it again takes as long as to draw
        figure.savefig(
            folder / f"{name}.pdf",
            metadata={"CreationDate": None, "Producer": None, "Creator": None},
        )
    return folder / f"{name}.png"


def _axes(
    rows: int = 1, columns: int = 1, height: float = 3.0, **options
) -> tuple[Figure, np.ndarray]:
    """A figure that notebooks show once, when it is returned, and its axes as an array of two dimensions."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def _colour(condition: str) -> str:
    family = {"chance": GREY, "no_memory": GREY, "gold_evidence": GREEN, "oracle": GREEN}
    return family.get(condition) or {"backbone": ORANGE, "sft": SKY, "rl": BLUE}.get(
        condition.split("_")[0], PURPLE
    )


@styled
def accuracy_by_condition(records: pd.DataFrame) -> Figure:
    """Multiple-choice accuracy of each condition with its 95% interval over users; ablations have their own figure."""
    found = tables.condition_table(
        records[records["condition"].isin(tables.condition_order(records))]
    )
    figure, [[ax]] = _axes(height=0.9 + 0.3 * len(found))
    place = np.arange(len(found))
    error = np.nan_to_num(
        np.abs([found["accuracy"] - found["low"], found["high"] - found["accuracy"]])
    )
    lines = {"ecolor": "#222222", "elinewidth": 1.1, "capsize": 2.5}
    colours = found["condition"].map(_colour)
    bars = ax.barh(place, found["accuracy"], xerr=error, error_kw=lines, color=colours, height=0.66)
    ax.bar_label(bars, fmt="{:.0f}", padding=4, color="#333333")
    ax.axvline(25, color="#444444", linewidth=1, linestyle=":")
    ax.set(
        yticks=place,
        yticklabels=map(tables.label, found["condition"]),
        xlim=(0, 109),
        xticks=range(0, 101, 25),
    )
    ax.set_xlabel(f"right answers (%), n = {found['n'].max()}; dotted: chance")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return figure


@styled
def accuracy_by_task(records: pd.DataFrame) -> Figure:
    """As the paper's Table 4: percent right per task (rows) and condition (columns); the report's table has all."""
    shown = records[records["condition"].isin(tables.SHOWN_BY_TASK)]
    values = tables.task_table(shown if len(shown) else records)
    figure, [[ax]] = _axes(height=1.7 + 0.27 * len(values))
    values.index = [f"{task} ({n})" for (_, task), n in values.pop("n").items()]
    sns.heatmap(values.rename(columns=tables.label), ax=ax, vmin=0, vmax=100, cmap="cividis", cbar=False, annot=True,
                fmt=".0f", annot_kws={"fontsize": 8})  # fmt: skip
    for text in ax.texts:
        text.set_color("white" if float(text.get_text()) < 55 else "black")
    ax.set(xlabel="right answers (%)", ylabel=None)
    ax.tick_params(labelsize=8)
    ax.tick_params("x", rotation=40, rotation_mode="xtick")
    return figure


@styled
def figure_14_personality(
    personality: pd.DataFrame, users: int = 10, source: str = "own"
) -> Figure:
    """As the paper's Fig. 14: each trait of some users over their turns, true (dashed) and estimated by PEM (solid)."""
    rows = personality[personality["source"] == source]
    chosen = list(rows["user"].unique()[:users])
    lines = -(-len(chosen) // 2)
    figure, axes = _axes(lines, 2, height=1.0 + 1.3 * lines, sharey=True)
    for ax, user in zip(axes.flat, chosen, strict=False):
        for trait, curve in rows[rows["user"] == user].sort_values("turn").groupby("trait"):
            ax.plot(
                curve["turn"],
                curve["true"],
                color=TRAIT_COLOURS[trait],
                linestyle="--",
                linewidth=1.1,
                alpha=0.8,
            )
            ax.plot(curve["turn"], curve["estimated"], color=TRAIT_COLOURS[trait])
        ax.set(title=str(user), ylim=(0.8, 5.2), yticks=[1, 3, 5])
    for ax in axes.flat[len(chosen) :]:
        ax.axis("off")
    figure.supxlabel("turn in the user's life", fontsize=9)
    figure.supylabel("trait (1 to 5)", fontsize=9)
    handles = [Line2D([], [], color=colour, label=trait) for trait, colour in TRAIT_COLOURS.items()]
    handles += [
        Line2D([], [], color="#444444", linestyle=s, label=t)
        for s, t in (("--", "true"), ("-", "estimated"))
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@styled
def training_curves(sft_metrics: pd.DataFrame, grpo_metrics: pd.DataFrame) -> Figure:
    """Loss of SFT; reward, its parts, retrievals, entropy of GRPO. Thin: each step; bold: a running mean."""
    panels = [("SFT: loss (nats per token)", sft_metrics, {"loss": BLUE})]
    panels += [
        ("GRPO: mean reward (0 to 1.5)", grpo_metrics, {"reward": BLUE}),
        (
            "GRPO: parts of the reward",
            grpo_metrics,
            {"reward_accuracy": GREEN, "reward_format": ORANGE},
        ),
        ("GRPO: retrievals per rollout", grpo_metrics, {"retrievals": RED}),
        ("GRPO: entropy (nats per token)", grpo_metrics, {"entropy": PURPLE}),
        ("GRPO: groups without spread", grpo_metrics, {"zero_spread": GREY}),
    ]
    panels = [panel for panel in panels if any(name in panel[1] for name in panel[2])]
    figure, axes = _axes(-(-len(panels) // 2), 2, height=1.75 * -(-len(panels) // 2))
    for ax, (title, metrics, columns) in zip(axes.flat, panels, strict=False):
        for name in [name for name in columns if name in metrics]:
            curve = metrics[["step", name]].dropna().sort_values("step")
            smooth = (
                curve[name].rolling(max(1, len(curve) // 10), min_periods=1, center=True).mean()
            )
            ax.plot(curve["step"], curve[name], color=columns[name], linewidth=0.6, alpha=0.45)
            ax.plot(curve["step"], smooth, color=columns[name], label=name.removeprefix("reward_"))
        ax.set(xlabel="step")
        ax.set_title(title, fontsize=8.5)
        if len(columns) > 1:
            ax.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none")
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    return figure


@styled
def table_8_ablations(records: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """As the paper's Tables 8 and 9: change in accuracy without a part; ours with its interval, and theirs."""
    found = tables.ablation_table(records)
    figure, [[ax]] = _axes(height=1.5 + 0.42 * len(found))
    error = np.nan_to_num(np.abs([found["change"] - found["low"], found["high"] - found["change"]]))
    ax.errorbar(
        found["change"],
        found.index,
        xerr=error,
        fmt="o",
        color=BLUE,
        capsize=3,
        label="ours, 95% interval",
    )
    printed = paper[paper["source"].isin(["Table 8", "Table 9"]) & (paper["change"] != "")]
    printed = printed[printed["column"].isin(["Overall", "P-SOUPS Overall"])]
    for context, marker in {"32k": "s", "128k": "D", "": "^"}.items():
        change = printed[printed["context"] == context].set_index("setting")["change"].astype(float)
        theirs, label = found["removed"].map(change), f"paper, {context or 'P-SOUPS'}"
        if theirs.notna().any():
            ax.plot(
                theirs,
                found.index + 0.2,
                marker,
                color=ORANGE,
                markersize=5,
                mfc="none",
                label=label,
            )
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set(yticks=range(len(found)), yticklabels=found["removed"], ylim=(len(found) - 0.4, -0.6))
    ax.set_xlabel("change in right answers (percentage points)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def table_11_efficiency(records: pd.DataFrame) -> Figure:
    """As the paper's Table 11: tokens and milliseconds per answer, means, per condition, and without reasoning."""
    shown = [*tables.condition_order(records), f"{tables.FULL}_wo_reasoning"]
    found = tables.efficiency_table(records[records["condition"].isin(shown)])
    figure, axes = _axes(1, 2, height=1.2 + 0.3 * len(found), sharey=True)
    place = np.arange(len(found))
    left, right = axes[0]
    left.barh(place, found["tokens_in"], color=SKY, height=0.6, label="read")
    left.barh(
        place, found["tokens_out"], left=found["tokens_in"], color=BLUE, height=0.6, label="written"
    )
    right.barh(place, 1000 * found["seconds"], color=GREY, height=0.6)
    left.set(
        yticks=place, yticklabels=map(tables.label, found["condition"]), xlabel="tokens per answer"
    )
    right.set(xlabel="ms per answer")
    left.invert_yaxis()
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def backbone_curves(metrics: pd.DataFrame) -> Figure:
    """How the backbone learned: share of right reasoning steps per skill over tokens seen (one row per probe)."""
    figure, axes = _axes(height=2.8)
    skills = [
        c for c in ("table", "copy", "read_8", "read_all", "date", "see", "recall") if c in metrics
    ]
    for skill, colour in zip(skills, (GREEN, GREY, BLUE, SKY, PURPLE, ORANGE, RED), strict=False):
        axes[0, 0].plot(
            metrics.tokens / 1e6, 100 * metrics[skill], color=colour, label=skill, marker="."
        )
    axes[0, 0].set(xlabel="million tokens", ylabel="right (%)", ylim=(-2, 102))
    axes[0, 0].legend(ncols=3, loc="upper left", bbox_to_anchor=(0, 1.3))
    return figure


@styled
def skills_radar(skills: pd.DataFrame) -> Figure:
    """What each model can do: share right or F1 per skill (`evaluation/skills.py:table`, one `model` under another),
    and what a trained one should reach."""
    shown = skills[~skills["skill"].str.endswith("error")]
    wide = shown.pivot_table("score", "skill", "model", sort=False)
    target = shown.groupby("skill", sort=False)["target"].first()
    angles = 2 * np.pi * np.arange(len(wide)) / len(wide)
    figure, ((ax,),) = _axes(height=4.6, subplot_kw={"projection": "polar"})
    for name, colour in zip(wide, itertools.cycle((ORANGE, SKY, BLUE, GREEN, PURPLE))):
        score = 100 * wide[name].fillna(0)
        ax.plot([*angles, 0], [*score, score.iloc[0]], color=colour, marker=".", label=name)
    ax.plot(angles, 100 * target, "_", color="#222222", markersize=9, label="aim")
    ax.set(
        theta_offset=np.pi / 2,
        theta_direction=-1,
        ylim=(0, 100),
        yticks=(25, 50, 75),
        rlabel_position=9,
    )
    ax.set_xticks(angles, [name.replace(" ", "\n", 1) for name in wide.index], fontsize=7)
    ax.tick_params("x", pad=9)  # the names stay off the rim
    figure.legend(loc="outside lower center", ncols=4)
    return figure
