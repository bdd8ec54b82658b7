"""What a run leaves behind: gap.json, a table, figures, TensorBoard's last word."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from . import figures
from .bridges.sealed import whole
from .embeddings import Embeddings
from .mini.corpus import subsets
from .reading import read_json
from .scoring import compare, write_predictions
from .standings import mean_and_std

__all__ = [
    "ablation_table",
    "captions_table",
    "comparison_table",
    "gap_table",
    "log_captions",
    "log_embeddings",
    "log_run",
    "markdown",
    "over_seeds",
    "rivals_table",
    "save_figures",
    "scores_table",
    "seeds_table",
    "write_ablation",
    "write_captions",
    "write_comparison",
    "write_json",
]

logger = logging.getLogger(__name__)

_RATIOS = ("relative_gain", "recovered")
_SHOWN = (
    "paired_cosine",
    "centroid_distance",
    "relative_modality_gap",
    "linear_separability",
    "recall@1_audio_to_text",
    "recall@10_audio_to_text",
    "topology_error",
)
_COMPARED = (
    *_SHOWN[:3],
    "frechet_distance",
    *_SHOWN[3:],
    "displacement_cosine",
    "nearest_text_nearer",
    "cider_d",
)
_ABLATED = (
    *("valid_relative_modality_gap", "valid_recall@1_audio_to_text", "valid_cider_d"),
    *("centroid_distance", "relative_modality_gap", "linear_separability"),
    *("recall@1_audio_to_text", "recall@10_audio_to_text"),
    *("cider_d", "cider_d_three_or_more_events", "cider_d_unseen_combination"),
)
_PROJECTED_CLIPS = 500
_SHOWN_CAPTIONS = 50


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
    lines = [heads]
    for name, criteria in systems.items():
        lines.append([name, *(f"{criteria[key]:.3f}" for key in _SHOWN)])
    return markdown(lines)


def scores_table(result: Mapping) -> str:
    """A Markdown table of the captions' scores, one row for each system.

    Arguments
    ---------
    result : mapping
        Content of scores.json, from ``scoring.compare``.

    Returns
    -------
    text : str

    Example
    -------
    >>> print(scores_table({"systems": {"none": {"cider_d": 0.5, "bleu_4": 0.25}}}))
    | system | cider_d | bleu_4 |
    | --- | --- | --- |
    | none | 0.500 | 0.250 |
    """
    systems = result["systems"]
    heads = list(dict.fromkeys(key for scores in systems.values() for key in scores))
    lines = [["system", *heads]]
    for name, scores in systems.items():
        cells = [f"{scores[key]:.3f}" if key in scores else "" for key in heads]
        lines.append([name, *cells])
    return markdown(lines)


def captions_table(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    clips: int,
) -> str:
    """A Markdown table of captions beside the first two references of each clip.

    Arguments
    ---------
    systems : mapping of str to sequence of str
        Captions of the same clips, by system.
    references : sequence of sequence of str
        The clips' captions.
    clips : int
        How many of the clips to show, from the first.

    Returns
    -------
    text : str

    Example
    -------
    >>> table = captions_table({"none": ["rain"]}, [["rain falls", "it rains"]], 1)
    >>> print(table.splitlines()[-1])
    | rain falls / it rains | rain |
    """
    lines = [["references", *systems]]
    for row in range(min(clips, len(references))):
        cells = [" / ".join(references[row][:2]), *(s[row] for s in systems.values())]
        lines.append([" ".join(cell.split()).replace("|", "/") for cell in cells])
    return markdown(lines)


def over_seeds(files: Sequence[str | Path]) -> dict:
    """Mean and standard deviation of several runs' gap.json or scores.json.

    Arguments
    ---------
    files : sequence of str or Path
        One file for each seed; two or more, on the same clips.

    Returns
    -------
    summary : dict
        "data", "clips", "captions", "runs", and for each row of the table its criteria
        as ``{"mean": float, "std": float}`` (std with n - 1).

    Raises
    ------
    ValueError
        If there are fewer than two files, one is no gap.json or scores.json, or they
        are not about the same clips and systems.
    """
    runs = [_read_run(file) for file in files]
    other = [
        file
        for file, run in zip(files, runs, strict=True)
        if _about(run) != _about(runs[0])
    ]
    if len(runs) < 2 or other:
        what = f"{other[0]} and {files[0]}" if other else f"{len(runs)} files"
        raise ValueError(
            f"{what} of different data, clips or systems have no common mean; give the "
            "gap.json or scores.json of two or more seeds of one experiment."
        )
    heads = ("data", "clips", "captions", "tokenizer")
    summary = {key: runs[0][key] for key in heads if key in runs[0]}
    summary["runs"] = len(runs)
    tables = [_rows(run) for run in runs]
    for name in tables[0]:
        if all(name in table for table in tables):
            summary[name] = _mean_row([table[name] for table in tables])
    return summary


def _mean_row(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    return {
        criterion: mean_and_std([row[criterion] for row in rows])
        for criterion in rows[0]
        if all(criterion in row for row in rows)
    }


def _read_run(file: str | Path) -> dict:
    run = read_json(file, "give the gap.json or scores.json of a run")
    try:
        values = [value for row in _rows(run).values() for value in row.values()]
        good = {"data", "clips"} <= run.keys() and all(map(math.isfinite, values))
    except (KeyError, AttributeError, TypeError, OverflowError):
        good = False
    if not good:
        raise ValueError(
            f"{file} is no gap.json or scores.json; give one that a recipe wrote."
        )
    return run


def _about(run: Mapping) -> tuple:
    # Ratios may be void for one seed alone.
    return run["data"], run["clips"], _rows(run).keys() - set(_RATIOS)


def _rows(run: Mapping) -> dict[str, Mapping]:
    """The systems of a gap.json or a scores.json, and how far the bridge got."""
    if "systems" in run:
        ratios = {key: run[key] for key in _RATIOS}
        return {**run["systems"], **{k: row for k, row in ratios.items() if row}}
    same = run["none"].keys()
    return {k: v for k, v in run.items() if isinstance(v, dict) and v.keys() == same}


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
    lines = [["criterion", *rows]]
    for criterion in next(iter(rows.values())):
        cells = [row.get(criterion) for row in rows.values()]
        lines.append([criterion, *map(_cell, cells)])
    return markdown(lines)


def comparison_table(rows: Mapping[str, Mapping]) -> str:
    """A Markdown table of bridges: what each saw, the criteria people look at first.

    Arguments
    ---------
    rows : mapping
        "bridges" of compare.json.

    Returns
    -------
    text : str
        With the reason in place of the figures where a bridge failed.

    Example
    -------
    >>> row = {"paired_cosine": {"mean": 0.5, "std": 0.1}, "saw": "pairs", "seconds": 9}
    >>> print(comparison_table({"mlp": row}).splitlines()[-1])
    | `mlp` | pairs | 0.500 ± 0.100 | 9 |
    """
    shown = [k for k in _COMPARED if any(k in row for row in rows.values())]
    heads = ["bridge", "saw", *(k.replace("_", " ") for k in shown), "seconds"]
    lines = [heads]
    for name, row in rows.items():
        if "error" in row:
            cells = [f"failed: {row['error']}".replace("|", "/"), *[""] * len(shown)]
        else:
            cells = [_cell(row.get(key)) for key in shown] + [f"{row['seconds']:.0f}"]
        lines.append([f"`{name}`", row["saw"], *cells])
    return markdown(lines)


def rivals_table(against: Mapping[str, Mapping]) -> str:
    """A Markdown table of Diffusion-Link against its rivals.

    Arguments
    ---------
    against : mapping
        "diffusion_link_against" of compare.json.

    Returns
    -------
    text : str
        Each cell: the verdict, and the difference with its 95 % interval.
    """
    if not against:
        return ""
    criteria = list(next(iter(against.values())))
    heads = ["diffusion_link against", *(k.replace("_", " ") for k in criteria)]
    lines = [heads]
    for name, row in against.items():
        form = "{verdict}: {difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append([f"`{name}`", *(form.format(**cell) for cell in row.values())])
    return markdown(lines)


def write_comparison(
    folder: str | Path,
    audio: Tensor,
    text: Tensor,
    moved: Mapping[str, Tensor],
    result: Mapping,
) -> None:
    """Write compare.json, compare.md, the figures and TensorBoard, and print the table.

    Arguments
    ---------
    folder : str or Path
        The run folder.
    audio : Tensor
        (N, d) test clips of one run, to draw their migration.
    text : Tensor
        (N, d) their captions.
    moved : mapping of str to Tensor
        (N, d) where each bridge takes them, in the encoder's space.
    result : mapping
        The content of compare.json.
    """
    folder, rows = Path(folder), result["bridges"]
    write_json(folder / "compare.json", result)
    runs = f"{len(result['seeds'])} seed(s), {result['folds']} fold(s)"
    table = f"{result['data']}: {result['clips']} clips, {runs}\n\n" + "\n\n".join(
        [comparison_table(rows), rivals_table(result["diffusion_link_against"])]
    )
    (folder / "compare.md").write_text(table.rstrip() + "\n", encoding="utf-8")
    pictures = {}
    if moved:
        pictures["migration"] = figures.migration_panels(audio, text, moved)
    _show_rows(folder, "compare", table, rows, pictures)


def ablation_table(rows: Mapping[str, Mapping]) -> str:
    """A Markdown table of an ablation: what validation says, what test says.

    Arguments
    ---------
    rows : mapping of str to mapping
        "bridges" of an ablation.json.

    Returns
    -------
    text : str
        Mean ± standard deviation; the columns on validation end in "(val)".

    Example
    -------
    >>> row = {"valid_cider_d": {"mean": 1, "std": 0}, "cider_d": {"mean": 2, "std": 0}}
    >>> print(ablation_table({"no noise": row}))
    | change | cider d (val) | cider d |
    | --- | --- | --- |
    | no noise | 1.000 ± 0.000 | 2.000 ± 0.000 |
    """
    shown = [k for k in _ABLATED if any(k in row for row in rows.values())]
    lines = [["change", *map(_ablated_head, shown)]]
    for name, row in rows.items():
        if "error" in row:
            cells = [f"failed: {row['error']}".replace("|", "/"), *[""] * len(shown)]
            lines.append([name, *cells[: len(shown)]])
        else:
            lines.append([name, *(_cell(row.get(key)) for key in shown)])
    return markdown(lines)


def write_ablation(folder: str | Path, result: Mapping, pairs: Mapping) -> None:
    """Write ablation.json, ablation.md, the figures and TensorBoard, print the table.

    Arguments
    ---------
    folder : str or Path
        The run folder.
    result : mapping
        The content of ablation.json.
    pairs : mapping of str to mapping of int to str
        Bridge to number of training pairs to row, for the figure of few pairs.
    """
    folder, rows = Path(folder), result["bridges"]
    write_json(folder / "ablation.json", result)
    table = f"{result['data']}: {result['clips']} clips, {len(result['seeds'])} seed(s)"
    table += f"\n\n{ablation_table(rows)}"
    (folder / "ablation.md").write_text(table + "\n", encoding="utf-8")
    curves = {
        bridge: {n: rows[name] for n, name in sorted(of.items()) if name in rows}
        for bridge, of in pairs.items()
    }
    pictures = {"few_pairs": figures.few_pairs(curves)} if curves else {}
    _show_rows(folder, "ablation", table, rows, pictures)


def _show_rows(
    folder: Path, title: str, table: str, rows: Mapping, pictures: Mapping
) -> None:
    """Figures of every criterion and TensorBoard, for rows of means."""
    drawn = {name: row for name, row in rows.items() if "error" not in row}
    criteria = dict.fromkeys(
        key for row in drawn.values() for key in row if isinstance(row[key], dict)
    )
    pictures = {
        key.replace("@", "_at_"): figures.comparison(drawn, key) for key in criteria
    } | dict(pictures)
    (folder / "figures").mkdir(exist_ok=True)
    with SummaryWriter(folder / "tensorboard") as writer:
        save_figures(folder / "figures", pictures, writer, 0)
        writer.add_text(title, table)
        for name, row in drawn.items():
            means = {f"test/{k}": row[k]["mean"] for k in criteria if k in row}
            what = {"bridge": name, "saw": row["saw"]}
            writer.add_hparams(what, means, run_name=name.replace("/", "_"))
    left = f"{title}.json, {title}.md, figures, tensorboard/"
    print(f"\n{table}\n\nIn {folder}: {left}")


def _ablated_head(key: str) -> str:
    name = key.removeprefix("valid_").replace("_audio_to_text", "").replace("_", " ")
    return f"{name} (val)" if key.startswith("valid_") else name


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table.

    Arguments
    ---------
    lines : sequence of sequence of str
        Its head, then its rows.

    Returns
    -------
    table : str
        Markdown.

    Example
    -------
    >>> print(markdown([["sound", "clips"], ["rain", "3"]]))
    | sound | clips |
    | --- | --- |
    | rain | 3 |
    """
    head, *rows = lines
    drawn = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in drawn)


