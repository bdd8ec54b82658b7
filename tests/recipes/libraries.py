"""What recipes import, for the process that their tests are forked from."""

# ruff: noqa: F401
import dlink_plugin.compat

import matplotlib.figure
import sklearn.metrics
import speechbrain
import tensorboard
import transformers

import dlink_plugin.brains
import dlink_plugin.comparison
import dlink_plugin.tasks
