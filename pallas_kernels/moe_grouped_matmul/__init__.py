"""Products of tokens with the quantised matrices of the experts that each of them goes to, for GPUs and TPUs."""

from pallas_kernels.moe_grouped_matmul.product import moe_grouped_matmul, reference_grouped_matmul

__all__ = ["moe_grouped_matmul", "reference_grouped_matmul"]
