"""Makes a variant that a suite or the built-in model file names: `python -m benchmark.variants digits-resnet+umap`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmark.models.devices import choose_device
from benchmark.suites.loading import load_suite
from benchmark.training.from_scratch import THREADS
from benchmark.variants.making import edit_folder, make_edit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.variants",
        description="Make a model variant by its recipe. What was interrupted goes on where it was.",
    )
    parser.add_argument("variant", help="a model entry with `base`, `edit` and a `recipe` that names a `method`")
    parser.add_argument("--suite", default="digits", help="whose images it learns from (default: digits)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the `edit` of its entry")
    parser.add_argument("--device", help="as torch names it (default: cuda where there is one, else cpu)")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        suite = load_suite(options.suite)
        folder = options.output or edit_folder(options.variant, suite)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".progress.lock", blocking=False):
            edit = make_edit(options.variant, suite, choose_device(options.device), folder / ".progress.safetensors")
            edit.save(folder)
            for file in folder.glob(".progress*"):
                file.unlink()
    except KeyboardInterrupt:
        parser.exit(130, f"\ninterrupted; what is finished is kept in {folder}: the same command goes on with it\n")
    except Timeout:
        parser.error(f"{folder}: another process is making it; wait for that, or name another folder with --output")
    except OSError as error:
        parser.error(
            f"cannot write to {folder}: {error.strerror or error}; free some space, or name another folder with "
            "--output (what is finished is kept there: the same command goes on with it)"
        )
    except ValueError as error:
        parser.error(str(error))
    size: int = sum(file.stat().st_size for file in folder.glob("edit.*"))
    print(f"{folder}: {size / 1e6:.2f} MB, made in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main()
