"""One thread: the models of the tests are tiny, and a busy machine then slows them evenly instead of stalling them."""

import torch

torch.set_num_threads(1)
