"""What a run leaves behind: gap.json, a table, figures, TensorBoard's last word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

__all__ = ["gap_table", "log_embeddings", "log_run", "save_figures", "write_json"]

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
