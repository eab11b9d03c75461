"""Explore a memory as it was at any moment, as a widget with a time slider or as a page.

`panel` draws both from `MemoryStore.as_of`, so they show exactly what the agent could retrieve at
that moment (Appendix A). All content is escaped, because memories contain a user's words.
"""

import base64
import io
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
from PIL import Image

from personavlm_lib.memory.personality import summarize_profile
from personavlm_lib.memory.records import TRAITS, BigFive, CoreMemory, ProceduralMemory
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.study.figures import TRAIT_COLORS
from personavlm_lib.study.templates import render

THUMBNAIL = 128  # pixels of the longer side: twice the displayed size, for dense screens
Change = tuple[str, str | None, str | None]  # (key, text before, text after); None: no such key


class TimelineEntry(NamedTuple):
    """Something that the assistant learned; `record` is a memory or a list of `Change`s."""

    kind: str  # "semantic", "episode", "change core" or "change procedural"
    known_from: datetime
    record: object


def explorer(users: list[Path], first: int = 0) -> ipywidgets.VBox:
    """A widget with a user menu, a slider over the user's turns, and the memory at that moment.

    `users` are folders of MemoryStores; `first` is the position of the initial user. Raises
    FileNotFoundError for a folder without a memory, and for an empty list.
    """
    if not users:
        raise FileNotFoundError("no memories to explore: run 'make reproduce' first")
    user_menu = ipywidgets.Dropdown(
        options=[(path.name, path) for path in users], value=users[first], description="user"
    )
    time_slider = ipywidgets.SelectionSlider(
        options=[("end", datetime.max)], description="time", layout={"width": "95%"}
    )
    display = ipywidgets.HTML()
    views: dict[datetime, MemoryView] = {}

    def choose_user(_: object = None) -> None:
        views.clear()
        with _open_memory(user_menu.value) as store:  # views do not need the database to stay open
            moments = {}
            for turn in store.as_of().turns:
                # the last of several turns in one minute replaces the others
                moments[f"{turn.time:%Y-%m-%d %H:%M}"] = turn.time
            moments["end"] = datetime.max
            for time in moments.values():
                views[time] = store.as_of(time)
        time_slider.options = list(moments.items())
        time_slider.value = datetime.max
        show_memory()

    def show_memory(_: object = None) -> None:
        if time_slider.value in views:
            display.value = panel(views[time_slider.value], user_menu.value.name)

    user_menu.observe(choose_user, "value")
    time_slider.observe(show_memory, "value")
    choose_user()
    return ipywidgets.VBox([user_menu, time_slider, display])


def snapshot(folder: Path, time: datetime | None = None) -> str:
    """The memory in `folder` at `time` (None: at its end) as one self-contained HTML page.

    Raises FileNotFoundError for a folder without a memory.
    """
    with _open_memory(folder) as store:
        return panel(store.as_of(time), Path(folder).name, page=True)


def panel(view: MemoryView, user: str, page: bool = False) -> str:
    """Render the view as HTML: a fragment for a notebook, or a whole `page`."""
    text = render(
        "explorer.html.j2",
        view=view,
        user=user,
        page=page,
        moment=_moment(view.time),
        traits=_trait_rows(view),
        colors=TRAIT_COLORS,
        days=_days(view),
        thumbnail=thumbnail,
    )
    return text.strip()


def _moment(time: datetime) -> str:
    if time == datetime.max:
        return "at the end"
    return f"on {time:%Y-%m-%d} at {time:%H:%M}"


def _trait_rows(view: MemoryView) -> list[tuple[str, float, str]]:
    """(trait, score, score in words) of each of the Big Five."""
    profile = view.personality.profile if view.personality else BigFive.neutral()
    words = {}
    for line in summarize_profile(profile).splitlines():
        trait, word = line.split(": ")
        words[trait] = word
    return [(trait, getattr(profile, trait), words[trait]) for trait in TRAITS]


def _days(view: MemoryView) -> list[tuple[date, list[TimelineEntry]]]:
    """The timeline, newest first, by day."""
    days = []
    for day, entries in groupby(_timeline(view), lambda entry: entry.known_from.date()):
        days.append((day, list(entries)))
    return days


def _open_memory(folder: Path) -> MemoryStore:
    """Open an existing store; MemoryStore itself would create a new one."""
    if not (Path(folder) / "memory.db").is_file():
        raise FileNotFoundError(f"no memory.db in {folder}: run 'make reproduce' first")
    return MemoryStore(folder)


def _timeline(view: MemoryView) -> list[TimelineEntry]:
    """Everything that was learned, newest first."""
    entries = []
    for memory in view.semantic:
        entries.append(TimelineEntry("semantic", memory.known_from, memory))
    for episode in view.episodes:
        entries.append(TimelineEntry("episode", episode.known_from, episode))
    for known_from, changes in _changes(view, "core", _core_entries):
        entries.append(TimelineEntry("change core", known_from, changes))
    for known_from, changes in _changes(view, "procedural", _procedural_entries):
        entries.append(TimelineEntry("change procedural", known_from, changes))
    entries.sort(key=lambda entry: entry.known_from)
    entries.reverse()  # not sort(reverse=True): of equal times, too, the later entry comes first
    return entries


def _core_entries(version: CoreMemory) -> dict[str, str]:
    return {**version.human, **version.persona}


def _procedural_entries(version: ProceduralMemory) -> dict[str, str]:
    return version.entries


def _changes(
    view: MemoryView, kind: str, entries: Callable[[Any], dict[str, str]]
) -> Iterator[tuple[datetime, list[Change]]]:
    """The changes that each known version made; versions without changes are left out."""
    before: dict[str, str] = {}
    for version in view.table(kind).records:
        if version.known_from > view.time:
            continue
        after = entries(version)
        changes = []
        for key in before | after:
            if before.get(key) != after.get(key):
                changes.append((key, before.get(key), after.get(key)))
        if changes:
            yield version.known_from, changes
        before = after


@lru_cache(maxsize=1024)
def thumbnail(path: str) -> str | None:
    """The image at `path` as a small PNG in a data URI; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:  # a conversation may name images that were not supplied
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
