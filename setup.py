"""Installation of dlink-plugin. One reason stands beside every upper bound."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "torch>=2.7.1,<2.14",  # 2.14 has no CPU wheel that the packages below were run with
    "torchaudio>=2.7.1,<2.12",  # 2.11 is the last release that compat.py was run with
    "speechbrain>=1.1.2,<1.2",  # Brain and checkpoint hooks move with minors
    "hyperpyyaml>=1.2.3,<2",  # 1.2.3 keeps out the ruamel.yaml that breaks every load
    "transformers>=4.57,<5",  # msclap, which aac-metrics needs, stops at 5
    "huggingface_hub>=0.34,<1",  # transformers 4.57 stops at 1
    "numpy>=1.26,<2",  # msclap and laion-clap stop at 2
    "pandas>=2,<3",  # msclap stops at 3
    "librosa>=0.10.1,<0.11",  # msclap stops at 0.11
    "pyarrow>=16,<25",  # later builds refuse numpy 1, which pip cannot see
    "datasets>=3.1,<5",  # 5 wants a newer huggingface_hub
    "aac-datasets>=0.7,<0.8",  # compat.py supplies the torchaudio names 0.7 asks for
    "aac-metrics>=0.5.5,<0.6",  # 0.6 needs a yanked pythonwrench
    "peft>=0.17",
    "safetensors>=0.4.5",  # earlier ones do not read a file without tensors
    "filelock>=3.12,<5",  # with huggingface_hub; 5 is not written yet
    "soundfile>=0.13.1",
    "soxr>=0.5",
    "scikit-learn>=1.4",
    "threadpoolctl>=3.1,<4",  # scikit-learn's own: one thread where more are slower
    "matplotlib>=3.8",
    "tensorboard>=2.16.2",  # 2.16.0 brings all of TensorFlow
    "tqdm>=4.66",
    "typer>=0.12,<1",  # with rich, the dlink command; 1 is not written yet
]

EXTRAS_REQUIRE = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.5",  # the recipes' tests wait for subprocesses: two at a time
        "ruff>=0.17,<0.18",  # a newer one reformats
        "psutil>=5.9",
        "hypothesis>=6.100,<7",
        "selenium>=4.20,<5",  # drives the demo page, where there is a Chromium
    ],
    "clap": ["laion-clap>=1.1.7,<2", "torchvision"],  # 2 is not written yet
    "meteor": [
        "pycocoevalcap==1.2"
    ],  # its jars are laid out by hand, release by release
    "demo": ["gradio>=5,<6.18"],  # 6.18 wants a newer huggingface_hub
}

setup(
    name="dlink-plugin",
    version="0.1.0",
    description="A diffusion bridge over the audio-text modality gap of CLAP",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["dlink_plugin", "dlink_plugin.*"]),
    package_data={"dlink_plugin": ["py.typed", "mini/clap/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["dlink = dlink_plugin.cli:main"]},
)
