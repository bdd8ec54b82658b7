"""The ``dlink`` command. Libraries are imported where they are used: help is quick."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import plain_errors

if TYPE_CHECKING:
    from .captioner import Captioner, Result

app = typer.Typer(
    help="Caption sounds, and measure and cross the gap between audio and text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str | None,
    typer.Option(help="Captioner: a folder or hub id; else the newest in results/."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command()
def caption(
    paths: Annotated[
        list[Path], typer.Argument(help="Sound files or folders of them.")
    ],
    model: Model = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV on standard output.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Captions for each sound.")] = 1,
    explain: Annotated[
        bool, typer.Option(help="Also the caption without the bridge.")
    ] = False,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the bridge.")] = 1,
    choose: Annotated[
        str, typer.Option(help="Of several draws: average, cider_d, similarity, clap.")
    ] = "average",
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beam width.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sounds at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the bridge's noise.")] = 0,
) -> None:
    """Write captions of sounds: any format that libsndfile reads, any rate."""
    files = sound_files(paths)
    captioner = load_captioner(model).to(device)
    results = captioner.caption(
        files,
        alternatives=top - 1,
        draws=draws,
        choose=choose,
        raw=explain,
        batch_size=batch_size,
        seed=seed,
        progressbar=sys.stderr.isatty(),
        **({} if num_beams is None else {"num_beams": num_beams}),
    )
    if as_json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
    elif as_csv:
        _write_csv(results)
    else:
        _show(results)
    failed = sum(result.error is not None for result in results)
    if failed:
        sys.exit(f"error: {failed} of {len(results)} sounds could not be captioned.")


def sound_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and the sound files in the folders that are.

    Arguments
    ---------
    paths : sequence of Path
        Files and folders.

    Returns
    -------
    files : list of Path
        Folders sorted by name, below any depth.

    Raises
    ------
    FileNotFoundError
        If a path is not there, or a folder holds no sound file.
    """
    import soundfile

    kinds = {f".{name.lower()}" for name in soundfile.available_formats()}
    kinds |= {".oga", ".opus", ".aif", ".mp3"}
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds)
        if not inside:
            raise FileNotFoundError(f"{path} holds no sound file; name another folder.")
        files += inside
    return files


def load_captioner(model: str | None) -> Captioner:
    """The captioner that is named, or the newest one under ``results/``.

    Arguments
    ---------
    model : str or None
        A folder or a hub id.

    Returns
    -------
    captioner : Captioner

    Raises
    ------
    FileNotFoundError
        If there is none; the sentence says what makes one.
    """
    from .captioner import Captioner

    if model is None:
        found = Path("results").glob("**/captioner/config.json")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise FileNotFoundError(
                "No captioner under results/; make one with: python "
                "recipes/AudioCaps/train.py hparams/bridge.yaml && python "
                "recipes/AudioCaps/caption.py hparams/zero_shot.yaml, or give --model."
            )
        model = str(newest.parent)
        print(f"Captioner: {model}", file=sys.stderr)
    return Captioner.from_pretrained(model)


def _write_csv(results: Sequence[Result]) -> None:
    """To standard output; text that a spreadsheet would compute gets an apostrophe."""
    from .scoring import safe_cell

    heads = ["file", "caption", "alternatives", "similarity", "raw_caption", "error"]
    rows = csv.DictWriter(sys.stdout, heads)
    rows.writeheader()
    for result in results:
        row = result.as_dict()
        row["alternatives"] = " | ".join(row["alternatives"])
        rows.writerow(
            {k: safe_cell(v) if isinstance(v, str) else v for k, v in row.items()}
        )


def _show(results: Sequence[Result]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "caption", "similarity")
    for result in results:
        lines = [escape(result.caption)]
        lines += [f"[dim]{escape(text)}[/dim]" for text in result.alternatives]
        if result.raw_caption is not None:
            lines.append(f"[dim]without the bridge: {escape(result.raw_caption)}[/dim]")
        if result.error is not None:
            lines = [f"[red]{escape(result.error)}[/red]"]
        similarity = "" if result.similarity is None else f"{result.similarity:.2f}"
        table.add_row(escape(Path(result.file).name), "\n".join(lines), similarity)
    Console().print(table)


@app.command()
def gap(
    audio: Annotated[Path, typer.Argument(help="Audio embeddings: .npy, N x d.")],
    text: Annotated[Path, typer.Argument(help="Text embeddings, row i paired.")],
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw both clouds to this picture.")
    ] = None,
) -> None:
    """Measure the modality gap of paired embeddings."""
    from .figures import clouds
    from .gap import modality_gap
    from .splits import read_arrays

    a, y, skipped = read_arrays(audio, text)
    criteria = modality_gap(a, y)
    if plot is not None:
        clouds(a, y).savefig(plot)
    if as_json:
        print(json.dumps({"pairs": len(a), "skipped": skipped, **criteria}, indent=2))
        return
    print(f"{len(a)} pairs, {len(skipped)} left out")
    for name, value in criteria.items():
        print(f"{name:28}{value:8.4f}")


@app.command()
def bridge(
    source: Annotated[Path, typer.Argument(help="Audio embeddings: .npy, N x d.")],
    target: Annotated[Path, typer.Argument(help="Gets the bridged embeddings.")],
    bridge: Annotated[str, typer.Option(help="A bridge: a folder or hub id.")],
    seed: Annotated[int, typer.Option(help="Of the bridge's noise.")] = 0,
) -> None:
    """Take audio embeddings across the gap."""
    import numpy as np

    from .bridges import Bridge
    from .judge import cross
    from .splits import read_arrays

    trained = Bridge.from_pretrained(bridge)
    audio, _, skipped = read_arrays(source, source)
    if skipped or audio.shape[1] != trained.dim:
        raise ValueError(
            f"{source} has {audio.shape[1]} numbers a row and {len(skipped)} unusable "
            f"rows; {bridge} takes {trained.dim} finite numbers."
        )
    np.save(target, cross(trained, audio, seed).numpy())


