"""Triton without a C compiler: part of the image, not of the package.

Triton makes kernels with the compiler in its own wheel. One thing it gives to a C compiler, where it runs: its module
that calls the CUDA driver. It looks into its cache first, under a digest of the source and the platform. So the module
is compiled while the image is built, and `Prebuilt`, which TRITON_CACHE_MANAGER names, is a cache that also looks where
it lies; what Triton makes later goes to the usual folder, for the image's own file system may not be writable.

    python prebuilt_triton.py           # while the image is built, where there is a compiler
    python prebuilt_triton.py --check   # in the finished image: is it found, without one?

It is linked with an empty libcuda.so.1, for a machine that builds images has no driver; the real one is found by its
name when the module is loaded. Written for the triton 3.7.1 that torch 2.13.0 asks for: another one that differs fails
while the image is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from triton.runtime.cache import FileCacheManager
except ModuleNotFoundError:  # torch is a build for CPUs: nothing to compile, and nobody asks for `Prebuilt`
    FileCacheManager = None

FOLDER = Path(os.environ.get("TRITON_PREBUILT_DIR", "/opt/triton"))
"""A name of ours, not of Triton's."""
LINK_ALWAYS = ["-Wl,--no-as-needed", "-l:libcuda.so.1"]
"""The stand-in has no symbols, so a linker that drops what is not needed would drop it."""


if FileCacheManager is not None:

    class Prebuilt(FileCacheManager):
        """Triton's cache of files, and behind it those of the image."""

        def get_file(self, filename: str) -> str | None:
            made = FOLDER / self.key / filename
            return super().get_file(filename) or (str(made) if made.exists() else None)


def build() -> Path:
    """Compiles the module and keeps it in FOLDER."""
    with tempfile.TemporaryDirectory() as folder:
        stub, empty = Path(folder, "libcuda.so.1"), Path(folder, "empty.c")
        empty.touch()
        subprocess.run(["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stub), str(empty)], check=True)
        os.environ["TRITON_CACHE_DIR"] = str(Path(folder, "cache"))
        made = _module(folder)
        return Path(shutil.copytree(made.parent, FOLDER / made.parent.name, dirs_exist_ok=True)) / made.name


def check() -> Path:
    """The module that the finished image finds.

    Raises:
        RuntimeError: it would have to be compiled.
    """
    os.environ["CC"] = "/nonexistent/cc"
    try:
        return _module("/nonexistent")
    except OSError as error:
        raise RuntimeError(f"Triton does not find its driver module in {FOLDER}") from error


def _module(libcuda: str) -> Path:
    from triton.backends.nvidia import driver
    from triton.runtime import build as compiling

    compiling._load_module_from_path = lambda name, path: path  # to load it takes the driver
    made = compiling.compile_module_from_src(
        src=Path(driver.dirname, "driver.c").read_text(),
        name="cuda_utils",
        library_dirs=[driver.libdevice_dir, libcuda],
        include_dirs=driver.include_dirs,
        libraries=driver.libraries,
        ccflags=LINK_ALWAYS,
    )
    return Path(made)


def main() -> int:
    if FileCacheManager is None:
        print("no triton: torch is a build for CPUs, there is nothing to compile")
    else:
        print(check() if "--check" in sys.argv[1:] else build())
    return 0


if __name__ == "__main__":
    sys.exit(main())
