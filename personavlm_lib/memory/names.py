"""Finding a name in texts as a reader sees it, in any script."""

import re
import unicodedata
from collections.abc import Callable

# Marks that a reader may leave out or cannot see: points of Hebrew and Arabic, tatweel, the dot of
# a folded Turkish I, and invisible characters.
INVISIBLE = re.compile(
    "[\u00ad\u0307\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f"
    "\u0670\u06d6-\u06ed\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
)
# Scripts in which a name adjoins other words without a space
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
HYPHEN = re.compile(r"(?<=\w)[-\u2010\u2011](?=(\w))")


def name_finder(name: str) -> Callable[[str], bool]:
    """A function that tells whether a text contains `name` as a word.

    Case, Unicode forms, kinds of white space and the marks in `INVISIBLE` make no difference. An s
    may follow a name of four letters and more, as in the German genitive. A name that goes on after
    a hyphen with a capital letter (Ann-Marie) is another name.
    """
    words = []
    for word in fold(name).split():
        escaped = re.escape(word.replace("_", "-"))
        words.append(escaped.replace(r"\-", "[-_]"))
    genitive = "s?" if len(name) >= 4 else ""
    pattern = re.compile(r"\s+".join(words) + genitive)

    def found_in(text: str) -> bool:
        folded = fold(text)
        for match in pattern.finditer(folded):
            before = folded[: match.start()][-1:]
            after = folded[match.end() :][:1]
            if not _continues_word(before) and not _continues_word(after):
                return True
        return False

    return found_in


def fold(text: str) -> str:
    """The text in one form of all that `name_finder` takes for equal, in lower case."""
    text = unicodedata.normalize("NFKC", text)
    text = HYPHEN.sub(lambda hyphen: "_" if hyphen[1].isupper() else "-", text)
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", text.casefold()))


def _continues_word(character: str) -> bool:
    if not character or UNSPACED.match(character):
        return False
    is_letter = unicodedata.category(character)[0] in "LNM"  # with its combining marks
    return is_letter or character == "_"
