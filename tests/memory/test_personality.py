"""The Personality Evolving Mechanism against numbers computed by hand from Appendix A.1."""

from datetime import datetime

import pytest

from personavlm_lib.memory.personality import (
    evolve,
    next_state,
    smoothing,
    summarize_profile,
    trait_levels,
)
from personavlm_lib.memory.records import BigFive

NOON = datetime(2024, 5, 3, 12)
NEUTRAL = BigFive.neutral()


@pytest.mark.parametrize(("m", "expected"), [(0, 0.5), (25, 0.7), (50, 0.9), (51, 0.9), (400, 0.9)])
def test_smoothing_rises_from_0_5_to_0_9(m, expected):
    assert smoothing(m) == pytest.approx(expected)


def test_one_step_matches_hand_computation():
    # lambda_25 = 0.7: 0.7 * 3 + 0.3 * 5 = 3.6, 0.7 * 3 + 0.3 * 1 = 2.4
    after = evolve(NEUTRAL, BigFive(5, 1, 3, 3, 3), m=25)
    assert after.as_tuple() == pytest.approx((3.6, 2.4, 3, 3, 3))


@pytest.mark.parametrize(("skip", "expected"), [("paper", 4.0), ("trait", 4.0), ("never", 3.7)])
def test_neutral_turn_under_each_skip_setting(skip, expected):
    after = evolve(BigFive(4, 4, 4, 4, 4), NEUTRAL, m=25, skip=skip)
    assert after.as_tuple() == pytest.approx((expected,) * 5)


def test_only_the_release_skips_single_neutral_traits():
    before, observed = BigFive(4, 4, 4, 4, 4), BigFive(5, 3, 3, 3, 3)
    assert evolve(before, observed, 25, "paper").as_tuple() == pytest.approx(
        (4.3, 3.7, 3.7, 3.7, 3.7)
    )
    assert evolve(before, observed, 25, "trait").as_tuple() == pytest.approx((4.3, 4, 4, 4, 4))
    with pytest.raises(ValueError, match="sometimes"):
        evolve(before, observed, 25, "sometimes")


def test_profile_stays_within_the_scale():
    profile = NEUTRAL
    for m in range(1, 500):
        profile = evolve(profile, BigFive(5, 1, 5, 1, 5), m)
    assert profile.as_tuple() == pytest.approx((5, 1, 5, 1, 5))


def test_m_counts_turns_or_updates():
    high = BigFive(5, 5, 5, 5, 5)
    by_turn = by_update = None
    for turn, observed in enumerate([NEUTRAL, None, high]):
        by_turn = next_state(by_turn, observed, turn, NOON)
        by_update = next_state(by_update, observed, turn, NOON, count="updates")
    assert (by_turn.m, by_update.m) == (3, 1)
    assert by_turn.profile == evolve(NEUTRAL, high, 3)
    assert by_update.profile == evolve(NEUTRAL, high, 1)
    assert by_turn.profile != by_update.profile


def test_three_formats_of_the_profile():
    profile = BigFive(3.96, 1.5, 3.0, 2.0, 4.5)
    assert summarize_profile(profile).splitlines() == [
        "openness: high",
        "conscientiousness: very low",
        "extraversion: moderate",
        "agreeableness: low",
        "neuroticism: very high",
    ]
    assert summarize_profile(profile, "numbers").startswith("openness: 3.96\n")
    # The release truncates, it does not round.
    assert summarize_profile(profile, "cut").startswith("openness: 3.9\n")
    assert list(trait_levels(profile).values()) == ["high", "low", "mid", "low", "high"]
    assert trait_levels(BigFive(2.5, 3.5, 2.49, 3.51, 3))["openness"] == "mid"


def test_score_outside_the_scale_is_rejected():
    with pytest.raises(ValueError, match="agreeableness is 7"):
        BigFive(3, 3, 3, 7, 3)
