"""The Personality Evolving Mechanism (Section 3, Appendix A.1) and what the model is shown of the profile.

Where paper and release differ (findings D4, D5), the paper is the default and the release's reading is a setting.
The paper leaves open the first profile p_0 (here: neutral) and whether m counts skipped turns (here: it does, m is the
turn's number; `advance(count="updates")` is the other reading).
"""

import math
from datetime import datetime

from personavlm_lib.memory.records import TRAITS, BigFive, PersonalityState

NEUTRAL_SCORE = 3
WORDS = (
    (1.8, "very low"),
    (2.6, "low"),
    (3.4, "moderate"),
    (4.2, "high"),
)  # equal fifths of [1, 5]


def smoothing(m: int) -> float:
    """lambda_m = 0.7 - 0.2 cos(min(m, 50) pi / 50): 0.5 at m = 0, 0.9 from m = 50 on (Appendix A.1)."""
    return 0.7 - 0.2 * math.cos(min(m, 50) * math.pi / 50)


def evolve(profile: BigFive, observed: BigFive, m: int, skip: str = "paper") -> BigFive:
    """One step of the moving average, p <- lambda_m p + (1 - lambda_m) p' (Appendix A.1).

    `m` is the turn's number, from 1. `skip` says what a neutral score (3) stands for: "paper" skips the update if all
    five are neutral, "trait" (the release) skips each trait that is, "never" takes 3 for an observation like any other.
    """
    if skip not in ("paper", "trait", "never"):
        raise ValueError(f"skip is {skip!r}; choose paper, trait or never")
    if skip == "paper" and _is_neutral(observed):
        return profile
    kept = smoothing(m)
    return BigFive(
        *(
            p if skip == "trait" and seen == NEUTRAL_SCORE else kept * p + (1 - kept) * seen
            for p, seen in zip(profile.as_tuple(), observed.as_tuple(), strict=True)
        )
    )


def next_state(
    before: PersonalityState | None,
    observed: BigFive | None,
    turn: int,
    known_from: datetime,
    skip: str = "paper",
    count: str = "turns",
) -> PersonalityState:
    """The state after the turn with index `turn` (from 0); `before` None starts from the neutral profile.

    `count` settles what m counts: "turns" (m = turn + 1) or "updates" (skipped turns leave m as it was). `observed`
    None (an unreadable reply) leaves the profile as it was.
    """
    if count not in ("turns", "updates"):
        raise ValueError(f"count is {count!r}; choose turns or updates")
    profile, m = (before.profile, before.m) if before else (BigFive.neutral(), 0)
    skipped = observed is None or (skip != "never" and _is_neutral(observed))
    m = turn + 1 if count == "turns" else m + (not skipped)
    if skipped:
        return PersonalityState(profile, observed, turn, m, known_from)
    return PersonalityState(evolve(profile, observed, m, skip), observed, turn, m, known_from)


def summarize_profile(profile: BigFive, as_: str = "text") -> str:
    """The profile as the prompt shows it, one trait a line (findings D5).

    "text" (the paper's words): `openness: very high`; "numbers" (its Fig. 16): `openness: 3.96`; "cut" (the release):
    `openness: 3.9`, the number's first three characters.
    """
    show = {"text": _word, "numbers": "{:.2f}".format, "cut": lambda score: str(float(score))[:3]}
    if as_ not in show:
        raise ValueError(f"as_ is {as_!r}; choose text, numbers or cut")
    return "\n".join(f"{trait}: {show[as_](getattr(profile, trait))}" for trait in TRAITS)


def trait_levels(profile: BigFive) -> dict[str, str]:
    """Each trait as low (under 2.5), mid or high (over 3.5)."""
    scores = zip(TRAITS, profile.as_tuple(), strict=True)
    return {
        trait: "low" if score < 2.5 else "high" if score > 3.5 else "mid" for trait, score in scores
    }


def _word(score: float) -> str:
    return next((word for limit, word in WORDS if score < limit), "very high")


def _is_neutral(observed: BigFive) -> bool:
    return all(score == NEUTRAL_SCORE for score in observed.as_tuple())
