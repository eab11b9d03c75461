"""Conversations that nobody here wrote, read into turns: MemoryBank's users, the authors' `user_data.json` (which is
written too), LoCoMo.

A format is recognised by its shape, not by its name.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path

from personavlm_lib.memory.records import Turn, split_sessions

FIRST_TURN, TURN_STEP = (
    time(9),
    timedelta(minutes=2),
)  # MemoryBank dates its days only, LoCoMo its sessions
CATEGORIES = {
    1: "multi-hop",
    2: "temporal",
    3: "open",
    4: "single-hop",
    5: "adversarial",
}  # LoCoMo's
EXPECTED = (
    "expected MemoryBank's {user: {history: {YYYY-MM-DD: [{query, response}]}}}, "
    "the authors' {profile, imgs, sessions: [[{time, user, assistant}]]} "
    "or LoCoMo's [{sample_id, conversation: {session_1_date_time, session_1: [{speaker, dia_id, text}]}, qa}]"
)


@dataclass(frozen=True)
class Probe:
    """A question, its kind, and the indices of the turns that hold the evidence for its answer."""

    question: str
    category: str
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """One user's turns in order of time, `index` counted from 0, and questions to ask after the last of them.

    `probes`: the same questions with their evidence, where the file names it.
    """

    user: str
    turns: list[Turn]
    questions: list[str]
    probes: list[Probe] = field(default_factory=list)


def read_conversations(path: str | Path, questions: str | Path | None = None) -> list[Conversation]:
    """The conversations of a JSON file, one for each user.

    `questions` is a file with one `{user: [question, ...]}` a line; without it, `<stem>_questions.jsonl` beside the
    conversations is taken where it exists. Raises FileNotFoundError, and ValueError in one line for any other shape.
    """
    path = Path(path)
    beside = path.with_name(f"{path.stem}_questions.jsonl")
    asked = _questions(Path(questions) if questions else beside if beside.exists() else None)
    data = _json(path, path.read_text(encoding="utf-8"))
    try:
        if isinstance(data, list) and data:
            return [_two_speakers(sample) for sample in data]
        if isinstance(data, dict) and "sessions" in data:
            user = _name(data.get("profile")) or path.parent.name
            lives = {user: _sessions(data, path.parent)}
        elif isinstance(data, dict) and data:
            lives = {user.strip(): _history(record["history"]) for user, record in data.items()}
        else:
            raise ValueError(f"a {type(data).__name__} holds no user")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is no conversation file that is known ({what}): {EXPECTED}"
        ) from None
    return [Conversation(user, turns, asked.get(user, [])) for user, turns in lives.items()]


def _json(path: Path, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}): {EXPECTED}"
        ) from None


def _questions(path: Path | None) -> dict[str, list[str]]:
    if path is None:
        return {}
    asked: dict[str, list[str]] = {}
    for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
        entry = _json(path, line)
        if not isinstance(entry, dict) or not all(
            isinstance(listed, list) for listed in entry.values()
        ):
            raise ValueError(
                f"{path} is no questions file: expected one {{user: [question, ...]}} a line"
            )
        for user, listed in entry.items():
            asked.setdefault(user.strip(), []).extend(str(question).strip() for question in listed)
    return asked


def _history(days: dict[str, list[dict[str, str]]]) -> list[Turn]:
    """MemoryBank: each day's exchanges from 09:00 on, two minutes apart."""
    turns: list[Turn] = []
    for day in sorted(days):
        start = datetime.combine(date.fromisoformat(day.strip()), FIRST_TURN)
        for i, exchange in enumerate(days[day]):
            said = Turn(
                start + i * TURN_STEP, exchange["query"], exchange["response"], index=len(turns)
            )
            turns.append(said)
    return turns


