"""Processes that end with the one that started them."""

import os
import threading
import time

import psutil

PARENT = "PERSONAVLM_PARENT"  # environment variable: the process that must outlive this one


def exit_with_parent() -> None:
    """Ends this process when the one that started it (by a `follow` of its own) is gone: killed, it can stop nobody."""
    parent = int(os.environ.get(PARENT, 0))
    os.environ[PARENT] = str(os.getpid())
    if parent in (0, os.getpid()):
        return

    def watch() -> None:
        try:
            process = psutil.Process(parent)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
