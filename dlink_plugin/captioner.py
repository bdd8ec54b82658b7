"""The captioner: encoder, bridge and decoder as one thing; sound in, captions out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as shortly

import dlink_plugin.compat  # noqa: F401

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from .audio import BadAudio, from_array, load_audio
from .bridges import Bridge, Identity
from .bridges.sealed import SUMS, seal, told_as_oserror, unseal, verify, whole
from .choosing import Chooser, caption_draws
from .decoder import PrefixDecoder
from .encoders import ClapEncoder, FrozenEncoder, load_encoder
from .pairs import seeded
from .reading import check_files, read_json

__all__ = ["Captioner", "Result", "export_captioner"]

FORMAT = 1
_CONFIG, _CARD, _CLAP = "config.json", "README.md", "clap"
_SMALL = 50_000_000  # parameters up to which an encoder's weights travel along
_MAPPED = 300  # texts that travel along for maps
# Generation settings that a saved captioner may have, with kind and bounds: whoever
# loads one from a stranger should not wait for a billion beams. What makes several
# captions of one sound is not among them.
_SETTINGS = {
    "num_beams": (int, 1, 100),
    "max_new_tokens": (int, 1, 1000),
    "min_new_tokens": (int, 0, 1000),
    "batch_size": (int, 1, 10_000),
    "do_sample": (bool, False, True),
    "early_stopping": (bool, False, True),
    "temperature": (float, 0.01, 100),
    "top_k": (int, 0, 1_000_000),
    "top_p": (float, 0.01, 1),
    "repetition_penalty": (float, 0.01, 100),
    "length_penalty": (float, -100, 100),
    "no_repeat_ngram_size": (int, 0, 100),
}
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", f"*{SUMS}"]

Sound = str | Path | tuple[np.ndarray | Tensor, int]


@dataclass(frozen=True)
class Result:
    """What was written about one sound.

    Arguments
    ---------
    file : str
        Its path, or "array".
    caption : str
        Empty where there is an error.
    alternatives : tuple of str
        Other captions, the most similar to the sound first.
    similarity : float, optional
        Cosine of the caption's CLAP embedding with that of the sound.
    raw_caption : str, optional
        The caption without the bridge, where it was asked for.
    error : str, optional
        Why there is no caption.
    """

    file: str
    caption: str = ""
    alternatives: tuple[str, ...] = ()
    similarity: float | None = None
    raw_caption: str | None = None
    error: str | None = None

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self) | {"alternatives": list(self.alternatives)}


class Captioner(nn.Module, ModelHubMixin, library_name="dlink-plugin", license="mit"):
    """Writes captions of sounds.

    Arguments
    ---------
    encoder : FrozenEncoder
        CLAP.
    bridge : Bridge
        From audio embeddings to what the decoder reads; ``Identity`` for none.
    decoder : PrefixDecoder
        From embeddings to text.
    clap : str
        What ``load_encoder`` makes the encoder from.
    generation : mapping, optional
        Arguments of ``PrefixDecoder.generate`` that it was scored with.
    about : mapping, optional
        Plain values for the model card: "data", "scores", "command".
    texts : sequence of str
        Some captions of its kind, for maps.

    Raises
    ------
    ValueError
        If the three do not fit together.

    Example
    -------
    >>> from dlink_plugin.bridges import MeanShift
    >>> from dlink_plugin.mini.language import write_lm
    >>> sizes = {"vocab_size": 300, "width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
    >>> lm = write_lm(getfixture("tmp_path"), ["a dog barks"] * 9, **sizes)
    >>> encoder = load_encoder("mini")
    >>> decoder = PrefixDecoder(encoder.dim, lm, lm_training="scratch")
    >>> captioner = Captioner(encoder, MeanShift(encoder.dim), decoder, "mini")
    >>> noise = 0.1 * np.random.default_rng(0).standard_normal(32000)
    >>> (result,) = captioner.caption([(noise, 16000)])
    >>> result.error is None, -1 <= result.similarity <= 1
    (True, True)
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        bridge: Bridge,
        decoder: PrefixDecoder,
        clap: str,
        generation: Mapping | None = None,
        about: Mapping | None = None,
        texts: Sequence[str] = (),
    ):
        super().__init__()
        if not encoder.dim == bridge.dim == decoder.dim:
            raise ValueError(
                f"The encoder gives {encoder.dim} numbers, the bridge takes "
                f"{bridge.dim} and the decoder {decoder.dim}; put together what was "
                "trained together."
            )
        self.encoder, self.bridge, self.decoder = encoder, bridge, decoder
        self.clap, self.generation = clap, dict(generation or {})
        self.about, self.texts = dict(about or {}), list(texts)
        self.eval()

    @torch.no_grad()
    def caption(
        self,
        sounds: Sequence[Sound],
        *,
        alternatives: int = 0,
        draws: int = 1,
        choose: str = "average",
        raw: bool = False,
        batch_size: int = 32,
        seed: int = 0,
        progressbar: bool = False,
        **generation,
    ) -> list[Result]:
        """Caption files or arrays.

        Arguments
        ---------
        sounds : sequence
            Paths of whatever libsndfile reads, or pairs of samples and their rate in
            hertz: (T,) or (T, channels). Any rate, up to ``audio.LONGEST`` samples.
        alternatives : int
            How many other captions to write, at most.
        draws : int
            Bridged embeddings of each sound; each is a source of alternatives.
        choose : str
            What of several draws makes the caption: "average" is that of their mean;
            "cider_d", "similarity" or "clap" writes one of each, K times the work, and
            keeps one (see ``choosing.Chooser``).
        raw : bool
            Whether to caption without the bridge as well, where the decoder can.
        batch_size : int
            Sounds at a time.
        seed : int
            Of the bridge's noise, which also depends on a sound's place in the list.
        progressbar : bool
            Whether to show progress.
        **generation : dict
            Instead of those it was scored with: ``num_beams``, ``max_new_tokens``, ...

        Returns
        -------
        results : list of Result
            One for each sound, in order. A sound that cannot be used has an error.
        """
        settings, results = {**self.generation, **generation}, []
        chooser = None
        if choose != "average":
            chooser = Chooser(choose, self.encoder, self.texts)
        with tqdm(total=len(sounds), unit="sound", disable=not progressbar) as bar:
            for start in range(0, len(sounds), batch_size):
                batch = sounds[start : start + batch_size]
                generator = seeded(seed, start, device=self.encoder.device)
                options = alternatives, draws, chooser, raw, generator, settings
                results += self._caption_batch(batch, *options)
                bar.update(len(batch))
        return results

    @torch.no_grad()
    def locate(self, sound: Sound, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Where a sound is among the encoder's embeddings, before and after the bridge.

        Arguments
        ---------
        sound : path or pair
            See ``caption``.
        seed : int
            Of the bridge's noise.

        Returns
        -------
        audio, bridged : Tensor
            (d,) each, on the CPU.

        Raises
        ------
        BadAudio
            If the sound cannot be used.
        """
        features = self._hear(sound)
        if isinstance(features, BadAudio):
            raise features
        audio = self.encoder.encode_prepared([features])
        generator = seeded(seed, 0, device=self.encoder.device)
        rows = self.bridge(audio, generator)
        return audio[0].cpu(), self.bridge.encoder_space(rows)[0].cpu()

    def _caption_batch(
        self, sounds, alternatives, draws, chooser, raw, generator, settings
    ) -> list[Result]:
        heard = [self._hear(sound) for sound in sounds]
        good = [features for features in heard if not isinstance(features, BadAudio)]
        audio = self.encoder.encode_prepared(good)
        # (K, N, d): K bridged embeddings of each sound
        rows = torch.stack([self.bridge(audio, generator) for _ in range(draws)])
        write = self.decoder.generate
        if chooser is None or not good:
            captions = write(normalize(rows.mean(0), dim=1), **settings) if good else []
        else:
            captions = chooser(caption_draws(self.decoder, rows, **settings), audio)
        others = self._alternatives(rows, alternatives, settings)
        without = [None] * len(good)
        if raw and good and self.bridge.reading == "text":
            without = write(audio, **settings)
        written = iter(zip(audio, captions, others, without, strict=True))
        return [
            Result(_name(sound), error=str(features))
            if isinstance(features, BadAudio)
            else self._rank(_name(sound), alternatives, *next(written))
            for sound, features in zip(sounds, heard, strict=True)
        ]

    def _hear(self, sound: Sound) -> Tensor | BadAudio:
        try:
            if isinstance(sound, tuple):
                waveform = from_array(*sound, self.encoder.sample_rate)
            else:
                waveform = load_audio(sound, self.encoder.sample_rate)
        except BadAudio as error:
            return error
        return self.encoder.prepare_audio(waveform)

    def _alternatives(self, rows: Tensor, number: int, settings) -> list[list[str]]:
        """Captions of each sound from several beams of each draw."""
        k, n, _ = rows.shape
        if not number or not n:
            return [[] for _ in range(n)]
        wide = max(number + 1, settings.get("num_beams", 1))
        several = {"num_beams": wide, "num_return_sequences": wide, "do_sample": False}
        written = self.decoder.generate(rows.flatten(0, 1), **settings | several)
        of_row = [written[i * wide : (i + 1) * wide] for i in range(k * n)]
        return [
            [text for i in range(k) for text in of_row[i * n + j]] for j in range(n)
        ]

    def _rank(
        self, file: str, number: int, audio: Tensor, caption: str, others, raw
    ) -> Result:
        texts = list(dict.fromkeys([caption, *others]))
        similarity = (self.encoder.encode_text(texts) @ audio).tolist()
        ranked = sorted(zip(similarity[1:], texts[1:], strict=True), reverse=True)
        best = tuple(text for _, text in ranked[:number])
        return Result(file, caption, best, similarity[0], raw)

    def _save_pretrained(self, save_directory: Path) -> None:
        unseal(save_directory)
        clap = self.clap
        size = sum(each.numel() for each in self.encoder.parameters())
        if Path(clap).exists() and isinstance(self.encoder, ClapEncoder):
            clap = str(Path(clap).resolve())
            if size <= _SMALL:
                with told_as_oserror(save_directory / _CLAP):
                    self.encoder.save_pretrained(save_directory / _CLAP)
                clap = _CLAP
        self.bridge.save_pretrained(save_directory / "bridge")
        self.decoder.save_pretrained(save_directory / "decoder")
        config = {
            "format": FORMAT,
            "kind": "captioner",
            "clap": clap,
            "generation": self.generation,
            "about": self.about,
            "texts": self.texts,
        }
        with whole(save_directory / _CARD) as draft:
            draft.write_text(_card(config, self), encoding="utf-8")
        with whole(save_directory / _CONFIG) as draft:
            draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        seal(save_directory, _CONFIG, *([_CLAP] if clap == _CLAP else []))

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | Path, clap: str | None = None, **hub_options
    ) -> Captioner:
        """Load what ``save_pretrained`` wrote. Nothing pickled is ever read.

        Arguments
        ---------
        folder_or_hub_id : str or Path
            A folder, or the id of a repository on the Hugging Face hub.
        clap : str, optional
            Where the encoder is now, if it is named and has moved.
        **hub_options : dict
            ``revision``, ``token``, ``cache_dir``: passed to ``snapshot_download``.

        Returns
        -------
        captioner : Captioner
            In eval mode, on the CPU.

        Raises
        ------
        FileNotFoundError
            If it, or a part of it, is not there.
        ValueError
            If a file is not what it should be.
        """
        folder = _find(folder_or_hub_id, hub_options)
        config = _read_config(folder / _CONFIG)
        check_files(folder / _CLAP)
        verify(folder)
        name = clap or config["clap"]
        name = str(folder / _CLAP) if name == _CLAP else name
        encoder = load_encoder(name)
        bridge = Bridge.from_pretrained(folder / "bridge")
        decoder = PrefixDecoder.from_pretrained(folder / "decoder")
        rest = (config[key] for key in ("generation", "about", "texts"))
        return cls(encoder, bridge, decoder, name, *rest)


def export_captioner(
    folder: str | Path,
    hparams: Mapping,
    bridge: Bridge | None,
    decoder: PrefixDecoder,
    result: Mapping,
    texts: Sequence[str] = (),
) -> None:
    """Save what a recipe trained as a captioner.

    Arguments
    ---------
    folder : str or Path
        Created where missing.
    hparams : mapping
        Of the recipe: ``clap`` and ``generation``.
    bridge : Bridge or None
        What the decoder is read through.
    decoder : PrefixDecoder
        Trained.
    result : mapping
        The content of scores.json, for the model card.
    texts : sequence of str
        Captions, of which the first 300 are kept for maps.
    """
    clap = str(hparams["clap"])
    bridge = (bridge or Identity(decoder.dim)).cpu()
    about = {key: result[key] for key in ("data", "clips", "command")}
    about["scores"] = result["systems"].get(bridge.name, {})
    parts = load_encoder(clap), bridge, decoder.cpu()
    own = hparams["generation"], about, texts[:_MAPPED]
    Captioner(*parts, clap, *own).save_pretrained(folder)


def _name(sound: Sound) -> str:
    return "array" if isinstance(sound, tuple) else str(sound)


def _find(folder_or_hub_id: str | Path, hub_options: Mapping) -> Path:
    if Path(folder_or_hub_id).is_dir():
        return Path(folder_or_hub_id)
    try:
        name = str(folder_or_hub_id)
        return Path(snapshot_download(name, allow_patterns=_FILES, **hub_options))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder_or_hub_id} is neither a folder nor a captioner that can be "
            "fetched from the hub; make one with recipes/AudioCaps/caption.py."
        ) from error


def _read_config(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: that is no saved captioner.")
    config = read_json(path, "save the captioner again")
    if config.get("kind") != "captioner":
        raise ValueError(f"{path} does not describe a captioner; save it again.")
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {shortly(config.get('format'))} and this "
            f"dlink_plugin reads {FORMAT}; install the release that wrote it."
        )
    kinds = {"clap": str, "generation": dict, "about": dict, "texts": list}
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{path} has no proper {key!r}; save the captioner again.")
    if not all(isinstance(text, str) for text in config["texts"]):
        raise ValueError(f"{path} has no proper 'texts'; save the captioner again.")
    for name, value in config["generation"].items():
        _check_setting(path, name, value)
    return config


def _check_setting(path: Path, name: str, value) -> None:
    if name not in _SETTINGS:
        raise ValueError(
            f"{path} has the generation setting {name[:50]!r}, which is none of a "
            f"captioner; remove it or choose among {', '.join(_SETTINGS)}."
        )
    kind, least, most = _SETTINGS[name]
    plain = type(value) is kind or (kind is float and type(value) is int)
    if not (plain and least <= value <= most):
        raise ValueError(
            f"{path} has the generation setting {name} {str(value)[:50]!r}; give "
            f"{kind.__name__} from {least} to {most}."
        )


def _card(config: Mapping, captioner: Captioner) -> str:
    about = config["about"]
    scores = about.get("scores") or {}
    lines = [
        *("---", "license: mit", "library_name: dlink-plugin"),
        *("tags: [audio-captioning, diffusion-link]", "---", "", "# Captioner", ""),
        f"CLAP ({config['clap']}), the bridge `{captioner.bridge.name}` and a decoder "
        f"({captioner.decoder.lm_training}), saved by dlink-plugin.",
        "",
    ]
    if "data" in about:
        lines += [f"Scored on: {about['data']}, {about.get('clips', '?')} clips.", ""]
    if scores:
        lines += ["| score | |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in scores.items()] + [""]
    if "command" in about:
        lines += ["Trained with:", "", "```bash", about["command"], "```", ""]
    lines += [
        "```python",
        "from dlink_plugin import Captioner",
        "",
        'captioner = Captioner.from_pretrained("this/folder")',
        'print(captioner.caption(["sound.wav"])[0].caption)',
        "```",
    ]
    return "\n".join(lines) + "\n"
