"""End a process when the process that started it ends."""

import os
import threading
import time

import psutil

PARENT = "PERSONAVLM_PARENT"  # environment variable: id of the process that must outlive this one


def exit_with_parent() -> None:
    """Exit this process as soon as its parent is gone, even if the parent was killed.

    The parent is the nearest ancestor that called this function too; without one, only the
    environment variable for the children of this process is set.
    """
    own_id = os.getpid()
    parent_id = int(os.environ.get(PARENT, 0))
    os.environ[PARENT] = str(own_id)
    if parent_id in (0, own_id):
        return

    def exit_when_parent_is_gone() -> None:
        try:
            parent = psutil.Process(parent_id)
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        os._exit(1)

    threading.Thread(target=exit_when_parent_is_gone, daemon=True).start()
