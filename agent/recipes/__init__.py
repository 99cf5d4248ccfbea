"""What runs inside the sandbox. `catalog` is pure and shared; the rest may import torch."""
