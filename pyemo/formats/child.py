"""The child of ``formats.quantize``: ``SOURCE TARGET FTYPE N_THREADS PARENT``.

llama.cpp's log goes to stdout.

An abort of llama.cpp ends this process alone. It goes through llama-cpp-python's own declarations,
for nothing else of pyemo needs the quantizer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # sys/prctl.h


def _end_with(parent: int) -> None:
    """Let Linux end this process when its parent ends, however that ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)


if __name__ == "__main__":
    _end_with(int(sys.argv[-1]))  # before what takes long to import

import llama_cpp  # noqa: E402


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _print(_level: int, text: bytes, _data: object) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def main(source: str, target: str, ftype: str, n_threads: str, _parent: str) -> int:
    """Quantize; return 0 if it went well."""
    llama_cpp.llama_log_set(_print, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(ftype)
    params.nthread = int(n_threads)
    params.allow_requantize = True
    return int(
        llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(params)
        )
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
