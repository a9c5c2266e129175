"""C++ compiled by the system's compiler when it is first needed, and kept in a cache folder of the user.

A library is named by its source and flags, and ends in its own SHA-256: a damaged file is noticed and built again.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

COMPILERS = ("g++", "clang++", "c++")
# No -ffast-math: -inf and NaN mean something here, and exponentials rely on the order of their additions.
FLAGS = ("-O3", "-std=c++17", "-mavx2", "-mfma", "-mf16c", "-fopenmp", "-fno-finite-math-only", "-fPIC", "-shared")
DIGEST = hashlib.sha256().digest_size


class NotCompiled(Exception):
    """The library cannot be had on this machine; the message is the reason."""


def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file with a C interface, built if need be. Raises NotCompiled."""
    path = library_path(source)
    if not is_whole(path):
        build(source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"{path} cannot be loaded: {error}") from error


def library_path(source: Path) -> Path:
    """Where the library for this source and these flags belongs; the variable XDG_CACHE_HOME moves the cache."""
    key = hashlib.sha256("\n".join((*FLAGS, platform.system(), platform.machine(), source.read_text())).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "interp-workbench" / "kernels" / f"{source.stem}-{key.hexdigest()[:16]}.so"


def is_whole(path: Path) -> bool:
    """Whether a library ends in the digest of what comes before."""
    data = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]


def build(source: Path, path: Path) -> None:
    """Compile into `path` in one step, so that another process sees the whole library or none. Raises NotCompiled."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    compilers = [found for name in names if (found := shutil.which(name))]
    if not compilers:
        raise NotCompiled(f"no C++ compiler: {', '.join(names)} not found (the variable CXX names another)")
    log.info("compiling %s, once, in some seconds", source.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            library = Path(folder) / path.name
            refusals = [compile_with(compiler, source, library) for compiler in compilers]
            if not library.is_file():
                raise NotCompiled("; ".join(refusals))
            with library.open("ab") as file:
                file.write(hashlib.sha256(library.read_bytes()).digest())
            os.replace(library, path)
    except OSError as error:
        raise NotCompiled(
            f"{path.parent} cannot be written ({error}); the variable XDG_CACHE_HOME names another"
        ) from error


def compile_with(compiler: str, source: Path, library: Path) -> str:
    """Compile unless another compiler has; what the compiler had against it, if anything."""
    if library.is_file():
        return ""
    done = subprocess.run([compiler, *FLAGS, source, "-o", library], capture_output=True, text=True, check=False)
    return f"{compiler} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}" if done.returncode else ""
