"""`--push`: the run goes to the Hub when it ends."""

from pathlib import Path

import pytest

from benchmark.errors import UserError
from benchmark.results import RunId


def check_push(config: pytest.Config) -> None:
    """Raises UserError where the run could not be pushed when it ends, so that nobody learns that after hours."""
    from huggingface_hub import get_token, is_offline_mode  # here, as the next: few runs are pushed

    from benchmark.hub.address import Address

    address = Address.parse(config.getoption("--push"))
    if is_offline_mode():
        raise UserError(f"--push {address.repository}: HF_HUB_OFFLINE is set: unset it, or push later with `push`")
    if get_token() is None:
        raise UserError(f"--push {address.repository}: no token is there: log in with `hf auth login`, or set HF_TOKEN")


def push_run(config: pytest.Config, run: RunId, results: Path) -> str:
    """Pushes a run. Returns what is told of it. Raises UserError where the Hub refuses."""
    from benchmark.hub.address import Address
    from benchmark.hub.push import push

    address = Address.parse(config.getoption("--push"))
    done = push(results, address, [run], scores=config.getoption("--push-scores"))
    return f"pushed: {done.url or address}"