def _cell(value: Mapping | None) -> str:
    return f"{value['mean']:.3f} ± {value['std']:.3f}" if value else ""


def write_json(path: str | Path, content: Mapping) -> None:
    """Write JSON in one go, so that a reader never sees half of it.

    Arguments
    ---------
    path : str or Path
        The file.
    content : mapping
        Plain values only.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with whole(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


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


def write_captions(
    folder: str | Path,
    title: str,
    clips: Embeddings,
    captions: Mapping[str, Sequence[str]],
    main: str,
    command: str,
) -> dict:
    """Score captions and write scores.json and the files of predictions.

    Arguments
    ---------
    folder : str or Path
        The run folder. ``predictions.csv`` holds the captions of ``main``,
        ``predictions_<name>.csv`` those of the other systems.
    title : str
        What the scores were made with.
    clips : Embeddings
        The N clips that were captioned.
    captions : mapping of str to sequence of str
        N captions by system.
    main : str
        The system that the others are there to compare with.
    command : str
        What made them.

    Returns
    -------
    result : dict
        The content of scores.json.
    """
    folder, names = Path(folder), [clip.fname for clip in clips.clips]
    references = [clip.captions for clip in clips.clips]
    harder = subsets([clip.path for clip in clips.clips])
    result = {
        "data": title,
        "command": command,
        **compare(captions, references, bridge=main, subsets=harder),
        "skipped_clips": list(clips.skipped),
        "rows_without_audio": clips.rows_without_audio,
    }
    write_json(folder / "scores.json", result)
    for name, written in captions.items():
        file = "predictions.csv" if name == main else f"predictions_{name}.csv"
        write_predictions(folder / file, names, written, references)
    return result


def log_captions(
    writer: SummaryWriter,
    step: int,
    hparams: Mapping,
    result: Mapping,
    captions: Mapping[str, Sequence[str]],
    clips: Embeddings,
) -> None:
    """Show captions and their scores, in TensorBoard and on the terminal.

    Arguments
    ---------
    writer : SummaryWriter
        TensorBoard.
    step : int
        The global step of the final figures.
    hparams : mapping
        See ``log_run``.
    result : mapping
        From ``write_captions``.
    captions : mapping of str to sequence of str
        See ``write_captions``.
    clips : Embeddings
        See ``write_captions``.
    """
    table = f"{result['data']}: {result['clips']} clips\n\n{scores_table(result)}"
    references = [clip.captions for clip in clips.clips]
    shown = captions_table(captions, references, _SHOWN_CAPTIONS)
    finals = {
        f"{name}/{metric}": score
        for name, scores in result["systems"].items()
        for metric, score in scores.items()
    }
    log_run(writer, step, hparams, finals, {"scores": table, "captions": shown})
    for metric, reason in result["skipped"].items():
        logger.info("No %s: %s", metric, reason)
    print(f"\n{table}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Several seeds in one table: ``python -m dlink_plugin.report SUMMARY FILE...``."""
    parser = argparse.ArgumentParser(description="Mean and deviation over seeds.")
    parser.add_argument("summary", help="JSON file to write")
    parser.add_argument("files", nargs="+", help="gap.json or scores.json of each seed")
    parser.add_argument("--figure", help="PNG file to write: CIDEr-D of each system")
    given = parser.parse_args(argv)
    summary = over_seeds(given.files)
    write_json(given.summary, summary)
    print(seeds_table(summary))
    if given.figure:
        rows = {
            name: row
            for name, row in summary.items()
            if isinstance(row, dict) and name not in _RATIOS
        }
        figures.comparison(rows, "cider_d").savefig(given.figure)


if __name__ == "__main__":
    main()
