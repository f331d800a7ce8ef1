"""What `bench train` and `bench gpu` run in processes of their own."""

GPU_PEAK = "most bytes of the GPU:"
"""Said by a peer that trained on a GPU, the number behind it."""
