"""The Personality Evolving Mechanism (PEM; Appendix A.1), and the form of the profile in prompts.

Where the paper and the authors' released code (the release) differ, the paper is the default and
the release is a setting (D4 and D5 in PAPER_MAP.md). The paper leaves two points open: the first
profile p_0 (here: neutral), and whether m counts skipped turns (here: yes, m is the turn's number;
`next_state(count="updates")` is the other reading).
"""

import math
from datetime import datetime

from personavlm_lib.memory.records import TRAITS, BigFive, PersonalityState

NEUTRAL_SCORE = 3
# Upper limit -> word: equal fifths of [1, 5]. Above the last limit the word is "very high".
WORDS = ((1.8, "very low"), (2.6, "low"), (3.4, "moderate"), (4.2, "high"))


def smoothing(m: int) -> float:
    """lambda_m = 0.7 - 0.2 cos(min(m, 50) pi / 50): 0.5 at m = 0, 0.9 from m = 50 on (A.1)."""
    return 0.7 - 0.2 * math.cos(min(m, 50) * math.pi / 50)


def evolve(profile: BigFive, observed: BigFive, m: int, skip: str = "paper") -> BigFive:
    """One step of the moving average, p <- lambda_m p + (1 - lambda_m) p' (Appendix A.1).

    `m` is the turn's number, from 1. `skip` says how to treat neutral scores (3): "paper" skips the
    update if all five are neutral, "trait" (the release) skips each neutral trait, "never" treats
    3 like any other score.
    """
    if skip not in ("paper", "trait", "never"):
        raise ValueError(f"skip is {skip!r}; choose paper, trait or never")
    if skip == "paper" and _is_neutral(observed):
        return profile
    weight = smoothing(m)
    scores = []
    for old, new in zip(profile.as_tuple(), observed.as_tuple(), strict=True):
        if skip == "trait" and new == NEUTRAL_SCORE:
            scores.append(old)
        else:
            scores.append(weight * old + (1 - weight) * new)
    return BigFive(*scores)


def next_state(
    before: PersonalityState | None,
    observed: BigFive | None,
    turn: int,
    known_from: datetime,
    skip: str = "paper",
    count: str = "turns",
) -> PersonalityState:
    """The state after the turn with index `turn` (from 0).

    Starts from the neutral profile if `before` is None. `observed` is None for an unreadable reply,
    which leaves the profile unchanged. `count` says what m counts: "turns" (m = turn + 1) or
    "updates" (a skipped turn leaves m unchanged).
    """
    if count not in ("turns", "updates"):
        raise ValueError(f"count is {count!r}; choose turns or updates")
    profile = before.profile if before else BigFive.neutral()
    m = before.m if before else 0
    update: BigFive | None = observed
    if observed is not None and skip != "never" and _is_neutral(observed):
        update = None
    if count == "turns":
        m = turn + 1
    elif update is not None:
        m += 1
    if update is not None:
        profile = evolve(profile, update, m, skip)
    return PersonalityState(profile, observed, turn, m, known_from)


def summarize_profile(profile: BigFive, as_: str = "text") -> str:
    """The profile as the prompt shows it, one trait per line (D5 in PAPER_MAP.md).

    "text" (the paper's text): `openness: very high`; "numbers" (its Fig. 16): `openness: 3.96`;
    "cut" (the release): `openness: 3.9`, the first three characters of the number.
    """
    formats = {"text": _word, "numbers": _two_decimals, "cut": _three_characters}
    if as_ not in formats:
        raise ValueError(f"as_ is {as_!r}; choose text, numbers or cut")
    format_score = formats[as_]
    lines = [f"{trait}: {format_score(getattr(profile, trait))}" for trait in TRAITS]
    return "\n".join(lines)


def trait_levels(profile: BigFive) -> dict[str, str]:
    """Each trait as low (under 2.5), mid or high (over 3.5)."""
    levels = {}
    for trait, score in zip(TRAITS, profile.as_tuple(), strict=True):
        if score < 2.5:
            levels[trait] = "low"
        elif score > 3.5:
            levels[trait] = "high"
        else:
            levels[trait] = "mid"
    return levels


def _word(score: float) -> str:
    for limit, word in WORDS:
        if score < limit:
            return word
    return "very high"


def _two_decimals(score: float) -> str:
    return f"{score:.2f}"


def _three_characters(score: float) -> str:
    return str(float(score))[:3]


def _is_neutral(scores: BigFive) -> bool:
    return all(score == NEUTRAL_SCORE for score in scores.as_tuple())
