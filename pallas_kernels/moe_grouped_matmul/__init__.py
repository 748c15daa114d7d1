"""Products of tokens with the quantised matrices of the experts that each of them goes to, for GPUs and TPUs."""

from pallas_kernels.moe_grouped_matmul.config import block_rows
from pallas_kernels.moe_grouped_matmul.product import moe_grouped_matmul, reference_grouped_matmul
from pallas_kernels.moe_grouped_matmul.routing import Blocks, Routing, combine, gather, route

__all__ = [
    "Blocks",
    "Routing",
    "block_rows",
    "combine",
    "gather",
    "moe_grouped_matmul",
    "reference_grouped_matmul",
    "route",
]
