"""The demo page: drop or record a sound, read it with and without the bridge."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .audio import BadAudio, load_audio
from .captioner import Captioner
from .figures import journey

__all__ = ["build_page", "serve"]

_ALTERNATIVES = 4
# What a page takes: more would keep others waiting, or fill the disk.
_SECONDS = 600
_FILE_SIZE = "200mb"
_WAITING = 16
_ABOUT = (
    "# Diffusion-Link\nDrop or record a sound. CLAP hears it, the bridge takes it to "
    "the text embeddings, and a decoder writes a caption of what it reads there."
)


def serve(captioner: Captioner, port: int) -> None:
    """Show the page on this machine alone until the program is stopped.

    Sounds of up to 200 MB and ten minutes are taken, one after the other; 16 may wait.
    No file but those that were dropped or recorded on the page is read or handed out.

    Arguments
    ---------
    captioner : Captioner
        See ``build_page``.
    port : int
        Of the page.

    Raises
    ------
    OSError
        If the port is taken.
    """
    page = build_page(captioner).queue(max_size=_WAITING)
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        max_file_size=_FILE_SIZE,
        allowed_paths=[],
    )


def build_page(captioner: Captioner) -> gr.Blocks:
    """The page; ``serve`` shows it.

    Arguments
    ---------
    captioner : Captioner
        With some ``texts``, which make the map.

    Returns
    -------
    page : gradio.Blocks
    """
    texts = captioner.encoder.encode_text(captioner.texts).cpu()

    def listen(path: str | None):
        # Gradio checks it too, but not all of its releases check every kind of call.
        kept = Path(sound.GRADIO_CACHE).resolve()
        if path is None or not Path(path).resolve().is_relative_to(kept):
            raise gr.Error("Drop a sound or record one first.")
        rate = captioner.encoder.sample_rate
        try:
            waveform = load_audio(path, rate, max_seconds=_SECONDS)
        except BadAudio as error:
            # The path is the server's own business.
            raise gr.Error(str(error).replace(path, Path(path).name)) from error
        options = {"alternatives": _ALTERNATIVES, "raw": True}
        (result,) = captioner.caption([(waveform, rate)], **options)
        others = "\n".join(f"- {text}" for text in result.alternatives)
        similarity = f"{result.similarity:.2f}"
        drawn = None
        if len(texts) > 1:
            where = captioner.locate((waveform, rate))
            drawn = _picture(journey(texts, *where, captioner.texts))
        return result.caption, result.raw_caption or "", similarity, others, drawn

    with gr.Blocks(title="Diffusion-Link") as page:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column():
                sources = ["upload", "microphone"]
                sound = gr.Audio(sources=sources, type="filepath", label="Sound")
                button = gr.Button("Caption", variant="primary", elem_id="caption")
                bridged = gr.Textbox(label="With the bridge", elem_id="bridged")
                raw = gr.Textbox(label="Without the bridge", elem_id="raw")
                similarity = gr.Textbox(label="CLAP similarity of caption and sound")
                gr.Markdown("**Alternatives**, the most similar to the sound first")
                others = gr.Markdown(elem_id="alternatives")
            with gr.Column():
                gr.Markdown(
                    "**Where it moved** in the map of text embeddings; lines lead "
                    "to the texts nearest to where it arrived"
                )
                options = {"show_label": False, "format": "png", "elem_id": "map"}
                drawn = gr.Image(interactive=False, **options)
        shown = [bridged, raw, similarity, others, drawn]
        button.click(listen, sound, shown, api_name="caption")
    return page


def _picture(figure: Figure) -> np.ndarray:
    """(height, width, 3) bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
