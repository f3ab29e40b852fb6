"""From files to the settings tree: YAML, then the mode's overrides, then `.env`, then `--set`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from kdsuite.config import strict_yaml
from kdsuite.config.nearest import nearest
from kdsuite.config.plugins import TASKS, plugins
from kdsuite.config.tasks import merged, presets
from kdsuite.config.tree import Settings
from kdsuite.errors import SettingsError

_PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel; in a checkout they lie at its root
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "configs"


class Environment(BaseSettings):
    """What `.env` or the environment may override (see .env.example)."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    hf_token: SecretStr | None = None
    teacher_primary: str | None = None
    teacher_fallback: str | None = None
    student_s1: str | None = None
    student_s2: str | None = None
    device: str | None = None
    fast_mode: bool | None = None


PLACES = {  # in the tree, of what it overrides
    "teacher_primary": "models.teacher.name",
    "teacher_fallback": "models.teacher.fallback",
    "student_s1": "models.students.S1.name",
    "student_s2": "models.students.S2.name",
    "device": "device",
}


def load(
    path: Path | None = None,
    mode: str | None = None,
    sets: tuple[str, ...] | list[str] = (),
    env_file: Path | None = Path(".env"),
) -> Settings:
    """Read a configuration (the packaged offline one by default) into the settings tree.

    `mode` chooses an entry of the file's `modes`; `sets` are `key.subkey=value` strings, values in YAML. Without an
    `env_file` the environment is not asked either: what the file says counts.
    Raises SettingsError, one line, for anything that is not understood.
    """
    path = path or CONFIGS / "offline.yaml"
    tree = _read_yaml(path)
    environment = read_environment(env_file) if env_file else Environment.model_construct()
    modes = tree.pop("modes", {})
    tree = merged(tree, _mode_overrides(modes, mode, environment.fast_mode, path))
    models = _section(tree, "models")
    other = [] if "S1" in _section(models, "students") else ["models.students."]  # of other names
    other += ["models.teacher."] if "url" in _section(models, "teacher") else []
    for name, key in PLACES.items():
        value = getattr(environment, name)
        if value is not None and not key.startswith(tuple(other)):
            _assign(tree, key, value)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item!r}: write key=value, e.g. --set tasks.sst2.train_size=100")
        _assign(tree, key.strip(), _yaml(text, f"--set {item!r}"))
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(f"{path.name}: {_first_problem(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        packaged = ", ".join(sorted(f"configs/{p.name}" for p in CONFIGS.glob("*.yaml")))
        raise SettingsError(f"no configuration at {path}; the packaged ones are {packaged}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the configuration {path}: {error}") from None
    tree = _yaml(text, str(path))
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: a configuration is a mapping of keys to values")
    return tree


def _yaml(text: str, place: str) -> Any:
    try:
        return strict_yaml.load(text, place)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a tree that was not checked yet; empty where it is none."""
    section = tree.get(key)
    return section if isinstance(section, Mapping) else {}


def read_environment(env_file: Path) -> Environment:
    try:
        environment = Environment(_env_file=env_file)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise SettingsError(f"{env_file}: {_first_problem(error, show_value=False)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {env_file}: {error}") from None
    if environment.hf_token and not os.environ.get("HF_TOKEN"):
        os.environ["HF_TOKEN"] = environment.hf_token.get_secret_value()
    return environment


def _mode_overrides(modes: Any, mode: str | None, fast: bool | None, path: Path) -> dict[str, Any]:
    if not modes:
        if mode:
            raise SettingsError(f"{path.name} has no modes, but --mode {mode} was asked for")
        return {}
    if not isinstance(modes, dict) or not all(isinstance(over, dict | None) for over in modes.values()):
        raise SettingsError(f"{path.name}: modes: names, and under each a mapping of keys to values (got {modes!r})")
    modes = {str(name): over for name, over in modes.items()}
    if mode is None:
        mode = next(iter(modes)) if fast is None else "fast" if fast else "full"
    if mode not in modes:
        raise SettingsError(f"{path.name} has no mode {mode!r}{nearest(mode, modes)}")
    return modes[mode] or {}


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c`; of the names that are there, which may have dots, the longest is taken."""
    there = sorted((name for name in tree if f"{key}.".startswith(f"{name}.")), key=lambda name: -len(str(name)))
    head = there[0] if there else key.partition(".")[0]
    rest = key[len(str(head)) + 1 :]
    if not rest:
        tree[head] = value
        return
    if not isinstance(tree.get(head), dict):
        tree[head] = {}
    _assign(tree[head], rest, value)


def _first_problem(error: ValidationError, show_value: bool = True) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "unknown_key"), problems[0])
    loc, about = list(problem["loc"]), problem.get("ctx", {})
    if loc[:1] == ["tasks"] or loc[:2] == ["models", "teacher"]:
        del loc[2:3]  # pydantic names the kind of the task or teacher there
    location = [str(part) for part in loc]
    where = ".".join(location)
    if problem["type"] == "unknown_key":
        key, valid = about["key"], about["valid"]
        return f"unknown key {'.'.join([*location, key])!r}{nearest(key, valid, where)}"
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    if problem["type"].startswith("union_tag"):
        said = about.get("tag", "")
        if not isinstance(problem["input"], Mapping):
            return f"{where}: should be a mapping of keys to values (got {problem['input']!r})"
        within = "tasks" if said == location[1] else ""
        return f"{where}: {said!r} is no kind or preset of a task{nearest(said, [*plugins(TASKS), *presets()], within)}"
    message = problem["msg"].removeprefix("Value error, ")
    show_value = show_value and not {"url", "key_env"} & {*location} and not isinstance(problem["input"], dict)
    value = f" (got {problem['input']!r})" if show_value else ""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{where + ': ' if where else ''}{message}{value}{more}"


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some keys (`models.teacher.batch_size`) set to other values."""
    tree = settings.model_dump()
    for key, value in changes.items():
        _assign(tree, key, value)
    return Settings.model_validate(tree)
