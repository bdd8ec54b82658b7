import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch

from dlink_plugin import compat

NAME = "torchaudio"
COMPLETE = {
    "__init__.py": """
        from . import _extension, functional
        class AudioMetaData: pass
        def info(uri): return "native info"
        def load(uri): return "native load"
        NAMES = AudioMetaData, info, load
    """,
    "_extension.py": """
        _IS_TORCHAUDIO_EXT_AVAILABLE = True
        def fail_if_no_align(function): return function
    """,
    "functional.py": """
        from torchaudio._extension import fail_if_no_align
        from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE as NATIVE
        @fail_if_no_align
        def forced_align(x): return x
        def resample(x): return x
    """,
}
WITHOUT_NAMES = {**COMPLETE, "__init__.py": "from . import _extension, functional"}
BROKEN = {
    **WITHOUT_NAMES,
    "__init__.py": """
        from . import early
        from . import _extension, functional
    """,
    "early.py": "",
    "_extension.py": "raise OSError('libc10_cuda.so: cannot open shared object')",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a torchaudio of the given files in the place of the installed one."""
    installed = {n: m for n, m in sys.modules.items() if n.split(".")[0] == NAME}
    for name in installed:
        monkeypatch.delitem(sys.modules, name)

    def install(files):
        for name, text in files.items():
            path = tmp_path / NAME / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in [n for n in sys.modules if n.split(".")[0] == NAME]:
        del sys.modules[name]


@pytest.fixture
def recording(tmp_path):
    """0.5 s of stereo noise, and its samples as soundfile reads them."""
    path = tmp_path / "noise.flac"
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (4000, 2))
    soundfile.write(path, noise, 8000, subtype="PCM_16")
    return path, soundfile.read(path, dtype="float32")[0]


# Healthy


def test_a_healthy_torchaudio_is_left_untouched(install):
    install(COMPLETE)
    torchaudio = compat.ensure_torchaudio()
    before = dict(vars(torchaudio))
    assert torchaudio is sys.modules[NAME] is compat.ensure_torchaudio()
    names = torchaudio.AudioMetaData, torchaudio.info, torchaudio.load
    assert names == torchaudio.NAMES
    assert vars(torchaudio) == before
    assert torchaudio.functional.NATIVE
    assert torchaudio.functional.forced_align(3) == 3


def test_a_healthy_library_stays_where_only_names_are_missing(install):
    install(WITHOUT_NAMES)
    torchaudio = compat.ensure_torchaudio()
    assert torchaudio.functional.NATIVE
    assert torchaudio.functional.forced_align(3) == 3
    assert torchaudio.AudioMetaData is compat.AudioMetaData


# Broken


def test_a_broken_native_library_gets_a_stand_in(install):
    install(BROKEN)
    with pytest.raises(OSError, match="libc10_cuda"):
        import torchaudio  # noqa: F401
    torchaudio = compat.ensure_torchaudio()
    assert not torchaudio.functional.NATIVE
    assert torchaudio.functional.resample(3) == 3
    assert torchaudio._extension is sys.modules["torchaudio._extension"]
    # No half-initialized leftover of the failed import
    assert torchaudio.early is sys.modules["torchaudio.early"]
    assert torchaudio.AudioMetaData is compat.AudioMetaData


def test_what_needs_the_native_library_says_so(install):
    install(BROKEN)
    align = compat.ensure_torchaudio().functional.forced_align
    assert align.__name__ == "forced_align"
    with pytest.raises(RuntimeError, match="forced_align needs its native library"):
        align(3)


def test_a_second_call_changes_nothing(install):
    install(BROKEN)
    first = compat.ensure_torchaudio()
    names = dict(vars(first))
    assert compat.ensure_torchaudio() is first
    assert vars(first) == names


def test_a_library_for_another_cuda_gets_a_stand_in(install):
    """torchaudio raises this where its library loads but torch has another CUDA."""
    text = "raise RuntimeError('compiled with different CUDA versions')"
    install({**BROKEN, "_extension.py": text})
    assert not compat.ensure_torchaudio().functional.NATIVE


def test_releases_up_to_2_8_get_the_stand_in_they_need(install):
    """They ask the extension for sox at import, and load files through it."""
    backend = """
        from torchaudio._extension import fail_if_no_rir, lazy_import_sox_ext
        available = lazy_import_sox_ext().is_available()
    """
    init = COMPLETE["__init__.py"].replace("functional", "functional, backend")
    install({**BROKEN, "__init__.py": init, "backend.py": backend})
    torchaudio = compat.ensure_torchaudio()
    assert not torchaudio.backend.available
    assert torchaudio.load("x") == "native load"


def test_not_installed_is_an_import_error(install, monkeypatch):
    monkeypatch.setitem(sys.modules, NAME, None)
    with pytest.raises(ImportError):
        compat.ensure_torchaudio()


# The names over soundfile


@pytest.fixture
def torchaudio(install):
    install(WITHOUT_NAMES)
    return compat.ensure_torchaudio()


def test_info_agrees_with_the_file(torchaudio, recording):
    path, samples = recording
    for uri in (path, str(path)):
        found = torchaudio.info(uri)
        assert isinstance(found, torchaudio.AudioMetaData)
        assert (found.sample_rate, found.num_frames) == (8000, len(samples))
        assert (found.num_channels, found.encoding) == (2, "PCM_16")


@pytest.mark.parametrize(
    "options, part",
    [
        ({}, slice(None)),
        ({"frame_offset": 1000}, slice(1000, None)),
        ({"num_frames": 300}, slice(300)),
        ({"frame_offset": 3900, "num_frames": 50}, slice(3900, 3950)),
        ({"frame_offset": 3900, "num_frames": 500}, slice(3900, None)),
    ],
)
def test_load_agrees_with_soundfile(torchaudio, recording, options, part):
    path, samples = recording
    expected = torch.from_numpy(samples[part])
    waveform, rate = torchaudio.load(path, **options)
    assert rate == 8000 and waveform.dtype == torch.float32
    assert waveform.is_contiguous() and torch.equal(waveform, expected.T)
    waveform, _ = torchaudio.load(str(path), channels_first=False, **options)
    assert torch.equal(waveform, expected)


def test_load_keeps_the_channel_of_a_mono_file(torchaudio, tmp_path):
    path = tmp_path / "mono.wav"
    soundfile.write(path, np.zeros(100), 16_000)
    assert torchaudio.load(path)[0].shape == (1, 100)


# The installation these tests run in


def test_what_we_call_of_torchaudio_works_here():
    torchaudio = compat.ensure_torchaudio()
    tone = torch.sin(torch.arange(1600) * 0.1)[None]
    assert torchaudio.functional.resample(tone, 16_000, 8000).shape == (1, 800)
    import aac_datasets
    import speechbrain

    assert aac_datasets.AudioCaps and speechbrain.Brain