def _two_speakers(sample: dict) -> Conversation:
    """LoCoMo's: each utterance is a turn with its speaker's name; of an image only the caption is there."""
    told, turns, places = sample["conversation"], [], {}
    for n in sorted(int(key[8:]) for key in told if re.fullmatch(r"session_\d+", key)):
        start = datetime.strptime(told[f"session_{n}_date_time"], "%I:%M %p on %d %B, %Y")
        for i, said in enumerate(told[f"session_{n}"]):
            image = f" [image: {said['blip_caption']}]" if said.get("blip_caption") else ""
            turn = Turn(
                start + i * TURN_STEP, f"{said['speaker']}: {said['text']}{image}", index=len(turns)
            )
            places[said["dia_id"]] = len(turns)
            turns.append(turn)
    probes = []
    for asked in sample["qa"]:
        # some ids are malformed ("D8:6; D9:17", "D:11:26") or name no turn
        named = re.findall(r"D:?0*(\d+):0*(\d+)", " ".join(asked.get("evidence") or []))
        evidence = [places[f"D{n}:{i}"] for n, i in dict.fromkeys(named) if f"D{n}:{i}" in places]
        probes.append(Probe(asked["question"], CATEGORIES[asked["category"]], tuple(evidence)))
    return Conversation(sample["sample_id"], turns, [probe.question for probe in probes], probes)


def _sessions(data: dict, folder: Path) -> list[Turn]:
    """The authors' file: images are used up in the order of the `<img>` marks, and lie beside it if they are there."""
    images = [
        str(folder / name) if (folder / name).exists() else name for name in data.get("imgs") or []
    ]
    marks = sum(entry["user"].count("<img>") for session in data["sessions"] for entry in session)
    if marks > len(images):
        raise ValueError(f"{marks} <img> marks but {len(images)} imgs")
    turns: list[Turn] = []
    for entry in (entry for session in data["sessions"] for entry in session):
        count = entry["user"].count("<img>")
        moment = datetime.fromisoformat(
            entry["time"].split("(")[0].strip()
        )  # a weekday may follow in brackets
        turns.append(
            Turn(moment, entry["user"], entry.get("assistant") or "", tuple(images[:count]))
        )
        del images[:count]
    turns.sort(key=lambda turn: turn.time)
    return [
        Turn(turn.time, turn.user, turn.assistant, turn.images, index)
        for index, turn in enumerate(turns)
    ]


def write_user_data(path: str | Path, turns: Sequence[Turn], profile: dict) -> None:
    """The authors' `user_data.json`, with copies of the images in `imgs/` beside it; `read_conversations` gives back
    equal turns (`profile["name"]` as the user). ValueError for a turn whose `<img>` marks and images do not match."""
    path, images = Path(path), []
    for turn in turns:
        if turn.user.count("<img>") != len(turn.images):
            raise ValueError(
                f"turn {turn.index}: {turn.user.count('<img>')} <img> marks, {len(turn.images)} images"
            )
        images += turn.images
    names = [f"imgs/{n}{Path(image).suffix}" for n, image in enumerate(images)]
    (path.parent / "imgs").mkdir(parents=True, exist_ok=True)
    for image, name in zip(images, names, strict=True):
        shutil.copyfile(image, path.parent / name)
    sessions = [
        [
            {"time": _minutes(turn.time), "user": turn.user, "assistant": turn.assistant}
            for turn in session
        ]
        for session in split_sessions(turns)
    ]
    data = {"profile": profile, "imgs": names, "sessions": sessions}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")


def _minutes(moment: datetime) -> str:
    """`2024-09-12 09:40`, as the authors write it; to the second or finer where there is something to lose."""
    exact = moment.second or moment.microsecond
    return moment.isoformat(" ") if exact else f"{moment:%Y-%m-%d %H:%M}"


def _name(profile: object) -> str:
    """The first `name` in a profile, however deep it is nested; "" without one."""
    if not isinstance(profile, dict):
        return ""
    own = next(
        (
            value
            for key, value in profile.items()
            if key.lower() == "name" and isinstance(value, str)
        ),
        "",
    )
    return own.strip() or next(filter(None, map(_name, profile.values())), "")
