"""Training with Lightning Fabric as the launcher.

    python docs/launchers/fabric_training.py config.toml runs/fabric 2

Fabric starts the processes and makes the process group; training finds it. There is nothing to ``setup``: the trainer
shares out the episodes and sums the gradients itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_fabric import Fabric

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.runs.train import train_router

fabric = Fabric(accelerator="auto", devices=int(sys.argv[3]), strategy="ddp")
fabric.launch()
classifier, history = train_router(load_config(Path(sys.argv[1])), fabric.device, folder=Path(sys.argv[2]))
fabric.print(f"{fabric.world_size} processes, validation loss {history['validation_loss'].iloc[-1]:.6f}")
