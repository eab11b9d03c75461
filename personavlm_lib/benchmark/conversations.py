"""Read external conversations as turns, and write the authors' `user_data.json`.

Three formats are read: MemoryBank's, the authors' `user_data.json`, and LoCoMo's. A file's format
is recognized by its structure, not by its name.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from pathlib import Path

from personavlm_lib.memory.records import Turn, split_sessions

# MemoryBank gives only days and LoCoMo only session times, so the times of turns are made up.
FIRST_TURN = time(9)
TURN_STEP = timedelta(minutes=2)
# Of LoCoMo's questions, by number
CATEGORIES = dict(enumerate(("multi-hop", "temporal", "open", "single-hop", "adversarial"), 1))
EXPECTED = (
    "expected MemoryBank's {user: {history: {YYYY-MM-DD: [{query, response}]}}}, "
    "the authors' {profile, imgs, sessions: [[{time, user, assistant}]]} or LoCoMo's "
    "[{sample_id, conversation: {session_1_date_time, session_1: [{speaker, dia_id, text}]}, qa}]"
)


@dataclass(frozen=True)
class Probe:
    """A question, its category, and the indices of the turns that its answer follows from."""

    question: str
    category: str
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """One user's turns in order of time, and the questions to ask after the last turn.

    The turns' `index` counts from 0. `probes` are the same questions with their evidence, if the
    file names it.
    """

    user: str
    turns: list[Turn]
    questions: list[str]
    probes: list[Probe] = field(default_factory=list)


def read_conversations(path: str | Path, questions: str | Path | None = None) -> list[Conversation]:
    """Read the conversations of a JSON file, one for each user.

    `questions` is a file with one `{user: [question, ...]}` per line; by default
    `<stem>_questions.jsonl` beside the conversations, if it exists. Raises FileNotFoundError, and
    raises ValueError with a one-line message if a file has another structure.
    """
    path = Path(path)
    questions_path = path.with_name(f"{path.stem}_questions.jsonl")
    if questions:
        questions_path = Path(questions)
    by_user: dict[str, list[str]] = {}
    if questions or questions_path.exists():
        by_user = _read_questions(questions_path)
    data = _parse_json(path, path.read_text(encoding="utf-8"))
    try:
        if isinstance(data, list) and data:
            return [_read_locomo(sample) for sample in data]
        turns_by_user = _turns_by_user(data, path.parent)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"cannot read {path} as a conversation file ({reason}): {EXPECTED}"
        ) from None
    conversations = []
    for user, turns in turns_by_user.items():
        conversations.append(Conversation(user, turns, by_user.get(user, [])))
    return conversations


def _turns_by_user(data: object, folder: Path) -> dict[str, list[Turn]]:
    """The turns of the users of MemoryBank, or of the one user of the authors' file in `folder`."""
    if not isinstance(data, dict) or not data:
        raise ValueError(f"a {type(data).__name__} without users")
    if "sessions" in data:
        user = _find_name(data.get("profile")) or folder.name
        return {user: _read_user_data(data, folder)}
    turns_by_user = {}
    for user, record in data.items():
        turns_by_user[user.strip()] = _read_memorybank(record["history"])
    return turns_by_user


def _parse_json(path: Path, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}): {EXPECTED}"
        ) from None


def _read_questions(path: Path) -> dict[str, list[str]]:
    by_user: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        entry = _parse_json(path, line)
        if not isinstance(entry, dict) or not all(
            isinstance(questions, list) for questions in entry.values()
        ):
            raise ValueError(
                f"cannot read {path} as a questions file: expected one "
                "{user: [question, ...]} per line"
            )
        for user, questions in entry.items():
            listed = by_user.setdefault(user.strip(), [])
            listed += [str(question).strip() for question in questions]
    return by_user


def _read_memorybank(days: dict[str, list[dict[str, str]]]) -> list[Turn]:
    """Each day's exchanges from 09:00 on, two minutes apart."""
    turns: list[Turn] = []
    for day in sorted(days):
        start = datetime.combine(date.fromisoformat(day.strip()), FIRST_TURN)
        for position, exchange in enumerate(days[day]):
            moment = start + position * TURN_STEP
            user = exchange["query"]
            assistant = exchange["response"]
            turns.append(Turn(moment, user, assistant, index=len(turns)))
    return turns


