"""Make a process independent of the locale, and of a missing or unwritable home folder."""

import atexit
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

CACHES = {  # environment variable -> the folder that replaces its default in the home folder
    "HF_HOME": "huggingface",
    "IPYTHONDIR": "ipython",
    "JUPYTER_CONFIG_DIR": "jupyter_config",
    "JUPYTER_DATA_DIR": "jupyter_data",
    "JUPYTER_RUNTIME_DIR": "jupyter_runtime",
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",
}


def use_utf_8() -> None:
    """Use UTF-8 for the standard streams of this process, and for everything in its children."""
    os.environ["PYTHONUTF8"] = "1"
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have replaced it
            errors = "replace" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)


def use_writable_caches() -> None:
    """Without a writable home folder, let libraries keep their caches in a temporary folder.

    Environment variables that are already set stay as they are. The folder is deleted when this
    process ends.
    """
    home = Path(os.path.expanduser("~"))
    unset = [variable for variable in CACHES if not os.environ.get(variable)]
    if not unset or _is_writable(home):
        return
    temporary = Path(tempfile.mkdtemp(prefix="personavlm-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    downloads = home / ".cache" / "huggingface"
    for variable in unset:
        folder = temporary / CACHES[variable]
        if variable == "HF_HOME" and downloads.is_dir():
            folder = downloads  # downloaded models can be read all the same
        os.environ[variable] = str(folder)
    if not home.is_dir():
        os.environ["HOME"] = str(temporary)


def _is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, tried with a file without a name."""
    if not folder.is_absolute():  # "~", for a user without a home folder
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
