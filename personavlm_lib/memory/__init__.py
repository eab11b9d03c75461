"""A user's memory: records, storage, search, vision and personality (Appendix A)."""

from personavlm_lib.memory.archive import export_archive, import_archive
from personavlm_lib.memory.folders import user_folder
from personavlm_lib.memory.forget import forget, preview_forget
from personavlm_lib.memory.records import Episode, Period, SemanticMemory, Turn
from personavlm_lib.memory.search import Retriever, TopK
from personavlm_lib.memory.store import MemoryStore, StoreError

__all__ = [
    "Episode", "MemoryStore", "Period", "Retriever", "SemanticMemory", "StoreError", "TopK", "Turn",
    "export_archive", "forget", "import_archive", "preview_forget", "user_folder",
]  # fmt: skip
