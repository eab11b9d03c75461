"""Records of a memory: sessions, limits, and the JSON round trip."""

from datetime import datetime, timedelta

import pytest

from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    Episode,
    PersonalityState,
    ProceduralMemory,
    SemanticMemory,
    Turn,
    VisualConcept,
    from_json,
    split_sessions,
    to_json,
)

NOON = datetime(2024, 5, 3, 12)


def test_session_ends_at_a_gap_of_an_hour():
    # 118 -> 178 is exactly the threshold: Algorithm 1 says >=
    minutes = [0, 59, 118, 178, 179, 400]
    turns = [Turn(NOON + timedelta(minutes=minute), "") for minute in minutes]
    assert [len(session) for session in split_sessions(turns)] == [3, 2, 1]
    assert split_sessions([]) == []


@pytest.mark.parametrize(
    "record",
    [
        Turn(NOON, "look <img>", "é 猫", ("a.png",), 3),
        SemanticMemory(
            "c",
            "k",
            NOON,
            NOON,
            NOON,
            "concept",
            VisualConcept("Rex", "dog", "rex.png"),
            (1, 2),
            "gold",
            4,
        ),
        Episode("s", "k", (1, 2), NOON, NOON, NOON, "gold", 0),
        CoreMemory({"name": "Kai"}, {}, NOON, (1,)),
        ProceduralMemory({"run": "User runs at 7:30"}, NOON),
        PersonalityState(BigFive(1.1, 2.2, 3.3, 4.4, 5), None, 0, 1, NOON),
    ],
    ids=lambda record: type(record).__name__,
)
def test_record_survives_the_json_round_trip(record):
    assert from_json(type(record), to_json(record)) == record


def test_six_habits_are_rejected():
    with pytest.raises(ValueError, match="6 entries, at most 5"):
        ProceduralMemory({str(n): "" for n in range(6)}, NOON)
