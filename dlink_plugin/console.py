"""The edges of every recipe: reading the command line, and telling a user's mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import dlink_plugin.compat  # noqa: F401

import speechbrain as sb
import yaml
from hyperpyyaml import load_hyperpyyaml
from torch import distributed

from .errors import plain_errors

__all__ = ["load_hparams", "load_recipe", "plain_errors"]


def load_recipe(argv: list[str]) -> tuple[str, sb.RunOptions, str, dict]:
    """Read ``recipe.yaml --key value ...`` as SpeechBrain recipes do.

    A HyperPyYAML file is a program: its tags may call anything. Run those of people you
    trust, as you would run their scripts.

    Arguments
    ---------
    argv : list of str
        The command line after the script's name.

    Returns
    -------
    hparams_file : str
    run_opts : RunOptions
        SpeechBrain's own options.
    overrides : str
        The others, as YAML.
    hparams : dict
        The loaded YAML with the overrides in place.

    Raises
    ------
    ValueError
        If an override is not a key of the YAML file, or a flag is given a value.
    FileNotFoundError
        If the YAML file is missing.
    """
    # SpeechBrain would glue such a value to that of another option.
    flags = {
        f"--{option.name}"
        for option in fields(sb.RunOptions)
        if option.default is False
    }
    for flag, value in pairwise(argv):
        if flag in flags and not value.startswith("-"):
            raise ValueError(f"{flag} takes no value; leave {value!r} out.")
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    given = _keys(overrides, "the command line") if overrides else []
    hparams = _load(hparams_file, overrides, given)
    if distributed.is_initialized():
        # SpeechBrain would have the others wait two hours for a process that is lost.
        patience = timedelta(seconds=hparams["distributed_timeout"])
        distributed.distributed_c10d._set_pg_timeout(patience)
    return hparams_file, run_opts, overrides, hparams


def load_hparams(hparams_file: str | Path, changes: Mapping) -> dict:
    """Read a second YAML file that a recipe needs.

    Arguments
    ---------
    hparams_file : str or Path
        The file.
    changes : mapping
        Plain values by key, in place of the file's.

    Returns
    -------
    hparams : dict
        The loaded YAML with the changes in place.

    Raises
    ------
    ValueError
        If a change is not a key of the YAML file.
    FileNotFoundError
        If the YAML file is missing.
    """
    return _load(str(hparams_file), yaml.safe_dump(dict(changes)), changes)


def _load(hparams_file: str, overrides: str, given: Iterable[str]) -> dict:
    with open(hparams_file, encoding="utf-8") as file:
        text = file.read()
    keys = _keys(text, hparams_file)
    strange = sorted(set(given) - set(keys))
    if strange:
        raise ValueError(
            f"{hparams_file} has no key {', '.join(map(repr, strange))}; "
            f"its keys are {', '.join(k for k in keys if not k.startswith('_'))}."
        )
    return _Hparams(load_hyperpyyaml(text, overrides), hparams_file)


class _Hparams(dict):
    """Hyperparameters that name the file they should have been in."""

    def __init__(self, loaded: dict, source: str):
        super().__init__(loaded)
        self.source = source

    def __missing__(self, key: str):
        raise ValueError(
            f"{self.source} has no key {key!r}, which the recipe needs; compare it "
            "with the file of that name that is shipped."
        )


def _keys(text: str, source: str) -> list[str]:
    """Top-level keys, without building what the tags name."""
    try:
        mapping = yaml.compose(text, yaml.SafeLoader)
        return [key.value for key, _ in mapping.value]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} is not a YAML mapping of keys to values; write one "
            f"'key: value' a line, or --key value ({error})."
        ) from error
