"""Training with Hugging Face accelerate as the launcher.

    accelerate launch --multi_gpu --num_processes 2 docs/launchers/accelerate_training.py config.toml runs/accelerate
    torchrun --nproc-per-node 2 docs/launchers/accelerate_training.py config.toml runs/accelerate  # without GPUs

accelerate starts the processes and makes the process group; training finds it. There is nothing to ``prepare``: the
trainer shares out the episodes and sums the gradients itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.runs.train import train_router

accelerator = Accelerator(cpu=not torch.cuda.is_available())
classifier, history = train_router(load_config(Path(sys.argv[1])), accelerator.device, folder=Path(sys.argv[2]))
accelerator.print(f"{accelerator.num_processes} processes, validation loss {history['validation_loss'].iloc[-1]:.6f}")
accelerator.end_training()
