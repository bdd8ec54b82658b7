"""The embedded default: synthetic sound scenes with captions, and a small CLAP.

It is a stand-in for running, testing and comparing without downloads. Scores measured
on it say nothing about real recordings, and every table made with it says so.
"""