def _read_locomo(sample: dict) -> Conversation:
    """Each utterance as a turn that begins with its speaker's name; images appear as captions."""
    dialogue = sample["conversation"]
    turns: list[Turn] = []
    turn_of_id: dict[str, int] = {}
    numbers = [int(key[8:]) for key in dialogue if re.fullmatch(r"session_\d+", key)]
    for number in sorted(numbers):
        date_time = dialogue[f"session_{number}_date_time"]
        start = datetime.strptime(date_time, "%I:%M %p on %d %B, %Y")
        for position, utterance in enumerate(dialogue[f"session_{number}"]):
            text = f"{utterance['speaker']}: {utterance['text']}"
            caption = utterance.get("blip_caption")
            if caption:
                text += f" [image: {caption}]"
            turn_of_id[utterance["dia_id"]] = len(turns)
            turns.append(Turn(start + position * TURN_STEP, text, index=len(turns)))
    probes = []
    for question in sample["qa"]:
        evidence = _evidence(question.get("evidence") or [], turn_of_id)
        category = CATEGORIES[question["category"]]
        probes.append(Probe(question["question"], category, evidence))
    return Conversation(sample["sample_id"], turns, [probe.question for probe in probes], probes)


_EVIDENCE_ID = re.compile(r"D:?0*(\d+):0*(\d+)")


def _evidence(ids: list[str], turn_of_id: dict[str, int]) -> tuple[int, ...]:
    """The turns of LoCoMo's ids without repetition.

    Some ids are malformed ("D8:6; D9:17", "D:11:26"); others that name no turn are skipped.
    """
    turns = []
    for session, utterance in _EVIDENCE_ID.findall(" ".join(ids)):
        turn = turn_of_id.get(f"D{session}:{utterance}")
        if turn is not None and turn not in turns:
            turns.append(turn)
    return tuple(turns)


def _read_user_data(data: dict, folder: Path) -> list[Turn]:
    """The turns of the authors' file. The `<img>` marks consume the list of images in order.

    Images are paths in `folder` if they exist there, else the names in the file.
    """
    images = []
    for name in data.get("imgs") or []:
        path = folder / name
        images.append(str(path) if path.exists() else name)
    entries = [entry for session in data["sessions"] for entry in session]
    mark_count = sum(entry["user"].count("<img>") for entry in entries)
    if mark_count > len(images):
        raise ValueError(f"{mark_count} <img> marks but {len(images)} imgs")
    turns: list[Turn] = []
    for entry in entries:
        count = entry["user"].count("<img>")
        moment = parse_time(entry["time"])
        assistant = entry.get("assistant") or ""
        turns.append(Turn(moment, entry["user"], assistant, tuple(images[:count])))
        del images[:count]
    turns.sort(key=lambda turn: turn.time)
    return [replace(turn, index=index) for index, turn in enumerate(turns)]


def parse_time(text: str) -> datetime:
    """`2024-09-12 09:40`, possibly followed by a weekday in brackets."""
    moment, _, _ = text.partition("(")
    return datetime.fromisoformat(moment.strip())


def write_user_data(path: str | Path, turns: Sequence[Turn], profile: dict) -> None:
    """Write the authors' `user_data.json`, and copies of the images into `imgs/` beside it.

    `read_conversations` reads equal turns from it, with `profile["name"]` as the user. Raises
    ValueError if a turn's number of `<img>` marks differs from its number of images.
    """
    path = Path(path)
    images: list[str] = []
    for turn in turns:
        marks = turn.user.count("<img>")
        if marks != len(turn.images):
            raise ValueError(f"turn {turn.index}: {marks} <img> marks, {len(turn.images)} images")
        images += turn.images
    (path.parent / "imgs").mkdir(parents=True, exist_ok=True)
    names = []
    for number, image in enumerate(images):
        name = f"imgs/{number}{Path(image).suffix}"
        shutil.copyfile(image, path.parent / name)
        names.append(name)
    sessions = []
    for session in split_sessions(turns):
        entries = []
        for turn in session:
            time = _time_text(turn.time)
            entries.append({"time": time, "user": turn.user, "assistant": turn.assistant})
        sessions.append(entries)
    data = {"profile": profile, "imgs": names, "sessions": sessions}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")


def _time_text(moment: datetime) -> str:
    """`2024-09-12 09:40`, as the authors write it, with seconds only if they are not zero."""
    if moment.second or moment.microsecond:
        return moment.isoformat(" ")
    return f"{moment:%Y-%m-%d %H:%M}"


def _find_name(profile: object) -> str:
    """The first `name` in a profile, at any depth; "" without one."""
    if not isinstance(profile, dict):
        return ""
    for key, value in profile.items():
        if key.lower() == "name" and isinstance(value, str):
            if value.strip():
                return value.strip()
            break
    for value in profile.values():
        name = _find_name(value)
        if name:
            return name
    return ""
