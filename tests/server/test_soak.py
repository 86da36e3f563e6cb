"""Many clients for a while: nothing is lost or mixed up, and nothing stays behind."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_load import OPTIONS, ServerLoad
from server_process import Process

N_REQUESTS = 500


@pytest.mark.quality
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_five_hundred_requests_leave_nothing_behind(
    tiny: Callable[..., Any], vectors: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(vectors, tmp_path / "vectors")
    with Process("-m", tiny("llama").path, *OPTIONS, "--vectors", folder) as server:
        load = ServerLoad(server, folder)
        load.run(lambda done: done < N_REQUESTS)
        load.check_rest()
        assert load.done == N_REQUESTS
        assert load.wrong == []
