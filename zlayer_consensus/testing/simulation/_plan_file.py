"""Plans as JSON, so that a failure can be kept, and as text, so that it can be read."""

from __future__ import annotations

import json
from typing import Any

import attrs
from cattrs import Converter

from ...config import ConsensusConfig
from ._plan import BUFFER_BYTES, Plan

__all__ = ["PlanFileError", "describe", "dump_plan", "load_plan"]

_FORMAT = 1
_AS_BEFORE = {"digest_interval": 0.0, "loop_probe_interval_ms": 0, "scrub_bytes_per_second": 0}
"""What a plan means that was written before these existed: not their defaults, which do more than was done then."""
_KNOBS_BEFORE = {"buffer_bytes": BUFFER_BYTES}


class PlanFileError(ValueError):
    """This is no plan that can be run."""


def dump_plan(plan: Plan, *, reason: str = "") -> str:
    """Return a plan as JSON.

    :param reason: why it is kept.
    """
    data = {"format": _FORMAT, "reason": reason, **_plain(attrs.asdict(plan))}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def load_plan(text: str) -> Plan:
    """Return the plan that JSON holds.

    A setting that did not exist when it was written is drawn from its seed.

    :raises PlanFileError: if it is none, or has a setting that does not exist any more.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise PlanFileError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
        raise PlanFileError(f"not a plan of format {_FORMAT}")
    data.pop("reason", None)
    if not isinstance(data.get("seed"), int):
        raise PlanFileError("seed: an integer is missing")
    drawn = _plain(attrs.asdict(Plan.draw(data["seed"])))
    known = {**drawn, "knobs": {**drawn["knobs"], "config": attrs.asdict(ConsensusConfig())}}
    _check(data, known, "")
    knobs = {**drawn["knobs"], **(_KNOBS_BEFORE if "knobs" in data else {}), **data.get("knobs", {})}
    knobs["config"] = {**_AS_BEFORE, **knobs["config"]}
    merged = {**drawn, **data, "knobs": knobs}
    try:
        return _converter().structure(merged, Plan)
    except Exception as error:
        raise PlanFileError(f"not a plan: {_causes(error)}") from error


def describe(plan: Plan) -> list[str]:
    """Return a plan as lines for people: what is unusual, and what goes wrong when."""
    knobs = {name: value for name, value in attrs.asdict(plan.knobs, recurse=False).items() if name != "config"}
    usual = attrs.asdict(ConsensusConfig())
    unusual = {name: value for name, value in attrs.asdict(plan.knobs.config).items() if value != usual[name]}
    lines = [f"plan of seed {plan.seed}: {plan.knobs.voters} voters, {len(plan.faults)} faults"]
    lines += _wrapped("knobs", knobs) + _wrapped("configuration", unusual)
    for fault in plan.faults:
        rest = {name: value for name, value in attrs.asdict(fault).items() if name not in ("at", "kind", "seed")}
        lines.append(f"  {fault.at:10.6f}  {fault.kind}" + (f" {_pairs(rest)}" if any(rest.values()) else ""))
    return lines


def _wrapped(title: str, values: dict[str, Any], width: int = 110) -> list[str]:
    lines = [f"  {title}:"]
    for name, value in values.items():
        part = f" {name}={_short(value)}"
        if len(lines[-1]) + len(part) > width:
            lines.append("   ")
        lines[-1] += part
    return lines


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_short, value)) + ")"
    return str(value)


def _plain(value: Any) -> Any:
    """Return it as JSON would give it back, with dictionaries whose keys are all known."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _check(data: dict[str, Any], known: dict[str, Any], where: str) -> None:
    for name, value in data.items():
        if name not in known:
            raise PlanFileError(f"{where}{name}: there is no such setting any more")
        if isinstance(known[name], dict):
            if not isinstance(value, dict):
                raise PlanFileError(f"{where}{name}: must be an object")
            _check(value, known[name], f"{where}{name}.")


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    # cattrs would make numbers and texts of anything; a plan that says something else must not run.
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    return converter


def _strict(value: Any, kind: type) -> Any:
    allowed: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise PlanFileError(f"{value!r} is not of type {kind.__name__}")
    return value


def _causes(error: BaseException) -> str:
    """Return the innermost messages: cattrs wraps each in groups with the same text."""
    inner = getattr(error, "exceptions", None)
    if inner:
        return "; ".join(_causes(each) for each in inner)
    notes = ": ".join(getattr(error, "__notes__", [])[:1])
    return f"{error}{' (' + notes + ')' if notes else ''}"
