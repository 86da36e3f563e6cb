"""Every error pyemo raises on purpose. Owns the tree; knows nothing of what raises it.

PyemoError
├─ ModelError                    get another model file, or repair this one
│  ├─ ModelNotFoundError         no such name or path, or its package is not installed
│  ├─ ModelChecksumError         the file is not the one the catalog names
│  ├─ ModelLoadError             not a GGUF, cut off, damaged, or not supported
│  └─ SteeringUnsupportedError   the model runs, but its blocks cannot be steered
├─ VectorError(ValueError)       get another vector
│  ├─ VectorNotFoundError        no such file and no bundled vector of that name
│  ├─ VectorFileError            not a readable control-vector file
│  ├─ VectorShapeError           wrong width, dtype, layer or non-finite numbers
│  └─ VectorModelMismatchError   made for other weights
├─ InputError(ValueError)        fix the call: tokens, strengths, layers, sampler values
│  ├─ ClosedError                the engine, model or sequence was closed
│  └─ ForkedError                the process was forked after a model was loaded
├─ DecodeError                   shrink or reset the context
│  ├─ ContextFullError           no room left for these tokens
│  ├─ SequenceLimitError         no room left for another sequence
│  └─ DecodeAbortedError         interrupted, or the engine could not compute
├─ SchedulerError                start the scheduler, then the same study again
└─ MissingExtraError(ImportError)  an optional dependency is not installed

One branch per decision of the caller. Every message says what was wrong, the value, the allowed
range and the next step.
"""


class PyemoError(Exception):
    """Base of every error pyemo raises on purpose."""


class ModelError(PyemoError):
    """Something is wrong with a model file."""


class ModelNotFoundError(ModelError):
    """No model of that name or path, or the package that carries it is not installed."""


class ModelChecksumError(ModelError):
    """The file's SHA-256 is not the one the catalog names."""


class ModelLoadError(ModelError):
    """The file is not a GGUF, is cut off or damaged, or llama.cpp does not support it."""


class SteeringUnsupportedError(ModelError):
    """The model generates text, but its block outputs cannot be steered or read."""


class VectorError(PyemoError, ValueError):
    """Something is wrong with a control vector."""


class VectorNotFoundError(VectorError):
    """No file at that path and no bundled vector of that name for the model."""


class VectorFileError(VectorError):
    """The file is not a readable control vector."""


class VectorShapeError(VectorError):
    """A direction has the wrong width, dtype or layer, or holds NaN or infinity."""


class VectorModelMismatchError(VectorError):
    """The vector was made for other weights than those loaded."""


class InputError(PyemoError, ValueError):
    """An argument is outside its range."""


class ClosedError(InputError):
    """The engine, model or sequence was closed before this call."""


class ForkedError(InputError):
    """The process was forked from one that had loaded a model; nothing native works in it."""


class DecodeError(PyemoError):
    """A decode could not be carried out."""


class ContextFullError(DecodeError):
    """The context has no room for these tokens."""


class SequenceLimitError(DecodeError):
    """The engine has no room for another sequence."""


class DecodeAbortedError(DecodeError):
    """The decode was interrupted, or the engine could not compute it."""


class SchedulerError(PyemoError):
    """The scheduler of a study is not there, or was lost; what was computed is kept."""


class MissingExtraError(PyemoError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""