@app.command()
def embed(
    files: Annotated[list[Path], typer.Argument(help="Sound files or folders.")],
    out: Annotated[Path, typer.Argument(help="Gets them: .npz with audio and files.")],
    clap: Annotated[str, typer.Option(help="As in the recipes' YAML files.")] = "mini",
) -> None:
    """Embed sounds with CLAP."""
    import numpy as np

    from .audio import BadAudio, load_audio
    from .encoders import load_encoder

    encoder, rows, names, failed = load_encoder(clap), [], [], 0
    for file in sound_files(files):
        try:
            waveform = load_audio(file, encoder.sample_rate)
        except BadAudio as error:
            print(f"Skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        rows.append(encoder.encode_audio([waveform])[0].numpy())
        names.append(str(file))
    if rows:
        np.savez(out, audio=np.stack(rows), files=np.array(names))
    if failed:
        sys.exit(f"error: {failed} of {failed + len(rows)} sounds are not in {out}.")


@app.command("convert-clap")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Of laion_clap: .pt.")],
    folder: Annotated[Path, typer.Argument(help="Gets the CLAP; new or empty.")],
    tokenizer: Annotated[
        str, typer.Option(help="RoBERTa's: a folder or hub id.")
    ] = "roberta-base",
) -> None:
    """Make a checkpoint of laion_clap a folder for --clap that needs no laion_clap."""
    from .conversion import convert_clap

    config = convert_clap(checkpoint, folder, tokenizer)
    audio = config.audio_config
    blocks = "-".join(map(str, audio.depths))
    kind = "fusion" if audio.enable_fusion else "no fusion"
    print(
        f"HTSAT of {blocks} blocks, {kind}, {config.projection_dim} numbers: {folder}"
    )


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
def download(
    arguments: Annotated[list[str], typer.Argument(help="As aac-datasets has them.")],
) -> None:
    """Get AudioCaps, Clotho or WavCaps: aac-datasets-download, also without CUDA.

    For instance: dlink download --root /data audiocaps --subsets train val test
    """
    import subprocess
    from importlib.metadata import entry_points

    import dlink_plugin.compat  # noqa: F401  (before aac_datasets)

    from .reading import first_line

    name = "aac-datasets-download"
    (command,) = entry_points(group="console_scripts", name=name)
    sys.argv = [name, *arguments]
    try:
        command.load()()
    except (RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise OSError(f"{name} failed: {first_line(error)}") from error


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="A bridge, decoder or captioner.")],
    as_json: AsJson = False,
) -> None:
    """Say what a saved thing is, and what it needs."""
    described = describe(folder)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    for key, value in described.items():
        # What a terminal would obey rather than show is escaped.
        plain = isinstance(value, str) and value.isprintable()
        print(f"{key:12}{value if plain else json.dumps(value)}")


def describe(folder: Path) -> dict:
    """What ``dlink info`` says, read from the folder's config.json alone.

    Arguments
    ---------
    folder : Path
        Of a bridge, a decoder, a captioner or a CLAP.

    Returns
    -------
    described : dict
        "kind", "needs" and what its config holds.

    Raises
    ------
    FileNotFoundError
        If there is no config.json.
    ValueError
        If that is not the config of any of these.
    """
    config = _saved_config(folder)
    if config.get("kind") != "captioner":
        return _describe_part(folder, config)
    # Parts of parts are not looked at: a folder may be linked into itself.
    parts = {
        part: _describe_part(folder / part, _saved_config(folder / part))
        for part in ("bridge", "decoder")
    }
    own = config.get("clap") == "clap"
    needs = "its own folder" if own else f"CLAP: {config.get('clap')}"
    return _described("captioner", needs, config | parts)


def _saved_config(folder: Path) -> dict:
    from .reading import read_json

    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: nothing is saved in {folder}.")
    return read_json(path, "save it again")


def _describe_part(folder: Path, config: dict) -> dict:
    if "bridge" in config:
        needs = f"audio embeddings of {config.get('dim')} numbers"
        return _described("bridge", needs, config)
    if "prefix_length" in config:
        own = config.get("lm") == "lm"
        needs = "its own folder" if own else f"language model: {config.get('lm')}"
        return _described("decoder", needs, config)
    if config.get("model_type") == "clap":
        return {"kind": "clap", "needs": "its own folder"}
    raise ValueError(
        f"{folder / 'config.json'} describes no bridge, decoder, captioner or CLAP; "
        "name a folder that one was saved in."
    )


def _described(kind: str, needs: str, config: dict) -> dict:
    """What a config says, except of these two."""
    first = {"kind": kind, "needs": needs}
    return first | config | first


@app.command()
def demo(
    model: Model = None,
    port: Annotated[int, typer.Option(help="Of the page, on this machine.")] = 7860,
) -> None:
    """Show a page: drop or record a sound, read its captions, see where it moved.

    Sounds of up to ten minutes and 200 MB; only this machine sees the page.
    """
    captioner = load_captioner(model)
    try:
        from .demo import serve
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The page needs {error.name}; run: pip install 'dlink-plugin[demo]'."
        ) from error
    serve(captioner, port)


def main() -> None:
    """Run ``dlink``; a mistake ends in one sentence."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
