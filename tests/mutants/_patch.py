"""A mutant on disk: a header of three comments, and a unified diff of one line, two where a second check stands behind.

A hunk is found by its text, which must stand in the file exactly once, and not by its line number: code that moves
needs no new patch, and code that changes makes the patch fail with a clear error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PATCHES", "BadPatch", "Hunk", "Mutant", "load", "load_all"]

PATCHES = Path(__file__).resolve().parent / "patches"
_HEADER = re.compile(r"# (name|hazards|breaks): (.+)")
_ID = re.compile(r"[JHS]-[0-9]{2,3}")
_HUNK = re.compile(r"@@ -[0-9]+(,[0-9]+)? \+[0-9]+(,[0-9]+)? @@.*")


class BadPatch(Exception):
    """A patch that cannot be read, or does not fit the code."""


@dataclass(frozen=True)
class Hunk:
    """A replacement in one file; ``old`` and ``new`` are whole lines, with context around what changes."""

    path: str
    old: str
    new: str
    changed: int
    """How many lines are removed or added, whichever is more."""


@dataclass(frozen=True)
class Mutant:
    """One bug: where it is, and what it breaks."""

    name: str
    hazards: tuple[str, ...]
    breaks: str
    hunks: tuple[Hunk, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it changes, in their order."""
        return tuple(dict.fromkeys(hunk.path for hunk in self.hunks))

    def apply(self, root: Path) -> None:
        """Put the bug into the package under ``root``.

        :raises BadPatch: if a hunk is not found in its file exactly once; nothing was changed then.
        """
        sources: dict[str, str] = {}
        for hunk in self.hunks:
            path = root / hunk.path
            if hunk.path not in sources:
                try:
                    sources[hunk.path] = path.read_text(encoding="utf-8")
                except OSError as error:
                    raise BadPatch(f"{self.name}: {hunk.path} cannot be read: {error.strerror}") from error
            times = sources[hunk.path].count(hunk.old)
            if times != 1:
                where = "does not stand" if times == 0 else f"stands {times} times"
                raise BadPatch(f"{self.name}: what is to be replaced {where} in {hunk.path}:\n{hunk.old}")
            sources[hunk.path] = sources[hunk.path].replace(hunk.old, hunk.new)
        for name, source in sources.items():
            (root / name).write_text(source, encoding="utf-8")


def load(path: Path) -> Mutant:
    """Read a patch.

    :raises BadPatch: if it is none, with file and reason.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header: dict[str, str] = {}
    while lines and lines[0].startswith("#"):
        line = lines.pop(0).rstrip("\n")
        found = _HEADER.fullmatch(line)
        if found is None or found[1] in header:
            raise BadPatch(f"{path.name}: {line!r} is not one of name, hazards, breaks")
        header[found[1]] = found[2]
    if set(header) != {"name", "hazards", "breaks"}:
        raise BadPatch(f"{path.name}: the header has name, hazards and breaks, each once")
    if header["name"] != path.stem:
        raise BadPatch(f"{path.name}: the name is {header['name']!r}")
    hazards = tuple(header["hazards"].split(", "))
    wrong = [each for each in hazards if not _ID.fullmatch(each)]
    if wrong:
        raise BadPatch(f"{path.name}: {', '.join(wrong)} is no id of a hazard")
    hunks = tuple(_hunks(path.name, lines))
    if not hunks:
        raise BadPatch(f"{path.name}: there is no hunk")
    return Mutant(header["name"], hazards, header["breaks"], hunks)


def _hunks(name: str, lines: list[str]) -> list[Hunk]:
    hunks: list[Hunk] = []
    target = ""
    body: list[str] | None = None

    def end() -> None:
        if body is not None:
            hunks.append(_hunk(target, body))

    for each in lines:
        line = " \n" if each == "\n" else each  # an editor may have removed what seemed to be trailing space
        if line.startswith("--- a/"):
            end()
            target, body = line[len("--- a/") :].strip(), None
        elif line.startswith("+++ b/"):
            if line[len("+++ b/") :].strip() != target:
                raise BadPatch(f"{name}: {line.strip()!r} does not belong to {target!r}")
        elif _HUNK.fullmatch(line.rstrip("\n")) and target:
            end()
            body = []
        elif body is not None and line[:1] in (" ", "-", "+"):
            body.append(line)
        else:
            raise BadPatch(f"{name}: {line!r} has no place in a unified diff")
    end()
    return hunks


def _hunk(target: str, body: list[str]) -> Hunk:
    old = "".join(line[1:] for line in body if line[0] != "+")
    new = "".join(line[1:] for line in body if line[0] != "-")
    counts = [sum(line[0] == sign for line in body) for sign in "-+"]
    return Hunk(target, old, new, max(counts))


def load_all(directory: Path = PATCHES) -> dict[str, Mutant]:
    """Read every patch of a directory, by name."""
    mutants = [load(path) for path in sorted(directory.glob("*.patch"))]
    return {mutant.name: mutant for mutant in mutants}
