"""What a training's files and modes are called, for those who load no model library; knows nothing else."""

from __future__ import annotations

from typing import Literal

# What the folder's training was told and what came of it, and where a run that was killed goes on from.
MANIFEST = "training_manifest.json"
STATE = "state"
# Go on where there is something to go on with, else begin; only go on; begin, with the old run set aside.
Mode = Literal["auto", "resume", "fresh"]
