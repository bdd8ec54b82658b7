"""What a run leaves behind: gap.json, a table, figures, TensorBoard's last word."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

__all__ = [
    "gap_table",
    "log_embeddings",
    "log_run",
    "over_seeds",
    "save_figures",
    "seeds_table",
    "write_json",
]

_SHOWN = (
    "paired_cosine",
    "centroid_distance",
    "relative_modality_gap",
    "linear_separability",
    "recall@1_audio_to_text",
    "recall@10_audio_to_text",
    "topology_error",
)
_PROJECTED_CLIPS = 500


def gap_table(systems: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table of the criteria people look at first, one row for each system.

    Arguments
    ---------
    systems : mapping
        Name to criteria, as ``modality_gap`` returns them.

    Returns
    -------
    text : str

    Example
    -------
    >>> print(gap_table({"none": dict.fromkeys(_SHOWN, 0.5)}).splitlines()[-1])
    | none | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |
    """
    heads = ["bridge", *_SHOWN]
    lines = [heads, ["---"] * len(heads)]
    for name, criteria in systems.items():
        lines.append([name, *(f"{criteria[key]:.3f}" for key in _SHOWN)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def over_seeds(files: Sequence[str | Path]) -> dict:
    """Mean and standard deviation of several runs' gap.json.

    Arguments
    ---------
    files : sequence of str or Path
        One gap.json for each seed; two or more, on the same clips.

    Returns
    -------
    summary : dict
        "data", "clips", "captions", "runs", and for each row of the table its criteria
        as ``{"mean": float, "std": float}`` (std with n - 1).

    Raises
    ------
    ValueError
        If there are fewer than two files, or they are not about the same clips.
    """
    runs = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    if len(runs) < 2 or len({(run["data"], run["clips"]) for run in runs}) > 1:
        raise ValueError(
            f"{len(runs)} files of different data or clips have no common mean; give "
            "the gap.json of two or more seeds of one experiment."
        )
    summary = {key: runs[0][key] for key in ("data", "clips", "captions")}
    summary["runs"] = len(runs)
    for name, row in runs[0].items():
        if isinstance(row, dict) and row.keys() == runs[0]["none"].keys():
            summary[name] = {
                criterion: _mean_and_std([run[name][criterion] for run in runs])
                for criterion in row
            }
    return summary


def _mean_and_std(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values)}


def seeds_table(summary: Mapping) -> str:
    """A Markdown table of ``over_seeds``: all criteria, mean and standard deviation.

    Arguments
    ---------
    summary : mapping
        From ``over_seeds``.

    Returns
    -------
    text : str
    """
    rows = {name: row for name, row in summary.items() if isinstance(row, dict)}
    lines = [["criterion", *rows], ["---"] * (len(rows) + 1)]
    for criterion in next(iter(rows.values())):
        cells = [row[criterion] for row in rows.values()]
        lines.append([criterion, *(f"{c['mean']:.3f} ± {c['std']:.3f}" for c in cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_json(path: str | Path, content: Mapping) -> None:
    """Write JSON in one go, so that a reader never sees half of it.

    Arguments
    ---------
    path : str or Path
        The file.
    content : mapping
        Plain values only.
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.partial")
    text = json.dumps(content, indent=2, allow_nan=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def save_figures(
    folder: str | Path, figures: Mapping[str, Figure], writer: SummaryWriter, step: int
) -> None:
    """Save figures as ``<name>.png`` and show them in TensorBoard.

    Arguments
    ---------
    folder : str or Path
        Where the files go.
    figures : mapping of str to Figure
        By name.
    writer : SummaryWriter
        TensorBoard.
    step : int
        The global step they stand at.
    """
    for name, figure in figures.items():
        figure.savefig(Path(folder) / f"{name}.png")
        writer.add_figure(f"figures/{name}", figure, step, close=False)


def log_embeddings(
    writer: SummaryWriter,
    step: int,
    captions: Sequence[str],
    spaces: Mapping[str, Tensor],
) -> None:
    """Show embeddings in TensorBoard's projector, labeled by kind and caption.

    Arguments
    ---------
    writer : SummaryWriter
        TensorBoard.
    step : int
        The global step they stand at.
    captions : sequence of str
        N captions; the first 500 are shown.
    spaces : mapping of str to Tensor
        (N, d) embeddings by kind.
    """
    shown = [" ".join(said.split()) for said in captions[:_PROJECTED_CLIPS]]
    writer.add_embedding(
        torch.cat([rows[: len(shown)].cpu() for rows in spaces.values()]),
        metadata=[[kind, said] for kind in spaces for said in shown],
        metadata_header=["kind", "caption"],
        global_step=step,
        tag="embeddings",
    )


def log_run(
    writer: SummaryWriter,
    step: int,
    hparams: Mapping,
    metrics: Mapping[str, float],
    texts: Mapping[str, str],
) -> None:
    """Log hyperparameters, the final figures and texts; the last word of a run.

    Arguments
    ---------
    writer : SummaryWriter
        TensorBoard.
    step : int
        The global step of the final figures.
    hparams : mapping
        Plain values are shown, built objects are not.
    metrics : mapping of str to float
        What the run is compared by.
    texts : mapping of str to str
        Markdown by title.
    """
    for title, text in texts.items():
        writer.add_text(f"run/{title}", text, step)
    plain = {k: v for k, v in hparams.items() if isinstance(v, (int, float, str))}
    finals = {f"test/{name}": value for name, value in metrics.items()}
    writer.add_hparams(plain, finals, run_name=".", global_step=step)
    writer.flush()


if __name__ == "__main__":  # python -m dlink_plugin.report SUMMARY GAP_JSON...
    write_json(sys.argv[1], over_seeds(sys.argv[2:]))
    print(seeds_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
